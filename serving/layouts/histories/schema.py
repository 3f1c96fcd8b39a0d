"""Requests of a history and candidates as JSON Schema."""

from __future__ import annotations

from lookback.formats.history_columns import TIMESTAMP
from lookback.serving.columns import CANDIDATES, HISTORY
from lookback.serving.json_schemas import (
    ASCENDING,
    Schema,
    at_most,
    lists_schema,
    object_schema,
    value_schema,
)
from lookback.serving.layouts.histories.requests import MOST_SECONDS, HistoryRequestEncoder
from lookback.serving.manifest import HistoriesManifest

_CATALOGUE = "May be left out where the catalogue knows all items."
_UNREAD = "The model does not read it."


def history_request_schema(
    manifest: HistoriesManifest, encoder: HistoryRequestEncoder, most: int | None
) -> Schema:
    """What a request must be; see `serving.layouts.histories.requests`.

    Args:
      manifest: of the bundle.
      encoder: of the bundle.
      most: candidates that a request may name; None: any number.
    """
    values = {name: value_schema(of) for name, of in encoder.encoders.items()}
    needed, optional = encoder.item_fields
    items = {name: values[name] for name in needed}
    items |= {name: {**values[name], "description": _CATALOGUE} for name in optional}
    of_events = (*manifest.context_features, *manifest.event_features)
    seconds: Schema = {"description": _UNREAD}
    if manifest.time_features:
        seconds = {
            "type": "integer",
            "minimum": -MOST_SECONDS,
            "maximum": MOST_SECONDS,
            "description": "seconds since 1970",
        }
    # All that is said of events alone may be left out where there are none.
    read = [*of_events, *([TIMESTAMP] if manifest.time_features else [])]
    without = {"properties": {needed[0]: {"maxItems": 0}}}
    past = lists_schema(
        {**items, **{name: values[name] for name in of_events}, TIMESTAMP: seconds},
        (*optional, *of_events, TIMESTAMP),
    )
    if read:
        past["anyOf"] = [without, {"required": read}]
    if manifest.time_features:
        past["properties"][TIMESTAMP][ASCENDING] = True
    past["description"] = f"oldest first; the newest {manifest.max_seq_length} events are read"
    of_user = (*manifest.user_features, *manifest.context_features)
    request = object_schema(
        {
            **{name: values[name] for name in of_user},
            HISTORY: past,
            CANDIDATES: lists_schema(items, optional, minItems=1, **at_most(most)),
            TIMESTAMP: seconds,
        },
        (TIMESTAMP,),
    )
    if manifest.time_features:
        request["anyOf"] = [{"properties": {HISTORY: without}}, {"required": [TIMESTAMP]}]
    return request

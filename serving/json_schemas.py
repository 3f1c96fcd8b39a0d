"""Requests and answers as JSON Schema (draft 2020-12): the part that all layouts share.

What that language cannot say stands in two keywords of ours, which others ignore: `x-equalLengths`
of an object of lists that are all of one length, and `x-ascending` of a list whose numbers do not
decrease. Integers are written without a decimal point: 1.0 is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from lookback.serving.encoding import EncodedIds, VocabularyEncoder
from lookback.serving.feature_encoders import BagEncoder, HashEncoder

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
EQUAL_LENGTHS, ASCENDING = "x-equalLengths", "x-ascending"

NUMBER: Schema = {"type": ["number", "null"]}
"""Null is a missing one. What it is transformed to must be one that float32 holds."""
TEXT: Schema = {"type": ["string", "null"]}
SCORES: Mapping[str, Schema] = {
    "probability": {"type": "number", "minimum": 0, "maximum": 1},
    "logit": {"type": "number"},
}

_INT64 = np.iinfo(np.int64)


def value_schema(encoder: Any) -> Schema:
    """What a value of a feature may be.

    Args:
      encoder: of the feature.
    """
    if isinstance(encoder, EncodedIds):
        return {"type": "integer", "minimum": encoder.lowest, "maximum": encoder.rows - 1}
    if isinstance(encoder, VocabularyEncoder):
        if pa.types.is_integer(encoder.raw(np.zeros(0, np.int32)).type):
            return _INTEGER
        return TEXT
    if isinstance(encoder, HashEncoder):
        return {"type": ["string", "integer", "null"]}
    if isinstance(encoder, BagEncoder):
        # Whatever the vocabulary's type, categories of a bag were read as text.
        return {"type": ["array", "null"], "items": {"type": ["string", "integer"]}}
    return NUMBER


def object_schema(
    properties: Mapping[str, Schema], optional: Iterable[str] = (), **more: Any
) -> Schema:
    """An object of these keys and no others.

    Args:
      properties: of all keys.
      optional: those that may be left out.
      **more: keywords.
    """
    left_out = set(optional)
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in left_out],
        "additionalProperties": False,
        **more,
    }


def lists_schema(
    columns: Mapping[str, Schema], optional: Iterable[str] = (), **of_lists: Any
) -> Schema:
    """An object of lists of one length.

    Args:
      columns: of the values of each.
      optional: those that may be left out.
      **of_lists: keywords of each list.
    """
    lists = {n: {"type": "array", "items": of, **of_lists} for n, of in columns.items()}
    return object_schema(lists, optional, **{EQUAL_LENGTHS: True})


def stored_schema(request: Schema, user: Schema, user_id: str, of_user: Iterable[str]) -> Schema:
    """A request of which a store may know the history, and the user's features with it.

    Args:
      request: with a history.
      user: of the id that names a user.
      user_id: the feature that is such an id; else the key is ``user``.
      of_user: the user's features.
    """
    known = {*of_user, "history"}
    properties = {n: v for n, v in request["properties"].items() if n != "history"}
    named = {
        **{n: v for n, v in request.items() if n != "anyOf"},
        "properties": {**properties, "user": user, user_id: user},
        "required": [name for name in request["required"] if name not in known],
        "anyOf": [{"required": ["user"]}, {"required": [user_id]}],
    }
    return {"anyOf": [request, named]}


def stored_pairs_schema(request: Schema, user: Schema, user_id: str) -> Schema:
    """A request of pairs, of which a store may know what its user has seen.

    Args:
      request: in any of its forms.
      user: of the id that names a user of the store.
      user_id: the feature by which a request names its user else.
    """

    def named(form: Schema) -> Schema:
        properties = {n: v for n, v in form["properties"].items() if n != user_id}
        needed = [name for name in form["required"] if name != user_id]
        return {**form, "properties": {**properties, "user": user}, "required": [*needed, "user"]}

    return {**request, "anyOf": [*request["anyOf"], *map(named, request["anyOf"])]}


def at_most(most: int | None) -> Schema:
    """The keyword of a list that has a bound; none without one."""
    return {} if most is None else {"maxItems": most}


def ranking_schema(user: Mapping[str, Schema], item: Mapping[str, Schema], known: bool) -> Schema:
    """The answer of a layout that ranks items of a user.

    Args:
      user: of the user features.
      item: of the item features, the id first; the others are as the request gave them.
      known: whether it says of items whether they are known.
    """
    told: dict[str, Schema] = {"known": {"type": "boolean"}} if known else {}
    _, *others = item
    scored = object_schema({**item, **SCORES, **told}, others)
    return object_schema({**user, "candidates": {"type": "array", "items": scored}})


_INTEGER: Schema = {
    "type": ["integer", "null"],
    "minimum": int(_INT64.min),
    "maximum": int(_INT64.max),
}

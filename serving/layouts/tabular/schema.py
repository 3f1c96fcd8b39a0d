"""Requests of rows as JSON Schema."""

from __future__ import annotations

from typing import Any

import numpy as np

from lookback.formats.tabular_columns import CATEGORICAL, NUMERICAL
from lookback.serving.json_schemas import TEXT, Schema, object_schema, value_schema
from lookback.serving.layouts.tabular.encoding import EncodedNumbers, KeyVocabulary
from lookback.serving.layouts.tabular.requests import RowEncoder

_LARGEST = float(np.finfo(np.float32).max)


def row_schema(encoder: RowEncoder) -> Schema:
    """A row in either of its forms: two lists, or a value by each name.

    Args:
      encoder: of the bundle.
    """
    values = {name: _value(of) for name, of in encoder.encoders.items()}
    lists = {
        part: {
            "type": "array",
            "prefixItems": [values[name] for name in names],
            "minItems": len(names),
            "maxItems": len(names),
            "description": ", ".join(names),
        }
        for part, names in ((NUMERICAL, encoder.numerical), (CATEGORICAL, encoder.categorical))
    }
    names = (*encoder.numerical, *encoder.categorical)
    by_name = object_schema({name: values[name] for name in names})
    return {"anyOf": [object_schema(lists), by_name]}


def _value(encoder: Any) -> Schema:
    if isinstance(encoder, KeyVocabulary):
        return TEXT
    if isinstance(encoder, EncodedNumbers):
        return {"type": "number", "minimum": -_LARGEST, "maximum": _LARGEST}
    return value_schema(encoder)

"""The JSON Schema of descriptions: by it editors complete them, and mark what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lookback.core.options import Option
from lookback.core.options.nested import parts_of, schema_of
from lookback.workflows.log.description import NEEDED_OF_EVENTS, LogFile

SCHEMA = Path(__file__).with_name("schema.json")
"""`log_schema` of the options of ``workflows run`` for both layouts; a test keeps it equal."""


def log_schema(beside: Mapping[str, Option]) -> dict[str, Any]:
    """The schema of a file that describes a log.

    Args:
      beside: options that it may have beside its own keys, by name.
    """
    definitions: dict[str, Any] = {}
    LogFile.schema(definitions)
    top = definitions.pop(LogFile.__name__)
    rows = {"properties": {"layout": {"enum": ["tabular"]}}, "required": ["layout"]}
    there = {key: {"type": ["string", "integer", "object"]} for key in NEEDED_OF_EVENTS}
    histories = {"properties": {"events": {"required": list(there), "properties": there}}}
    top["allOf"].append({"anyOf": [rows, histories]})
    own = {part.key for part in parts_of(LogFile)}
    for name, found in beside.items():
        if name not in own:
            top["properties"][name] = schema_of(found, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A log for Lookback",
        **top,
        "$defs": dict(sorted(definitions.items())),
    }


def schema_text(beside: Mapping[str, Option]) -> str:
    """`log_schema` as the text of a file."""
    return json.dumps(log_schema(beside), indent=1, ensure_ascii=False) + "\n"

"""Options made of a config's fields: some of them, or all as changes to one that is there."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable
from typing import Any

from lookback.core.options.option import check_options


def without(config: type, *names: str) -> type:
    """A dataclass with the options of a config but for some, to be given to the config later.

    Args:
      config: the dataclass.
      *names: its fields to leave out.
    """
    hints = typing.get_type_hints(config)
    kept = [field for field in dataclasses.fields(config) if field.name not in names]
    return _made(
        config,
        (
            (
                field.name,
                hints[field.name],
                dataclasses.field(default=field.default, metadata=field.metadata),
            )
            for field in kept
        ),
    )


def changes(config: type, unchanged: str) -> type:
    """A dataclass with the options of a config, all None by default: what is to be changed of one.

    Options that are None by default say themselves what that means.

    Args:
      config: the dataclass; its fields are `option`s.
      unchanged: what an option is that is not given, such as "the preset's".
    """
    hints = typing.get_type_hints(config)
    return _made(
        config,
        (
            (field.name, hints[field.name] | None, _unchanged(field, unchanged))
            for field in dataclasses.fields(config)
        ),
    )


def changed(chosen: Any) -> dict[str, Any]:
    """The options of an instance of what `changes` made that were given, by name."""
    return {name: value for name, value in vars(chosen).items() if value is not None}


def _made(config: type, fields: Iterable[tuple[str, Any, Any]]) -> type:
    scope = getattr(config, "scope", config.__name__)
    own = {"scope": scope, "__post_init__": check_options}
    return dataclasses.make_dataclass(config.__name__, list(fields), frozen=True, namespace=own)


def _unchanged(field: dataclasses.Field[Any], meaning: str) -> Any:
    text = field.metadata["help"]
    sentence = text if field.default is None else f"{text}; none: {meaning}"
    return dataclasses.field(default=None, metadata={**field.metadata, "help": sentence})

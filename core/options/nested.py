"""Options in options: what a YAML file describes with mappings in mappings, as frozen dataclasses.

A field of a `Nested` class is an `option`, another `Nested`, a list of them, or a mapping of names
to them. Everything that is wrong with a file is found in one pass, and named by its path and line.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lookback.core.errors import UserError, shown
from lookback.core.options.needs import SET, Condition, alternatives, are_met, words
from lookback.core.options.option import Option, Structure, option_of
from lookback.core.yaml_files import Place

MOST_PROBLEMS = 10
"""That are named of a file."""

NestedT = TypeVar("NestedT", bound="Nested")


class Nested(Structure):
    """A frozen dataclass whose fields are `option`s, or `Nested` themselves.

    Annotations may be what an option's may be, a `Nested` class, ``tuple[Nested, ...]``,
    ``Mapping[str, Nested]``, and ``X | None``. A field is the key of its name; one that ends in an
    underscore, as Python's own words must, is the key without.

    Attributes:
      shorthand: the field that a single word or number in place of the mapping is; None: none.
    """

    shorthand: ClassVar[str | None] = None

    @classmethod
    def read(cls: type[NestedT], raw: object, source: str) -> NestedT:
        """See `Structure.read`."""
        if isinstance(raw, cls):
            return raw
        problems = Problems(source)
        value = read_nested(cls, raw, problems)
        problems.raise_any()
        return typing.cast(NestedT, value)

    def content(self) -> dict[str, Any]:
        """See `Structure.content`; without what is at its default."""
        found = {}
        for part in parts_of(type(self)):
            value = getattr(self, part.field.name)
            if part.required or value != part.default:
                found[part.key] = _content(value)
        return found

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """What is wrong with fields beside each other: the place below this one, and the sentence.

        A class that has such rules says them here; it is asked once each field is right by itself.
        """
        yield from ()

    @classmethod
    def schema(cls, definitions: dict[str, Any]) -> dict[str, Any]:
        """See `Structure.schema`."""
        name = cls.__name__
        if name not in definitions:
            definitions[name] = {}  # it may refer to itself
            definitions[name] = _schema(cls, definitions)
        return {"$ref": f"#/$defs/{name}"}


class Problems:
    """Collects what is wrong with a file.

    Args:
      source: names the file.
      lines: of each place; see `core.yaml_files.yaml_lines`.
    """

    def __init__(self, source: str, lines: Mapping[Place, int] | None = None) -> None:
        self._source = source
        self._lines = lines or {}
        self._found: list[tuple[Place, str]] = []

    def add(self, place: Place, sentence: str) -> None:
        """Records that something is wrong at `place`."""
        self._found.append((place, sentence))

    def raise_any(self) -> None:
        """Raises an error that names all that was found.

        Raises:
          UserError: if there is anything.
        """
        if not self._found:
            return
        lines = [self._line_of(*found) for found in sorted(self._found, key=self._order)]
        if len(lines) == 1:
            raise UserError(f"{self._source}: {lines[0]}")
        more = len(lines) - MOST_PROBLEMS
        lines = lines[:MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        count = len(self._found)
        raise UserError("\n  ".join([f"{self._source}: {count} things are wrong with it:", *lines]))

    def _order(self, found: tuple[Place, str]) -> int:
        return self._line(found[0]) or 0

    def _line(self, place: Place) -> int | None:
        """That of a place, or of what it would be in."""
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place)

    def _line_of(self, place: Place, sentence: str) -> str:
        line = self._line(place)
        where = f" (line {line})" if line is not None else ""
        return f"{dotted(place)}{where}: {sentence}" if place or where else sentence


@dataclasses.dataclass(frozen=True)
class NestedField:
    """A field of a `Nested` class.

    Attributes:
      key: its name in a file.
      field: the field.
      option: what it is as an option; None of other `Nested` ones.
      nested: the class of the others, else None.
      many: "list" or "mapping" of `nested`, or "" of a single one.
    """

    key: str
    field: dataclasses.Field[Any]
    option: Option | None
    nested: type[Nested] | None = None
    many: str = ""

    @property
    def help(self) -> str:
        """One line on it."""
        return str(self.field.metadata.get("help", ""))

    @property
    def default(self) -> Any:
        """Its value where none is given."""
        if self.field.default_factory is not dataclasses.MISSING:
            return self.field.default_factory()
        return self.field.default

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is dataclasses.MISSING

    @property
    def needs(self) -> tuple[Condition, ...]:
        """Conditions on the other fields, one of which must hold for it to be given."""
        return alternatives(self.field.metadata.get("needs"))


@functools.cache
def parts_of(config: type[Nested]) -> tuple[NestedField, ...]:
    """The fields of a `Nested` class, in order."""
    hints = typing.get_type_hints(config)
    return tuple(
        _part(config, field, hints)
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
    )


def dotted(place: Place) -> str:
    """A place as people write it: ``items.features.price``, ``events.where[0]``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return text.removeprefix(".")


def read_nested(
    config: type[NestedT], raw: object, problems: Problems, place: Place = ()
) -> NestedT | None:
    """An instance of a class as a file describes it; None where something is wrong with it.

    Args:
      config: the class.
      raw: what YAML or JSON made of the file.
      problems: is told what is wrong.
      place: where in the file `raw` is.
    """
    parts = {part.key: part for part in parts_of(config)}
    if config.shorthand is not None and isinstance(raw, str | int) and not isinstance(raw, bool):
        raw = {config.shorthand: raw}
    if not isinstance(raw, Mapping):
        problems.add(place, f"expected a mapping with {_listed(parts)}, received {shown(raw)}.")
        return None
    good = True
    for key in raw:
        if key not in parts:
            problems.add((*place, str(key)), unknown_key(key, parts))
            good = False
    values = {}
    for key, part in parts.items():
        if key in raw:
            read, value = _read_part(part, raw[key], problems, (*place, key))
            good &= read
            if read:
                values[part.field.name] = value
        elif part.required:
            problems.add((*place, key), f"expected this key: {part.help}.")
            good = False
        else:
            values[part.field.name] = part.default
    good &= _needs_hold(config, raw, values, problems, place)
    if not good:
        return None
    made = config(**values)
    wrong = list(made.contradictions())
    for below, sentence in wrong:
        problems.add((*place, *below), sentence)
    return None if wrong else made


def unknown_key(key: object, known: Mapping[str, object]) -> str:
    """The sentence on a key that nothing has."""
    close = difflib.get_close_matches(str(key), known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known are {_listed(known)}."
    return f"there is no such key. {hint}"


def _part(
    config: type[Nested], field: dataclasses.Field[Any], hints: Mapping[str, Any]
) -> NestedField:
    key = field.name.removesuffix("_")
    hint = hints[field.name]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        hint = arms[0] if len(arms) == 1 else hint
    many, element = "", hint
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and arguments[-1] is Ellipsis:
        many, element = "list", arguments[0]
    elif typing.get_origin(hint) is Mapping or typing.get_origin(hint) is dict:
        many, element = "mapping", arguments[1]
    if isinstance(element, type) and issubclass(element, Nested):
        return NestedField(key, field, None, element, many)
    return NestedField(key, field, option_of(config, field, hints, ""))


def _read_part(
    part: NestedField, raw: object, problems: Problems, place: Place
) -> tuple[bool, Any]:
    """Whether a value is right, and the value."""
    if part.nested is None:
        return _read_option(typing.cast(Option, part.option), raw, problems, place)
    if raw is None and part.default is None:
        return True, None
    if not part.many:
        value = read_nested(part.nested, raw, problems, place)
        return value is not None, value
    if part.many == "list":
        if not isinstance(raw, list):
            problems.add(place, f"expected a list ([..., ...]), received {shown(raw)}.")
            return False, None
        entries = [
            read_nested(part.nested, entry, problems, (*place, number))
            for number, entry in enumerate(raw)
        ]
        return None not in entries, tuple(entries)
    if not isinstance(raw, Mapping):
        problems.add(place, f"expected a mapping of names, received {shown(raw)}.")
        return False, None
    named = {
        str(name): read_nested(part.nested, entry, problems, (*place, str(name)))
        for name, entry in raw.items()
    }
    return None not in named.values(), named


def _read_option(found: Option, raw: object, problems: Problems, place: Place) -> tuple[bool, Any]:
    source = dotted(place)
    if found.is_tuple and isinstance(raw, str):
        raw = [raw]  # commas in a file are the value's own
    try:
        return True, found.read(raw, source)
    except UserError as error:
        problems.add(place, str(error).removeprefix(f"{source}: "))
        return False, None


def _needs_hold(
    config: type[Nested],
    raw: Mapping[Any, Any],
    values: Mapping[str, Any],
    problems: Problems,
    place: Place,
) -> bool:
    """Whether every key that is given has an effect beside the others."""
    good = True
    for part in parts_of(config):
        needs = part.needs
        if part.key in raw and not are_met(needs, values):
            expected = " or ".join(_keys(needed) for needed in needs)
            problems.add((*place, part.key), f"it has an effect only with {expected}. Remove it.")
            good = False
    return good


def _keys(needed: Condition) -> str:
    """A condition in words, as it stands in a file."""
    return " and ".join(
        f"{name}: {' or '.join(words(wanted))}"
        if words(wanted)
        else f"{'a' if wanted is SET else 'no'} {name}"
        for name, wanted in needed.items()
    )


def _content(value: Any) -> Any:
    if isinstance(value, Structure):
        return value.content()
    if isinstance(value, Mapping):
        return {name: _content(entry) for name, entry in value.items()}
    if isinstance(value, tuple):
        return [_content(entry) for entry in value]
    return value


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names)


def _schema(config: type[Nested], definitions: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of one class."""
    parts = parts_of(config)
    found: dict[str, Any] = {
        "type": "object",
        "description": (config.__doc__ or "").partition("\n")[0],
        "properties": {part.key: _schema_of(part, definitions) for part in parts},
        "required": [part.key for part in parts if part.required],
        "additionalProperties": False,
    }
    rules = [rule for part in parts for rule in _rules(part)]
    if rules:
        found["allOf"] = rules
    if config.shorthand is None:
        return found
    return {"anyOf": [{"type": ["string", "integer"]}, found]}


def _schema_of(part: NestedField, definitions: dict[str, Any]) -> dict[str, Any]:
    if part.nested is None:
        return schema_of(typing.cast(Option, part.option), definitions)
    inner = part.nested.schema(definitions)
    if part.many == "list":
        inner = {"type": "array", "items": inner}
    elif part.many == "mapping":
        inner = {"type": "object", "additionalProperties": inner}
    if not part.required and part.default is None:
        inner = {"anyOf": [inner, {"type": "null"}]}
    return {**inner, "description": part.help}


_JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}
_JSON_BOUNDS = {
    "at_least": "minimum",
    "above": "exclusiveMinimum",
    "at_most": "maximum",
    "below": "exclusiveMaximum",
}


def schema_of(found: Option, definitions: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of an option in a YAML file; see `Structure.schema`."""
    if issubclass(found.kind, Structure):
        one = found.kind.schema(definitions)
    elif found.choices is not None:
        one = {"enum": list(found.choices)}
    else:
        bounds = {_JSON_BOUNDS[name]: bound for name, bound in found.bounds}
        one = {"type": _JSON_TYPES[found.kind], **bounds}
        if found.kind is str or found.unit == "bytes":
            one["type"] = ["string", "integer"]  # a name that is a number; a size such as 6GB
    if found.is_tuple:
        least = {"minItems": 1} if found.nonempty else {}
        one = {"anyOf": [one, {"type": "array", "items": one, **least}]}
    if found.is_optional:
        one = {"anyOf": [one, {"type": "null"}]}
    one = {**one, "description": found.help}
    if not found.required and found.default is not None:
        one["default"] = found.write(found.default)
    return one


def _rules(part: NestedField) -> Iterator[dict[str, Any]]:
    """What a key needs of others, where that is a word of theirs."""
    for needed in part.needs:
        enums = {name: {"enum": list(w)} for name, w in needed.items() if isinstance(w, tuple)}
        if len(enums) == len(needed) and len(part.needs) == 1:
            yield {"if": {"required": [part.key]}, "then": {"properties": enums}}

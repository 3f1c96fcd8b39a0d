"""A field of a config dataclass as an option: what it declares, how its values are written."""

from __future__ import annotations

import abc
import dataclasses
import difflib
import functools
import json
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.core.limits import MOST_INTEGER
from lookback.core.options.needs import Condition, Needs, alternatives, unmet
from lookback.core.paths import refuse_address
from lookback.core.sizes import parse_size

_SCALARS: dict[type, tuple[str, str]] = {  # type -> (name in --help, words in an error)
    int: ("INT", "an integer"),
    float: ("FLOAT", "a number"),
    str: ("TEXT", "text"),
    Path: ("PATH", "a path"),
}
_PARTS = ("YAML", "a mapping, in a file of --config")
_SIZE = ("SIZE", "a size like 80GB, 40GiB or 1000000")
_INTEGER = re.compile(r"[-+]?\d{1,30}")  # not all that int() takes: 1_0 is a mistake
_SHOWN = 80  # characters of a wrong value
_PATH_MAX, _NAME_MAX = 4096, 255  # bytes, of Linux' limits.h; the first with a closing zero


class Structure(abc.ABC):
    """A value of several parts, for which a command line is too narrow: `--config` alone gives it.

    See `core.options.nested`.
    """

    @classmethod
    @abc.abstractmethod
    def read(cls, raw: object, source: str) -> Any:
        """The value that `raw` describes: what YAML or JSON made of a file, or the value itself.

        Raises:
          UserError: naming `source` and all that is wrong with it.
        """

    @abc.abstractmethod
    def content(self) -> Any:
        """What `read` makes the value of, as JSON has it."""

    @classmethod
    @abc.abstractmethod
    def schema(cls, definitions: dict[str, Any]) -> dict[str, Any]:
        """The JSON Schema of what `read` takes.

        Args:
          definitions: takes the schemas of classes that this one refers to, by name.
        """


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    factory: Callable[[], Any] | None = None,
    scope: str | None = None,
    unit: str | None = None,
    none: tuple[Any, ...] = (),
    choices: Sequence[str] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    limit: float = MOST_INTEGER,
    nonempty: bool = False,
    continued: bool = False,
    positional: bool = False,
    repeatable: bool = False,
    unserved: Mapping[str, str] | None = None,
    needs: Needs | None = None,
    suits: Needs | None = None,
    storage: bool = False,
    younger: bool = False,
) -> Any:
    """A field of a config dataclass that is an option.

    Its annotation may be bool, int, float, str, Path, a Literal of strings, tuple[int|float|str,
    ...], a `Structure`, and any of them ``| None``, where None means absent.

    Args:
      default: its value where none is given; required without one.
      help: one line for `--help` and the documents.
      factory: makes the default, where that is a mapping.
      scope: the group under which it is listed; None: that of its class.
      unit: of a number: "bytes" is read and shown as a size (80GB), others are only shown.
      none: written values that mean None, for the sentinels of older command lines: with (-1,)
        `--seed -1` is None. The word `none` (YAML: null) is so for every optional field.
      choices: the allowed values, if the annotation is not a Literal.
      at_least: bounds of a number, or of each number of a tuple.
      above: likewise.
      at_most: likewise.
      below: likewise.
      limit: of a number, beyond which it is a slip of the hand; said only where it is reached.
      nonempty: whether a text, or a tuple, must hold something.
      continued: whether a run that is continued must have the value of its beginning.
      positional: on the command line it is a word of its own: no `--name` before it.
      repeatable: a tuple whose values are given one by one, `--name` before each; they may have
        commas.
      unserved: data that cannot serve the option -> why, see `refuse_unserved`.
      needs: what other options must be for it to have an effect: else it is refused unless it is at
        its default, see `core.options.needs`.
      suits: the same where it is only named, see `idle`.
      storage: whether it says how something lies in memory, and has no say in what it is.
      younger: whether there are checkpoints of a time before it, of which its default is true.
    """
    given = {
        "help": help,
        "scope": scope,
        "unit": unit,
        "none": none,
        "choices": choices,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "below": below,
        "limit": limit,
        "nonempty": nonempty,
        "continued": continued,
        "positional": positional,
        "repeatable": repeatable,
        "unserved": unserved,
        "needs": needs,
        "suits": suits,
        "storage": storage,
        "younger": younger,
    }
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=given)
    return dataclasses.field(default=default, metadata=given)


@dataclasses.dataclass(frozen=True)
class Option:
    """What `option` and a field's annotation say together.

    Attributes:
      name: the field's name; the flag is `--name`, the YAML key is `name`.
      kind: bool, int, float, str or Path; of a tuple, the type of its elements.
      is_tuple: the value is a tuple of `kind`, written "200,80" or as a YAML list.
      is_optional: None is allowed.
      choices: the allowed values, or None if any value of the type will do.
      default: the default value; `dataclasses.MISSING` if the option is required.
      help: one line.
      scope: the group under which the option is listed.
      none: written values that mean None.
      unit: of a number.
      bounds: ("at_least" | "above" | "at_most" | "below", number), none to two of them.
      limit: the largest number that makes sense.
      nonempty: whether a text, or a tuple, must hold something.
      continued: whether a continued run must have the same.
      positional: whether it is written without a flag.
      repeatable: whether its flag may come several times.
      unserved: data that cannot serve the option -> why.
      needs: conditions, one of which must hold for it to be given.
      suits: conditions, one of which must hold for it to have an effect.
      storage: whether it has no say in what the thing is that it is an option of.
      younger: whether there are checkpoints of a time before it.
    """

    name: str
    kind: type
    is_tuple: bool
    is_optional: bool
    choices: tuple[str, ...] | None
    default: Any
    help: str
    scope: str
    none: tuple[Any, ...] = ()
    unit: str | None = None
    bounds: tuple[tuple[str, float], ...] = ()
    limit: float = MOST_INTEGER
    nonempty: bool = False
    continued: bool = False
    positional: bool = False
    repeatable: bool = False
    unserved: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: tuple[Condition, ...] = ()
    suits: tuple[Condition, ...] = ()
    storage: bool = False
    younger: bool = False

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is dataclasses.MISSING

    @property
    def written(self) -> str:
        """How one writes it on the command line."""
        return self.name.upper() if self.positional else f"--{self.name}"

    @property
    def metavar(self) -> str:
        """The value's place holder in `--help`."""
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        word = self._words[0]
        return f"{word},{word},..." if self.is_tuple and not self.repeatable else word

    @property
    def expected(self) -> str:
        """What a value must be, in words, for error messages."""
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        elif self.kind is bool:
            text = "true or false"
        elif self.is_tuple:
            text = f"{self._words[1]}, or several separated by commas"
        else:
            text = self._words[1]
        text += self._bounds_in_words()
        return f"{text}, or none" if self.is_optional else text

    def read(self, raw: object, source: str) -> Any:
        """The value that `raw` spells.

        Args:
          raw: text from the command line, or what YAML made of the file.
          source: where it came from, for the error message.

        Raises:
          UserError: if it spells no value of this option.
        """
        if self.is_optional and (
            raw is None or (isinstance(raw, str) and raw.strip().lower() == "none")
        ):
            return None
        if any(str(raw) == str(sentinel) for sentinel in self.none):
            return None
        if self.kind is Path and isinstance(raw, str):
            refuse_address(raw, source)
        if issubclass(self.kind, Structure):
            return self.kind.read(raw, source)
        try:
            value = self._convert(raw, source)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UserError(
                f"{source}: expected {self.expected}, received {_shortened(raw)}."
                f"{self._suggestion(raw)}"
            ) from None
        if not isinstance(value, tuple) and value in self.none:
            return None
        self.check(value, source)
        return value

    def check(self, value: Any, source: str) -> None:
        """Refuses a value out of bounds.

        Args:
          value: of the option's type.
          source: names it in the error.

        Raises:
          UserError: naming what is expected.
        """
        plain = self.kind is bool or issubclass(self.kind, Structure)
        if value is None or (plain and not self.choices):
            return
        if self.nonempty and value in ((), ""):
            raise UserError(f"{source}: expected {self.expected}, received nothing.")
        for element in value if isinstance(value, tuple) else (value,):
            if self.choices and element not in self.choices:
                raise UserError(
                    f"{source}: expected {self.expected}, received {_shortened(element)}."
                    f"{self._suggestion(element)}"
                )
            if not self._within_bounds(element):
                shown = element if isinstance(element, str) else self.show(element)
                raise UserError(f"{source}: expected {self.expected}, received {shown}.")
            if isinstance(element, int | float) and abs(element) > self.limit:
                raise UserError(
                    f"{source}: expected {self.show(self.limit)} or less, received "
                    f"{_shortened(element)}."
                )

    def missing(self, *, config: bool = True) -> UserError:
        """The error where no value of a required option is given.

        Args:
          config: whether the command has `--config`, in which it could be given.
        """
        where = "on the command line or in --config" if config else "on the command line"
        return UserError(
            f"{self.written} is required: {self.help or self.expected}. Give it {where}."
        )

    def write(self, value: Any) -> Any:
        """The value as YAML can hold it: tuples become lists, paths text."""
        if isinstance(value, tuple):
            return [self.write(element) for element in value]
        if isinstance(value, Structure):
            return value.content()
        return str(value) if isinstance(value, Path) else value

    def show(self, value: Any) -> str:
        """The value as one would write it on the command line, for tables and `--help`."""
        if value is dataclasses.MISSING:
            return "required"
        if isinstance(value, Structure):
            return json.dumps(value.content())
        if isinstance(value, tuple):
            return ",".join(str(element) for element in value)
        if value is not None and self.unit == "bytes":
            return _shown_size(value)
        return "none" if value is None else str(value)

    @property
    def _words(self) -> tuple[str, str]:
        if issubclass(self.kind, Structure):
            return _PARTS
        return _SIZE if self.unit == "bytes" else _SCALARS[self.kind]

    def _within_bounds(self, element: Any) -> bool:
        """Whether a number is finite and in bounds; one made in code may be of another type."""
        try:
            if isinstance(element, float) and not math.isfinite(element):
                return False
            return all(_holds(element, *bound) for bound in self.bounds)
        except TypeError:
            return False

    def _bounds_in_words(self) -> str:
        words = {"at_least": "{} or more", "above": "above {}", "at_most": "{} or less"}
        texts = [words.get(name, "below {}").format(bound) for name, bound in self.bounds]
        return f", {' and '.join(texts)}" if texts else ""

    def _convert(self, raw: object, source: str) -> Any:
        if self.is_tuple:
            if isinstance(raw, str):
                elements: Iterable[object] = [p.strip() for p in raw.split(",") if p.strip()]
            elif isinstance(raw, list | tuple):
                elements = raw
            else:
                elements = [raw]
            return tuple(_scalar(self.kind, element) for element in elements)
        if self.unit == "bytes" and isinstance(raw, str):
            return self.kind(parse_size(raw, source))
        value = _scalar(self.kind, raw)
        if self.choices and value not in self.choices:
            raise ValueError(value)
        return value

    def _suggestion(self, raw: object) -> str:
        close = difflib.get_close_matches(str(raw), self.choices or (), n=1)
        return f" Did you mean {close[0]!r}?" if close else ""


def options_of(
    config_class: type,
    *,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Option]:
    """The options that a config dataclass defines, in the order of its fields.

    Fields that name no scope have the class attribute `scope` for it, else the class's name.

    Args:
      config_class: a dataclass whose fields have the annotations that `option` lists.
      choices: field name -> allowed values, for choices that only the caller knows (a registry).

    Raises:
      TypeError: if a field cannot be an option: a mistake in the class, not of the user.
    """
    hints = _hints(config_class)
    group = str(getattr(config_class, "scope", config_class.__name__))
    return {
        field.name: option_of(config_class, field, hints, group, (choices or {}).get(field.name))
        for field in dataclasses.fields(config_class)
        if field.init
    }


@functools.cache  # a table of options asks for those of a class a thousand times
def _hints(config_class: type) -> Mapping[str, Any]:
    return typing.get_type_hints(config_class)


def option_of(
    config_class: type,
    field: dataclasses.Field[Any],
    hints: Mapping[str, Any],
    group: str,
    choices: Sequence[str] | None = None,
) -> Option:
    """The option that one field is; see `options_of`.

    Args:
      config_class: the field's class.
      field: one of its fields.
      hints: annotations of all of them.
      group: its scope if it names none.
      choices: the allowed values, if the caller knows better.
    """
    kind, is_tuple, is_optional, literal = _annotation(config_class, field.name, hints)
    declared = field.metadata
    allowed = declared.get("choices") or literal if choices is None else choices
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    bounds = ("at_least", "above", "at_most", "below")
    return Option(
        name=field.name,
        kind=kind,
        is_tuple=is_tuple,
        is_optional=is_optional,
        choices=tuple(allowed) if allowed is not None else None,
        default=default,
        help=declared.get("help", ""),
        scope=str(declared.get("scope") or group),
        none=tuple(declared.get("none", ())),
        unit=declared.get("unit"),
        limit=declared.get("limit", MOST_INTEGER),
        bounds=tuple((b, declared[b]) for b in bounds if declared.get(b) is not None),
        nonempty=declared.get("nonempty", False),
        continued=declared.get("continued", False),
        positional=declared.get("positional", False),
        repeatable=declared.get("repeatable", False),
        unserved=declared.get("unserved") or {},
        needs=alternatives(declared.get("needs")),
        suits=alternatives(declared.get("suits")),
        storage=declared.get("storage", False),
        younger=declared.get("younger", False),
    )


def check_options(config: Any) -> None:
    """Refuses fields out of the bounds they declare, or without effect; for a `__post_init__`.

    Raises:
      UserError: naming the field, what it may be and what came.
    """
    options, values = options_of(type(config)), vars(config)
    for name, found in options.items():
        found.check(values[name], name)
    refuse_idle(options, values)


def refuse_idle(options: Mapping[str, Option], values: Mapping[str, Any]) -> None:
    """Refuses options that have no effect beside the others, rather than to ignore them.

    Args:
      options: by name.
      values: of all of them.

    Raises:
      UserError: if one of them is not at its default.
    """
    for name, found in options.items():
        missing = unmet(found.needs, values)
        if missing is not None and values[name] != found.default:
            raise UserError(f"{name}: {missing}. It would have no effect: remove --{name}.")


def idle(options: Mapping[str, Option], *configs: Any) -> dict[str, str]:
    """Options that are not at their default and have no effect beside the others: why, by name.

    Args:
      options: of the command line, with the defaults that count, by name.
      *configs: instances of config dataclasses.
    """
    values = {name: value for config in configs for name, value in vars(config).items()}
    return {
        name: missing
        for name, found in options.items()
        if values[name] != found.default and (missing := unmet(found.suits, values))
    }


def require_one(config: Any, *names: str) -> None:
    """Refuses fields of which not exactly one is given (is not None); for a `__post_init__`.

    Raises:
      UserError: naming the fields and those given.
    """
    given = [f"--{name}" for name in names if getattr(config, name) is not None]
    if len(given) != 1:
        raise UserError(
            f"expected one of {' and '.join(f'--{name}' for name in names)}, received "
            f"{' and '.join(given) or 'none'}."
        )


def continued(*configs: Any) -> dict[str, Any]:
    """Values of the options that a continued run must share with its beginning, by name.

    Those that are younger than checkpoints are left out at their defaults.
    """
    return {
        name: getattr(config, name)
        for config in configs
        for name, found in options_of(type(config)).items()
        if found.continued
        if not (found.younger and getattr(config, name) == found.default)
    }


def refuse_unserved(data: str, *configs: Any) -> None:
    """Refuses options that would have no effect on the data, rather than to ignore them.

    Args:
      data: what there is, in words, as `option(unserved={data: why})` has it.
      *configs: instances of config dataclasses.

    Raises:
      UserError: if one of them is not at its default.
    """
    for config in configs:
        for name, found in options_of(type(config)).items():
            if data in found.unserved and getattr(config, name) != found.default:
                raise UserError(f"{name}: {data} {found.unserved[data]}. Leave --{name} out.")


def _holds(value: Any, name: str, bound: float) -> bool:
    if name == "at_least":
        return bool(value >= bound)
    if name == "above":
        return bool(value > bound)
    return bool(value <= bound) if name == "at_most" else bool(value < bound)


def _annotation(
    config_class: type, name: str, hints: Mapping[str, Any]
) -> tuple[type, bool, bool, tuple[str, ...] | None]:
    """`(kind, is_tuple, is_optional, choices)` of a field's annotation."""
    hint = hints[name]
    is_optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        is_optional = len(arms) < len(typing.get_args(hint))
        hint = arms[0] if len(arms) == 1 else hint
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if all(isinstance(choice, str) for choice in choices):
            return str, False, is_optional, choices
    if typing.get_origin(hint) is tuple:
        elements = typing.get_args(hint)
        if len(elements) == 2 and elements[1] is Ellipsis and elements[0] in (int, float, str):
            return elements[0], True, is_optional, None
    if hint is bool:
        return bool, False, is_optional, None
    if hint in _SCALARS or (isinstance(hint, type) and issubclass(hint, Structure)):
        return hint, False, is_optional, None
    raise TypeError(
        f"{config_class.__name__}.{name}: an option cannot have the type {hints[name]}; `option` "
        "lists those that it can"
    )


def _scalar(kind: type, raw: object) -> Any:
    if kind is bool:
        if isinstance(raw, bool):
            return raw
        return {"true": True, "false": False}[str(raw).lower()] if isinstance(raw, str) else _bad()
    if isinstance(raw, bool) or raw is None:
        return _bad()
    if kind is int:
        if isinstance(raw, str) and not _INTEGER.fullmatch(raw.strip()):
            return _bad()
        return int(raw) if isinstance(raw, int | str) else _bad()
    if kind is float:
        if isinstance(raw, str) and "_" in raw:
            return _bad()
        value = float(raw) if isinstance(raw, int | float | str) else _bad()
        return value if math.isfinite(value) else _bad()
    if kind is Path:
        if not isinstance(raw, str) or not _can_be_path(raw):
            return _bad()
        return Path(raw)
    if isinstance(raw, str) and "\0" in raw:
        return _bad()
    # A YAML integer where text is expected is what the user wrote without quotes: `name: 3`. Of
    # other numbers nobody knows how they were written.
    return str(raw) if isinstance(raw, str | int) else _bad()


def _can_be_path(text: str) -> bool:
    """Whether Linux could have a file of that path."""
    if not text or "\0" in text or len(os.fsencode(text)) >= _PATH_MAX:
        return False
    return all(len(os.fsencode(part)) <= _NAME_MAX for part in Path(text).parts)


def _bad() -> typing.NoReturn:
    raise ValueError


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"


def _shown_size(value: float) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("GB", 10**9), ("MB", 10**6)):
        if value >= scale and value % scale == 0:
            return f"{value // scale:.0f}{unit}"
    return f"{value:.0f}"

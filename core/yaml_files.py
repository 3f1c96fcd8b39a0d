"""YAML that people write: read strictly, so that what was meant is what is understood.

YAML 1.1, which PyYAML reads, takes 010 for 8 and 1:30 for 90, the last of two equal keys, and lets
a few lines stand for gigabytes by aliases. Here whole numbers are decimal, a key comes once, and
there are no aliases, or, where a program writes the file, only of flat lists: PyYAML writes a list
that it meets twice so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lookback.core.errors import UserError
from lookback.core.paths import refuse_address
from lookback.core.utf8 import decode

MOST_BYTES = 1 << 20
"""Of a file; what people write is far smaller."""

Place = tuple[str | int, ...]
"""Keys, and numbers of list entries from 0 on, that lead to a value."""

MOST_LEVELS = 100
"""Of lists and mappings in each other."""

_SHOWN = 300  # characters of a parser's message
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_INTEGER_TAG = "tag:yaml.org,2002:int"
_FLOAT_TAG = "tag:yaml.org,2002:float"
_FLOAT = re.compile(
    r"""[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?$
      |[-+]?[0-9]+[eE][-+]?[0-9]+$
      |[-+]?\.(inf|Inf|INF)$
      |\.(nan|NaN|NAN)$""",
    re.VERBOSE,
)

_NUMERIC = "-+0123456789."  # what a number may begin with


def _resolvers() -> dict[Any, list[tuple[str, Any]]]:
    """Which plain words are no text, by first character: PyYAML's, but numbers as of YAML 1.2."""
    numbers = ((_INTEGER_TAG, _INTEGER, "-+0123456789"), (_FLOAT_TAG, _FLOAT, _NUMERIC))
    found = {
        first: [(tag, form) for tag, form in forms if tag not in (_INTEGER_TAG, _FLOAT_TAG)]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, form, firsts in numbers:
        for first in firsts:
            found.setdefault(first, []).append((tag, form))
    return found


class _StrictLoader(yaml.composer.Composer, yaml.CSafeLoader):
    """PyYAML's safe loader without its surprises; see the module.

    libyaml gives the events, many times as fast as PyYAML's own parser. What is made of them is
    PyYAML's, which can be told to refuse: libyaml's composer cannot.
    """

    yaml_implicit_resolvers = _resolvers()  # PyYAML's own attribute
    shares_lists = False

    def __init__(self, text: str) -> None:
        yaml.CSafeLoader.__init__(self, text)
        yaml.composer.Composer.__init__(self)
        self._levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()
            if not (self.shares_lists and _is_flat_list(self.anchors.get(event.anchor))):
                raise yaml.composer.ComposerError(
                    None, None, f"aliases (*{event.anchor}) are not read", event.start_mark
                )
        if self._levels == MOST_LEVELS and not self.check_event(yaml.ScalarEvent):
            raise RecursionError
        self._levels += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._levels -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be one word or number", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _SharingLoader(_StrictLoader):
    """One that takes aliases of flat lists."""

    shares_lists = True


def _is_flat_list(node: yaml.Node | None) -> bool:
    return isinstance(node, yaml.SequenceNode) and all(
        isinstance(element, yaml.ScalarNode) for element in node.value
    )


def _dumped_resolvers() -> dict[Any, list[tuple[str, Any]]]:
    """Which plain words are no text, to PyYAML or to `load_yaml`."""
    known = yaml.SafeDumper.yaml_implicit_resolvers
    return {
        first: [*known.get(first, []), *([(_FLOAT_TAG, _FLOAT)] if first in _NUMERIC else [])]
        for first in {*known, *_NUMERIC}
    }


class StrictDumper(yaml.SafeDumper):
    """PyYAML's safe dumper, with quotes for text that is a number to `load_yaml`, such as 1e5."""

    yaml_implicit_resolvers = _dumped_resolvers()  # PyYAML's own attribute


def load_yaml(text: str, source: str, *, shared_lists: bool = False) -> Any:
    """What a YAML text holds: mappings, lists, text, numbers, true, false and null.

    Args:
      text: of the file.
      source: names it in errors.
      shared_lists: take aliases of flat lists, which a program may have written.

    Raises:
      UserError: naming `source`, the line and what is wrong with it.
    """
    try:
        # Not the unsafe load: both construct as SafeLoader does.
        return yaml.load(text, Loader=_SharingLoader if shared_lists else _StrictLoader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise UserError(f"{source} is not valid YAML: {reason[:_SHOWN]}") from None
    except RecursionError:
        raise UserError(f"{source} is not valid YAML for us: it is nested too deeply.") from None
    except ValueError as error:  # such as a date that does not exist, or too many digits
        raise UserError(f"{source} is not valid YAML: {str(error)[:_SHOWN]}.") from None


def yaml_lines(text: str, *, shared_lists: bool = False) -> Mapping[Place, int]:
    """The line, from 1 on, of each value of a text that `load_yaml` reads: that of its key.

    Args:
      text: of the file.
      shared_lists: see `load_yaml`.
    """
    loader = _SharingLoader(text) if shared_lists else _StrictLoader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
    finally:
        loader.dispose()
    return {} if node is None else dict(_lines(node, (), node.start_mark.line + 1))


def _lines(node: yaml.Node, place: Place, line: int) -> Iterator[tuple[Place, int]]:
    yield place, line
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _lines(value, (*place, str(key.value)), key.start_mark.line + 1)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _lines(value, (*place, number), value.start_mark.line + 1)


def read_yaml(path: str | Path, *, shared_lists: bool = False) -> Any:
    """What a YAML file holds; see `load_yaml`.

    Args:
      path: of the file.
      shared_lists: see `load_yaml`.

    Raises:
      UserError: if it cannot be read, is larger than `MOST_BYTES`, or is not YAML.
    """
    refuse_address(path)
    return load_yaml(read_text(path, str(path)), str(path), shared_lists=shared_lists)


def read_text(path: str | Path, source: str) -> str:
    """The text of a YAML file, for `load_yaml` and `yaml_lines`; see `read_yaml`."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(
                f"{source}: expected a YAML file of at most {MOST_BYTES:,} bytes, as people write, "
                "received a larger one."
            )
        return decode(content)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: expected a YAML file, but {error}.") from None

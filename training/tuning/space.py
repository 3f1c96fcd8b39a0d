"""The space of a search: keys of a YAML file, beside options of `train`.

Example::

model_type: din
dataset_dir: dataset
epochs: 3
space:
lr: {low: 1e-4, high: 1e-2, log: true}
embedding_dim: {choices: [8, 16, 32]}
max_seq_length: {low: 20, high: 100, step: 20}
metric: validation_auc
trials: 30
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from lookback.core.errors import UserError, shown
from lookback.core.options import CommandLine, ConfigFile, Option, option
from lookback.core.options.nested import Nested, Problems, dotted, read_nested, unknown_key
from lookback.core.options.option import Structure
from lookback.core.yaml_files import Place, yaml_lines

SPACE = "space"
NOT_IN_TRIALS = (
    *("save_checkpoint_path", "load_checkpoint_path", "export_dir"),
    *("seeds", "benchmark", "dry_run"),
)
"""Options with which trials would write over each other, or be no single runs."""
_NOT_SEARCHED = (
    *NOT_IN_TRIALS,
    *("dataset_dir", "results_dir", "log_filename", "mode", "compare", "tracker"),
)
"""Options that say where things are, or what a run is."""
_TRUE, _FALSE = "true", "false"
_ROUNDING = 1e-9  # (0.3 - 0.2) / 0.1 is less than 1
_MOST_STEPS = 2.0**53
"""In a range: the numbers between which doubles tell no more apart."""


@dataclasses.dataclass(frozen=True)
class Choices(Structure):
    """Values of an option, as a list.

    Attributes:
      words: them, as on a command line; of a flag, true and false.
    """

    words: tuple[str, ...]

    @classmethod
    def read(cls, raw: object, source: str) -> Choices:
        """See `Structure.read`."""
        if isinstance(raw, cls):
            return raw
        if not (isinstance(raw, list) and all(isinstance(v, str | int | float) for v in raw)):
            raise UserError(
                f"{source}: expected a list of numbers, text, or true and false ([8, 16]; of an "
                f'option with several values ["200,80", "100,40"]), received {shown(raw)}.'
            )
        return cls(tuple(str(v).lower() if isinstance(v, bool) else str(v) for v in raw))

    def content(self) -> list[str]:
        """See `Structure.content`."""
        return list(self.words)

    @classmethod
    def schema(cls, definitions: dict[str, Any]) -> dict[str, Any]:
        """See `Structure.schema`."""
        return {"type": "array", "items": {"type": ["string", "number", "boolean"]}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dimension(Nested):
    """The values that an option may have: a range of numbers, or choices."""

    low: float | None = option(None, help="the least number")
    high: float | None = option(None, help="the largest number")
    log: bool = option(False, help="search the number's logarithm")
    step: float | None = option(None, help="between the numbers; none: any", above=0)
    choices: Choices | None = option(None, help="values, as on a command line")

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """See `Nested.contradictions`."""
        bounds = (self.low, self.high)
        if self.choices is not None:
            if bounds != (None, None) or self.log or self.step is not None:
                yield ("choices",), "expected choices alone, or low and high. Remove one of them."
            elif len(set(self.choices.words)) < max(2, len(self.choices.words)):
                yield ("choices",), "expected two values or more, each once."
        elif self.low is None or self.high is None:
            yield (), "expected low and high, or choices."
        elif self.low >= self.high:
            yield ("high",), f"expected more than low ({self.low:g}), received {self.high:g}."
        elif self.log and (self.low <= 0 or self.step is not None):
            yield ("log",), "expected with low above 0, and without step."
        elif self.step is not None and not (
            1 - _ROUNDING <= (self.high - self.low) / self.step <= _MOST_STEPS
        ):
            most = f"{self.high - self.low:g}"
            yield (
                ("step",),
                f"expected at most {most}, from low to high, and no more than 2^53 steps; received "
                f"{self.step:g}.",
            )

    def corners(self, kind: type) -> list[str]:
        """Values within which all others are, as on a command line.

        Args:
          kind: of the option.
        """
        if self.choices is not None:
            return list(self.choices.words)
        return [str(kind(bound)) for bound in (self.low, self.high) if bound is not None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space(Nested):
    """Dimensions by option."""

    space: Mapping[str, Dimension] = option(help="options to search, and their values")

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """See `Nested.contradictions`."""
        if not self.space:
            yield (SPACE,), "expected one option or more to search, received none."


def given(params: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """Values out of a space by option, as `core.options.words_of` takes them.

    Args:
      params: the values.
      kinds: the type of each option.
    """
    return {n: v == _TRUE if kinds[n] is bool else v for n, v in params.items()}


def options_of_file(file: ConfigFile, train: CommandLine) -> Mapping[str, Any]:
    """The options that a file of --config stands for, its space read.

    Args:
      file: of a search.
      train: what a run takes.

    Raises:
      UserError: naming all that is wrong with it, with paths and lines.
    """
    problems = Problems(str(file.path), yaml_lines(file.text))
    for key in file.content:
        if key not in file.known:
            problems.add((str(key),), unknown_key(key, dict.fromkeys(file.known)))
    if SPACE in file.content:
        own = {SPACE: file.content[SPACE]}
        space = read_nested(Space, own, problems)
        if space is not None:
            _check_dimensions(space, file, train, problems)
    problems.raise_any()
    return {**file.content, SPACE: space} if SPACE in file.content else file.content


def _check_dimensions(
    space: Space, file: ConfigFile, train: CommandLine, problems: Problems
) -> None:
    known = train.shared()
    for variant in train.variants:
        known |= {name: found for name, found in train.own(variant).items() if name not in known}
    for name, dimension in space.space.items():
        place = (SPACE, name)
        if name not in known or name in _NOT_SEARCHED:
            problems.add(place, unknown_key(name, {n: 0 for n in known if n not in _NOT_SEARCHED}))
            continue
        if name in file.content:
            problems.add(place, f"expected in the space or beside it, received {name} in both.")
        _check_dimension(known[name], dimension, problems, place)


def _check_dimension(found: Option, dimension: Dimension, problems: Problems, place: Place) -> None:
    if dimension.choices is None and (found.kind not in (int, float) or found.is_tuple):
        problems.add(place, f"expected choices, as it is {found.expected}; received a range.")
        return
    for key in ("low", "high", "step"):
        bound = getattr(dimension, key)
        if bound is not None and found.kind is int and bound != int(bound):
            problems.add((*place, key), f"expected a whole number, received {bound:g}.")
            return
    corners = dimension.corners(found.kind)
    if found.kind is bool:
        if set(corners) != {_TRUE, _FALSE}:
            problems.add((*place, "choices"), f"expected [true, false], received {corners}.")
        return
    for value in corners:
        try:
            found.read(value, dotted(place))
        except UserError as error:
            problems.add(place, str(error).removeprefix(f"{dotted(place)}: "))

"""Every option of every command bears any value: it is taken, or refused with a text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from lookback.cli import LOOKBACK
from lookback.core.errors import UserError
from lookback.core.limits import MOST_INTEGER
from lookback.core.options import CommandLine, Door, Option, Program, options_of
from lookback.core.options.option import refuse_idle
from lookback.dataloading import LAYOUTS
from lookback.models import MODELS
from lookback.training.config import RunConfig
from lookback.training.run import command_line
from lookback.workflows.commands import PROGRAM


def _lines(program: Program) -> Iterator[CommandLine]:
    for command in program.commands.values():
        inside = command.inside() if isinstance(command, Door) else command.line
        if isinstance(inside, Program):
            yield from _lines(inside)
        elif inside is not None:
            yield inside


def _classes_of(lines: Iterable[CommandLine]) -> list[type]:
    found = {
        config: None
        for line in lines
        for config in (*line.configs, *(c for own in line.variants.values() for c in own))
    }
    return list(found)


CLASSES = _classes_of(_lines(LOOKBACK))
NUMBERS = (0, -1, math.nan, math.inf, 10**400)
CHECKED = _classes_of([command_line(), *_lines(PROGRAM)])
"""Those whose instances are made in code, too, and check themselves."""
OF_CHECKED = [
    pytest.param(config, found, id=f"{config.__name__}.{name}")
    for config in CHECKED
    for name, found in options_of(config).items()
]
OF_EACH = [
    pytest.param(config, found, id=f"{config.__name__}-{name}")
    for config in CLASSES
    for name, found in options_of(config).items()
]
VALUES: tuple[Any, ...] = (
    *("0", "-1", "nan", "inf", "-inf", "1e400", str(10**30), "9" * 5000, "", " ", ",", "none"),
    *("\0", "ü", "--", "a" * 5000, "0x10", "1_0", "010", "1:30", "true"),
    *(0, -1, 10**30, -(10**30), float("nan"), float("inf"), None, True, [], {}, [[1]], [None]),
)


def _needed(config: type) -> dict[str, Any]:
    """Values of the options that must be given."""
    made: dict[str, Any] = {}
    for name, found in options_of(config).items():
        if found.required:
            text = found.choices[0] if found.choices else "1"
            made[name] = found.read(text, name)
    return made


def test_the_classes_are_those_of_all_commands():
    assert {RunConfig, *(entry.config_class for entry in MODELS.values())} <= set(CLASSES)
    assert {layout.options_class for layout in LAYOUTS.values()} <= set(CLASSES)
    assert len(CLASSES) > 25


@pytest.mark.parametrize(("config", "found"), OF_EACH)
def test_any_value_is_taken_or_refused_in_words(config: type, found: Option):
    for raw in VALUES:
        try:
            value = found.read(raw, found.written)
            made = config(**{**_needed(config), found.name: value})
        except UserError as error:
            assert 0 < len(str(error)) < 1000
        else:
            kept = getattr(made, found.name)
            for number in kept if isinstance(kept, tuple) else (kept,):
                if isinstance(number, int | float):
                    assert abs(number) <= MOST_INTEGER  # and neither NaN nor infinite


def taken(config: type, name: str, value: object) -> bool:
    """Whether the class takes a value of a field, all others at their defaults."""
    required = {n: "some" for n, found in options_of(config).items() if found.required}
    try:
        config(**{**required, name: value})
    except UserError as error:
        assert str(error)
        return False
    return True


@pytest.mark.parametrize(("config", "found"), OF_CHECKED)
def test_a_number_says_its_least_value_and_one_made_in_code_is_checked(config: type, found: Option):
    if found.is_tuple or found.kind is str:
        taken(config, found.name, () if found.is_tuple else "")
    if found.kind not in (int, float):
        return
    assert {bound for bound, _ in found.bounds} & {"at_least", "above"}
    assert not taken(config, found.name, (-5,) if found.is_tuple else -5)
    if not found.is_tuple:
        for number in NUMBERS:
            taken(config, found.name, number)
        assert not taken(config, found.name, math.nan)
        assert not taken(config, found.name, 10**400)


SLIPS = {
    **{"global_batch_size": 1 << 31, "valid_batch_size": 1 << 31, "micro_batches": 1 << 17},
    **{"grads_accumulated": 1 << 17, "epochs": 1 << 30, "max_steps": 1 << 50, "lr": 1e9},
    **{"embedding_dim": 1 << 17, "bottom_mlp_sizes": (1 << 17, 128), "factors": 1 << 17},
    **{"layers": (1 << 17, 8), "test_negatives": 1 << 30, "negative_samples": 1 << 20},
    **{"max_seq_length": 1 << 20, "stage_two_mlp_dims": (1 << 20,), "np": 1 << 20},
    **{"ranks": 1 << 20, "workers": 1 << 20, "memory": 1 << 60, "warmup_factor": 2000},
    **{"inference_benchmark_batch_sizes": (1 << 40,), "intra_op_parallelism": 1 << 20},
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_of_the_hand_is_refused(name: str):
    having = [config for config in CLASSES if name in options_of(config)]
    assert having
    for config in having:
        with pytest.raises(UserError, match=f"{name}: expected .* or less.* received"):
            options_of(config)[name].check(SLIPS[name], name)


def _conditions() -> Iterator[tuple[type, Option, str]]:
    for config in CLASSES:
        for found in options_of(config).values():
            for condition in (*found.needs, *found.suits):
                for other in condition:
                    yield config, found, other


def test_what_options_need_are_options():
    """A condition that names none would never hold anybody back."""
    names = {name for config in CLASSES for name in options_of(config)}
    conditions = list(_conditions())
    assert len(conditions) > 50
    for config, found, other in conditions:
        assert other in names, (config.__name__, found.name, other)


def test_an_option_at_its_default_is_never_refused():
    for config in CLASSES:
        defaults = {n: o.default for n, o in options_of(config).items() if not o.required}
        refuse_idle(options_of(config), {**_needed(config), **defaults})

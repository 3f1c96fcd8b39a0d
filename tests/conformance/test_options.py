"""Every option of a run or a workflow bears any value: it is taken, or refused with a text."""

from __future__ import annotations

import math

import pytest

from lookback.core.errors import UserError
from lookback.core.options import Command, options_of
from lookback.training.run import command_line
from lookback.workflows.commands import PROGRAM

TEXTS = ("0", "-1", "nan", "inf", "9" * 40, "1e400", "", " ", ",", "none", "3", "x")
NUMBERS = (0, -1, math.nan, math.inf, 10**400)
LINES = (
    command_line(),
    *(command.line for command in PROGRAM.commands.values() if isinstance(command, Command)),
)
CONFIGS = dict.fromkeys(
    config
    for line in LINES
    for config in (*line.configs, *(c for own in line.variants.values() for c in own))
)
OPTIONS = [(config, name) for config in CONFIGS for name in options_of(config)]
EACH_OPTION = pytest.mark.parametrize(
    ("config", "name"), OPTIONS, ids=[f"{config.__name__}.{name}" for config, name in OPTIONS]
)


def taken(config: type, name: str, value: object) -> bool:
    """Whether the class takes a value of a field, all others at their defaults."""
    required = {n: "some" for n, found in options_of(config).items() if found.required}
    try:
        config(**{**required, name: value})
    except UserError as error:
        assert str(error)
        return False
    return True


@EACH_OPTION
def test_any_value_is_taken_or_refused(config: type, name: str) -> None:
    option = options_of(config)[name]
    for text in TEXTS:
        try:
            value = option.read(text, f"--{name}")
        except UserError as error:
            assert str(error).startswith(f"--{name}: expected ")
        else:
            taken(config, name, value)
    if option.kind in (int, float) and not option.is_tuple:
        for number in NUMBERS:
            taken(config, name, number)
        assert not taken(config, name, math.nan)
    if option.is_tuple or option.kind is str:
        taken(config, name, () if option.is_tuple else "")


@EACH_OPTION
def test_a_number_says_its_least_value(config: type, name: str) -> None:
    option = options_of(config)[name]
    if option.kind in (int, float):
        assert {bound for bound, _ in option.bounds} & {"at_least", "above"}
        assert not taken(config, name, (-5,) if option.is_tuple else -5)

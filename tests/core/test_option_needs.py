"""What options need of others, what recipes change, and what is said of what was mistyped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lookback.core.errors import UserError
from lookback.core.options import (
    SET,
    UNSET,
    ChangesDefaults,
    CommandLine,
    check_options,
    from_values,
    help_text,
    idle,
    option,
    parse,
    save_yaml,
)
from lookback.core.options.needs import unmet


@dataclasses.dataclass(frozen=True)
class Run:
    kind: str = option(help="kind")
    recipe: str | None = option(None, help="recipe", choices=("big",))
    steps: int = option(0, help="steps", at_least=0)
    power: float = option(2.0, help="power", above=0, needs={"steps": SET})
    way: str = option("a", help="way", choices=("a", "b", "c"))
    beta: float | None = option(None, help="beta", at_least=0, needs={"way": ("a", "b")})
    plan: Path | None = option(None, help="plan")
    planner: str = option("x", help="planner", needs={"plan": UNSET})
    scale: float | None = option(None, help="s", above=0, needs=({"amp": SET}, {"way": ("c",)}))
    amp: bool = option(False, help="amp")
    name: str = option("n", help="name", suits={"steps": SET})

    def __post_init__(self) -> None:
        check_options(self)


@dataclasses.dataclass(frozen=True)
class One(ChangesDefaults):
    run_defaults: ClassVar[Mapping[str, Any]] = {"steps": 5}
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"big": {"steps": 9, "beta": 0.25}}
    size: int = option(3, help="size", at_least=1, needs={"plan": SET})


@dataclasses.dataclass(frozen=True)
class Two:
    depth: int = option(1, help="depth", at_least=1)


LINE = CommandLine((Run,), "kind", {"one": (One,), "two": (Two,)}, recipe="recipe")


def run(*argv: str) -> tuple[Any, ...]:
    return parse(argv, LINE)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("--kind", "two", "--power", "3"), "power: expected with --steps, received it without"),
        (("--way", "c", "--beta", "1"), "beta: expected with --way a or b, .* with --way c"),
        (("--plan", "p", "--planner", "y"), "planner: expected without --plan, .* with --plan"),
        (
            ("--scale", "8"),
            "scale: expected with --amp, or with --way c, received it without --amp and with "
            "--way a. It would have no effect: remove --scale",
        ),
        (("--size", "4"), "size: expected with --plan, received it without --plan"),
    ],
)
def test_an_option_without_effect_is_refused(argv, text):
    with pytest.raises(UserError, match=text):
        run(*argv)


def test_one_with_effect_or_at_its_default_is_taken(tmp_path):
    assert run("--power", "3")[0].power == 3.0  # kind one has steps
    assert run("--kind", "two", "--power", "2")[0].power == 2.0
    assert run("--scale", "8", "--amp")[0].scale == run("--scale", "8", "--way", "c")[0].scale == 8
    assert run("--plan", "p", "--size", "4")[1].size == 4
    save_yaml(tmp_path / "all.yaml", *run("--kind", "two"))
    assert run("--config", str(tmp_path / "all.yaml")) == run("--kind", "two")
    with pytest.raises(UserError, match="beta: expected with --way a or b"):
        Run("one", way="c", beta=0.5)
    with pytest.raises(UserError, match="size: expected with --plan"):
        from_values(LINE, kind="one", size=4)


def test_one_that_suits_something_else_is_named():
    assert idle(LINE.options("two"), *run("--kind", "two", "--name", "m")) == {
        "name": "expected with --steps, received it without --steps"
    }
    assert idle(LINE.options("one"), *run("--name", "m")) == {}


def test_a_recipe_changes_defaults_and_whatever_is_given_wins():
    assert (run()[0].steps, run()[0].beta) == (5, None)
    (big, _) = run("--recipe", "big")
    assert (big.steps, big.beta) == (9, 0.25)
    (given, _) = run("--recipe", "big", "--steps", "1", "--beta", "none")
    assert (given.steps, given.beta) == (1, None)
    # What it says of an option that has no effect here, nobody asked for.
    assert run("--recipe", "big", "--way", "c")[0].beta is None
    assert from_values(LINE, kind="one", recipe="big")[0].steps == 9
    assert "steps (default: 5; --recipe big: 9)" in help_text(LINE, "one", "x", None)
    assert "steps (default: 9)" in help_text(LINE, "one", "x", None, "big")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("--amp=",), "--amp: expected no value, as it is a flag, received ''"),
        (("--amp=1",), "received '1'. Write --amp for true, --no_amp for false"),
        (("--no_amp=x",), "--no_amp: expected no value.*--no_amp for false"),
        (("--amp", "true"), "--amp: expected no value, as it is a flag, received 'true'"),
        (("--noamp",), "unknown option: --noamp. Did you mean --no_amp?"),
        (("--steps", "99999999999999999999"), "--steps: expected 9223372036854775807 or less"),
    ],
)
def test_what_is_mistyped_is_said(argv, text):
    with pytest.raises(UserError, match=text.replace("?", r"\?")):
        run(*argv)


@pytest.mark.parametrize("text", ["1e5", "010", "1:30", "0x10", "yes", "~", ".5", "1.", "inf"])
def test_text_that_looks_like_a_number_comes_back_from_a_file(tmp_path, text):
    path = text.replace("~", "plan")  # a home is no path
    configs = run(f"--name={text}", f"--plan={path}", "--planner", "x")
    save_yaml(tmp_path / "run.yaml", *configs)
    assert run("--config", str(tmp_path / "run.yaml")) == configs


def test_numbers_in_files_are_decimal_and_foreign_keys_are_named(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    for text, value in (("010", 10), ("1", 1)):
        file.write_text(f"steps: {text}\ndepth: 1\n")
        assert run("--config", str(file))[0].steps == value
        assert f"{file}: not used, and at its default: depth" in capsys.readouterr().err
    for text in ("1:30", "0x10", "1_0", "0o7"):
        file.write_text(f"steps: {text}\n")
        with pytest.raises(UserError, match=r"steps in .*: expected an integer"):
            run("--config", str(file))
    file.write_text("name: 1.10\n")  # 1.1 to a reader of YAML: nobody knows what was written
    with pytest.raises(UserError, match=r"name in .*: expected text, received 1\.1"):
        run("--config", str(file))


def test_none_among_the_words_is_an_option_that_is_not_given():
    needs = ({"way": ("a", None)},)
    assert unmet(needs, {"way": None}) is None
    assert unmet(needs, {}) is None  # another command line, or a value that could not be read
    assert unmet(needs, {"way": "b"}) == "expected with --way a, received it with --way b"

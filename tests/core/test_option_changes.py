"""Options made of a config's fields."""

from __future__ import annotations

import dataclasses

import pytest

from lookback.core.errors import UserError
from lookback.core.options import CommandLine, changed, changes, option, options_of, parse, without


@dataclasses.dataclass(frozen=True)
class Sizes:
    scope = "sizes"

    users: int = option(10, help="how many users", at_least=1)
    shares: tuple[float, ...] = option((0.5, 0.5), help="their shares")
    threads: int | None = option(None, help="threads; none: one for each core")


def test_changes_are_none_unless_given() -> None:
    line = CommandLine((changes(Sizes, "the preset's"),))
    (chosen,) = parse(["--users", "3", "--shares", "1,2"], line)
    assert changed(chosen) == {"users": 3, "shares": (1.0, 2.0)}
    assert changed(parse([], line)[0]) == {}
    options = options_of(line.configs[0])
    assert {found.scope for found in options.values()} == {"sizes"}
    assert options["users"].help == "how many users; none: the preset's"
    assert options["threads"].help == "threads; none: one for each core"


def test_changes_keep_the_bounds() -> None:
    with pytest.raises(UserError, match="--users: expected an integer, 1 or more, or none"):
        parse(["--users", "0"], CommandLine((changes(Sizes, "the preset's"),)))
    with pytest.raises(UserError, match="users: expected"):
        without(Sizes, "threads")(users=0)


def test_without_leaves_out() -> None:
    (rest,) = parse([], CommandLine((without(Sizes, "shares"),)))
    assert vars(rest) == {"users": 10, "threads": None}

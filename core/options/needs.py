"""What an option needs of others to have an effect, declared beside it.

`needs={"decay_steps": SET}` says that the option counts only where decay_steps does; without it the
option is refused, unless it is at its default. `suits` says the same of options that stay on
people's command lines for another use of them: they are named, not refused.

All entries of a mapping must hold; of a list of mappings one. An option that the command line at
hand does not have, or whose value could not be read, is no obstacle.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any


class Presence(enum.Enum):
    """What another option must be."""

    SET = "with"
    UNSET = "without"


SET, UNSET = Presence.SET, Presence.UNSET

Wanted = Presence | tuple[str | None, ...]
"""What another option must be, or one of which values; None among them: or is not given."""

Condition = Mapping[str, Wanted]
"""Other options -> what they must be."""

Needs = Condition | Sequence[Condition]
"""One condition, or several of which one must hold."""


def alternatives(needs: Needs | None) -> tuple[Condition, ...]:
    """The conditions, of which one must hold; none if nothing is needed."""
    if needs is None:
        return ()
    return (needs,) if isinstance(needs, Mapping) else tuple(needs)


def unmet(needs: Sequence[Condition], values: Mapping[str, Any]) -> str | None:
    """What is missing for an option to have an effect, in words; None if nothing is.

    Args:
      needs: of the option, as `alternatives` gives them.
      values: of the other options, by name.
    """
    if are_met(needs, values):
        return None
    missing = [_first_unmet(condition, values) for condition in needs]
    expected = ", or ".join(" and ".join(_flag(*entry) for entry in c.items()) for c in needs)
    received = " and ".join(dict.fromkeys(_given(str(name), values) for name in missing))
    return f"expected {expected}, received it {received}"


def are_met(needs: Sequence[Condition], values: Mapping[str, Any]) -> bool:
    """Whether an option has an effect beside the others; arguments as of `unmet`."""
    return not needs or any(_first_unmet(condition, values) is None for condition in needs)


def words(wanted: Wanted) -> list[str]:
    """The values that a condition names; none of a presence."""
    return [] if isinstance(wanted, Presence) else [word for word in wanted if word is not None]


def _first_unmet(condition: Condition, values: Mapping[str, Any]) -> str | None:
    for name, wanted in condition.items():
        if name in values and not _holds(values[name], wanted):
            return name
    return None


def _holds(value: Any, wanted: Wanted) -> bool:
    if isinstance(wanted, Presence):
        return bool(value) == (wanted is SET)
    return value in wanted


def _flag(name: str, wanted: Wanted) -> str:
    if isinstance(wanted, Presence):
        return f"{wanted.value} --{name}"
    *others, last = words(wanted)
    return f"with --{name} {', '.join(others)}{' or ' if others else ''}{last}"


def _given(name: str, values: Mapping[str, Any]) -> str:
    value = values[name]
    if not value:
        return f"without --{name}"
    return f"with --{name} {value}" if isinstance(value, str) else f"with --{name}"

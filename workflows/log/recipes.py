"""Descriptions of public logs as their publishers ship them, ready for ``workflows run``."""

from __future__ import annotations

import difflib
from pathlib import Path

from lookback.core.errors import UserError, shown

RECIPES = Path(__file__).parent.parent / "recipes"


def list_recipes() -> dict[str, str]:
    """What each is of, by name."""
    return {
        path.stem: path.read_text(encoding="utf-8").partition(":")[0].removeprefix("# ")
        for path in sorted(RECIPES.glob("*.yaml"))
    }


def recipe_of(name: str) -> Path:
    """The file of a description.

    Raises:
      UserError: if there is none of this name.
    """
    names = list(list_recipes())
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"There is no recipe {shown(name)}.{hint} Choose of {', '.join(names)}.")
    return RECIPES / f"{name}.yaml"

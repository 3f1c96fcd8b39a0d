"""The one error type that means: the user can fix this."""

from __future__ import annotations

import reprlib

_SHOWN = 80  # characters of a value in an error's text
_REPR = reprlib.Repr()
_REPR.maxlevel = 2
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN


class UserError(Exception):
    """Input, options or environment are not as needed.

    The text says what was expected, what came, and how to fix it. `core.faults` prints it as one
    ``error: ...`` line, with exit status 2, and says which other exceptions are no defects of ours.
    """


def shown(value: object) -> str:
    """A value out of a file, for the text of an error: cut, however large or nested it is."""
    text = _REPR.repr(value)
    return text if len(text) <= 2 * _SHOWN else f"{text[: 2 * _SHOWN]}..."

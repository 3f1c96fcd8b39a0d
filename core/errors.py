"""The one error type that means: the user can fix this."""

from __future__ import annotations


class UserError(Exception):
    """Input, options or environment are not as needed.

    The text says what was expected, what came, and how to fix it. Command lines print it as one
    ``error: ...`` line and exit with status 2; every other exception is a defect of ours and
    keeps its traceback.
    """

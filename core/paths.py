"""Paths of this machine, told from addresses of other places."""

from __future__ import annotations

import os
import re

from lookback.core.errors import UserError, shown

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # s3://, gs://, hdfs:///, file:/


def refuse_address(path: str | os.PathLike[str], source: str | None = None) -> None:
    """Refuses what is no path of this machine: it would be a directory here with a strange name.

    Args:
      path: that is to be read or written.
      source: which option or argument it is, for the error; None: its own text says it.

    Raises:
      UserError: with what to do instead.
    """
    text = os.fspath(path)
    if text.startswith("~"):  # which libraries below us take for a home, and we would not
        raise UserError(
            f"{source or text}: expected a path, received {shown(text)}: shells write out `~` at "
            f"the start of a word alone (--output ~/data, not --output=~/data). Write the path "
            "out; give the absolute path of a directory whose name does begin with ~."
        )
    if _ADDRESS.match(text):
        raise UserError(
            f"{source or text}: expected a path of this machine, received the address "
            f"{shown(text)}. Copy what is there first (such as with `aws s3 cp`, `gsutil cp`, "
            "`hdfs dfs -get`), or mount it, and give the path; likewise for what is written."
        )

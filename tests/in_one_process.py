"""Commands of another environment, one after another in one process: imports take most of each."""

from __future__ import annotations

IN_ONE_PROCESS = """
import contextlib, json, sys
from lookback import cli
for line in json.loads(sys.argv[1]):
    words, _, output = line.partition(" > ")
    with contextlib.ExitStack() as stack:
        if output:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(output, "w"))))
        status = cli.LOOKBACK.main(words.split(), "lookback")
    assert not status, line
"""
"""A program of Python's `-c`; its argument is a JSON list of commands, each `WORDS [> FILE]`."""

"""Runs train.py's main several times in the same ranks: starting them takes longer than the runs.

usage: many_runs.py REPOSITORY RUNS.json [RANKS=PORT]     (a list of argument lists)

The last run ends as the program does, so that it may fail. With a rendezvous server's port this is
no rank, and forks them.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Runs one after another."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    repository, runs, *server = sys.argv[1:]
    sys.path.insert(0, repository)
    if server:
        import ranks as forked

        ((size, port),) = forked.ports(server).items()
        forked.join(forked.fork(size), size, port)
    from lookback import cli

    *first, last = json.loads(Path(runs).read_text())
    for arguments in first:
        cli.train(arguments)
        import tensorflow as tf

        tf.keras.backend.clear_session()
    sys.argv = [f"{repository}/train.py", *last]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

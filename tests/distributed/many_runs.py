"""Runs train.py's main several times in the same ranks: starting them takes longer than the runs.

usage: many_runs.py REPOSITORY RUNS.json [RANKS=PORT]     (a list of argument lists)

Before a run's arguments may stand "eagerly": where the graph is not the point, which takes seconds.
The last run ends as the program does, so that it may fail. With a rendezvous server's port this is
no rank, and forks them.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path


def prepared(words: list[str]) -> list[str]:
    """The arguments of a run, when TensorFlow is set to what they ask for."""
    eagerly = words[0] == "eagerly"
    if eagerly or "tensorflow" in sys.modules:
        import tensorflow as tf

        tf.keras.backend.clear_session()
        tf.config.run_functions_eagerly(eagerly)
    return words[eagerly:]


def main() -> None:
    """Runs one after another."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    repository, runs, *server = sys.argv[1:]
    sys.path.insert(0, repository)
    import ranks

    if server:
        ((size, port),) = ranks.ports(server).items()
        ranks.join(ranks.fork(size), size, port)
    from lookback import cli

    ranks.leave_plots_blank()
    *first, last = json.loads(Path(runs).read_text())
    for words in first:
        cli.train(prepared(words))
    sys.argv = [f"{repository}/train.py", *prepared(last)]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

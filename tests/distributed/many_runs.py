"""Runs train.py's main several times in the same ranks: starting them takes longer than the runs.

usage: many_runs.py REPOSITORY RUNS.json     (a list of argument lists)
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Runs one after another."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    repository, runs = sys.argv[1:]
    sys.path.insert(0, repository)
    import train

    for arguments in json.loads(Path(runs).read_text()):
        train.main(arguments)
        import tensorflow as tf

        tf.keras.backend.clear_session()


if __name__ == "__main__":
    main()

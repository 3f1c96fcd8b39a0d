"""Checks the environment that scripts/setup.sh has just made; run with its Python.

usage: check_environment.py LOCK_FILE...
"""

from __future__ import annotations

import os
import re
import sys
from importlib import metadata
from pathlib import Path

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def unmet_pins(lock: str) -> list[str]:
    """Returns one line for each pin in the text of a lock file that is not installed as pinned."""
    unmet = []
    for name, version in _PIN.findall(lock):
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "missing"
        if installed != version:
            unmet.append(f"{name}: locked {version}, installed {installed}")
    return unmet


def main(lock_files: list[str]) -> int:
    """Compares versions, then loads the compiled parts; returns the exit status."""
    unmet = [line for file in lock_files for line in unmet_pins(Path(file).read_text())]
    for line in unmet:
        print(line, file=sys.stderr)
    if unmet:
        return 1

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import horovod.tensorflow as hvd
    import nvtabular  # noqa: F401 (that it loads is the point)
    import tensorflow as tf

    from lookback.kernels.build import library

    tf.load_op_library(str(library()))
    if not hvd.gloo_built():
        print("horovod was built without Gloo", file=sys.stderr)
        return 1
    print(f"tensorflow {tf.__version__}, horovod {metadata.version('horovod')} with Gloo")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

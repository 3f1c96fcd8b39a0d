"""TensorFlow operations of our own, for CPUs: `kernels/`, which scripts/setup.sh builds.

Who uses one has the same in TensorFlow's operations, for GPUs, for graphs that leave this project,
and for environments that scripts/setup.sh did not make.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

LIBRARY = Path(sys.prefix) / "lib" / "lookback_kernels.so"

_portable = False


def cpu_kernels() -> Any | None:
    """The operations by name; None where they were not built, or must not be used."""
    return None if _portable else _load()


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Within it, graphs are traced with TensorFlow's operations alone, to run anywhere."""
    global _portable
    before, _portable = _portable, True
    try:
        yield
    finally:
        _portable = before


@functools.cache
def _load() -> Any | None:
    if not LIBRARY.exists() or tf.config.list_physical_devices("GPU"):
        return None
    try:
        return tf.load_op_library(str(LIBRARY))
    except tf.errors.NotFoundError as error:  # built for another TensorFlow
        warnings.warn(
            f"{LIBRARY} cannot be loaded, so models run without it, more slowly: {error.message} "
            "scripts/setup.sh builds it anew.",
            stacklevel=2,
        )
        return None

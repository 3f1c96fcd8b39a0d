"""TensorFlow operations of our own, for CPUs: those of `kernels/`, where they have been built.

Who uses one has the same in TensorFlow's operations, for GPUs, for graphs that leave this project,
and for environments in which nobody built them.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from lookback.core.devices import has_gpu
from lookback.kernels.build import library

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Portable:
    """A time in which TensorFlow's operations alone are used.

    Attributes:
      asked: whether one of ours would have been used, where it is there.
    """

    asked: bool = False


_portable: Portable | None = None


def cpu_kernels() -> Any | None:
    """The operations by name; None where they were not built, or must not be used."""
    if _portable is not None:
        _portable.asked = True
        return None
    return _load()


def history_level(precision: str) -> str | None:
    """The kind of CPU whose code runs the models' steps here.

    Args:
      precision: of their products, "float32" or "bfloat16".

    Returns:
      "avx2" or "avx512", in bfloat16 "avx512_bf16" or "amx"; None: the operations cannot be used.
      The environment's LOOKBACK_CPU_LEVEL, if it is set, names those that may be taken.
    """
    if _load() is None:
        return None
    name: bytes | None = _level_name()(int(precision == "bfloat16"))
    return None if name is None else name.decode()


@functools.cache
def _level_name() -> Any:
    """The function of `tiles/levels.cc`."""
    function = ctypes.CDLL(str(library())).lookback_level_name
    function.restype = ctypes.c_char_p
    return function


@contextlib.contextmanager
def portable() -> Iterator[Portable]:
    """Within it, graphs are traced with TensorFlow's operations alone, to run anywhere."""
    global _portable
    before, _portable = _portable, Portable()
    try:
        yield _portable
    finally:
        _portable = before


def why_portable() -> str | None:
    """Why models run with TensorFlow's operations alone here; None where they have ours."""
    return _attempt()[1]


@functools.cache
def _load() -> Any | None:
    operations, why = _attempt()
    if operations is None and not has_gpu():
        _log.warning(
            "models run without our operations, more slowly: %s. `lookback setup-kernels` builds "
            "them.",
            why,
        )
    return operations


def _attempt() -> tuple[Any | None, str | None]:
    """The operations, or why there are none."""
    if has_gpu():
        return None, "TensorFlow sees a GPU, and ours are for CPUs"
    path = library()
    if not path.exists():
        return None, f"{path.name} is not in {path.parent}"
    try:
        return tf.load_op_library(str(path)), None
    except tf.errors.NotFoundError as error:  # damaged, or for a TensorFlow built otherwise
        return None, f"{path} cannot be loaded ({error.message})"

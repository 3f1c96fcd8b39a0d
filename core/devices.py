"""What this machine computes with: its cores, locks between processes, TensorFlow's GPU."""

from __future__ import annotations

import multiprocessing
import os
from typing import TYPE_CHECKING, Any

from lookback.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tensorflow as tf

HOST = "CPU:0"
"""For what lies there, and what no kernel of TensorFlow's does on GPUs: there and back is dear."""


def cores() -> int:
    """Processors that this process may use: fewer than the machine has where it is bound."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_shared_locks(remedy: str) -> None:
    """Checks that processes can share locks, before some are started that cannot do without.

    Args:
      remedy: what to do instead.

    Raises:
      UserError: if they cannot.
    """
    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:  # glibc keeps semaphores in files there
        raise UserError(
            f"/dev/shm cannot be written ({error.strerror}), where processes share their locks. "
            f"Mount it writable (in a container: --tmpfs /dev/shm), or {remedy}."
        ) from error


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU. Imports TensorFlow, whose environment must have been set."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def whole_numbers() -> type[np.signedinteger[Any]]:
    """The type in which ids and the like lie on the device: int64 on GPUs, else int32.

    TensorFlow takes int32 for sizes and shapes: what is given to a graph stays in the host's memory
    on GPUs, and sums, comparisons and slices of it are made there. A step's windows then cross PCIe
    again and again (`benchmarks/gpu_placement.py`: 21 MB for 4,096 rows of SIM).
    """
    import numpy as np

    if has_gpu():
        return np.int64
    return np.int32


def resident(values: npt.NDArray[Any]) -> tf.Tensor:
    """Data as a constant that graphs find on the device: whole numbers as `whole_numbers`.

    Those of 64 bits stay so anywhere.
    """
    import tensorflow as tf

    if values.dtype.kind in "iu" and has_gpu():
        values = values.astype(whole_numbers())
    return tf.constant(values)


def computable(ids: tf.Tensor) -> tf.Tensor:
    """Whole numbers in a type with which GPUs compute, where there is one; else as they are."""
    import tensorflow as tf

    return tf.cast(ids, tf.int64) if has_gpu() else ids

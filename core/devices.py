"""What this machine computes with: its cores, locks between processes, TensorFlow's GPU."""

from __future__ import annotations

import multiprocessing
import os

from lookback.core.errors import UserError


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

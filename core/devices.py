"""What this machine computes with: its cores, and whether TensorFlow has a GPU."""

from __future__ import annotations

import os


def cores() -> int:
    """Processors that this process may use: fewer than the machine has where it is bound."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU. Imports TensorFlow, whose environment must have been set."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))

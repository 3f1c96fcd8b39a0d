"""Imports of packages that drag others in, which nothing of ours needs."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any


def deferred(module: str) -> Any:
    """What stands for a module, which is imported when something of it is asked for.

    Args:
      module: its whole name.
    """

    class Deferred:
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(module), name)

    return Deferred()


_NEW_OBJECTS = 50_000
"""Between two looks for cycles; Python's default is 700."""


def collect_rarely() -> None:
    """Has Python look for cycles less often: what imports and traces make, stays.

    To import TensorFlow and Merlin took 3.6 s of a core, of which 0.8 to look for cycles among
    ever more objects; so, 3.0 and 0.2.
    """
    gc.set_threshold(_NEW_OBJECTS)


@contextlib.contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Within it, packages are as if they were not installed; those imported already stay.

    Args:
      *packages: that what is imported within it tries to import, and can do without.
    """
    names = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None: not to be found
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def expect_no_pytorch() -> None:
    """Lets Merlin be imported without its warnings that PyTorch and Triton are not there."""
    warnings.filterwarnings("ignore", message=".*dtype mappings did not load.*")


def import_tensorflow() -> None:
    """Imports TensorFlow, if that is still to do, without what it imports for others' use.

    JAX, to convert JAX's models (tensorflow/lite/python/util.py:52), takes 70 MB; SciPy's special
    functions come for the augmentation of images (keras/preprocessing/image.py:47).
    """
    with hidden("jax", "scipy"):
        import tensorflow  # noqa: F401


def import_merlin_alone() -> None:
    """Imports Merlin's models without Horovod, for a process that trains alone.

    Merlin starts Horovod, and its threads, where it is installed
    (merlin/models/tf/distributed/backend.py:21).
    """
    with hidden("horovod"):
        import merlin.models.tf  # noqa: F401

"""Raw interactions → histories with schema: ``python -m workflows --help``.

A new dataset is one file with a `workflows.base.Reader`, and one line here.
"""

from __future__ import annotations

from types import ModuleType

from workflows import synthetic
from workflows.amazon import AmazonReader
from workflows.base import Reader
from workflows.movielens import MovieLensReader

DATASETS: dict[str, type[Reader]] = {
    "amazon": AmazonReader,
    "movielens": MovieLensReader,
    "synthetic": AmazonReader,  # its generator writes files of the same format
}

GENERATORS: dict[str, ModuleType] = {
    "synthetic": synthetic,
}
"""Modules with ``add_arguments(parser)`` and ``generate(args)``."""

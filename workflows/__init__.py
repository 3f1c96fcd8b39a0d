"""Raw data → dataset with schema: ``python -m workflows --help``.

There are two kinds of datasets. *Histories* are what users did, in order of time; *tabular* ones
have a row an impression: label, numbers, categorical values. A new dataset is one file with a
reader of its kind (`workflows.base.Reader`, `workflows.tabular_base.TabularReader`), and one line
here.
"""

from __future__ import annotations

from types import ModuleType

from workflows import synthetic, synthetic_criteo
from workflows.amazon import AmazonReader
from workflows.base import Reader
from workflows.criteo import CriteoReader
from workflows.interactions import InteractionsReader
from workflows.movielens import MovieLensReader
from workflows.tabular_base import TabularReader

DATASETS: dict[str, type[Reader]] = {
    "amazon": AmazonReader,
    "interactions": InteractionsReader,
    "movielens": MovieLensReader,
    "synthetic": AmazonReader,  # its generator writes files of the same format
}

TABULAR_DATASETS: dict[str, type[TabularReader]] = {
    "criteo": CriteoReader,
}

GENERATORS: dict[str, ModuleType] = {
    "criteo": synthetic_criteo,
    "synthetic": synthetic,
}
"""Modules with ``add_arguments(parser)`` and ``generate(args)``."""

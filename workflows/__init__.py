"""Raw data → dataset with schema: ``python -m workflows --help``.

There are three kinds of datasets. *Histories* are what users did, in order of time; *tabular* ones
have a row an impression: label, numbers, categorical values. Of these the lines are either label,
integers and hashes, or whatever a description says column by column. A new dataset is one file in
`datasets/` with a reader of its kind (`histories.reader.Reader`, `tabular.reader.TabularReader`,
`tabular.row_reader.RowReader`), and one line here.
"""

from __future__ import annotations

from types import ModuleType

from lookback.workflows.datasets.amazon import AmazonReader
from lookback.workflows.datasets.criteo import CriteoReader
from lookback.workflows.datasets.interactions import InteractionsReader
from lookback.workflows.datasets.log import LogReader
from lookback.workflows.datasets.movielens import MovieLensReader
from lookback.workflows.datasets.tabular_log import TabularLogReader
from lookback.workflows.generators import synthetic, synthetic_criteo
from lookback.workflows.histories.reader import Reader
from lookback.workflows.tabular.reader import TabularReader
from lookback.workflows.tabular.row_reader import RowReader

DATASETS: dict[str, type[Reader]] = {
    "amazon": AmazonReader,
    "interactions": InteractionsReader,
    "log": LogReader,
    "movielens": MovieLensReader,
    "synthetic": AmazonReader,  # its generator writes files of the same format
}

TABULAR_DATASETS: dict[str, type[TabularReader]] = {
    "criteo": CriteoReader,
}

ROW_DATASETS: dict[str, type[RowReader]] = {
    "tabular_log": TabularLogReader,
}

GENERATORS: dict[str, ModuleType] = {
    "criteo": synthetic_criteo,
    "synthetic": synthetic,
}
"""Modules with `OPTIONS`, dataclasses, and ``generate(output, overwrite, *instances of them)``."""

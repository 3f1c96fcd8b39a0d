"""Tabular datasets in the layout that NVIDIA's DLRM and DCNv2 read: ``split_binary``.

NVIDIA's tools know the splits ``train`` and ``test`` alone, so the validation rows lie beside them
and are not named (`formats.feature_spec`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lookback.core.errors import UserError
from lookback.core.manifests import WHOLLY, Verification
from lookback.formats.dataset_info import SPLITS, read_tabular_info
from lookback.formats.feature_spec import (
    NAMED_SPLITS,
    SpecFeature,
    id_type,
    write_feature_spec,
)
from lookback.formats.verification import vocabularies_of
from lookback.workflows.output import SPLIT_BINARY, Output

# Importing Merlin takes seconds.
if TYPE_CHECKING:
    from lookback.formats.tabular_parquet import TabularDataset
    from lookback.formats.tabular_rows import TabularRows


def export_split_binary(
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    verification: Verification = WHOLLY,
) -> int:
    """Writes a dataset as ``split_binary``, row group by row group; gives the number of rows.

    Args:
      input_dir: a tabular dataset.
      output_dir: to create.
      overwrite: replace split_binary files of ours at `output_dir`.
      verification: how far the dataset's files are compared with what it says of them.

    Raises:
      UserError: if `input_dir` is no tabular dataset, or `output_dir` is there.
    """
    directory = Path(input_dir)
    target = Output(Path(output_dir), SPLIT_BINARY, overwrite, (directory,))
    target.check()
    counts = read_tabular_info(directory)["counts"]
    if not any(counts.get(split) for split in SPLITS):
        raise UserError(f"{directory} has no rows to export.")
    from lookback.formats.feature_channels import CATEGORICAL, LABEL, NUMERICAL
    from lookback.formats.split_binary import split_binary_chunks, write_split
    from lookback.formats.tabular_parquet import TabularDataset

    data = TabularDataset(directory, verification)
    numerical, label = data.features.numerical, data.features.label
    features = {
        name: SpecFeature(np.dtype(id_type(rows)), rows)
        for name, rows in data.cardinalities.items()
    }
    features |= dict.fromkeys(numerical, SpecFeature(np.dtype(np.float16)))
    features[label] = SpecFeature(np.dtype(bool))
    channels = {CATEGORICAL: data.features.categorical, NUMERICAL: numerical, LABEL: [label]}
    with target.create() as output:
        for split in SPLITS:
            if counts.get(split) or split in NAMED_SPLITS:
                pieces = _pieces(data, split)
                write_split(output / split, pieces, data.cardinalities, numbers=bool(numerical))
        chunks = {split: split_binary_chunks(split, data.features) for split in NAMED_SPLITS}
        write_feature_spec(output, features, chunks, channels, vocabularies_of(directory))
    return sum(counts.get(split, 0) for split in SPLITS)


def _pieces(data: TabularDataset, split: str) -> Iterator[TabularRows]:
    """Row groups, one after another."""
    from lookback.formats.tabular_rows import TabularRows

    for block, size in enumerate(data.blocks(split)):
        rows = TabularRows.empty(size, data.features)
        data.read(split, block, 0, rows)
        yield rows

"""Tabular datasets in the layout that NVIDIA's DLRM and DCNv2 read: ``split_binary``.

    feature_spec.yaml
    train/, validation/, test/:  label.bin  numerical.bin  cat_0.bin  cat_1.bin ...

Files are rows without header: label one byte (bool), numerical N float16 a row, and each
categorical feature the smallest of int8, int16 and int32 that NVIDIA's reader gives its
cardinality (DLRM_and_DCNv2/dataloading/feature_spec.py, `get_categorical_feature_type`). That
reader knows the splits ``train`` and ``test`` alone and refuses others in the description, so the
validation rows lie beside them and are not described.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from lookback.core.errors import UserError
from lookback.formats.dataset_info import SPLITS, read_tabular_info
from lookback.formats.description import FEATURE_SPEC_FILE
from lookback.formats.tabular_files import LABEL, column_names, parts
from lookback.workflows.output import SPLIT_BINARY, Output

DESCRIBED_SPLITS = ("train", "test")
LABEL_FILE = "label.bin"
NUMERICAL_FILE = "numerical.bin"


def export_split_binary(
    input_dir: str | Path, output_dir: str | Path, *, overwrite: bool = False
) -> int:
    """Writes a dataset as ``split_binary``, row group by row group; gives the number of rows.

    Args:
      input_dir: a tabular dataset.
      output_dir: to create.
      overwrite: replace split_binary files of ours at `output_dir`.

    Raises:
      UserError: if `input_dir` is no tabular dataset, or `output_dir` is there.
    """
    directory = Path(input_dir)
    target = Output(Path(output_dir), SPLIT_BINARY, overwrite, (directory,))
    cardinalities = read_tabular_info(directory)["cardinalities"]
    numerical = _numerical_columns(directory)
    with target.create() as output:
        rows = 0
        for split in SPLITS:
            files = parts(directory, split)
            if files or split in DESCRIBED_SPLITS:
                rows += _write_split(files, output / split, len(numerical), cardinalities)
        (output / FEATURE_SPEC_FILE).write_text(_description(len(numerical), cardinalities))
    return rows


DATASET_TYPES: dict[str, Callable[..., int]] = {"split_binary": export_split_binary}
"""Layouts: (input, output, overwrite) -> rows written."""


def categorical_type(cardinality: int) -> str:
    """NumPy dtype of a categorical file, by NVIDIA's rule.

    Raises:
      UserError: if the ids do not fit int32.
    """
    for bits in (8, 16, 32):
        if cardinality < 2 ** (bits - 1) - 1:
            return f"int{bits}"
    raise UserError(
        f"split_binary has no type for {cardinality:,} ids. Use a larger --frequency_threshold."
    )


def _numerical_columns(directory: Path) -> list[str]:
    from lookback.core.arrow_files import open_parquet

    for split in SPLITS:
        for file in parts(directory, split):
            columns = open_parquet(file).schema_arrow.names
            return [name for name in columns if name.startswith("num_")]
    raise UserError(f"{directory} has no rows to export.")


def _write_split(
    files: list[Path], directory: Path, numerical: int, cardinalities: dict[str, int]
) -> int:
    import numpy as np

    from lookback.core.arrow_files import open_parquet

    nums, _ = column_names(numerical, 0)
    types = {name: categorical_type(rows) for name, rows in cardinalities.items()}
    directory.mkdir()
    rows = 0
    with contextlib.ExitStack() as stack:

        def create(name: str) -> BinaryIO:
            return stack.enter_context((directory / name).open("wb"))

        label = create(LABEL_FILE)
        # The reader wants all numerical features in one file, and none where there are none.
        numbers = create(NUMERICAL_FILE) if nums else None
        ids = {name: create(f"{name}.bin") for name in types}
        for file in files:
            parquet = open_parquet(file)
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group)
                label.write(table[LABEL].to_numpy().astype(bool).data)
                if numbers is not None:
                    dense = np.stack([table[name].to_numpy() for name in nums], axis=1)
                    numbers.write(dense.astype("<f2").data)
                for name, kind in types.items():
                    values = table[name].to_numpy().astype(np.dtype(kind).newbyteorder("<"))
                    ids[name].write(values.data)
                rows += table.num_rows
    return rows


def _description(numerical: int, cardinalities: dict[str, int]) -> str:
    """The text of ``feature_spec.yaml``."""
    import yaml

    nums, _ = column_names(numerical, 0)
    # NVIDIA's own files name the features cat_0.bin; any name is allowed, so ours stay.
    features: dict[str, dict[str, Any]] = {
        name: {"cardinality": rows, "dtype": categorical_type(rows)}
        for name, rows in cardinalities.items()
    }
    features.update({name: {"dtype": "float16"} for name in nums})
    features[LABEL] = {"dtype": "bool"}

    def chunk(split: str, names: list[str], file: str) -> dict[str, Any]:
        return {"type": "split_binary", "features": names, "files": [f"{split}/{file}"]}

    source = {
        split: [
            *([chunk(split, list(nums), NUMERICAL_FILE)] if nums else []),
            chunk(split, [LABEL], LABEL_FILE),
            *(chunk(split, [name], f"{name}.bin") for name in cardinalities),
        ]
        for split in DESCRIBED_SPLITS
    }
    channels = {"categorical": list(cardinalities), "numerical": list(nums), "label": [LABEL]}
    text: str = yaml.safe_dump(
        {
            "feature_spec": features,
            "source_spec": source,
            "channel_spec": channels,
            "metadata": {},
        }
    )
    return text

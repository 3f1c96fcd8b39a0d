"""What the rows of an embedding table stand for: the raw values that a workflow gave their numbers.

A dataset that `python -m workflows run` wrote, and a bundle that comes of one, have a workflow with
vocabularies in it; generated parquet, materialised samples and NVIDIA's binary files have none.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa

from lookback.formats.dataset_info import WORKFLOW_DIRECTORY
from lookback.formats.vocabulary import HASHED, HEX_DIGITS, id_file, key_file, read_ids, read_keys

ID_DIRECTORY = f"{WORKFLOW_DIRECTORY}/encoder/categories"
"""In a dataset of histories: the vocabularies, in NVTabular's Categorify alone, which loads without
our code."""
KEY_DIRECTORY = f"{WORKFLOW_DIRECTORY}/vocabulary"
"""In a tabular dataset: the vocabularies."""

OF_HISTORIES = ("padding", "null", "unknown")
OF_ROWS = ("unknown",)
"""Names of the first rows of a table, of histories and of tabular data. The latter have one for
rare, unknown and missing values."""


@dataclasses.dataclass(frozen=True)
class RawIds:
    """What the rows of one feature's table stand for.

    Attributes:
      special: names of the first rows, which stand for no value of their own.
      known: raw values of the others, in the order of rows; null where the vocabulary has no more
        than a hash.
    """

    special: tuple[str, ...]
    known: pa.Array

    def __len__(self) -> int:
        return len(self.special) + len(self.known)

    def take(self, rows: np.ndarray) -> pa.Array:
        """Raw values of rows ``[N]``; null for the special ones."""
        places = np.asarray(rows, np.int64) - len(self.special)
        return self.known.take(pa.array(places, mask=places < 0))

    def names_of(self, rows: np.ndarray) -> pa.Array:
        """Names of the special ones among rows ``[N]``; null for the others."""
        places = np.asarray(rows, np.int64)
        names = pa.array(self.special, pa.string())
        return names.take(pa.array(places, mask=places >= len(self.special)))


def feature_of(table: str) -> str:
    """The feature whose ids number the rows of a table: models with several call them NAME/PART."""
    return table.partition("/")[0]


def raw_ids_of(directory: Path, feature: str) -> RawIds | None:
    """The raw values of a feature; None if the directory has no vocabulary of it.

    Args:
      directory: a dataset, or a bundle.
      feature: name of its column.

    Raises:
      UserError: if the vocabulary is damaged.
    """
    ids = directory / ID_DIRECTORY / id_file(feature)
    if ids.is_file():
        return RawIds(OF_HISTORIES, read_ids(ids, feature))
    keys = directory / KEY_DIRECTORY / key_file(feature)
    if keys.is_file():
        known = read_keys(keys)
        in_order = known.keys[np.argsort(known.ids)].tolist()
        values = [None if key >= HASHED else f"{key:0{HEX_DIGITS}x}" for key in in_order]
        return RawIds(OF_ROWS, pa.array(values, pa.string()))
    return None


def keys_of(directory: Path, feature: str) -> RawIds | None:
    """As `raw_ids_of`, but with what tells values apart even where only a hash is known of them.

    Returns:
      Of tabular data `known` are the keys (int64, none null), else the same as `raw_ids_of`.
    """
    path = directory / KEY_DIRECTORY / key_file(feature)
    if not path.is_file():
        return raw_ids_of(directory, feature)
    known = read_keys(path)
    in_order = known.keys[np.argsort(known.ids)].astype(np.int64, copy=False)
    return RawIds(OF_ROWS, pa.array(in_order))


def features_with_raw_ids(directory: Path) -> list[str]:
    """Features of which a dataset or bundle has a vocabulary."""
    found = {
        *_names(directory / ID_DIRECTORY, id_file("*")),
        *_names(directory / KEY_DIRECTORY, key_file("*")),
    }
    return sorted(found)


def _names(directory: Path, pattern: str) -> list[str]:
    before, after = pattern.split("*")
    return [p.name.removeprefix(before).removesuffix(after) for p in directory.glob(pattern)]

"""The rows that a specification describes, checked, as our own formats hold them.

What becomes of what:

- SIM's samples: materialised samples. The files' columns are the features; ids, the padding (0, on
  the left, to the ``dimensions``) and the negatives stay as they are. Ids lie in 1 to the
  cardinality, which stands in metadata.json as it is: the table has one row more.
- DLRM's rows: a tabular dataset. Ids lie in 0 to the cardinality less 1, so the cardinality is the
  table's rows; numbers of any type are float32; a feature that is called as its file ("cat_0.bin")
  loses the ending.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from lookback.formats.feature_channels import ids_rows
from lookback.formats.feature_chunks import Block, PlacedValues, read_mapping
from lookback.formats.feature_spec import FeatureSpecification
from lookback.formats.materialised import Columns, check_padding
from lookback.formats.tabular_rows import Array, TabularRows, check_label, check_numbers
from lookback.formats.tabular_schema import TabularFeatures


def read_samples(
    spec: FeatureSpecification, columns: Columns, mapping: str
) -> Iterator[Mapping[str, Array]]:
    """Reads samples of histories, some thousand at a time, by column in the files' order.

    Args:
      spec: the specification.
      columns: of its features.
      mapping: of it.

    Yields:
      the label ``[n]`` int8, single ids ``[n]`` int32, lists ``[n, T]`` int32.

    Raises:
      UserError: if a file or a row is not as described, by file and row.
    """
    for block in read_mapping(spec, mapping, columns.every()):
        rows: dict[str, Array] = {columns.label: _labels(block[columns.label], columns.label)}
        rows[columns.label] = rows[columns.label].astype(np.int8)
        for name in (*columns.user, *columns.target):
            rows[name] = _ids(spec, name, block, 1, ids_rows(spec, name))
        for name in (*columns.history, *columns.negatives):
            rows[name] = _ids(spec, name, block, 0, ids_rows(spec, name))
        place = block[columns.history[0]].place
        check_padding(
            {name: rows[name] for name in columns.history},
            {name: rows[name] for name in columns.negatives},
            place.error,
        )
        yield rows


def read_rows(
    spec: FeatureSpecification, features: TabularFeatures, mapping: str
) -> Iterator[TabularRows]:
    """Reads rows of numbers and ids, some thousand at a time.

    Args:
      spec: the specification.
      features: of it.
      mapping: of it.

    Raises:
      UserError: if a file or a row is not as described, by file and row.
    """
    for block in read_mapping(spec, mapping, features.names):
        labels = _labels(block[features.label], features.label)
        rows = TabularRows.empty(len(labels), features)
        rows.labels[:, 0] = labels
        for column, name in enumerate(features.numerical):
            with np.errstate(over="ignore"):  # what is too large is refused
                rows.numerical[:, column] = block[name].values
            check_numbers(rows.numerical[:, column], name, block[name].place)
        for column, name in enumerate(features.categorical):
            rows.categorical[:, column] = _ids(spec, name, block, 0, ids_rows(spec, name) - 1)
        yield rows


def _labels(found: PlacedValues, name: str) -> Array:
    check_label(found.values, name, found.place)
    return found.values


def _ids(spec: FeatureSpecification, name: str, block: Block, least: int, most: int) -> Array:
    """A feature's ids as int32, which must lie between two numbers."""
    values, place = block[name]
    if values.size and (values.min() < least or values.max() > most):
        wrong = ((values < least) | (values > most)).reshape(len(values), -1)
        row = int(wrong.any(axis=1).argmax())
        raise place.error(
            row,
            f"id {values.reshape(len(values), -1)[row][wrong[row]][0]} in feature {name!r} is out "
            f"of range: expected {least} to {most}, as its cardinality in {spec.file.name} is "
            f"{ids_rows(spec, name)}. Correct the cardinality, or encode the feature again.",
        )
    return values.astype(np.int32, copy=False)

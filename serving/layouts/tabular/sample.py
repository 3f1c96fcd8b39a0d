"""Requests made from the test rows of a tabular dataset: for demonstrations, tests and load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from lookback.core.errors import UserError
from lookback.core.manifests import SIZES
from lookback.formats.tabular_columns import CATEGORICAL, NUMERICAL
from lookback.serving.feature_encoders import FeatureEncoder
from lookback.serving.layouts.tabular.requests import RowEncoder
from lookback.serving.manifest import TabularManifest, require_same_workflow

SPLIT = "test"


def sample_rows(
    manifest: TabularManifest,
    encoder: RowEncoder,
    export_dir: Path,
    dataset_dir: Path,
    *,
    rows: int = 3,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Turns test rows into requests that the bundle encodes to the same rows.

    Args:
      manifest: of the bundle.
      encoder: of the bundle.
      export_dir: the bundle.
      dataset_dir: the dataset that the model was trained on.
      rows: how many, drawn at random.
      seed: of the draw.

    Yields:
      A request for each row, in the dataset's order. With a workflow its values are raw: a number
      that has the row's logarithm, a known value of each id, null for id 0.

    Raises:
      UserError: if bundle and dataset do not belong together, if there are fewer rows, or if raw
        values cannot be told from the vocabularies.
    """
    from lookback.dataloading.tabular.source import open_tabular

    if rows < 1:
        raise UserError(f"expected at least 1 row, received {rows}")
    data = open_tabular(dataset_dir, SIZES)  # the command compares the digests
    found = (data.features.numerical, data.features.categorical)
    if found != (manifest.numerical, manifest.categorical) or _rows_of(data) != dict(
        manifest.cardinalities
    ):
        raise UserError(
            f"{dataset_dir} has other columns or tables than {export_dir} was trained on. Give the "
            "dataset that the model was trained on."
        )
    require_same_workflow(manifest, export_dir, dataset_dir)
    total = data.num_rows(SPLIT)
    if rows > total:
        raise UserError(f"{dataset_dir} has {total} test rows, fewer than the {rows} asked for.")
    chosen = np.sort(np.random.default_rng(seed).choice(total, rows, replace=False))
    first = 0
    for block, size in enumerate(data.blocks(SPLIT)):
        for row in chosen[(chosen >= first) & (chosen < first + size)] - first:
            yield request_of(manifest, encoder, *_read(data, block, int(row)))
        first += size


def request_of(
    manifest: TabularManifest, encoder: RowEncoder, numerical: Any, categorical: Any
) -> dict[str, Any]:
    """The request that is encoded to a row.

    Args:
      manifest: of the bundle.
      encoder: of the bundle.
      numerical: numbers ``[N]`` as the model reads them.
      categorical: ids ``[M]``.

    Raises:
      UserError: if raw values cannot be told from the vocabularies.
    """
    if manifest.ids == "encoded":
        return {NUMERICAL: numerical.tolist(), CATEGORICAL: categorical.tolist()}
    request: dict[str, Any] = {}
    for part, names, row in (
        (NUMERICAL, manifest.numerical, numerical),
        (CATEGORICAL, manifest.categorical, categorical),
    ):
        request[part] = []
        for name, value in zip(names, row, strict=True):
            # That of raw values decodes, too.
            decoder = cast(FeatureEncoder, encoder.encoders[name])
            try:
                request[part] += decoder.decode(np.array([value]))
            except ValueError as error:
                raise UserError(
                    f"Raw values of {name!r} cannot be recovered: {error}. Take requests from the "
                    "raw data instead."
                ) from error
    return request


def _read(data: Any, block: int, row: int) -> tuple[Any, Any]:
    from lookback.formats.tabular_rows import TabularRows

    one = TabularRows.empty(1, data.features)
    data.read(SPLIT, block, row, one)
    return one.numerical[0], one.categorical[0]


def _rows_of(data: Any) -> dict[str, int]:
    from lookback.formats.features import table_rows

    return table_rows(data.schema)

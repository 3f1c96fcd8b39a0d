"""Rows as training's loader reads them, and as requests of raw values say them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lookback.core.errors import UserError
from lookback.core.manifests import SIZES
from lookback.formats.tabular_columns import CATEGORICAL, NUMERICAL
from lookback.serving.layouts.tabular.requests import RowEncoder
from lookback.serving.layouts.tabular.sample import request_of
from lookback.serving.manifest import TabularManifest
from lookback.serving.skew.samples import NEGATIVES, REQUESTS_AT_ONCE, SPLITS, OfflineBatch

_ROWS_AT_ONCE = REQUESTS_AT_ONCE * (1 + NEGATIVES)


def offline_rows(
    manifest: TabularManifest, encoder: RowEncoder, dataset_dir: Path, samples: int
) -> Iterator[OfflineBatch]:
    """Makes samples; arguments and errors as of `RequestLayout.offline`."""
    from lookback.dataloading.tabular.source import TabularSource, open_tabular

    data = open_tabular(dataset_dir, SIZES)
    source = TabularSource(data, seed=0, batch_size=1, eval_batch_size=_ROWS_AT_ONCE)
    left = samples
    for split in SPLITS:
        if split not in (*source.held_out, "train"):
            continue
        number = 0
        for feed in source.eval_feeds(split):
            if left <= 0:
                return
            features, _ = source.eval_batch(split, feed)
            numerical, categorical = features[NUMERICAL], features[CATEGORICAL]
            kept, requests = [], []
            rows = min(left, len(numerical))
            for row in range(rows):
                try:
                    requests.append(request_of(manifest, encoder, numerical[row], categorical[row]))
                    kept.append(row)
                except UserError:  # the vocabulary holds hashes alone
                    continue
            left -= rows
            yield OfflineBatch(
                {name: values[kept] for name, values in features.items()},
                requests,
                [f"{split} row {number + row}" for row in kept],
                skipped=rows - len(kept),
            )
            number += rows

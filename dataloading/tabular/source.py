"""Batches of tabular data, the same ones whatever the number of processes.

Arrow or a memory map gives columns, NumPy makes matrices of them, and nothing touches pandas
(`python -m benchmarks loader --layout tabular`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.core.manifests import WHOLLY, Verification
from lookback.dataloading.parts import WHOLE, Part
from lookback.dataloading.sources import Batch, BatchSource
from lookback.dataloading.tabular.batches import PREFETCH, THREADS, read_batches
from lookback.dataloading.tabular.order import LANES, WINDOW, BatchOrder, Shuffle
from lookback.formats.dataset_info import is_tabular
from lookback.formats.description import is_split_binary
from lookback.formats.split_binary import SplitBinaryDataset
from lookback.formats.tabular_columns import CATEGORICAL, NUMERICAL
from lookback.formats.tabular_parquet import TabularDataset
from lookback.formats.tabular_rows import TabularData, TabularRows


class TabularSource(BatchSource):
    """One label, N numbers and M ids a row.

    Features are ``numerical`` ``[B, N]`` float32 and ``categorical`` ``[B, M]`` int32, labels
    ``[B, 1]`` float32; B is this process's share of a batch.
    """

    def __init__(
        self,
        data: TabularData,
        *,
        seed: int,
        batch_size: int,
        eval_batch_size: int | None = None,
        shuffle: bool = True,
        subset: float | None = None,
        drop_remainder: bool = False,
        repeat_count: int = 1,
        prefetch_train: int | None = 10,
        prefetch_test: int | None = 2,
        part: Part = WHOLE,
        micro_batches: int = 1,
        shuffle_buffer: int = LANES * WINDOW,
        threads: int = THREADS,
    ) -> None:
        """Makes batches of `data`.

        Args:
          data: to read, see `open_tabular`.
          seed: of shuffling.
          batch_size: rows of a training batch, all processes together.
          eval_batch_size: of evaluation; None: as in training.
          shuffle: off: rows come in file order, the same in every epoch.
          subset: train on this first fraction of the rows (NVIDIA's dataset_subset); None: all.
          drop_remainder: leave out a last training batch that is not full.
          repeat_count: passes over the training set in one epoch, each with its own order.
          prefetch_train: batches to hold ready in training (default: NVIDIA's); None leaves it
            to the reader.
          prefetch_test: the same in evaluation.
          part: this process's, of each batch.
          micro_batches: parts into which its share of a training batch can be cut.
          shuffle_buffer: rows that a batch is drawn from, see `dataloading.tabular.order`; rounded
            to whole blocks. A process holds those of its lanes, and three more windows
            (`dataloading.tabular.batches`): all of Criteo's lanes take about 400 MB.
          threads: that read.

        Raises:
          UserError: if an argument is out of range, or there is less than one training batch.
        """
        if eval_batch_size is None:
            eval_batch_size = batch_size
        self._prefetch_train = PREFETCH if prefetch_train is None else prefetch_train
        self._prefetch_test = PREFETCH if prefetch_test is None else prefetch_test
        for name, value, least in (
            ("global_batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("repeat_count", repeat_count, 1),
            ("prefetch_train_size", self._prefetch_train, 0),
            ("prefetch_test_size", self._prefetch_test, 0),
            ("shuffle_buffer", shuffle_buffer, LANES),
            ("threads", threads, 1),
        ):
            if value < least:
                raise UserError(f"{name} must be at least {least}, received {value}.")
        if subset is not None and not 0 < subset <= 1:
            raise UserError(f"dataset_subset must be in (0, 1], received {subset}.")
        self.schema = data.schema
        self._data = data
        self._seed, self._shuffle, self._window = seed, shuffle, shuffle_buffer // LANES
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._drop_remainder, self._repeat_count = drop_remainder, repeat_count
        self._part, self._micro_batches, self._threads = part, micro_batches, threads
        self._rows = data.num_rows("train")
        if subset is not None:
            self._rows = int(self._rows * subset)
        self._steps = self._order(0, 0).steps
        if not self._steps:
            raise UserError(
                f"The training set has {self._rows} rows, fewer than one batch of {batch_size}. "
                "Reduce --global_batch_size."
            )

    def both_classes(self, split: str) -> bool:
        """As the labels on disk are."""
        return self._data.both_classes(split)

    @property
    def held_out(self) -> Sequence[str]:
        """Those that have rows."""
        return [split for split in ("validation", "test") if self._data.has(split)]

    def train_steps(self) -> int:
        """Steps of one epoch, all passes together."""
        return self._steps * self._repeat_count

    def train_feeds(self, epoch: int, first_step: int) -> Iterator[Any]:
        """Feeds: arrays of features, and labels; with several micro-batches, a list of such."""
        first_pass, skipped = divmod(first_step, self._steps)
        for passes in range(first_pass, self._repeat_count):
            first = skipped if passes == first_pass else 0
            order = self._order(epoch * self._repeat_count + passes, first)
            batches = read_batches(
                self._data,
                "train",
                order,
                prefetch=self._prefetch_train,
                threads=self._threads,
            )
            with contextlib.closing(batches):
                for step, rows in enumerate(batches, first):
                    yield _feed(rows) if self._micro_batches == 1 else self._cut(order, step, rows)

    def parts_of(self, feed: Any) -> Sequence[Any]:
        """Feeds of single micro-batches."""
        return [feed] if self._micro_batches == 1 else feed

    def eval_steps(self, split: str) -> int:
        """Steps that cover a split once."""
        return -(-self._data.num_rows(split) // self._eval_batch_size)

    def eval_feeds(self, split: str) -> Iterator[Any]:
        """Feeds: arrays of features, and labels, in file order."""
        self._data.num_rows(split)  # raises if there is no such split
        order = BatchOrder(self._data.blocks(split), self._eval_batch_size, part=self._part)
        batches = read_batches(
            self._data, split, order, prefetch=self._prefetch_test, threads=self._threads
        )
        with contextlib.closing(batches):
            yield from map(_feed, batches)

    def train_batch(self, feed: Any) -> Batch:
        """The feed is the batch; of a list of micro-batches, the first stands for all."""
        return feed[0] if isinstance(feed, list) else feed

    def eval_batch(self, split: str, feed: Any) -> Batch:
        """The feed is the batch."""
        del split
        return feed

    def describe(self, feed: Any) -> dict[str, list[Any]]:
        """Gives the rows themselves: they have no other name."""
        columns: dict[str, list[Any]] = {name: [] for name in self._data.features.names}
        for features, labels in self.parts_of(feed):
            values = [*labels.T, *features[NUMERICAL].T, *features[CATEGORICAL].T]
            for column, more in zip(columns.values(), values, strict=True):
                column.extend(more.tolist())
        return columns

    def _order(self, epoch: int, first_step: int) -> BatchOrder:
        return BatchOrder(
            self._data.blocks("train"),
            self._batch_size,
            rows=self._rows,
            drop_remainder=self._drop_remainder,
            shuffle=Shuffle(self._seed, epoch, window=self._window) if self._shuffle else None,
            part=self._part,
            first_step=first_step,
        )

    def _cut(self, order: BatchOrder, step: int, rows: TabularRows) -> list[Any]:
        """The micro-batches of a share: cut where those of the whole batch would be."""
        parts = [
            self._part.cut(number, self._micro_batches) for number in range(self._micro_batches)
        ]
        return [_feed(rows.between(*order.share(step, part))) for part in parts]


def open_tabular(directory: str | Path, verification: Verification = WHOLLY) -> TabularData:
    """Opens tabular data in whichever form the directory holds it.

    The one place where a reader is chosen. On a GPU it could be Merlin's: none is written, as there
    was no machine with merlin-dataloader and cuDF to measure it on, and what is here feeds more
    rows than the models take.

    Args:
      directory: of the dataset.
      verification: how far its files are compared with what it says of them.

    Raises:
      UserError: if it holds none, or not as described.
    """
    if is_split_binary(directory) and not is_tabular(directory):
        return SplitBinaryDataset(directory, verification)
    return TabularDataset(directory, verification)


def _feed(rows: TabularRows) -> Batch:
    return {NUMERICAL: rows.numerical, CATEGORICAL: rows.categorical}, rows.labels

"""Materialised samples ("bring your own dataset"): parquet rows with padded or ragged lists.

Reads what NVIDIA's SIM describes as option 1 of "BYO dataset"::

    DATASET/
      metadata.json   {"cardinalities": [{"name": "uid", "value": 105925}, {"name": "item", ...}]}
      train/          part.0.parquet, part.1.parquet, ...
      test/           part.0.parquet, ...

The order of columns gives their meaning: the label, U user features, F features of the target
item, F lists of the positive history, F lists of the negative history. Names come from
metadata.json, U features of the user and then F of the item. Ids lie in 1 to the cardinality, and
0 is padding, on the left.

Arrow decodes the columns on all cores, NumPy sees them without a copy, and nothing touches pandas:
where merlin-dataloader reads hundreds of such rows a second on CPU, this reads hundreds of
thousands (`python -m benchmarks loader`).
"""

from __future__ import annotations

import bisect
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError
from lookback.formats.features import history_name, negatives_name
from lookback.formats.labels import both_classes
from lookback.formats.materialised import (
    SPLITS,
    Columns,
    RowGroup,
    assign_columns,
    check_padding,
    check_types,
    dataset_schema,
    list_offsets,
    pad_left,
    read_cardinalities,
    read_footers,
)

# Rows that one piece of decoding yields: at 4 lists of 100 about 13 MB.
_DECODE_ROWS = 8192

Array = npt.NDArray[Any]
ColumnArrays = dict[str, Array]
_T = TypeVar("_T")


class MaterialisedDataset:
    """A dataset of materialised samples on disk.

    Args:
      path: the directory with metadata.json, train/ and test/.
      user_features: U, how many columns after the label are user features (NVIDIA's
        `number_of_user_features`, 1 for Amazon Books: the user id).
      max_seq_length: T, history slots of a batch. Longer lists keep their newest T entries,
        shorter ones are padded with 0 on the left.
      long_seq_length: the first of them are the long history; the S = T - L others the short one,
        which the auxiliary negatives belong to.

    Attributes:
      schema: one scalar column for each user feature and one list column for each item feature,
        named as in metadata.json, with the tags and int domains of a dataset of histories. A
        feature's table has cardinality + 1 rows.

    Raises:
      UserError: if the directory, metadata.json or the files' columns are not as described.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        user_features: int = 1,
        max_seq_length: int = 100,
        long_seq_length: int = 90,
    ) -> None:
        if user_features < 0:
            raise UserError(f"user_features must be at least 0, received {user_features}.")
        if not 0 <= long_seq_length < max_seq_length:
            raise UserError(
                "long_seq_length must be at least 0 and less than max_seq_length, received "
                f"{long_seq_length} and {max_seq_length}."
            )
        self._path = Path(path)
        self._max_seq_length = max_seq_length
        self._short_seq_length = max_seq_length - long_seq_length
        self._cardinalities = read_cardinalities(self._path, user_features)
        names = list(self._cardinalities)
        self._user, self._item = tuple(names[:user_features]), tuple(names[user_features:])
        self._groups: dict[str, list[RowGroup]] = {}
        schemas = {}
        for split in SPLITS:
            self._groups[split], schemas[split] = read_footers(self._path, split)
        if schemas["train"].names != schemas["test"].names:
            raise UserError(
                f"{self._path}: the columns of train and test differ: {schemas['train'].names} and "
                f"{schemas['test'].names}. Write both with the same columns."
            )
        self._columns = assign_columns(self._path, schemas["train"].names, self._user, self._item)
        for split in SPLITS:
            check_types(self._path / split, schemas[split], self._columns)
        self.schema = dataset_schema(self._cardinalities, self._user, self._item)

    def num_rows(self, split: str) -> int:
        """Rows of a split, from the files' footers.

        Args:
          split: "train" or "test".

        Raises:
          UserError: if the split is unknown.
        """
        if split not in SPLITS:
            raise UserError(f"split must be one of {SPLITS}, received {split!r}.")
        return sum(group.rows for group in self._groups[split])

    def both_classes(self, split: str) -> bool:
        """Whether a split ("train" or "test") has labels of both classes."""
        groups = ((group.file, group.index) for group in self._groups[split])
        return both_classes(groups, self._columns.label)

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        drop_remainder: bool = False,
        start_step: int = 0,
        negatives: bool = True,
        shuffle_buffer: int = 65536,
        prefetch: int = 4,
    ) -> Iterator[tuple[ColumnArrays, npt.NDArray[np.float32]]]:
        """Yields the batches of one epoch, always the same ones for the same arguments.

        To shuffle, row groups are permuted, the rows in this order are cut into blocks of
        `shuffle_buffer`, and each block is permuted. Two threads read ahead; they stop when the
        iterator is closed.

        Args:
          split: "train" or "test".
          batch_size: rows of a batch (B).
          seed: of the shuffling.
          epoch: each has its own order.
          shuffle: off: rows come in file order.
          drop_remainder: leave out a last batch that is not full.
          start_step: steps of this epoch to skip, for resuming. Row groups (when shuffling: up to
            one block more) before it are not read.
          negatives: off: the negative histories are not read.
          shuffle_buffer: rows of a block; it bounds the memory (about 1 kB a row and item feature
            while a block is made).
          prefetch: finished batches to hold ready.

        Yields:
          Features, int32: each user feature ``[B]``, each item feature ``[B, 1]``,
          ``<item feature>_history`` ``[B, T]``, ``<item feature>_negatives`` ``[B, S]`` (0 where
          the history slot is padding); and labels ``[B, 1]`` float32.

        Raises:
          UserError: if an argument is out of range, or, when it is reached, if a row is not as
            described; the text names file, row and column.
        """
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("epoch", epoch, 0),
            ("start_step", start_step, 0),
            ("shuffle_buffer", shuffle_buffer, 1),
            ("prefetch", prefetch, 1),
        ):
            if value < least:
                raise UserError(f"{name} must be at least {least}, received {value}.")
        end = self.num_rows(split)
        if drop_remainder:
            end -= end % batch_size
        start = min(start_step * batch_size, end)
        groups = self._groups[split]
        if shuffle:
            order = _generator(seed, epoch).permutation(len(groups))
            groups = [groups[i] for i in order]
            first_block = start // shuffle_buffer
            pieces = _read_ahead(self._pieces(groups, first_block * shuffle_buffer, negatives), 2)
            blocks: Iterator[ColumnArrays] = _shuffled(
                pieces, shuffle_buffer, end, seed, epoch, first_block, start
            )
        else:
            blocks = _read_ahead(self._pieces(groups, start, negatives), 2)
        return _read_ahead(_batched(blocks, batch_size, end - start), prefetch)

    def _pieces(
        self, groups: list[RowGroup], first_row: int, negatives: bool
    ) -> Iterator[ColumnArrays]:
        """Decodes row groups piece by piece, from row `first_row` of their concatenation on."""
        names = self._columns
        columns = [names.label, *names.user, *names.target, *names.history]
        columns += names.negatives if negatives else ()
        ends = list(itertools.accumulate(group.rows for group in groups))
        position = bisect.bisect_right(ends, first_row)
        skip = first_row - (ends[position - 1] if position else 0)
        for group in groups[position:]:
            row = group.first_row
            # A file is opened once a row group: its footer is small, and no handle is kept open.
            with open_parquet(group.file) as file:
                for piece in file.iter_batches(
                    _DECODE_ROWS, row_groups=[group.index], columns=columns, use_threads=True
                ):
                    dropped = min(skip, piece.num_rows)
                    skip -= dropped
                    if dropped < piece.num_rows:
                        where = (group.file, row + dropped)
                        yield self._decode(piece.slice(dropped), where, negatives)
                    row += piece.num_rows

    def _decode(
        self, piece: pa.RecordBatch, where: tuple[Path, int], negatives: bool
    ) -> ColumnArrays:
        """Checks a piece and turns it into a batch of its rows (`where`: file and first row)."""
        names, T, S = self._columns, self._max_seq_length, self._short_seq_length
        rows: ColumnArrays = {"label": _label(piece, names.label, where)}
        for feature, name in zip(self._user, names.user, strict=True):
            rows[feature] = self._ids(piece, name, feature, where)
        for feature, name in zip(self._item, names.target, strict=True):
            rows[feature] = self._ids(piece, name, feature, where)[:, np.newaxis]
        first_list = names.history[0]
        offsets = _offsets(piece, first_list, where)
        lists = [(history_name, names.history, T)]
        if negatives:
            lists.append((negatives_name, names.negatives, S))
        for rename, columns, slots in lists:
            for feature, name in zip(self._item, columns, strict=True):
                _check_lengths(piece, name, first_list, offsets, where)
                values = _values(piece, name, where)
                self._check_range(values, name, feature, where, offsets, least=0)
                rows[rename(feature)] = pad_left(values, offsets, slots)
        self._check_padding(rows, names, where, negatives)
        return rows

    def _ids(
        self, piece: pa.RecordBatch, name: str, feature: str, where: tuple[Path, int]
    ) -> Array:
        """The ids ``[B]`` of a scalar column."""
        _check_nulls(piece.column(name), name, where)
        values = piece.column(name).to_numpy()
        self._check_range(values, name, feature, where, None, least=1)
        return values.astype(np.int32, copy=False)

    def _check_range(
        self,
        values: Array,
        name: str,
        feature: str,
        where: tuple[Path, int],
        offsets: Array | None,
        least: int,
    ) -> None:
        """Raises for ids outside [least, cardinality]; `offsets` of their rows if in lists."""
        cardinality = self._cardinalities[feature]
        if not len(values):
            return
        if int(values.min()) >= least and int(values.max()) <= cardinality:
            return
        index = int(np.argmax((values < least) | (values > cardinality)))
        row = index if offsets is None else int(np.searchsorted(offsets, index, "right")) - 1
        raise _row_error(
            where,
            row,
            f"id {values[index]} in column {name!r} is out of range: expected {least} to "
            f"{cardinality}, the cardinality of {feature!r} in metadata.json. Correct the "
            "cardinality or encode the column again.",
        )

    def _check_padding(
        self, rows: ColumnArrays, names: Columns, where: tuple[Path, int], negatives: bool
    ) -> None:
        """Raises unless zeros stand on the left only, alike in all features; blanks negatives."""

        def of(columns: tuple[str, ...], rename: Callable[[str], str]) -> ColumnArrays:
            pairs = zip(columns, self._item, strict=True)
            return {column: rows[rename(feature)] for column, feature in pairs}

        drawn = of(names.negatives, negatives_name) if negatives else {}
        mask = check_padding(
            of(names.history, history_name),
            drawn,
            lambda row, text: _row_error(where, row, text),
        )
        if negatives:
            for feature, values in zip(self._item, drawn.values(), strict=True):
                rows[negatives_name(feature)] = values * mask[:, -self._short_seq_length :]


def _label(piece: pa.RecordBatch, name: str, where: tuple[Path, int]) -> Array:
    """The labels ``[B, 1]`` float32."""
    _check_nulls(piece.column(name), name, where)
    labels = piece.column(name).to_numpy(zero_copy_only=False).astype(np.float32)
    wrong = (labels != 0) & (labels != 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise _row_error(where, row, f"label {labels[row]:g} in column {name!r}. Expected 0 or 1.")
    return labels[:, np.newaxis]


def _offsets(piece: pa.RecordBatch, name: str, where: tuple[Path, int]) -> Array:
    """`list_offsets` of a column, which has no nulls."""
    _check_nulls(piece.column(name), name, where)
    return list_offsets(piece.column(name))


def _check_lengths(
    piece: pa.RecordBatch, name: str, first: str, expected: Array, where: tuple[Path, int]
) -> None:
    if name == first:
        return
    found = _offsets(piece, name, where)
    if np.array_equal(found, expected):
        return
    lengths, others = np.diff(expected), np.diff(found)
    row = int((lengths != others).argmax())
    raise _row_error(
        where,
        row,
        f"the list of {first!r} has {lengths[row]} entries and that of {name!r} {others[row]}. "
        "All lists of a row must be equally long.",
    )


def _values(piece: pa.RecordBatch, name: str, where: tuple[Path, int]) -> Array:
    """All entries of a list column, row after row."""
    values = piece.column(name).flatten()
    _check_nulls(values, name, where)
    return values.to_numpy()


def _shuffled(
    pieces: Iterator[ColumnArrays],
    size: int,
    end: int,
    seed: int,
    epoch: int,
    first_block: int,
    start: int,
) -> Iterator[ColumnArrays]:
    """Regroups pieces into blocks of `size` rows and permutes each.

    Args:
      pieces: rows from `first_block * size` on.
      size: of a block; the last one may be smaller.
      end: rows of the epoch; those after it are never yielded, but take part in the permutation
        of the last block, so that every row has its chance.
      seed: of the permutations.
      epoch: likewise.
      first_block: number of the first block.
      start: row of the epoch to start at; it lies in the first block.
    """
    for block, rows in enumerate(_regrouped(pieces, size), first_block):
        first = block * size
        if first >= end:
            return
        count = len(next(iter(rows.values())))
        order = _generator(seed, epoch, block).permutation(count)[max(start - first, 0) :]
        # Yielded in parts: a part is gathered while the block is still the only copy.
        for part in range(0, len(order), _DECODE_ROWS):
            chosen = order[part : part + _DECODE_ROWS]
            yield {name: values.take(chosen, axis=0) for name, values in rows.items()}


def _batched(
    blocks: Iterator[ColumnArrays], size: int, total: int
) -> Iterator[tuple[ColumnArrays, npt.NDArray[np.float32]]]:
    """Cuts `total` rows into batches of features and labels."""
    for rows in _regrouped(blocks, size, total):
        labels = rows.pop("label")
        yield rows, labels


def _regrouped(
    pieces: Iterator[ColumnArrays], size: int, total: int | None = None
) -> Iterator[ColumnArrays]:
    """Regroups rows into pieces of `size` (the last may be smaller), up to `total` rows.

    Each row is copied once, into an array made for its new piece, whatever the sizes.
    """
    if total == 0:
        return
    left = total
    gathered: list[ColumnArrays] = []
    count = 0
    for piece in pieces:
        rows = len(next(iter(piece.values())))
        start = 0
        while start < rows:
            wanted = size if left is None else min(size, left)
            taken = min(rows - start, wanted - count)
            gathered.append({name: v[start : start + taken] for name, v in piece.items()})
            start += taken
            count += taken
            if count == wanted:
                yield _joined(gathered)
                gathered, count = [], 0
                if left is not None:
                    left -= wanted
                    if left == 0:
                        return
    if gathered:
        yield _joined(gathered)


def _joined(parts: list[ColumnArrays]) -> ColumnArrays:
    # Always a copy: a part may be a view of a decoded buffer, which must be free to go.
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _read_ahead(items: Iterable[_T], depth: int) -> Iterator[_T]:
    """Runs an iterator in a thread of its own, up to `depth` items ahead.

    Exceptions of `items` come out where the item would have. Closing this generator (or letting
    go of it) ends the thread.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    closed = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not closed.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # handed to the consumer, whatever it is
            put("error", error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        closed.set()
        thread.join()


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng([seed % 2**64, *key])


def _check_nulls(column: pa.Array, name: str, where: tuple[Path, int]) -> None:
    if column.null_count:
        raise UserError(
            f"{where[0]}: column {name!r} holds nulls after row {where[1]}. Fill them: ids start "
            "at 1, and 0 pads histories."
        )


def _row_error(where: tuple[Path, int], row: int, text: str) -> UserError:
    return UserError(f"{where[0]}, row {where[1] + row}: {text}")

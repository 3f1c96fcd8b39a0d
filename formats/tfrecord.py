"""TFRecord files of ``tf.train.Example``, as NVIDIA's preprocessing of SIM writes and reads them.

A record holds one sample, or, prebatched, several: each feature's values of all of them one after
the other, as integers. A single value a sample is a list of one; a history is a list of up to T ids
(the first version of NVIDIA's script), or of T with 0 for padding on the left (the second); of
prebatched samples it always is T. So the records tell how they were batched: a single value comes
as often as there are samples.

Writing them out of Python takes most of its time in protobuf; reading is `tf.data`'s, which parses
batches of records on all cores.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from lookback.core.devices import cores
from lookback.core.errors import UserError, shown
from lookback.formats.materialised import pad_left
from lookback.formats.tabular_rows import Array

_SAMPLES_AT_ONCE = 4096  # of two times two lists of 100: 13 MB
_AHEAD = 2  # batches that are parsed while one is worked on
_LENGTH = struct.Struct("<Q")  # a record begins with that of its data
_AROUND = 12, 4  # bytes before a record's data (its length and a checksum), and behind it


class ParsedLists(NamedTuple):
    """A feature's values in some records: those of record r from ``splits[r]`` on."""

    values: Array
    splits: Array

    def counts(self) -> Array:
        """How many values each record has."""
        return np.diff(self.splits)


def read_tfrecord(
    file: Path, kinds: Mapping[str, np.dtype[Any]], slots: Mapping[str, int]
) -> Iterator[dict[str, Array]]:
    """Reads a file's samples in their order, some thousand at a time.

    Args:
      file: to read.
      kinds: types of the features that are read: integers (bool too) or floating-point numbers.
      slots: T of those of them that are lists.

    Yields:
      ``[n]`` of single values, ``[n, T]`` of lists, with 0 on the left of shorter ones; int64 or
      float32.

    Raises:
      UserError: if the file cannot be read, or a record has not what it should, by the record's
        number (from 0 on).
    """
    _check_lengths(file)
    features = {
        name: tf.io.RaggedFeature(
            tf.float32 if kind.kind == "f" else tf.int64, row_splits_dtype=tf.int64
        )
        for name, kind in kinds.items()
    }
    single = {name: feature for name, feature in features.items() if name not in slots}
    first = _samples_in_first(file, single)
    if first is None:
        return
    batches = (
        tf.data.TFRecordDataset(str(file))
        .batch(max(1, _SAMPLES_AT_ONCE // first))
        .map(
            lambda records: tf.io.parse_example(records, features),
            num_parallel_calls=cores(),
            deterministic=True,
        )
        .prefetch(_AHEAD)
    )
    seen = dict.fromkeys(kinds, 0)
    record = 0
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator, None)
        except tf.errors.OpError as error:
            raise _unreadable(file, error.message, record) from error
        if batch is None:
            break
        parsed = {
            name: ParsedLists(batch[name].values.numpy(), batch[name].row_splits.numpy())
            for name in kinds
        }
        for name, values in parsed.items():
            seen[name] += len(values.values)
        yield _samples(parsed, slots, file, record)
        record += len(next(iter(parsed.values())).splits) - 1
    absent = [name for name, count in seen.items() if not count]
    if absent:
        raise UserError(
            f"{file}: no record has the feature(s) {shown(absent)}. Correct the names in "
            "feature_spec.yaml, or write the file again."
        )


def write_tfrecord(
    file: Path, blocks: Iterable[Mapping[str, Array]], samples: int | None = None
) -> int:
    """Writes samples, and gives how many.

    Args:
      file: to write.
      blocks: integers ``[n]`` or ``[n, T]`` by feature, some samples at a time.
      samples: of a record, which the blocks must be multiples of, but for the last; None: one,
        without prebatching.
    """
    count = 0
    with tf.io.TFRecordWriter(str(file)) as writer:
        for block in blocks:
            rows = len(next(iter(block.values())))
            for begin in range(0, rows, samples or 1):
                feature = {
                    name: tf.train.Feature(
                        int64_list=tf.train.Int64List(
                            value=values[begin : begin + (samples or 1)].ravel()
                        )
                    )
                    for name, values in block.items()
                }
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(example.SerializeToString())
            count += rows
    return count


def _check_lengths(file: Path) -> None:
    """Refuses a file that does not end where its last record does.

    TensorFlow dies of a record longer than memory, and takes a length that is cut off for the end
    of the file (2.12, record_reader.cc).

    Raises:
      UserError: naming the record.
    """
    try:
        size = file.stat().st_size
        if not size:
            return  # nothing can be mapped
        with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
            end = record = 0
            while end < size:
                left = size - end - sum(_AROUND)
                (length,) = _LENGTH.unpack_from(data, end) if left >= 0 else (0,)
                if length > left:
                    found = f"{length:,} bytes of data, and {max(left, 0):,} are left in the file"
                    raise _unreadable(file, found, record)
                end += length + sum(_AROUND)
                record += 1
    except OSError as error:
        raise _unreadable(file, error, 0) from error


def _samples_in_first(file: Path, single: Mapping[str, tf.io.RaggedFeature]) -> int | None:
    """Samples in a file's first record, by what has one value a sample; None without a record."""
    try:
        record = next(iter(tf.data.TFRecordDataset(str(file)).take(1)), None)
        if record is None:
            return None
        parsed = tf.io.parse_example([record.numpy()], dict(single)) if single else {}
    except tf.errors.OpError as error:
        raise _unreadable(file, error.message, 0) from error
    return max([1, *(len(values.values) for values in parsed.values())])


def _samples(
    parsed: Mapping[str, ParsedLists], slots: Mapping[str, int], file: Path, record: int
) -> dict[str, Array]:
    """The samples of some records, of which the first has the number `record`."""
    single = [name for name in parsed if name not in slots]
    leader = next(iter([*single, *slots]))
    counts = parsed[leader].counts()  # [R]
    if not single:
        counts = np.maximum(counts // slots[leader], 1)
    rows: dict[str, Array] = {}
    for name in single:
        found = parsed[name].counts()
        wrong = (found != counts) | (found == 0)
        if wrong.any():
            number = int(wrong.argmax())
            raise UserError(
                f"{file}, record {record + number}: {found[number]} values of {name!r}, "
                f"{counts[number]} of {leader!r}. Expected as many, one a sample. Write the "
                "file again."
            )
        rows[name] = parsed[name].values
    for name, width in slots.items():
        found = parsed[name].counts()
        # One sample alone may have a shorter list.
        wrong = np.where(counts == 1, found > width, found != counts * width)
        if wrong.any():
            number = int(wrong.argmax())
            raise UserError(
                f"{file}, record {record + number}: {found[number]} values of {name!r} for "
                f"{counts[number]} sample(s). Expected {width} each, as its dimensions say, or "
                "fewer of a sample alone. Correct the dimensions, or write the file again."
            )
        lengths = np.repeat(np.where(counts == 1, found, width), counts)  # [n]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rows[name] = pad_left(parsed[name].values, offsets, width)
    return rows


def _unreadable(file: Path, reason: object, record: int) -> UserError:
    return UserError(
        f"{file}, record {record} or after it: {shown(str(reason))}. Expected a TFRecord file, not "
        "compressed, whole, of tf.train.Example with lists of integers (of features with a float "
        "dtype, of floats), as NVIDIA's preprocessing of SIM writes it. Copy or write it again."
    )

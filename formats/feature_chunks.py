"""The rows of a mapping, read from its chunks, whatever their types: a few thousand at a time.

    csv           values with commas between, in the order of the chunk's features; without a
                  header, as NVIDIA's transcoders write and read them, or with the features' names
    parquet       columns by name
    split_binary  values of the features' dtypes, row after row
    tfrecord      `formats.tfrecord`

Chunks of a mapping hold as many rows each, in the same order. Memory is bounded by a few blocks of
each chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError, shown
from lookback.formats.feature_spec import (
    CSV,
    PARQUET,
    SPLIT_BINARY,
    TFRECORD,
    Chunk,
    FeatureSpecification,
    SpecFeature,
)
from lookback.formats.materialised import list_offsets, pad_left
from lookback.formats.split_binary import mapped, rows_of
from lookback.formats.tabular_rows import Array, Place

_ROWS = 8192  # of a block; of two times two lists of 100, 26 MB
_CSV_BYTES = 1 << 22
_LINE = 1 << 16

Features = Mapping[str, SpecFeature]


class PlacedValues(NamedTuple):
    """Values of a feature in consecutive rows: ``[n]``, or ``[n, T]`` of lists."""

    values: Array
    place: Place

    def between(self, begin: int, end: int) -> PlacedValues:
        """Those of rows begin to end."""
        place = dataclasses.replace(self.place, row=self.place.row + begin)
        return PlacedValues(self.values[begin:end], place)


Block = dict[str, PlacedValues]


def read_mapping(
    spec: FeatureSpecification, mapping: str, names: Collection[str]
) -> Iterator[Block]:
    """Reads the rows of a mapping in their order.

    Args:
      spec: the specification.
      mapping: of it.
      names: features to read.

    Raises:
      UserError: if a file cannot be read, or its rows are not as described, by file and row (from
        0 on); or if the chunks have different numbers of rows.
    """
    chunks = [
        chunk for chunk in spec.mappings[mapping] if any(name in names for name in chunk.features)
    ]
    streams = [
        _chunk_rows(spec, mapping, chunk, [name for name in chunk.features if name in names])
        for chunk in chunks
    ]
    held: list[Block | None] = [None] * len(streams)
    rows = 0
    while True:
        held = [
            next(stream, None) if block is None else block
            for stream, block in zip(streams, held, strict=True)
        ]
        blocks = [block for block in held if block is not None]
        if not blocks:
            return
        if len(blocks) < len(held):
            short = [block is None for block in held].index(True)
            longer = [block is None for block in held].index(False)
            raise UserError(
                f"{spec.file}: {chunks[short].files[-1].name} ends after row {rows - 1} of the "
                f"mapping {mapping!r}, {chunks[longer].files[-1].name} does not. Expected as many "
                "rows of every chunk. One of them is cut off, or files are missing."
            )
        count = min(_rows(block) for block in blocks)
        yield {name: v.between(0, count) for block in blocks for name, v in block.items()}
        held = [
            {name: v.between(count, _rows(block)) for name, v in block.items()}
            if _rows(block) > count
            else None
            for block in blocks
        ]
        rows += count


def _rows(block: Block) -> int:
    return len(next(iter(block.values())).values)


def _chunk_rows(
    spec: FeatureSpecification, mapping: str, chunk: Chunk, names: Sequence[str]
) -> Iterator[Block]:
    """The rows of a chunk's files, one after the other."""
    features = {name: spec.features[name] for name in chunk.features}
    for file in chunk.files:
        if not file.is_file():
            raise UserError(
                f"{file} is missing, which {spec.file} names for the mapping {mapping!r}. Copy it "
                "there, or take it out of the specification."
            )
        row = 0
        for values in _READERS[chunk.type](file, features, names):
            place = Place(mapping, file, row)
            block = {name: PlacedValues(values[name], place) for name in names}
            row += _rows(block)
            if _rows(block):
                yield block


def _csv(file: Path, features: Features, names: Sequence[str]) -> Iterator[dict[str, Array]]:
    lists = [name for name in features if features[name].dimensions is not None]
    if lists:
        raise UserError(f"{file}: {shown(lists)} are lists, which csv does not hold.")
    read = pcsv.ReadOptions(
        column_names=list(features),
        block_size=_CSV_BYTES,
        skip_rows=int(_has_header(file, list(features))),
    )
    convert = pcsv.ConvertOptions(
        column_types={name: _CSV_TYPES[features[name].dtype.kind] for name in features},
        include_columns=list(names),
        null_values=[""],
    )
    row = 0
    try:
        with pcsv.open_csv(file, read_options=read, convert_options=convert) as reader:
            for batch in reader:
                yield _arrow_values(batch, features, names, file, row)
                row += batch.num_rows
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            return
        raise _unreadable(file, f"after row {row}", error) from error


_CSV_TYPES = {
    "i": pa.int64(),
    "u": pa.int64(),
    "f": pa.float64(),
    "b": pa.int64(),
}


def _has_header(file: Path, names: list[str]) -> bool:
    """Whether the first line is the features' names, as no line of values can be."""
    with pa.input_stream(str(file)) as stream:  # unpacks what pyarrow.csv unpacks
        line = stream.read(_LINE).split(b"\n", 1)[0].rstrip(b"\r")
    return [name.strip('"') for name in line.decode(errors="replace").split(",")] == names


def _parquet(file: Path, features: Features, names: Sequence[str]) -> Iterator[dict[str, Array]]:
    row = 0
    try:
        with open_parquet(file) as parquet:
            found = parquet.schema_arrow
            lacking = [name for name in names if found.names.count(name) != 1]
            if lacking:
                raise UserError(
                    f"{file}: expected a column {shown(lacking[0])}, found {shown(found.names)}. "
                    "Correct the chunk's features, or write the file again."
                )
            for batch in parquet.iter_batches(_ROWS, columns=list(names)):
                yield _arrow_values(batch, features, names, file, row)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, f"after row {row}", error) from error


def _arrow_values(
    batch: pa.RecordBatch, features: Features, names: Sequence[str], file: Path, row: int
) -> dict[str, Array]:
    """The columns of a batch that begins with a row of a file."""
    found = {}
    for name in names:
        column, slots = batch.column(batch.schema.get_field_index(name)), features[name].dimensions
        is_list = isinstance(column, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray)
        if is_list != (slots is not None):
            raise UserError(
                f"{file}: column {name!r} is {column.type}, and its dimensions in the "
                f"specification are {'absent' if slots is None else [slots]}. Lists have some."
            )
        values = column.flatten() if is_list else column
        kind = features[name].dtype.kind
        suits = pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)
        if not suits and not (kind in "fb" and pa.types.is_floating(values.type)):
            raise UserError(
                f"{file}: column {name!r} is {column.type}. Expected {features[name].dtype.name}, "
                "as the specification says."
            )
        for part in (column, values):
            if part.null_count:
                at = f", row {row + _first_null(column)}" if part is column else ""
                raise UserError(
                    f"{file}{at}: column {name!r} holds nulls (a csv: empty fields) from row {row} "
                    "on. Expected none. Fill them."
                )
        array: Array = values.to_numpy(zero_copy_only=False)
        if slots is not None:
            offsets = list_offsets(column)
            long = np.diff(offsets) > slots
            if long.any():
                raise UserError(
                    f"{file}, row {row + int(long.argmax())}: a list of {name!r} is longer than "
                    f"{slots}, as its dimensions say. Raise them."
                )
            array = pad_left(array, offsets, slots)
        found[name] = array
    return found


def _first_null(column: pa.Array) -> int:
    return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))


def _split_binary(
    file: Path, features: Features, names: Sequence[str]
) -> Iterator[dict[str, Array]]:
    kinds = [(name, *_stored(feature)) for name, feature in features.items()]
    row = np.dtype(kinds)
    count = rows_of(file, row.itemsize)
    for begin in range(0, count, _ROWS):
        block = mapped(file, row, begin, min(_ROWS, count - begin))
        yield {name: block[name] for name in names}


def _stored(feature: SpecFeature) -> tuple[Any, ...]:
    kind = np.dtype(np.uint8) if feature.dtype.kind == "b" else feature.dtype.newbyteorder("<")
    return (kind,) if feature.dimensions is None else (kind, (feature.dimensions,))


def _tfrecord(file: Path, features: Features, names: Sequence[str]) -> Iterator[dict[str, Array]]:
    from lookback.formats.tfrecord import read_tfrecord  # TensorFlow takes seconds

    kinds = {name: features[name].dtype for name in names}
    slots = {n: s for n in names if (s := features[n].dimensions) is not None}
    return read_tfrecord(file, kinds, slots)


_READERS: Mapping[str, Callable[[Path, Features, Sequence[str]], Iterator[dict[str, Array]]]] = {
    CSV: _csv,
    PARQUET: _parquet,
    SPLIT_BINARY: _split_binary,
    TFRECORD: _tfrecord,
}


def _unreadable(file: Path, where: str, error: Exception) -> UserError:
    return UserError(
        f"{file}, {where}: {shown(str(error))}. Expected values of the types that the "
        "specification gives. Correct it, or write the file again."
    )

"""Tables of a bundle as files of their own: mapped to memory, and read where rows are looked up.

Each is ``tables/N.bin``: its rows, one after another, without a header, so that the map is aligned
as TensorFlow wants it. Of int8, a row is ``scale * values``, and ``tables/N.scales.bin`` has the
scales (float32): the row's largest magnitude is 127. bundle.json says which file is which table.

Nothing is copied when a bundle is opened, and all processes that serve it share the one copy in the
system's cache. The graph takes the tables as inputs and gathers from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lookback.core.devices import HOST
from lookback.core.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

TABLE_DIRECTORY = "tables"
DTYPES: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
"""Types of tables as options name them, and as NumPy does."""

Blocks = Callable[[], Iterable[npt.NDArray[Any]]]
"""Gives the rows of a table, float32 ``[n, D]``, one block after another."""

_INPUT = "lookback_table_{}"
_INT8 = 127.0
_CPU = "/job:localhost/replica:0/task:0/device:CPU:0"


@dataclasses.dataclass(frozen=True)
class TableFile:
    """A table in a bundle.

    Attributes:
      file: of its rows, relative to the bundle.
      shape: rows, and the length of one.
      dtype: of its values, as NumPy names it.
      input: of the signature, that takes its rows.
      scales: file of the rows' scales; None: the values are themselves.
    """

    file: str
    shape: tuple[int, int]
    dtype: str
    input: str
    scales: str | None = None

    @property
    def scales_input(self) -> str:
        """The input of the signature that takes the scales."""
        return f"{self.input}_scales"

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> TableFile:
        """What bundle.json says of a table."""
        return cls(**{**said, "shape": tuple(said["shape"])})

    def maps(self, directory: Path) -> dict[str, npt.NDArray[Any]]:
        """The rows ``[R, D]``, and scales ``[R]``, by input, mapped to memory, of a bundle."""
        found = {self.input: np.memmap(directory / self.file, self.dtype, "r", shape=self.shape)}
        if self.scales is not None:
            path = directory / self.scales
            found[self.scales_input] = np.memmap(path, np.float32, "r", shape=self.shape[:1])
        return {name: np.asarray(values) for name, values in found.items()}

    def take(
        self, directory: Path, rows: npt.NDArray[np.int64], columns: range | None = None
    ) -> npt.NDArray[np.float32]:
        """Some rows ``[N]`` of the table, and some columns of them, as a server looks them up."""
        maps = self.maps(directory)
        found = maps[self.input][rows].astype(np.float32)
        if self.scales is not None:
            found *= maps[self.scales_input][rows][:, np.newaxis]
        return found if columns is None else found[:, columns.start : columns.stop]


def write_tables(
    directory: Path, shapes: Mapping[str, tuple[int, int]], blocks: Mapping[str, Blocks], dtype: str
) -> dict[str, TableFile]:
    """Writes tables, with the memory of a block.

    Args:
      directory: the bundle.
      shapes: of the tables, by name.
      blocks: their rows.
      dtype: a key of `DTYPES`.

    Raises:
      UserError: if a table's numbers do not fit the type.
    """
    (directory / TABLE_DIRECTORY).mkdir()
    written = {}
    for number, (name, shape) in enumerate(shapes.items()):
        stem = f"{TABLE_DIRECTORY}/{number}"
        scales = f"{stem}.scales.bin" if dtype == "int8" else None
        table = TableFile(f"{stem}.bin", shape, DTYPES[dtype], _INPUT.format(number), scales)
        with (directory / table.file).open("wb") as file:
            if scales is None:
                count = sum(_write(file, _rounded(name, b, dtype)) for b in blocks[name]())
            else:
                with (directory / scales).open("wb") as scale_file:
                    count = 0
                    for block in blocks[name]():
                        values, own = quantized(_finite(name, block, dtype))
                        count += _write(file, values)
                        scale_file.write(own.data)
        if count != shape[0]:
            raise ValueError(f"table {name!r}: expected {shape[0]} rows, received {count}")
        written[name] = table
    return written


def quantized(
    rows: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Rows ``[N, D]`` as int8, each with its scale ``[N]``; a row of zeros has the scale 0."""
    scales = (np.abs(rows).max(1) / np.float32(_INT8)).astype(np.float32)
    divisor = np.where(scales > 0, scales, 1)[:, np.newaxis]
    values = np.clip(np.rint(rows / divisor), -_INT8, _INT8)
    return values.astype(np.int8), scales


def rows_of(
    tables: Mapping[str, TableFile], inputs: Mapping[str, tf.Tensor]
) -> Callable[[str, tf.Tensor], tf.Tensor]:
    """In a graph: from a table's name and ids ``[N]`` to float32 rows ``[N, D]``.

    Args:
      tables: by name.
      inputs: of the signature, among them the tables'.
    """
    import tensorflow as tf

    def fetch(name: str, ids: tf.Tensor) -> tf.Tensor:
        table = tables[name]
        with tf.device(HOST):  # where the files are mapped: a GPU would get a copy each call
            found = tf.cast(tf.gather(inputs[table.input], ids), tf.float32)
            if table.scales is not None:
                scales = tf.gather(inputs[table.scales_input], ids)  # [N]
                found *= tf.expand_dims(scales, 1)
        return found

    return fetch


def specs_of(tables: Iterable[TableFile]) -> dict[str, tf.TensorSpec]:
    """The inputs of a signature that are tables."""
    import tensorflow as tf

    specs = {}
    for table in tables:
        specs[table.input] = tf.TensorSpec(table.shape, tf.as_dtype(table.dtype), table.input)
        if table.scales is not None:
            name = table.scales_input
            specs[name] = tf.TensorSpec(table.shape[:1], tf.float32, name)
    return specs


def tensors_of(directory: Path, tables: Iterable[TableFile]) -> dict[str, tf.Tensor]:
    """The inputs themselves, of a bundle: tensors over the mapped files, which copy nothing."""
    from tensorflow.python.eager import context
    from tensorflow.python.framework import ops

    context.ensure_initialized()
    maps = {name: values for table in tables for name, values in table.maps(directory).items()}
    # tf.constant would copy (constant_op.py, convert_to_eager_tensor), and ImmutableConst reads the
    # whole file: 1.3 s of a core a GB.
    return {name: ops.EagerTensor(values, _CPU, None) for name, values in maps.items()}


def _rounded(name: str, rows: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(rows, DTYPES[dtype])
    return found if dtype == "fp32" else _finite(name, found, dtype)


def _finite(name: str, rows: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    if not np.isfinite(rows).all():
        raise UserError(
            f"table_dtype: expected a table {name!r} whose numbers {dtype} holds, and it has some "
            "that are too large, or none. Use --table_dtype fp32."
        )
    return rows


def _write(file: Any, rows: npt.NDArray[Any]) -> int:
    file.write(np.ascontiguousarray(rows).data)
    return len(rows)

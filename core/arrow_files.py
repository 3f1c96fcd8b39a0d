"""Where Parquet and Arrow files are opened, so that none of them can run code.

pyarrow before 14.0.1 unpickles the extension types that a file carries (CVE-2023-47248): whoever
writes the file has the reading process. `requirements/` locks a newer one, the Merlin image has an
older one. `pyarrow_hotfix` refuses such files under either; each function here loads it before it
opens anything, so every process is covered, whoever started it: workers and importers too.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.errors import UserError
from lookback.core.paths import refuse_address

_SAFE = (14, 0, 1)
"""The first pyarrow that does not unpickle what files carry."""


def open_parquet(path: str | Path, **options: Any) -> pq.ParquetFile:
    """Opens a Parquet file.

    Args:
      path: the file.
      **options: of `pyarrow.parquet.ParquetFile`.

    Raises:
      UserError: if the file carries a pickled type, or the installed pyarrow would run it.
    """
    with _no_code(path):
        return pq.ParquetFile(path, **options)


def read_parquet(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a Parquet file, or the Parquet files of a directory.

    Args:
      path: the file or directory.
      columns: to read; None: all.

    Raises:
      UserError: as `open_parquet`.
    """
    with _no_code(path):
        return pq.read_table(path, columns=None if columns is None else list(columns))


def map_arrow(path: str | Path) -> pa.Table:
    """Maps an Arrow IPC file; it is read as far as it is asked for.

    Args:
      path: the file.

    Raises:
      UserError: as `open_parquet`.
    """
    with _no_code(path):
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def read_batch(data: pa.Buffer, schema: pa.Schema) -> pa.RecordBatch:
    """Rows as `RecordBatch.serialize` gave them, whose columns are known from elsewhere.

    Args:
      data: their bytes, which stay their memory.
      schema: of the rows.
    """
    _forbid_code()
    return pa.ipc.read_record_batch(data, schema)


@contextlib.contextmanager
def _no_code(path: str | Path) -> Iterator[None]:
    _forbid_code()
    refuse_address(path)
    try:
        yield
    except RuntimeError as error:
        if "arrow.py_extension_type" not in str(error):
            raise
        raise UserError(
            f"{path} carries a pickled Arrow type, which can be any program; it was not run. "
            "Expected columns of plain types: write the file again without "
            "`pyarrow.PyExtensionType`."
        ) from error


@functools.cache
def _forbid_code() -> None:
    """Makes sure that opening a file runs nothing of it.

    Raises:
      UserError: if the installed pyarrow would, and the hotfix is missing.
    """
    try:
        import pyarrow_hotfix
    except ModuleNotFoundError as error:
        if tuple(int(number) for number in re.findall(r"\d+", pa.__version__)[:3]) >= _SAFE:
            return
        raise UserError(
            f"pyarrow {pa.__version__} runs programs hidden in the files it opens "
            "(CVE-2023-47248), so nothing was opened. Expected pyarrow 14.0.1 or newer, or the "
            "package pyarrow_hotfix beside it: `pip install pyarrow_hotfix`."
        ) from error
    pyarrow_hotfix.install()

"""Lines of label, integers and hashed categorical values → a frame of numbers and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lookback.formats.tabular_files import LABEL, column_names
from lookback.workflows.tabular import kernels
from lookback.workflows.text import BAD_LINES_SHOWN, EXCERPT, BadLine, Parsed

LONGEST_SHOWN = 20


@dataclass(frozen=True)
class ParsedRows:
    """What a block holds.

    Attributes:
      label: float32 [n], 0 or 1.
      numbers: float64 [N, n], NaN where a value is missing.
      keys: int64 [M, n], see `formats.vocabulary`.
      parsed: its lines and bad lines; its table is empty.
    """

    label: np.ndarray[Any, Any]
    numbers: np.ndarray[Any, Any]
    keys: np.ndarray[Any, Any]
    parsed: Parsed

    def frame(self) -> Any:
        """The rows as a pandas frame, which the saved workflow transforms."""
        import pandas as pd

        nums, cats = column_names(len(self.numbers), len(self.keys))
        # A transposed array is a frame's own layout: nothing is copied.
        pieces = [
            pd.DataFrame({LABEL: self.label}, copy=False),
            pd.DataFrame(self.numbers.T, columns=nums, copy=False),
            pd.DataFrame(self.keys.T, columns=cats, copy=False),
        ]
        return pd.concat(pieces, axis=1, copy=False)


def parse_rows(data: bytes, numerical: int, categorical: int) -> ParsedRows:
    """Parses a block of whole lines; blank ones are passed over.

    Args:
      data: the lines; fields are separated by tabs. An empty field is a missing value.
      numerical: N, number of integers after the label.
      categorical: M, number of values after them.
    """
    if data and not data.endswith(b"\n"):
        data += b"\n"
    lines = data.count(b"\n")
    label = np.empty(lines, np.float32)
    numbers = np.empty((numerical, lines), np.float64)
    keys = np.empty((categorical, lines), np.int64)
    wrong = np.empty((lines, 3), np.int64)
    rows, count, _ = kernels.parse(np.frombuffer(data, np.uint8), label, numbers, keys, wrong)
    bad: list[BadLine] = []
    reasons: dict[str, int] = {}
    for number, start, stop in wrong[:count].tolist():
        line = data[start:stop]
        reason = _reason(line.removesuffix(b"\r"), numerical, categorical)
        reasons[reason] = reasons.get(reason, 0) + 1
        if len(bad) < BAD_LINES_SHOWN:
            bad.append(BadLine(number, reason, line[:EXCERPT].decode("utf-8", "backslashreplace")))
    parsed = Parsed(pa.table({}), lines, bad, reasons)
    return ParsedRows(label[:rows], numbers[:, :rows], keys[:, :rows], parsed)


def _reason(line: bytes, numerical: int, categorical: int) -> str:
    """Why the parser did not take a line."""
    fields = line.split(b"\t")
    expected = 1 + numerical + categorical
    if len(fields) != expected:
        return (
            f"expected {expected} fields separated by tabs (label, {numerical} integers, "
            f"{categorical} categorical values), received {len(fields)}"
        )
    if fields[0] not in (b"0", b"1"):
        return f"expected the label 0 or 1, received {_shown(fields[0])}"
    for number, field in enumerate(fields[1 : 1 + numerical]):
        digits = field.removeprefix(b"-")
        if field and not (digits.isdigit() and len(digits) <= kernels.MAX_DIGITS):
            return (
                f"expected an integer (or nothing) in field {number + 2}, received {_shown(field)}"
            )
    return "a carriage return within the line"


def _shown(field: bytes) -> str:
    return repr(field[:LONGEST_SHOWN].decode("utf-8", "backslashreplace"))

"""What this machine can do at most: products, copying, and rows at random places of a large table.

Memory is measured with NumPy in threads, not with TensorFlow, whose own way of reading rows is what
these limits are for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lookback.benchmarks.harness import interleave
from lookback.core.devices import cores

_BUFFER_BYTES = 256 << 20  # several times the largest cache of a core's share
_ROWS_AT_ONCE = 1 << 18


def copy_bandwidth(buffer_bytes: int = _BUFFER_BYTES, repeats: int = 5) -> float:
    """Bytes a second that all cores read and write together, copying: the best of `repeats`."""
    source = np.ones(buffer_bytes // 4, np.float32)
    target = np.zeros_like(source)
    pieces = list(
        zip(np.array_split(source, cores()), np.array_split(target, cores()), strict=True)
    )
    copies = [functools.partial(np.copyto, to, of) for of, to in pieces]
    return _rate(copies, 2 * source.nbytes, repeats)


def random_rows(dim: int, table_bytes: int = _BUFFER_BYTES, repeats: int = 5) -> float:
    """Rows a second that all cores read at uniformly random places of a table.

    Args:
      dim: floats of a row.
      table_bytes: of the table.
      repeats: measurements, of which the best counts.
    """
    rows = table_bytes // (4 * dim)
    table = np.ones((rows, dim), np.float32)
    rng = np.random.default_rng(0)
    work = []
    for _ in range(cores()):
        ids = rng.integers(0, rows, _ROWS_AT_ONCE)
        found = np.empty((len(ids), dim), np.float32)
        # "clip" writes where it shall; "raise" makes a copy first, to leave `found` whole.
        work.append(lambda ids=ids, found=found: table.take(ids, 0, out=found, mode="clip"))
    return _rate(work, cores() * _ROWS_AT_ONCE, repeats)


def _rate(work: Sequence[Callable[[], object]], units: int, repeats: int) -> float:
    """Units a second of work that is done at the same time, each piece by a thread."""
    with ThreadPoolExecutor(len(work)) as pool:

        def together() -> int:
            for done in [pool.submit(piece) for piece in work]:
                done.result()
            return units

        return interleave({"all": together}, rounds=repeats, warmup=1)["all"].highest

"""Reads the batches of an order, with threads that decode ahead."""

from __future__ import annotations

import collections
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from lookback.dataloading.tabular.order import BatchOrder, Window
from lookback.formats.tabular_rows import TabularData, TabularRows
from lookback.formats.tabular_schema import TabularFeatures

THREADS = 2
"""Together they give more than a million rows a second; NumPy's and Arrow's loops run without the
interpreter's lock."""

PREFETCH = 4
"""Batches to hold ready."""

WINDOWS_AHEAD = 3
"""Windows to decode before they are needed: with the lanes' current ones the bound on memory."""


def read_batches(
    data: TabularData,
    split: str,
    order: BatchOrder,
    *,
    prefetch: int = PREFETCH,
    threads: int = THREADS,
) -> Generator[TabularRows, None, None]:
    """Yields this process's share of each batch of an order.

    Threads decode windows and put batches together, both in the order in which they are needed.
    They end when the iterator ends or is closed (or let go of). Of windows, at most one in each
    lane and `WINDOWS_AHEAD` more are held, each up to twice while it is permuted.

    Args:
      data: to read.
      split: of it.
      order: of the split's blocks.
      prefetch: batches to hold ready.
      threads: that work.

    Yields:
      Rows; none where the share is empty.

    Raises:
      UserError: as `TabularData.read`, where the first batch that needs the rows would have come.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tabular")
    ready: collections.deque[Future[TabularRows]] = collections.deque()
    try:
        windows = _Windows(pool, data, split, order)
        for counts in order.batches():
            parts = [part for lane, rows in enumerate(counts) for part in windows.take(lane, rows)]
            # Windows come before the batches that wait for them, and a pool is first in, first
            # out: a thread never waits for what no thread has begun.
            ready.append(pool.submit(_joined, parts, data.features))
            if len(ready) > prefetch:
                yield ready.popleft().result()
        while ready:
            yield ready.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _WindowRange:
    """Rows begin to end of a window that is, or will be, decoded."""

    def __init__(self, window: Future[TabularRows], begin: int, end: int) -> None:
        self.window, self.begin, self.end = window, begin, end

    def rows(self) -> TabularRows:
        return self.window.result().between(self.begin, self.end)


class _Windows:
    """Has windows decoded in time, and hands out their rows lane by lane."""

    def __init__(self, pool: ThreadPoolExecutor, data: TabularData, split: str, order: BatchOrder):
        self._pool, self._data, self._split, self._order = pool, data, split, order
        self._waiting = collections.deque(order.windows())
        self._decoding: dict[int, collections.deque[tuple[Window, Future[TabularRows]]]] = (
            collections.defaultdict(collections.deque)
        )
        self._used: dict[int, int] = collections.defaultdict(int)
        self._ahead = 0  # windows in the pool of which no row has been taken

    def take(self, lane: int, rows: int) -> Iterator[_WindowRange]:
        """The next rows of a lane."""
        while rows:
            queue = self._decoding[lane]
            if not self._used[lane]:
                self._begin(lane)
            window, decoded = queue[0]
            begin = self._used[lane]
            end = min(begin + rows, window.rows)
            rows -= end - begin
            self._used[lane] = end
            if end == window.rows:
                queue.popleft()
                self._used[lane] = 0
            yield _WindowRange(decoded, begin, end)

    def _begin(self, lane: int) -> None:
        """Makes sure that the lane's next window, and some after it, are in the pool."""
        self._ahead -= 1
        while self._waiting and (self._ahead < WINDOWS_AHEAD or not self._decoding[lane]):
            window = self._waiting.popleft()
            decoded = self._pool.submit(_decode, self._data, self._split, self._order, window)
            self._decoding[window.lane].append((window, decoded))
            self._ahead += 1


def _decode(data: TabularData, split: str, order: BatchOrder, window: Window) -> TabularRows:
    """The rows of a window that this process uses, in the order in which it does."""
    rows = TabularRows.empty(window.end - window.begin, data.features)
    place = 0
    for piece in order.pieces(window):
        end = place + piece.end - piece.begin
        data.read(split, piece.block, piece.begin, rows.between(place, end))
        place = end
    chosen = order.chosen(window)
    return (
        rows.between(chosen.start, chosen.stop) if isinstance(chosen, slice) else rows.take(chosen)
    )


def _joined(parts: list[_WindowRange], features: TabularFeatures) -> TabularRows:
    """One batch's rows."""
    if len(parts) == 1:
        return parts[0].rows()
    batch = TabularRows.empty(sum(part.end - part.begin for part in parts), features)
    place = 0
    for part in parts:
        batch.fill(place, part.rows())
        place += part.end - part.begin
    return batch

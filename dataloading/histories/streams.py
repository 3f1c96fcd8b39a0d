"""In which order blocks of users stream, which of them are in memory together, and whose they are.

A pass over a dataset has its K blocks in an order, cut into S stretches. Those in memory are a
window: V stretches that follow each other, and of each of them 1/V of the samples are drawn before
the window moves on by one, so that a stretch is drawn from as long as it is held and a user's
samples spread over the whole time. The first stretches have the last ones before them: a ring.

All of it is a function of (seed, epoch), of what the blocks have and of the memory of all processes
together, never of how many processes there are: so a batch has the same samples on any number of
them. Of each stretch a process holds its own blocks, and takes of each batch the samples that these
have.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.core.sizes import format_size
from lookback.dataloading.draws import shuffled
from lookback.dataloading.histories.splits import Int64
from lookback.dataloading.parts import Part

_READING = 3
"""Blocks' worth of memory that reading one takes: Arrow's columns, ours, and what checks them."""
_STRETCHES = 4
"""Of a window (V): of the memory V / (V + 1) is drawn from, the rest is for the next stretch; more
would take more calls to gather a batch."""
_OF_WINDOW = 32
"""Bits of an epoch's number: above them, a key for each window's own order."""


class Room(NamedTuple):
    """How memory is divided.

    Attributes:
      stretch: bytes that none exceeds.
      window: stretches that are drawn from together (V).
    """

    stretch: int
    window: int

    @property
    def most(self) -> int:
        """Bytes that are held: of a window, and of the stretch that comes next."""
        return (self.window + 1) * self.stretch


class Stretch(NamedTuple):
    """The blocks of a stretch that a process has.

    Attributes:
      blocks: their numbers, ascending.
      size: bytes of the stretch, all processes together.
    """

    blocks: tuple[int, ...]
    size: int


NOBODY = Stretch((), 0)


class StretchSamples(NamedTuple):
    """Samples of a stretch.

    Attributes:
      stretch: where they are.
      following: the stretch that comes after it, if one does.
      places: of the samples among those of the stretch, int64 ``[n]``.
      numbers: of the same samples among everybody's, int64 ``[n]``.
      order: their places in the pass, ascending, int64 ``[n]``.
    """

    stretch: Stretch
    following: Stretch | None
    places: Int64
    numbers: Int64
    order: Int64


def room_of(sizes: Int64, memory: int, ranks: int = 1) -> Room:
    """Everything, if that fits; else a window and a stretch beside what reading takes.

    Args:
      sizes: bytes of each block.
      memory: of all that is held of histories.
      ranks: how many processes there are; they change nothing but what is too little.

    Raises:
      UserError: if there are not enough blocks, or memory does not hold two for each process and
        what reading takes.
    """
    if ranks > len(sizes):
        raise UserError(
            f"history_memory: expected a dataset of {ranks} blocks of users or more, one for each "
            f"process, received one of {len(sizes)}. Leave --history_memory out; --shard_histories "
            "divides the users."
        )
    largest, total = int(sizes.max(initial=0)), int(sizes.sum())
    room = memory - _READING * largest
    if total <= room:
        return Room(total, 1)
    if room < 2 * ranks * largest:
        needed = min(2 * ranks * largest, total) + _READING * largest
        raise UserError(
            f"history_memory: expected {format_size(needed, up=True)} or more, as blocks of users "
            f"take up to {format_size(largest)}: two for each process, and to read one takes "
            f"{_READING} times as much; received {format_size(memory)}."
        )
    window = min(_STRETCHES, room // largest - 1)
    return Room(room // (window + 1), window)


def stretches_of(blocks: Int64, sizes: Int64, most: int) -> list[Int64]:
    """Cuts an order of blocks into stretches, about equally large, as few as there can be.

    Args:
      blocks: ``[K]`` in their order.
      sizes: bytes of each block by number.
      most: bytes that no stretch exceeds; at least those of the largest block.

    Returns:
      The blocks of each, ascending: what is read from a file is read from front to back.
    """
    if not len(blocks):
        return []
    ordered = sizes[blocks]
    total = int(ordered.sum())
    middles = np.cumsum(ordered) - ordered / 2
    for count in itertools.count(max(1, -(-total // most))):
        cuts = np.flatnonzero(np.diff((middles * count / total).astype(np.int64))) + 1
        stretches = np.split(blocks, cuts)
        if all(int(sizes[stretch].sum()) <= most for stretch in stretches):
            return [np.sort(stretch) for stretch in stretches]
    raise AssertionError("a block of its own fits into a stretch")


def owners_of(stretches: Sequence[Int64], sizes: Int64, ranks: int) -> list[Int64]:
    """Which process has each block: of a stretch the largest first, to the one with least so far.

    Args:
      stretches: blocks of each.
      sizes: bytes of each block by number.
      ranks: how many processes there are.
    """
    loads, owners = [0] * ranks, []
    for stretch in stretches:
        of = np.zeros(len(stretch), np.int64)
        for place in np.argsort(-sizes[stretch], kind="stable").tolist():
            of[place] = owner = loads.index(min(loads))
            loads[owner] += int(sizes[stretch[place]])
        owners.append(of)
    return owners


class Stream:
    """The samples of one pass over the blocks, those that a process has.

    The window of number w has the stretches w, w - 1, ..., w - V + 1 (of the ring: modulo S), and
    of the j-th of these the samples j, j + V, j + 2 V, ... So each sample is in one window. Place p
    of the pass is in window w where the windows before have no more than p samples; and there it is
    the place that the window's permutation says. In order, V is 1, and each process has a pass of
    its own over its blocks.

    Attributes:
      count: samples: of all processes where they are shuffled, else of this one.
    """

    def __init__(
        self,
        stretches: Sequence[Int64],
        sizes: Int64,
        samples: Int64,
        part: Part,
        shuffle: tuple[int, int] | None,
        window: int = 1,
    ) -> None:
        """Counts.

        Args:
          stretches: blocks of each.
          sizes: bytes of each block.
          samples: of each block.
          part: this process's.
          shuffle: seed and epoch; None: in order.
          window: stretches of a window (V), no more than there are; 1 in order.
        """
        self._samples, self._shuffle, self._window = samples, shuffle, window
        self._starts = np.cumsum(samples) - samples  # everybody's first number
        owners = owners_of(stretches, sizes, part.ranks)
        self._own = [s[o == part.rank] for s, o in zip(stretches, owners, strict=True)]
        self._stretches = [
            Stretch(tuple(own.tolist()), int(sizes[stretch].sum()))
            for own, stretch in zip(self._own, stretches, strict=True)
        ]
        self._counted = self._own if shuffle is None else list(stretches)
        of = np.array([int(samples[s].sum()) for s in self._counted], np.int64)  # [S]
        lags = np.arange(window)[:, np.newaxis]
        place = (np.arange(len(of)) - lags) % max(len(of), 1)  # [V, S]: the stretch of each lag
        self._parts = np.maximum(-(-(of[place] - lags) // window), 0)  # samples, likewise
        self._ends = np.concatenate([[0], np.cumsum(self._parts.sum(0))])  # of the windows
        self.count = int(self._ends[-1])

    def pieces(self, begin: int, end: int) -> Iterator[StretchSamples]:
        """The samples at places from `begin` to before `end`, stretch by stretch of the ring."""
        first, behind = np.searchsorted(self._ends, [begin, end - 1], "right") - 1
        drawn = [self._of_window(w, begin, end) for w in range(first, min(behind + 1, self._last))]
        if not drawn:
            return
        turns, places, order = (np.concatenate(of) for of in zip(*drawn, strict=True))
        for turn in np.unique(turns).tolist():
            chosen = turns == turn
            yield self._piece(turn, places[chosen], order[chosen])

    @property
    def _last(self) -> int:
        """Windows."""
        return len(self._counted)

    def _of_window(self, number: int, begin: int, end: int) -> tuple[Int64, Int64, Int64]:
        """Where a window's samples at places from `begin` to before `end` of the pass are.

        Returns:
          The stretches, counted on from those before the first (below 0); the samples' places in
          these; and the places in the pass, ascending: ``[n]`` each.
        """
        start, stop = self._ends[number : number + 2].tolist()
        order = np.arange(max(begin, start), min(end, stop))
        places = order - start
        if self._shuffle is not None:
            seed, epoch = self._shuffle
            # The first window's order is that of resident histories: where it has all, it is theirs
            key = epoch + (number << _OF_WINDOW)
            places = shuffled(seed, key, tf.constant(places), stop - start).numpy()
        parts = self._parts[:, number]
        ends = np.cumsum(parts)
        lags = np.searchsorted(ends, places, "right")
        return number - lags, lags + self._window * (places - (ends - parts)[lags]), order

    def _piece(self, turn: int, places: Int64, order: Int64) -> StretchSamples:
        """Samples at places of a stretch, those of this process."""
        number = turn % len(self._counted)
        blocks, own = self._counted[number], self._own[number]
        sizes = self._samples[blocks]
        ends = np.cumsum(sizes)
        which = np.searchsorted(ends, places, "right")
        if self._shuffle is not None:
            kept = np.isin(blocks[which], own)
            places, which, order = places[kept], which[kept], order[kept]
        inside = places - (ends - sizes)[which]
        block = blocks[which]
        own_sizes = self._samples[own]
        begins = np.cumsum(own_sizes) - own_sizes
        last = turn + 1 == len(self._stretches)
        return StretchSamples(
            self._stretches[number],
            None if last else self._stretches[(turn + 1) % len(self._stretches)],
            begins[np.searchsorted(own, block)] + inside if len(own) else inside,
            self._starts[block] + inside,
            order,
        )


class HeldStretches:
    """The stretches that are in memory, and a thread that reads the next one while others are used.

    Whoever asks, for training or evaluation, they never take more than `most`.
    """

    def __init__(self, load: Callable[[tuple[int, ...]], dict[str, Any]], most: int) -> None:
        """Holds none.

        Args:
          load: reads blocks; gives what `WindowBuilder.over_placed` takes.
          most: bytes of the stretches that are held, as `Stretch.size` says them.
        """
        self._load, self._most = load, most
        self._held: dict[Stretch, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, "histories")

    def get(self, stretch: Stretch, following: Stretch | None = None) -> dict[str, Any]:
        """A stretch; waits for it.

        Args:
          stretch: its blocks.
          following: which is to be read meanwhile.

        Raises:
          UserError: if a block cannot be read.
        """
        with self._lock:
            found = self._ask(stretch, stretch)
            if following is not None:
                self._ask(following, stretch)
        return found.result()

    def _ask(self, stretch: Stretch, used: Stretch) -> Future[dict[str, Any]]:
        """A stretch that is held, or is read as soon as others have made room for it."""
        if stretch in self._held:
            self._held[stretch] = self._held.pop(stretch)  # the latest
            return self._held[stretch]
        for old in [held for held in self._held if held != used]:
            if sum(held.size for held in self._held) + stretch.size <= self._most:
                break
            self._held.pop(old).cancel()
        self._held[stretch] = self._reader.submit(self._load, stretch.blocks)
        return self._held[stretch]

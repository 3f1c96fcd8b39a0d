"""Random draws that are a function of (seed, purpose, epoch, sample) alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lookback.core import splitmix
from lookback.core.devices import HOST
from lookback.formats.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY
from lookback.kernels.loader import cpu_kernels

Key = tuple[int, str, tf.Tensor]
"""Seed, purpose, epoch (int64 [])."""


def sample_keys(key: Key, stream: str, numbers: tf.Tensor) -> tf.Tensor:
    """Random int64 ``[B]``, one for each sample.

    A counter-based generator rather than TensorFlow's stateless ops: it gives each sample numbers
    of its own, whatever batch or rank the sample falls into.

    Args:
      key: what the draws are for.
      stream: name; draws of different streams have nothing to do with each other.
      numbers: of the samples, int64 ``[B]``.
    """
    seed, purpose, epoch = key

    def keys(epoch: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        state = tf.constant(seed + splitmix.stream(f"{purpose}/{stream}"), tf.int64)
        state = splitmix.mix(splitmix.mix(state) + epoch)  # []
        return splitmix.mix(state + numbers)  # [B]

    return _traced(keys)(tf.cast(epoch, tf.int64), numbers)


def draw_below(
    key: Key, stream: str, numbers: tf.Tensor, width: int, bound: tf.Tensor
) -> tf.Tensor:
    """Draws integers ``[B, width]`` in ``[0, bound)``, a function of key, stream, number, column.

    Args:
      key: what the draws are for.
      stream: name.
      numbers: of the samples, int64 ``[B]``.
      width: draws a sample.
      bound: int64, above 0; of a shape that broadcasts to ``[B, width]``.
    """
    keys, kernels = sample_keys(key, stream, numbers), cpu_kernels()
    bound = tf.convert_to_tensor(bound, tf.int64)
    if kernels is not None and (bound.shape.rank == 0 or bound.shape[1:] == [1]):
        return kernels.lookback_draw_below(keys=keys, bound=bound, width=width)

    def drawn(keys: tf.Tensor, bound: tf.Tensor) -> tf.Tensor:
        state = tf.expand_dims(keys, 1)  # [B, 1]
        state = splitmix.mix(state + splitmix.WEYL * tf.range(width, dtype=tf.int64))  # [B, width]
        return tf.math.floormod(splitmix.shift_right(state, 1), bound)

    return _traced(drawn)(keys, bound)


@contextlib.contextmanager
def compiled_draws(*, wanted: bool = True) -> Iterator[None]:
    """Within it, a graph's draws are XLA's: a kernel or two each, and not forty.

    Args:
      wanted: False changes nothing.
    """
    global _compiling
    before, _compiling = _compiling, _compiling or wanted
    try:
        yield
    finally:
        _compiling = before


_compiling = False


def _traced(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """A function of tensors, compiled where `compiled_draws` wants it and no kernel of ours is."""
    if not _compiling or cpu_kernels() is not None:
        return function
    compiled: Callable[..., tf.Tensor] = tf.function(function, jit_compile=True, autograph=False)
    return compiled


def shuffled(seed: int, epoch: tf.Tensor | int, index: tf.Tensor, total: int) -> tf.Tensor:
    """What lies at places ``[B]`` of a shuffled ``range(total)``; each epoch shuffles anew.

    Args:
      seed: of the run.
      epoch: integer scalar.
      index: int64 ``[B]`` below `total`; may be empty.
      total: how many there are.
    """
    with tf.device(HOST):  # the kernel is for CPUs alone
        key = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
        # One more than wanted: the kernel refuses an empty vector (TensorFlow 2.12,
        # random_index_shuffle_ops.cc), which is what a process without work has.
        places = tf.random.experimental.index_shuffle(
            tf.concat([index, tf.zeros([1], tf.int64)], 0),
            seed=key,
            max_index=tf.constant(max(total - 1, 0), tf.int64),
        )
        return places[:-1]


class Hiding:
    """Hides ids of training's samples at random: they become the one of what is unknown.

    So the row of unknown ids, which else no sample of training has, is learnt: it stands for a new
    item or user, whose other features stay (Volkovs, Yu & Poutanen 2017, "DropoutNet": dropout of
    the preference input prepares for cold start). One draw for each (sample, id), so that an id is
    hidden in all its places in a sample, or in none: in a history it would give a target away.
    """

    def __init__(self, key: Key, rate: float, numbers: tf.Tensor) -> None:
        """Prepares the draws.

        Args:
          key: what they are for.
          rate: share that is hidden, in [0, 1).
          numbers: of the samples, int64 ``[B]``.
        """
        self._key, self._rate, self._numbers = key, rate, numbers

    def __call__(self, stream: str, ids: tf.Tensor) -> tf.Tensor:
        """Ids ``[B, ...]``, some of them hidden; what is no known id stays.

        Args:
          stream: name; the same for all places of the same ids.
          ids: int32.
        """
        if not self._rate:
            return ids
        state = sample_keys(self._key, stream, self._numbers)
        state = tf.reshape(state, [-1, *[1] * (ids.shape.rank - 1)])
        drawn = splitmix.mix(state + splitmix.WEYL * tf.cast(ids, tf.int64))
        hidden = splitmix.shift_right(drawn, 1) < int(self._rate * (1 << 63))
        return tf.where(hidden & (ids >= FIRST_KNOWN), tf.cast(OUT_OF_VOCABULARY, ids.dtype), ids)


class Without:
    """The whole numbers from 0 on without some of them, renumbered.

    Of the numbers s_0 < s_1 < ... that are left out, k come before the r-th of the others: as many
    as there are j with ``s_j - j <= r``. So it is ``r + k``, by a binary search.

    Attributes:
      count: how many are left out (K).
      empty: whether it is known that there are none.
    """

    def __init__(self, left_out: npt.NDArray[np.int64]) -> None:
        """Leaves out numbers ``[K]``, ascending."""
        self.count, self.empty = len(left_out), not len(left_out)
        self._ahead = tf.constant(left_out - np.arange(len(left_out)), tf.int64)

    @property
    def placed(self) -> tf.Tensor:
        """What `of` takes, ``[K + 1]``."""
        return tf.concat([self._ahead, [tf.int64.max]], 0)  # a search needs a number to find

    @classmethod
    def of(cls, placed: tf.Tensor) -> Without:
        """The same in a graph that is made before there are numbers; `count` says nothing."""
        found = cls(np.zeros(0, np.int64))
        found.empty, found._ahead = False, placed
        return found

    def nth(self, places: tf.Tensor) -> tf.Tensor:
        """The numbers at places (int64 of any shape) among those that are not left out."""
        if self.empty:
            return places
        flat = tf.reshape(places, [-1])
        before = tf.searchsorted(self._ahead, flat, side="right", out_type=tf.int64)
        return tf.reshape(flat + before, tf.shape(places))

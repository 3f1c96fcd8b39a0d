"""The columns of a batch of histories, in the shapes that models want."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from lookback.formats.features import history_name, negatives_name


def column(inputs: Mapping[str, tf.Tensor], name: str) -> tf.Tensor:
    """A scalar column as ``[B, C]`` (C = 1 where it is the same for all candidates)."""
    value = inputs[name]
    if value.shape.rank == 1:
        return tf.expand_dims(value, 1)
    if value.shape.rank != 2:
        raise ValueError(f"Input {name!r} must be [B] or [B, C], received shape {value.shape}.")
    return value


def bag_column(inputs: Mapping[str, tf.Tensor], name: str, *, by_candidate: bool) -> tf.Tensor:
    """A column of bags as ``[B, C, M]``.

    Args:
      inputs: a batch.
      name: of the column.
      by_candidate: whether each candidate has its own, ``[B, C, M]``; else the column is ``[B, M]``
        (Merlin's PrepareFeatures appends an axis of 1), and C is 1.
    """
    value = inputs[name]
    if by_candidate and value.shape.rank == 3:
        return value
    if not by_candidate and value.shape.rank == 2:
        return tf.expand_dims(value, 1)
    if not by_candidate and value.shape.rank == 3:
        return tf.transpose(value, [0, 2, 1])
    expected = "[B, C, M]" if by_candidate else "[B, M]"
    raise ValueError(f"Input {name!r} must be {expected}, received shape {value.shape}.")


def history(inputs: Mapping[str, tf.Tensor], feature: str, *, bag: bool = False) -> tf.Tensor:
    """The history ``[B, T]`` of a feature, or of the time gap; of bags ``[B, T, M]``."""
    return _list(inputs, history_name(feature), bag)


def negatives(inputs: Mapping[str, tf.Tensor], feature: str, *, bag: bool = False) -> tf.Tensor:
    """The auxiliary negatives ``[B, S]`` of an item feature; of bags ``[B, S, M]``."""
    return _list(inputs, negatives_name(feature), bag)


def time_major(values: tf.Tensor) -> tf.Tensor:
    """``[B, S, ...]`` to ``[S, B, ...]``."""
    rest = range(2, values.shape.rank)
    return tf.transpose(values, [1, 0, *rest])


def _list(inputs: Mapping[str, tf.Tensor], name: str, bag: bool) -> tf.Tensor:
    """A list column as ``[B, T]``, of bags as ``[B, T, M]``.

    Merlin's PrepareFeatures appends an axis of 1 to what has two.
    """
    value = inputs[name]
    if value.shape.rank == 3:
        return value if bag else tf.squeeze(value, -1)
    if bag or value.shape.rank != 2:
        expected = "[B, T, M]" if bag else "[B, T]"
        raise ValueError(f"Input {name!r} must be {expected}, received shape {value.shape}.")
    return value

"""The columns of a batch of histories, in the shapes that models want."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from lookback.formats.features import history_name, negatives_name


def column(inputs: Mapping[str, tf.Tensor], name: str) -> tf.Tensor:
    """A scalar column as ``[B, C]`` (C = 1 for user features)."""
    value = inputs[name]
    if value.shape.rank == 1:
        return tf.expand_dims(value, 1)
    if value.shape.rank != 2:
        raise ValueError(f"Input {name!r} must be [B] or [B, C], received shape {value.shape}.")
    return value


def history(inputs: Mapping[str, tf.Tensor], feature: str) -> tf.Tensor:
    """The history ``[B, T]`` of an item feature, or of the time gap."""
    return _list(inputs, history_name(feature))


def negatives(inputs: Mapping[str, tf.Tensor], feature: str) -> tf.Tensor:
    """The auxiliary negatives ``[B, S]`` of an item feature."""
    return _list(inputs, negatives_name(feature))


def _list(inputs: Mapping[str, tf.Tensor], name: str) -> tf.Tensor:
    """A list column as ``[B, T]``; Merlin's PrepareFeatures appends an axis of 1."""
    value = inputs[name]
    if value.shape.rank == 3:
        return tf.squeeze(value, -1)
    if value.shape.rank != 2:
        raise ValueError(f"Input {name!r} must be [B, T], received shape {value.shape}.")
    return value

"""A model's call, its head and its losses as one operation of ours, where that can be.

What a model computes its layers define; the operations do the same in tiles that stay in a core's
cache. A body says what they need to know of it (`FusedModel`); whether there are some for it here,
which, and why not, this file alone decides and tells.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import tensorflow as tf

from lookback.kernels.history_step import score, step
from lookback.kernels.loader import cpu_kernels, history_level

_LANES = 16  # of the operations: they take parts of a multiple of these numbers
_DTYPES = ("float32", "bfloat16")
_LOSSES = ("head_loss", "gsu_loss", "aux_loss")  # in the operations' order

Inputs: TypeAlias = Mapping[str, tf.Tensor]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FusedModel:
    """What the operations need to know of a body and its head.

    Attributes:
      name: "sim", if they are lookback_sim_step and lookback_sim_score.
      width: of each part (D).
      dtype: the body's compute dtype.
      loss_weights: by name, what is multiplied with the mean of a loss's terms.
      arguments: from a batch's features and whether it is for training to what the operations take
        (`kernels.history_step`), but for labels and scales.
      refusal: from a batch's features to why the operations do not take it, "" if they do.
    """

    name: str
    width: int
    dtype: str
    loss_weights: Mapping[str, float]
    arguments: Callable[[Inputs, bool], Mapping[str, Any]]
    refusal: Callable[[Inputs], str]


class FusedStep:
    """A model's operations on this machine.

    Attributes:
      said: which they are, in a line.
      losses: names of what they compute, in the order of a contract's.
    """

    def __init__(self, model: FusedModel, kernels: Any, said: str) -> None:
        """Takes a model, which must be built before it is used.

        Args:
          model: as its body describes it.
          kernels: of `cpu_kernels`.
          said: see `said`.
        """
        self.said, self.losses = said, tuple(model.loss_weights)
        self._model = model
        self._step = getattr(kernels, f"lookback_{model.name}_step")
        self._score = getattr(kernels, f"lookback_{model.name}_score")

    def takes(self, features: Inputs) -> bool:
        """Whether the operations take such a batch; if not, the log says why, once."""
        why = self._model.refusal(features)
        if why:
            _warn_once(_not_used(why))
        return not why

    def shares(
        self, features: Inputs, labels: tf.Tensor, totals: Mapping[str, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Shares of a batch's losses, of which this is a part or all.

        Args:
          features: as of the model's call in training.
          labels: ``[B, C]``.
          totals: by loss, of how many terms the batch's is the mean.

        Returns:
          float32 [] by name, which have no gradient, and their sum [], which has.
        """
        weights = self._model.loss_weights
        scales = {n: tf.math.divide_no_nan(weight, totals[n]) for n, weight in weights.items()}
        total, sums, _ = step(
            self._step,
            labels=tf.cast(labels, tf.float32),
            scales=tf.stack([scales.get(name, tf.zeros([])) for name in _LOSSES]),
            precision=self._model.dtype,
            **self._model.arguments(features, True),
        )
        found = dict(zip(_LOSSES, tf.unstack(sums)))
        return {name: scale * found[name] for name, scale in scales.items()}, total

    def score(self, features: Inputs) -> tf.Tensor:
        """Float32 logits ``[B, C]`` of the candidates.

        Args:
          features: as of the model's call.
        """
        arguments = self._model.arguments(features, False)
        return score(self._score, precision=self._model.dtype, **arguments)


def fused_step(model: FusedModel) -> FusedStep | str:
    """The operations for a model, or a line that says why there are none for it here."""
    if model.dtype not in _DTYPES:
        return _not_used(f"it computes in {' or '.join(_DTYPES)}, not in {model.dtype}")
    if model.width % _LANES:
        return _not_used(f"it needs --embedding_dim of a multiple of {_LANES}, not {model.width}")
    kernels = cpu_kernels()
    if kernels is None:
        return _not_used("our operations are not there, or not wanted, or not for this machine")
    level = history_level(model.dtype)
    if not level:
        return _not_used(f"this machine has no products of {model.dtype}")
    return FusedStep(model, kernels, f"fused step: {level}, {model.dtype}")


def _not_used(why: str) -> str:
    return f"fused step: not used, but TensorFlow's operations: {why}"


@functools.cache
def _warn_once(line: str) -> None:
    _log.warning("%s", line)

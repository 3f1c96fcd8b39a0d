"""Optimizers of embedding tables: they touch only the rows of the step.

Each is a pure update of the step's unique rows. State has the tables' shape (one value a weight)
and travels with the rows when a table is sharded. Sources: Adam (Kingma & Ba 2015, algorithm 1),
updated lazily as TensorFlow Addons' LazyAdam: a row's moments decay only in steps that use it;
Adagrad (Duchi et al. 2011).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping

import tensorflow as tf


def sum_duplicates(gradient: tf.IndexedSlices) -> tuple[tf.Tensor, tf.Tensor]:
    """Sums the slices of equal index.

    Args:
      gradient: values ``[N, D]`` for rows ``[N]``, rows repeating.

    Returns:
      The unique rows ``[U]`` in order of first appearance, and their sums ``[U, D]``.
    """
    rows, position = tf.unique(gradient.indices)
    return rows, tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))


class TableOptimizer(tf.Module, abc.ABC):
    """Updates the rows of tables from sparse gradients.

    Args:
      learning_rate: step size, a variable or tensor read anew in each step.
      weight_decay: decoupled decay (Loshchilov & Hutter 2019) of the rows of the step:
        ``row -= learning_rate * weight_decay * row`` before the update. 0 is none.
    """

    slot_names: tuple[str, ...] = ()

    def __init__(self, learning_rate: tf.Variable, weight_decay: float = 0.0) -> None:
        super().__init__()
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self.slots: dict[str, dict[str, tf.Variable]] = {}

    def build(self, tables: Mapping[str, tf.Variable]) -> None:
        """Creates the state of the given tables.

        Args:
          tables: variables ``[rows, D]`` by table name.
        """
        for name, table in tables.items():
            self.slots[name] = {
                slot: tf.Variable(
                    tf.fill(table.shape, self._initial_value(slot)),
                    trainable=False,
                    name=f"{name}/{slot}",
                )
                for slot in self.slot_names
            }

    def apply(
        self,
        gradients: Mapping[str, tf.IndexedSlices],
        tables: Mapping[str, tf.Variable],
        step: tf.Tensor,
    ) -> None:
        """Updates the rows that the gradients name.

        Args:
          gradients: by table name; indices may repeat.
          tables: variables ``[rows, D]`` by table name.
          step: float scalar, the number of this update, from 1.
        """
        for name, gradient in gradients.items():
            table, slots = tables[name], self.slots[name]
            rows, values = sum_duplicates(gradient)
            weights = tf.gather(table, rows)
            if self._weight_decay:
                weights -= self._learning_rate * self._weight_decay * weights
            state = {slot: tf.gather(variable, rows) for slot, variable in slots.items()}
            weights, state = self._update(weights, values, state, step)
            table.scatter_update(tf.IndexedSlices(weights, rows))
            for slot, value in state.items():
                slots[slot].scatter_update(tf.IndexedSlices(value, rows))

    def _initial_value(self, slot: str) -> float:
        del slot
        return 0.0

    @abc.abstractmethod
    def _update(
        self,
        weights: tf.Tensor,
        gradient: tf.Tensor,
        state: dict[str, tf.Tensor],
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The update of unique rows: all tensors ``[U, D]``."""


class SGD(TableOptimizer):
    """``w -= lr * g``."""

    def _update(
        self,
        weights: tf.Tensor,
        gradient: tf.Tensor,
        state: dict[str, tf.Tensor],
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        del step
        return weights - self._learning_rate * gradient, state


class Adagrad(TableOptimizer):
    """``a += g**2; w -= lr * g / (sqrt(a) + epsilon)``, element-wise.

    Args:
      initial_accumulator: starting value of ``a``; TensorFlow's default.
      epsilon: TensorFlow's default.
    """

    slot_names = ("accumulator",)

    def __init__(
        self,
        learning_rate: tf.Variable,
        weight_decay: float = 0.0,
        initial_accumulator: float = 0.1,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self._initial_accumulator = initial_accumulator
        self._epsilon = epsilon

    def _initial_value(self, slot: str) -> float:
        del slot
        return self._initial_accumulator

    def _update(
        self,
        weights: tf.Tensor,
        gradient: tf.Tensor,
        state: dict[str, tf.Tensor],
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        del step
        accumulator = state["accumulator"] + tf.square(gradient)
        weights -= self._learning_rate * gradient / (tf.sqrt(accumulator) + self._epsilon)
        return weights, {"accumulator": accumulator}


class LazyAdam(TableOptimizer):
    """Adam on the rows of the step; other rows keep weights and moments.

    ``m = b1 m + (1-b1) g; v = b2 v + (1-b2) g**2;
    w -= lr * sqrt(1-b2**t) / (1-b1**t) * m / (sqrt(v) + epsilon)`` with t the global step, the
    form of section 2 of the paper (and of Keras).

    Args:
      beta_1: decay of the first moment; the paper's default.
      beta_2: decay of the second moment; the paper's default.
      epsilon: Keras' default.
    """

    slot_names = ("m", "v")

    def __init__(
        self,
        learning_rate: tf.Variable,
        weight_decay: float = 0.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self._beta_1, self._beta_2, self._epsilon = beta_1, beta_2, epsilon

    def _update(
        self,
        weights: tf.Tensor,
        gradient: tf.Tensor,
        state: dict[str, tf.Tensor],
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        m = self._beta_1 * state["m"] + (1 - self._beta_1) * gradient
        v = self._beta_2 * state["v"] + (1 - self._beta_2) * tf.square(gradient)
        correction = tf.sqrt(1 - tf.pow(self._beta_2, step)) / (1 - tf.pow(self._beta_1, step))
        weights -= self._learning_rate * correction * m / (tf.sqrt(v) + self._epsilon)
        return weights, {"m": m, "v": v}


TABLE_OPTIMIZERS = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "adam": LazyAdam,
    "lazy_adam": LazyAdam,
}

"""GRU and AUGRU over time-major sequences (DIEN's interest extraction and evolution).

Zhou et al. 2019, "Deep Interest Evolution Network", equations 2 to 5 and section 4.3:

    u = sigmoid(x W_u + b_u + h U_u)
    r = sigmoid(x W_r + b_r + h U_r)
    c = tanh(x W_c + b_c + r * (h U_c))
    GRU:    h' = (1 - u) * h + u * c
    AUGRU:  h' = (1 - a u) * h + a u * c     with attention a of the step

What does not depend on the state is one product a gate for all steps; the loop holds the state's
products alone. Steps are taken apart by `unstack` and joined by `stack`: slicing the stacked tensor
in the loop would give each step a gradient of the whole sequence's size.

The gradient is written out (`recur`): one product a step for the state's, and at the end one for
its weights, of all steps at once, where a tape has three of each a step and adds the latter up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from lookback.core.devices import has_gpu
from lookback.models.blocks.linear import linear

Parts = Sequence[tf.Tensor]
"""The gates u, r, c: three tensors ``[..., H]``, or one ``[..., 3H]``."""


class _Step(NamedTuple):
    """What the gradient of a step needs, ``[..., H]`` each: q is ``h U_c``."""

    h: tf.Tensor
    u: tf.Tensor
    r: tf.Tensor
    q: tf.Tensor
    c: tf.Tensor


def recur(
    x: Parts,
    attention: Sequence[tf.Tensor],
    state: tf.Tensor,
    kernel: tf.Tensor,
    *,
    every: bool,
) -> tf.Tensor:
    """Runs over S steps.

    Args:
      x: projected inputs of all steps ``[S, B]`` for the gates, bias included, in as many parts as
        the products of a step are to be.
      attention: of each step ``[..., B, 1]``, factor of the update gate; 0 keeps the state, 1 is
        the plain GRU.
      state: before the first step ``[..., B, H]``; a constant.
      kernel: the state's weights U_u, U_r, U_c, side by side ``[H, 3H]``.
      every: whether the states after all steps are wanted, or the last one.

    Returns:
      ``[S, ..., B, H]``, or ``[..., B, H]``.
    """
    parts, count = len(x), len(attention)

    @tf.custom_gradient
    def states(kernel: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        a, kept, h = rest[parts:], [], state
        for step_x, step_a in zip(zip(*map(tf.unstack, rest[:parts])), a):
            kept.append(_gates(step_x, h, kernel))
            h = h + step_a * kept[-1].u * (kept[-1].c - h)
        found = tf.stack([*(step.h for step in kept[1:]), h]) if every else h

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            of_states = tf.unstack(upstream) if every else [*[None] * (count - 1), upstream]
            return _gradient(kept, a, kernel, of_states, parts)

        return found, gradient

    return states(kernel, *x, *attention)


def _gates(x: Parts, h: tf.Tensor, kernel: tf.Tensor) -> _Step:
    """One step's, from the state before it; arguments as of `recur`."""
    x_u, x_r, x_c = _three(x)
    by_u, by_r, q = _three([linear(h, part) for part in tf.split(kernel, len(x), axis=1)])
    r = tf.sigmoid(x_r + by_r)
    return _Step(h, tf.sigmoid(x_u + by_u), r, q, tf.tanh(x_c + r * q))


def _three(parts: Parts) -> Parts:
    return parts if len(parts) == 3 else tf.split(parts[0], 3, axis=-1)


def _gradient(
    kept: Sequence[_Step],
    attention: Sequence[tf.Tensor],
    kernel: tf.Tensor,
    of_states: Sequence[tf.Tensor | None],
    parts: int,
) -> list[tf.Tensor]:
    """Gradients of `recur`'s kernel, gates and attention, one after another.

    Args:
      kept: of each step.
      attention: as of `recur`.
      kernel: likewise.
      of_states: of the state after each step ``[..., B, H]``; None: nobody has read it.
      parts: of the gates.
    """
    of_gates, of_attention, of_products, carried = [], [], [], None
    for step, a, of_state in reversed(list(zip(kept, attention, of_states))):
        g = tf.add_n([part for part in (of_state, carried) if part is not None])
        of_c = g * a * step.u
        of_update = g * (step.c - step.h)
        of_u = tf.raw_ops.SigmoidGrad(y=step.u, dy=of_update * a)
        of_tanh = tf.raw_ops.TanhGrad(y=step.c, dy=of_c)
        of_r = tf.raw_ops.SigmoidGrad(y=step.r, dy=of_tanh * step.q)
        # Of [h U_u, h U_r, h U_c] ``[..., B, 3H]``.
        of_products.append(tf.concat([of_u, of_r, of_tanh * step.r], -1))
        if step is not kept[0]:
            carried = g - of_c + linear(of_products[-1], tf.transpose(kernel))
        three = [of_u, of_r, of_tanh]
        of_gates.append(three if parts == 3 else [tf.concat(three, -1)])
        of_attention.append(tf.reduce_sum(of_update * step.u, -1, keepdims=True))
    units, width = kernel.shape
    of_kernel = tf.matmul(
        tf.reshape(tf.stack([step.h for step in kept]), [-1, units]),
        tf.reshape(tf.stack(of_products[::-1]), [-1, width]),
        transpose_a=True,
    )
    of_x = [tf.stack(part) for part in zip(*of_gates[::-1])]  # [S, ..., B, H or 3H]
    if kept[0].c.shape.rank == 3:  # all candidates share a step
        of_x = [tf.reduce_sum(part, 1) for part in of_x]
    return [of_kernel, *of_x, *of_attention[::-1]]


class _Recurrent(tf.keras.layers.Layer):
    """Weights and input projection that both layers share."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._units = units

    def build(self, input_shape: Any) -> None:
        """Creates W ``[D, 3H]``, U ``[H, 3H]`` (orthogonal, as Keras' GRU) and b ``[3H]``."""
        width = int(input_shape[0][-1])
        self._kernel = self.add_weight("kernel", shape=[width, 3 * self._units])
        self._recurrent_kernel = self.add_weight(
            "recurrent_kernel", shape=[self._units, 3 * self._units], initializer="orthogonal"
        )
        self._bias = self.add_weight("bias", shape=[3 * self._units], initializer="zeros")
        super().build(input_shape)

    def _run(self, sequence: tf.Tensor, attention: tf.Tensor, *, every: bool) -> tf.Tensor:
        """Runs over steps ``[S, B, D]`` with attention ``[S, ..., B]``, from zeros on: `recur`."""
        # GPUs count launches, CPUs the copies of taking a joint product apart (measured: 68 against
        # 81 ms forward, 4,096 rows, 10 steps, H = 96).
        count = 1 if has_gpu() else 3
        parts = zip(tf.split(self._kernel, count, axis=1), tf.split(self._bias, count))
        gates = [linear(sequence, kernel) + bias for kernel, bias in parts]
        factors = tf.expand_dims(tf.cast(attention, self.compute_dtype), -1)
        shape = tf.concat([tf.shape(attention)[1:], [self._units]], 0)
        state = tf.zeros(shape, self.compute_dtype)
        state.set_shape(attention.shape[1:].concatenate(self._units))
        kernel = tf.convert_to_tensor(self._recurrent_kernel)
        return recur(gates, tf.unstack(factors), state, kernel, every=every)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "units": self._units}


@tf.keras.utils.register_keras_serializable(package="lookback")
class InterestGRU(_Recurrent):
    """GRU that returns the state after every step; masked steps keep the state."""

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Runs over a sequence.

        Args:
          inputs: steps ``[S, B, D]`` with S known, and their bool mask ``[S, B]``.

        Returns:
          States ``[S, B, H]``; zero before the first valid step.
        """
        return self._run(*inputs, every=True)


@tf.keras.utils.register_keras_serializable(package="lookback")
class AUGRU(_Recurrent):
    """GRU whose update gate is scaled by attention; returns the last state of each candidate."""

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Runs over a sequence, once for each candidate.

        Args:
          inputs: steps ``[S, B, D]`` with S known, shared by the candidates, and attention
            weights ``[S, C, B]``, zero at masked steps (which so keep the state).

        Returns:
          The final states ``[C, B, H]``. Candidates lead because a step is then broadcast over
          the first axis, whose gradient is the cheapest of sums.
        """
        return self._run(*inputs, every=False)

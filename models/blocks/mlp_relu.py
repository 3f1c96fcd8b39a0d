"""The MLPs of DLRM: dense layers with ReLU, with a backward pass that wastes no memory traffic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from lookback.kernels.relu_grad import relu_bias_gradient


@tf.keras.utils.register_keras_serializable(package="lookback")
class ReluMLP(tf.keras.layers.Layer):
    """``relu(x W + b)`` for each width, from Glorot-normal weights and ``N(0, 1 / width)`` biases.

    The initial weights are those of Naumov et al. 2019's code and of NVIDIA's.

    `mm.MLPBlock` would compute the same. It is not used because TensorFlow's gradient of the
    bias is slow beside the products (`relu_dense`), and its layers cannot be built without
    a call (merlin/models/tf/blocks/mlp.py, _Dense has no `build`).
    """

    def __init__(self, sizes: Sequence[int], **kwargs: Any) -> None:
        """Creates the layer.

        Args:
          sizes: widths of the layers.
          **kwargs: of `tf.keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self._sizes = tuple(sizes)
        self._kernels: list[tf.Variable] = []
        self._biases: list[tf.Variable] = []

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        width = tf.TensorShape(input_shape)[-1]
        for number, size in enumerate(self._sizes):
            self._kernels.append(
                self.add_weight(
                    f"kernel_{number}",
                    [width, size],
                    initializer=tf.keras.initializers.GlorotNormal(),
                )
            )
            self._biases.append(
                self.add_weight(f"bias_{number}", [size], initializer=bias_initializer(size))
            )
            width = size
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps ``[B, D]`` to ``[B, sizes[-1]]``."""
        hidden = tf.cast(inputs, self.compute_dtype)
        for kernel, bias in zip(self._kernels, self._biases):
            hidden = relu_dense(
                hidden, tf.cast(kernel, self.compute_dtype), tf.cast(bias, self.compute_dtype)
            )
        return hidden

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """``[B, sizes[-1]]``."""
        return tf.TensorShape([tf.TensorShape(input_shape)[0], self._sizes[-1]])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "sizes": self._sizes}


def bias_initializer(width: int) -> tf.keras.initializers.Initializer:
    """``N(0, 1 / width)``, that of a layer's bias."""
    return tf.keras.initializers.RandomNormal(stddev=math.sqrt(1.0 / width))


@tf.custom_gradient
def relu_dense(
    inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]]:
    """``relu(x W + b)``; grappler makes one fused product of it.

    Args:
      inputs: ``[B, D]``.
      kernel: ``[D, E]``.
      bias: ``[E]``.

    Returns:
      ``[B, E]``.
    """
    outputs = tf.nn.relu(tf.nn.bias_add(tf.matmul(inputs, kernel), bias))
    return outputs, lambda upstream: relu_dense_gradients(inputs, kernel, outputs, upstream)


def relu_dense_gradients(
    inputs: tf.Tensor, kernel: tf.Tensor, outputs: tf.Tensor, upstream: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The gradients of `relu_dense`, or of a layer that hides units, too: of outputs above 0.

    Args:
      inputs: ``[B, D]``.
      kernel: ``[D, E]``.
      outputs: ``[B, E]``.
      upstream: their gradient ``[B, E]``.

    Returns:
      Those of the inputs, the kernel and the bias.
    """
    active, of_bias = relu_bias_gradient(upstream, outputs)  # [B, E], [E]
    return (
        tf.matmul(active, kernel, transpose_b=True),
        tf.matmul(inputs, active, transpose_a=True),
        of_bias,
    )

"""How fast this machine multiplies matrices: what the work of models is measured by."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

SIDE = 2048
"""Of square matrices: 16 MB each in float32, beyond caches, and 17 GFLOP a product."""

_QUEUED = 8
"""Calls between two waits: a GPU that is waited for after each product idles for a part of it."""


def gemm(dtype: str, side: int = SIDE) -> Callable[[], tf.Tensor]:
    """A product of square matrices (GEMM) on the device that TensorFlow would take.

    Args:
      dtype: of the matrices, such as "bfloat16".
      side: their rows and columns.

    Returns:
      A compiled function that does one, of `gemm_flops` operations. It gives one number of the
      product, float32 ``[]``: reading that waits for the product and takes no time of its own.
    """
    import tensorflow as tf

    left, right = (tf.cast(tf.random.normal([side, side]), dtype) for _ in range(2))

    @tf.function(autograph=False)
    def product() -> tf.Tensor:
        return tf.cast(tf.matmul(left, right)[0, 0], tf.float32)

    return product


def gemm_flops(side: int = SIDE) -> int:
    """Floating point operations of a product, an addition and a multiplication counted as two."""
    return 2 * side**3


def gemm_rate(dtype: str, seconds: float, side: int = SIDE) -> float:
    """FLOP/s of products, one after another for some seconds; arguments as of `gemm`."""
    return gemm_flops(side) * calls_a_second(gemm(dtype, side), seconds)


def calls_a_second(work: Callable[[], Any], seconds: float) -> float:
    """How often something can be done, which a first call, that is not counted, prepares.

    Args:
      work: its result is None, or a tensor that is there once the work is done.
      seconds: to do it for, at least.
    """
    _wait(work())
    start, count = time.perf_counter(), 0
    while True:
        result = work()
        count += 1
        if count % _QUEUED == 0 or time.perf_counter() - start > seconds:
            _wait(result)
            taken = time.perf_counter() - start
            if taken >= seconds:
                return count / taken


def _wait(result: Any) -> None:
    """Waits for a tensor by reading its first number."""
    import tensorflow as tf

    if isinstance(result, tf.Tensor):
        tf.reshape(result, [-1])[:1].numpy()

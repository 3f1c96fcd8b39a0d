"""The dot interaction: first of each sample's vectors, then the products of all pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from lookback.kernels.loader import cpu_kernels

_LANES = 16  # of dot_interaction.h: it takes vectors of a multiple of these


def reads_rows(width: int, dtype: str) -> bool:
    """Whether `lookup_interaction` can be used here.

    Args:
      width: of the vectors (D).
      dtype: of the result.
    """
    fits = width % _LANES == 0 and dtype in ("float32", "bfloat16")
    return fits and cpu_kernels() is not None


def lookup_interaction(
    first: tf.Tensor, tables: Sequence[tf.Variable], ids: Sequence[tf.Tensor], dtype: str
) -> tf.Tensor:
    """`dot_interaction` of vectors that but for the first are rows, read where tables have them.

    Args:
      first: ``[B, D]``.
      tables: float32 variables ``[rows, D]``; one may come several times.
      ids: ints ``[B]``, rows of each.
      dtype: of the result, and of the first vectors' gradient. Products are in float32.

    Returns:
      ``[B, D + M (M + 1) / 2]`` for M tables.
    """
    wide = any(index.dtype == tf.int64 for index in ids)
    rows = [tf.cast(index, tf.int64) if wide else index for index in ids]
    handles = [table.handle for table in tables]
    for table in tables:  # tapes are told that it is read, which a handle does not
        table.sparse_read(tf.zeros([0], tf.int32))
    kernels: Any = cpu_kernels()
    return kernels.lookback_lookup_interaction(
        first=tf.cast(first, dtype), tables=handles, ids=rows
    )


@tf.RegisterGradient("LookbackLookupInteraction")
def _lookup_gradient(operation: Any, upstream: tf.Tensor) -> list[Any]:
    """The gradients of the first vectors, and of the rows in the order in which they were read."""
    tables = operation.get_attr("M")
    first, *rest = operation.inputs
    handles, ids = rest[:tables], rest[tables:]
    kernels: Any = cpu_kernels()
    of_first, of_rows = kernels.lookback_lookup_interaction_grad(
        upstream=upstream, first=first, tables=handles, ids=ids
    )
    slices = [
        tf.IndexedSlices(values, index, tf.raw_ops.VariableShape(input=handle))
        for values, index, handle in zip(of_rows, ids, handles)
    ]
    return [of_first, *slices, *[None] * tables]


def dot_interaction(vectors: list[tf.Tensor], dtype: str) -> tf.Tensor:
    """``[v_0, <v_1, v_0>, <v_2, v_0>, <v_2, v_1>, ...]``, by our kernel where it can be used.

    Args:
      vectors: F vectors ``[B, D]`` of each sample, in any float types.
      dtype: of the result. TensorFlow's operations multiply in it, the kernel in float32: tables
        are, and casting all vectors would cost more.

    Returns:
      ``[B, D + F (F - 1) / 2]``.
    """
    kernels = None if vectors[0].shape[1] % _LANES else cpu_kernels()
    if kernels is None:
        cast = [tf.cast(vector, dtype) for vector in vectors]
        return _first_and_products(cast[0], tf.stack(cast, 1))
    result = _fused(kernels, [tf.cast(vector, tf.float32) for vector in vectors])
    return tf.cast(result, dtype)


@tf.custom_gradient
def _first_and_products(
    first: tf.Tensor, vectors: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
    """One vector, then the products of all pairs of others.

    TensorFlow's own gradient has one batched product for each side of ``V V^T`` and scatters the
    triangle element by element. ``V V^T`` is symmetric, so one product with the symmetric gradient
    does (a product takes 9 ms of CPU time here for 26 tables, D = 128, batch 4,096).

    Args:
      first: ``[B, D]``.
      vectors: ``[B, F, D]``.

    Returns:
      ``[B, D + F (F - 1) / 2]``.
    """
    features, width = vectors.shape[1:]
    rows = range(1, features)
    products = tf.matmul(vectors, vectors, transpose_b=True)  # [B, F, F]
    flat = tf.reshape(products, [-1, features * features])
    # Slices: tf.gather of single columns took a third longer (measured, batch 4,096).
    triangle = [flat[:, row * features : row * features + row] for row in rows]

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_first, *parts = tf.split(upstream, [width, *rows], axis=1)
        zeros = tf.zeros([tf.shape(upstream)[0], features], upstream.dtype)
        lower = [zeros]  # [B, F] a row
        for row, part in zip(rows, parts):
            lower += [part, zeros[:, row:]]
        square = tf.reshape(tf.concat(lower, 1), [-1, features, features])
        symmetric = square + tf.transpose(square, [0, 2, 1])
        return of_first, tf.matmul(symmetric, vectors)

    return tf.concat([first, *triangle], 1), gradient


def _fused(kernels: Any, inputs: list[tf.Tensor]) -> tf.Tensor:
    """The same as `_first_and_products`, without bringing the vectors together.

    Args:
      kernels: of `cpu_kernels`.
      inputs: F float32 vectors ``[B, D]`` of each sample, D a multiple of 16.

    Returns:
      ``[B, D + F (F - 1) / 2]``.
    """

    @tf.custom_gradient
    def interaction(
        *vectors: tf.Tensor,
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            return kernels.lookback_dot_interaction_grad(upstream=upstream, inputs=vectors)

        return kernels.lookback_dot_interaction(inputs=vectors), gradient

    return interaction(*inputs)

"""DLRM as a Keras user would write it straight from the paper: no optimisation.

One `tf.keras.layers.Embedding` a feature, `Dense` layers, ``V V^T`` by a batched product, its lower
triangle by a gather. The oracle for `models/dlrm.py`, and the baseline of
`python -m benchmarks dlrm_train` and `dlrm_inference`.

Source: Naumov et al. 2019, https://arxiv.org/abs/1906.00091
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf


class PlainDLRM(tf.keras.Model):
    """Bottom MLP, embeddings, dot interaction, top MLP."""

    def __init__(
        self,
        table_rows: Sequence[int],
        *,
        embedding_dim: int = 128,
        bottom_mlp_sizes: Sequence[int] = (512, 256, 128),
        top_mlp_sizes: Sequence[int] = (1024, 1024, 512, 256, 1),
    ) -> None:
        """Creates the layers.

        Args:
          table_rows: rows of the table of each of M categorical features.
          embedding_dim: D.
          bottom_mlp_sizes: widths; the last is D.
          top_mlp_sizes: widths; the last, 1, is the logit.
        """
        super().__init__()
        dense = tf.keras.layers.Dense
        self.tables = [tf.keras.layers.Embedding(rows, embedding_dim) for rows in table_rows]
        self.bottom = [dense(size, activation="relu") for size in bottom_mlp_sizes]
        self.top = [dense(size, activation="relu") for size in top_mlp_sizes[:-1]]
        self.logit = dense(top_mlp_sizes[-1])
        features = len(table_rows) + 1
        row, column = np.tril_indices(features, -1)
        self._triangle = (row * features + column).astype(np.int32)

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Scores a batch: numbers `[B, N]`, ids `[B, M]`; returns logits `[B, 1]`."""
        bottom = inputs["numerical"]
        for layer in self.bottom:
            bottom = layer(bottom)
        ids = inputs["categorical"]
        embedded = [table(ids[:, number]) for number, table in enumerate(self.tables)]
        vectors = tf.stack([bottom, *embedded], axis=1)  # [B, F, D]
        products = tf.matmul(vectors, vectors, transpose_b=True)  # [B, F, F]
        flat = tf.reshape(products, [-1, vectors.shape[1] ** 2])
        hidden = tf.concat([bottom, tf.gather(flat, self._triangle, axis=1)], axis=1)
        for layer in self.top:
            hidden = layer(hidden)
        return self.logit(hidden)

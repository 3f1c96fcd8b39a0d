"""NeuMF: matrix factorisation beside an MLP, over pairs of user and item.

He et al. 2017, "Neural Collaborative Filtering"; NVIDIA's NCF for defaults and for the dropout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from merlin.schema import Schema

from lookback.core import splitmix
from lookback.core.devices import computable, whole_numbers
from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.types import TableSpec
from lookback.formats.interaction_features import SAMPLE_KEY, InteractionFeatures
from lookback.kernels.masked_relu import kept_fraction
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.blocks.mlp_dropout import (
    dropout_masks,
    masked_relu_dense,
    masked_relu_sum,
)
from lookback.models.blocks.mlp_relu import relu_dense
from lookback.models.click_body import ClickBody
from lookback.models.click_model import ClickModel, click_model
from lookback.models.neumf_config import NeuMFConfig
from lookback.models.stored_names import stored_as

INIT_STDDEV = 0.01
"""Of embeddings, as in the paper and in NVIDIA's NCF; here uniform with this standard deviation."""


class SplitMLP(tf.keras.layers.Layer):
    """``[u; i]`` through layers with ReLU and dropout.

    The first layer is split: ``[u; i] W = u W_u + i W_i``, so that each distinct user and item of a
    batch meets it once, however many pairs it is part of. Dropout's scale is in the next layer's
    weights (the last one's in the output), where it costs nothing.

    `mm.MLPBlock` is not used: it knows neither the split nor dropout that a resumed or shared run
    repeats.
    """

    def __init__(self, sizes: tuple[int, ...], dropout: float, **kwargs: Any) -> None:
        """Creates the layer.

        Args:
          sizes: widths of the layers, the first that of the input.
          dropout: share of the units of each layer that training drops.
          **kwargs: of `tf.keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self._sizes, self._dropout = sizes, dropout
        self._kernels: list[tf.Variable] = []
        self._biases: list[tf.Variable] = []

    def build(self, input_shape: Any) -> None:
        """Creates the weights: Glorot uniform, biases 0."""
        del input_shape
        for number, (width, units) in enumerate(zip(self._sizes, self._sizes[1:])):
            self._kernels.append(
                self.add_weight(f"kernel_{number}", [width, units], initializer="glorot_uniform")
            )
            self._biases.append(self.add_weight(f"bias_{number}", [units], initializer="zeros"))
        super().build(())

    def call(
        self,
        users: tf.Tensor,
        items: tf.Tensor,
        user_index: tf.Tensor,
        item_index: tf.Tensor,
        keys: tf.Tensor | None,
    ) -> tf.Tensor:
        """Maps pairs to ``[B, C, sizes[-1]]``.

        Args:
          users: vectors of distinct users ``[U, sizes[0] / 2]``.
          items: of distinct items ``[I, sizes[0] / 2]``.
          user_index: which user each history has ``[B]``.
          item_index: which items ``[B, C]``, or ``[1, C]`` if all have the same.
          keys: of the dropout ``[B, C]`` int64; None drops nothing.
        """
        kernels = [tf.cast(kernel, self.compute_dtype) for kernel in self._kernels]
        biases = [tf.cast(bias, self.compute_dtype) for bias in self._biases]
        of_user, of_item = tf.split(kernels[0], 2)
        projected = tf.nn.bias_add(tf.matmul(users, of_user), biases[0])
        user = tf.gather(projected, user_index)  # [B, D]
        item = tf.gather(tf.matmul(items, of_item), item_index)  # [B or 1, C, D]
        shape = tf.stack([tf.shape(user)[0], tf.shape(item)[1]])
        widths = list(self._sizes[1:])
        if keys is None or not self._dropout:
            hidden = _rows(tf.nn.relu(tf.expand_dims(user, 1) + item))
            for kernel, bias in zip(kernels[1:], biases[1:]):
                hidden = relu_dense(hidden, kernel, bias)
        else:
            masks = dropout_masks(tf.reshape(keys, [-1]), widths, self._dropout)
            hidden = masked_relu_sum(user, _rows(item), masks[0])
            scale = tf.constant(1 / kept_fraction(self._dropout), self.compute_dtype)
            for kernel, bias, mask in zip(kernels[1:], biases[1:], masks[1:]):
                hidden = masked_relu_dense(hidden, kernel * scale, bias, mask)
            hidden *= scale
        return tf.reshape(hidden, tf.concat([shape, widths[-1:]], 0))


@stored_as("NeuMFBody", "NeuMFBlock")
class NeuMFBody(ClickBody):
    """``[p_u * q_i; MLP(p'_u, q'_i)]`` for each user's candidates, section 3.4 of the paper."""

    config_class = NeuMFConfig
    features_class = InteractionFeatures
    scopes = ("neu_mf_model", "neu_mf_block")
    _features: InteractionFeatures
    _config: NeuMFConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Creates the layers; arguments as of `ClickBody`, with a `NeuMFConfig`."""
        super().__init__(*args, **kwargs)
        config, self._mlp = self._config, None
        if config.has_mlp:
            self._mlp = SplitMLP(config.layers, config.dropout, name="mlp")

    @property
    def serving_inputs(self) -> set[str]:
        """Users and candidates."""
        return {self._features.user, self._features.item}

    @property
    def training_inputs(self) -> set[str]:
        """Keys of the dropout."""
        return {SAMPLE_KEY}

    def lookups(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The ids that a call with these inputs looks up in `embeddings`: distinct ones, ``[N]``.

        Args:
          inputs: users ``[B]`` and candidates ``[B, C]``, or ``[1, C]`` if all users have the same.

        Raises:
          ValueError: if an input has not the rank its role needs.
        """
        distinct = {name: _distinct(ids)[0] for name, ids in self._ids(inputs).items()}
        return {
            table.name: distinct[table.name.rpartition("/")[0]] for table in self.embeddings.tables
        }

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Represents every pair.

        Args:
          inputs: as of `lookups`; to train with dropout also keys `SAMPLE_KEY`, int64 ``[B]``.
          training: whether to drop units.

        Returns:
          ``[B, C, D]``, D the widths of the branches together.

        Raises:
          ValueError: as of `lookups`, or if keys are needed and absent.
        """
        user, item = self._features.user, self._features.item
        vectors = {
            name: tf.cast(value, self.compute_dtype)
            for name, value in self.embeddings(self.lookups(inputs)).items()
        }
        index = {name: _distinct(ids)[1] for name, ids in self._ids(inputs).items()}
        branches = []
        if self._config.has_mf:
            of_users = tf.gather(vectors[f"{user}/mf"], index[user])  # [B, F]
            of_items = tf.gather(vectors[f"{item}/mf"], index[item])  # [B or 1, C, F]
            branches.append(tf.expand_dims(of_users, 1) * of_items)
        if self._mlp is not None:
            keys = self.dropout_keys(inputs) if training and self._config.dropout else None
            branches.append(
                self._mlp(
                    vectors[f"{user}/mlp"], vectors[f"{item}/mlp"], index[user], index[item], keys
                )
            )
        return tf.concat(branches, -1)

    def _ids(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Users ``[B]`` and items ``[B or 1, C]``, by name."""
        users, items = inputs[self._features.user], inputs[self._features.item]
        if users.shape.rank == 2 and users.shape[1] == 1:  # Merlin's PrepareFeatures adds an axis
            users = tf.squeeze(users, 1)
        for name, ids, rank in ((self._features.user, users, 1), (self._features.item, items, 2)):
            if ids.shape.rank != rank:
                raise ValueError(
                    f"Input {name!r} must be {('[B]', '[B, C]')[rank - 1]}, received shape "
                    f"{ids.shape}."
                )
        return {self._features.user: users, self._features.item: items}

    def dropout_keys(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Keys of the dropout ``[B, C]``."""
        if SAMPLE_KEY not in inputs:
            raise ValueError(
                f"Training with dropout needs {SAMPLE_KEY!r} [B] among the inputs; they are "
                f"{sorted(inputs)}."
            )
        candidates = tf.range(tf.shape(inputs[self._features.item])[1])
        step = tf.cast(candidates, tf.int64) * splitmix.WEYL  # [C]
        return splitmix.mix(tf.expand_dims(inputs[SAMPLE_KEY], 1) + step)

    @property
    def output_width(self) -> int:
        """D, the widths of the branches together."""
        config = self._config
        return config.factors * config.has_mf + config.layers[-1] * config.has_mlp

    def compute_output_shape(self, input_shape: Mapping[str, tf.TensorShape]) -> tf.TensorShape:
        """``[B, C, D]``; Merlin asks before it builds the head."""
        users, items = input_shape[self._features.user], input_shape[self._features.item]
        return tf.TensorShape([users[0], items[1], self.output_width])


def tables(schema: Schema, config: NeuMFConfig) -> list[TableSpec]:
    """The embedding tables: of users and of items, one a branch, named ``user_id/mf`` and so on.

    Args:
      schema: of a dataset of histories.
      config: of the model.

    Returns:
      The specs. A row of a batch looks one item up; users are looked up once for all their
      candidates, which is left out of account.
    """
    features = InteractionFeatures.from_schema(schema)
    widths = {"mf": config.factors} if config.has_mf else {}
    if config.has_mlp:
        widths["mlp"] = config.layers[0] // 2
    rows = features.rows(schema)
    bound = INIT_STDDEV * math.sqrt(3.0)  # of a uniform distribution with that deviation
    return [
        TableSpec(f"{name}/{branch}", rows[name], width, init_scale=bound)
        for branch, width in widths.items()
        for name in (features.user, features.item)
    ]


def build(schema: Schema, config: NeuMFConfig, sharding: Sharding = LOCAL) -> ClickModel:
    """Builds NeuMF for a dataset.

    Args:
      schema: of a dataset of histories.
      config: of the model.
      sharding: where the tables' rows live.

    Returns:
      A model from users ``[B]`` and candidates ``[B, C]`` to float32 logits ``[B, C]``.

    Raises:
      UserError: if the schema does not mark one user id and one item id.
    """
    features = InteractionFeatures.from_schema(schema)
    body = NeuMFBody(features, tables(schema, config), config, sharding)
    # LeCun uniform, as NVIDIA's last layer: variance 1 / inputs.
    return click_model(body, features.sample_schema(schema), LogitHead("lecun_uniform"))


def _distinct(ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Distinct ids ``[N]``, and which of them each of `ids` is, in the shape of `ids`."""
    values, index = tf.unique(tf.reshape(computable(ids), [-1]), out_idx=whole_numbers())
    return values, tf.reshape(index, tf.shape(ids))


def _rows(values: tf.Tensor) -> tf.Tensor:
    """``[B, C, D]`` as ``[B C, D]``."""
    return tf.reshape(values, [-1, values.shape[-1]])

"""DIEN: a GRU extracts interests from recent history, attention lets them evolve to the candidate.

Zhou et al. 2019, "Deep Interest Evolution Network for Click-Through Rate Prediction"; NVIDIA's code
for defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from merlin.schema import Schema

from lookback.embeddings.config import LOCAL, Sharding
from lookback.models.blocks.auxiliary import count_steps
from lookback.models.blocks.evolution import UNITS_PER_DIM, InterestEvolution
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.blocks.mlp import dropout_masks, mlp_weights, prelu_mlp
from lookback.models.click_body import Attended
from lookback.models.click_model import ClickModel
from lookback.models.config import DIENConfig
from lookback.models.history_body import HistoryBody, build_history, by_candidate
from lookback.models.history_tables import history_tables
from lookback.models.stored_names import stored_as


@stored_as("DIENBody", "DIENBlock")
class DIENBody(HistoryBody):
    """``MLP([e_a, evolved interest, e_user])``, plus the auxiliary loss in training."""

    config_class = DIENConfig
    scopes = ("history_model", "dien_block")
    fused_operation = "dien"
    _config: DIENConfig
    added_losses = ("aux_loss",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Creates the layers; arguments as of `ClickBody`, with a `DIENConfig`."""
        super().__init__(*args, **kwargs)
        config = self._config
        self._evolution = InterestEvolution(
            UNITS_PER_DIM * config.embedding_dim, config.aux_mlp_dims, name="evolution"
        )
        self._mlp = prelu_mlp(config.stage_two_mlp_dims, config.dropout_rate, "classifier")

    @property
    def slots(self) -> tuple[slice | None, slice | None]:
        """The short sequence alone."""
        return None, slice(-self._config.short_seq_length, None)

    def loss_counts(
        self, inputs: Mapping[str, tf.Tensor], labels: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The auxiliary loss is a mean over steps; see `ClickBody`."""
        short = self.mask(inputs)[:, self._config.long_seq_length :]  # [B, S]
        steps = count_steps(tf.transpose(short))
        return super().loss_counts(inputs, labels) | {"aux_loss": steps}

    def build(self, input_shape: Any) -> None:
        """Creates what a call without negatives would not reach."""
        self._evolution.build_auxiliary(self.event_width)
        super().build(input_shape)

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Represents every candidate.

        Args:
          inputs: a batch, see `formats.features.sample_schema`.
          training: whether to apply dropout and add the auxiliary loss.

        Returns:
          ``[B, C, stage_two_mlp_dims[-1]]``.
        """
        batch = self.embed(inputs)
        final, auxiliary = self._evolution(
            batch.target, batch.short, batch.short_mask, self.auxiliary_input(batch, training)
        )
        if auxiliary is not None:
            self.add_loss(auxiliary)
        features = tf.concat([batch.target, final, batch.user], -1)
        return by_candidate(self._mlp, features, training)

    def fused_arguments(
        self, inputs: Mapping[str, tf.Tensor], head: LogitHead, training: bool
    ) -> dict[str, Any]:
        """The short sequence, and the weights of all layers."""
        config = self._config
        found = {
            "short_mask": tf.transpose(self.mask(inputs)[:, self.slots[1]]),
            "stage_two_layers": len(config.stage_two_mlp_dims),
            "weights": [
                *self._evolution.weights_in_order(auxiliary=training),
                *mlp_weights(self._mlp),
                *head.weights,
            ],
        }
        if training:
            found["auxiliary_layers"] = len(config.aux_mlp_dims)
            found["dropout"] = dropout_masks([self._mlp], self.rows_of(inputs))
        return found

    def attended(self, inputs: Mapping[str, tf.Tensor]) -> Attended:
        """The attention that lets interests evolve, over the short sequence."""
        batch = self.embed(inputs)
        _, weights = self._evolution.attend(batch.target, batch.short, batch.short_mask)
        slots = slice(-self._config.short_seq_length, None)
        return Attended(slots, tf.transpose(weights, [2, 1, 0]))


tables = history_tables


def build(schema: Schema, config: DIENConfig, sharding: Sharding = LOCAL) -> ClickModel:
    """Builds DIEN for a dataset.

    Args:
      schema: of the dataset, see `formats.features`.
      config: of the model.
      sharding: where the tables' rows live.

    Returns:
      A model from a batch to float32 logits ``[B, C]``.
    """
    return build_history(DIENBody, schema, config, sharding)

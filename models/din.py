"""DIN: attention of the candidate over the whole history.

Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction"; NVIDIA's code for
defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from merlin.schema import Schema

from lookback.embeddings.config import LOCAL, Sharding
from lookback.models.blocks.attention import ActivationUnit, masked_softmax
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.blocks.mlp import dropout_masks, mlp_weights, prelu_mlp
from lookback.models.click_body import Attended
from lookback.models.click_model import ClickModel
from lookback.models.config import DINConfig
from lookback.models.history_body import Embedded, HistoryBody, build_history, by_candidate
from lookback.models.history_tables import history_tables
from lookback.models.stored_names import stored_as


@stored_as("DINBody", "DINBlock")
class DINBody(HistoryBody):
    """``MLP([e_a, sum_j softmax(score(e_a, e_j))_j e_j, e_user])`` over all history slots.

    Scores are normalised by a softmax over valid events, as in NVIDIA's code, where section 4.3 of
    the paper leaves them as they are. With time features, the values include the time gap's
    embedding.
    """

    config_class = DINConfig
    scopes = ("history_model", "din_block")
    fused_operation = "din"
    _config: DINConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Creates the layers; arguments as of `ClickBody`, with a `DINConfig`."""
        super().__init__(*args, **kwargs)
        config = self._config
        self._unit = ActivationUnit(name="attention") if config.interaction != "dot" else None
        self._mlp = prelu_mlp(config.stage_two_mlp_dims, config.dropout_rate, "classifier")

    @property
    def slots(self) -> tuple[slice | None, slice | None]:
        """All slots are one sequence."""
        return slice(None), None

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Represents every candidate.

        Args:
          inputs: a batch, see `formats.features.sample_schema`.
          training: whether to apply dropout.

        Returns:
          ``[B, C, stage_two_mlp_dims[-1]]``.
        """
        batch = self.embed(inputs)
        weights = tf.cast(self._weights(batch), self.compute_dtype)
        interest = tf.matmul(weights, batch.long)  # [B, C, E']
        features = tf.concat([batch.target, interest, batch.user], -1)
        return by_candidate(self._mlp, features, training)

    def fused_arguments(
        self, inputs: Mapping[str, tf.Tensor], head: LogitHead, training: bool
    ) -> dict[str, Any]:
        """All slots, and the weights of all layers."""
        found = {
            "long_mask": self.mask(inputs),
            "interaction": self._config.interaction,
            "stage_two_layers": len(self._config.stage_two_mlp_dims),
            "weights": [
                *([] if self._unit is None else self._unit.weights),
                *mlp_weights(self._mlp),
                *head.weights,
            ],
        }
        if training:
            found["dropout"] = dropout_masks([self._mlp], self.rows_of(inputs))
        return found

    def attended(self, inputs: Mapping[str, tf.Tensor]) -> Attended:
        """The attention over all slots."""
        return Attended(slice(None), self._weights(self.embed(inputs)))

    def _weights(self, batch: Embedded) -> tf.Tensor:
        """Attention, float32 ``[B, C, T]``."""
        items, _ = self.split_event(batch.long)  # [B, T, E]
        if self._unit is None:
            scores = tf.matmul(batch.target, items, transpose_b=True)  # [B, C, T]
        else:
            steps = tf.transpose(items, [1, 0, 2])  # [T, B, E]
            target = tf.transpose(batch.target, [1, 0, 2])  # [C, B, E]
            scores = tf.transpose(self._unit((target, steps)), [2, 1, 0])  # [B, C, T]
        return masked_softmax(scores, tf.expand_dims(batch.long_mask, 1))


tables = history_tables


def build(schema: Schema, config: DINConfig, sharding: Sharding = LOCAL) -> ClickModel:
    """Builds DIN for a dataset.

    Args:
      schema: of the dataset, see `formats.features`.
      config: of the model.
      sharding: where the tables' rows live.

    Returns:
      A model from a batch to float32 logits ``[B, C]``.
    """
    return build_history(DINBody, schema, config, sharding)

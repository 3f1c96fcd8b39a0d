"""DIEN's path from the short sequence to one vector: GRU, attention, AUGRU, auxiliary loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from lookback.models.blocks.attention import ActivationUnit, masked_softmax
from lookback.models.blocks.auxiliary import AuxiliaryNet
from lookback.models.blocks.linear import Dense
from lookback.models.blocks.mlp import PRELU_SLOPE
from lookback.models.blocks.recurrent import AUGRU, InterestGRU

UNITS_PER_DIM = 6
"""GRU units per embedding dimension: the authors' published DIEN code, and NVIDIA's after it
(sim/models/dien_model.py, DIEN_ITEM_SEQ_INTERACTION_SIZE)."""


@tf.keras.utils.register_keras_serializable(package="lookback")
class InterestEvolution(tf.keras.layers.Layer):
    """Interest extraction and evolution (Zhou et al. 2019, sections 4.2 and 4.3).

    A GRU over the short sequence gives interest states h_t; attention of the candidate over them
    weights the update gate of an AUGRU, whose last state is the candidate's view of the user. The
    attention is DIN's activation unit on the candidate projected to the GRU's width, as in NVIDIA's
    recipe, where the paper has a bilinear form.
    """

    def __init__(self, units: int, aux_mlp_dims: Sequence[int], **kwargs: Any) -> None:
        """Creates the layers.

        Args:
          units: of both recurrent layers (H).
          aux_mlp_dims: hidden widths of the auxiliary net.
          **kwargs: of `tf.keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self._units = units
        self._aux_mlp_dims = tuple(aux_mlp_dims)
        self._extractor = InterestGRU(units, name="extractor")
        self._project = Dense(units, name="project")
        self._slope = tf.keras.layers.PReLU(
            alpha_initializer=tf.keras.initializers.Constant(PRELU_SLOPE), shared_axes=[1]
        )
        self._attention = ActivationUnit(name="attention")
        self._evolution = AUGRU(units, name="evolution")
        self._auxiliary = AuxiliaryNet(aux_mlp_dims, name="auxiliary")

    def build_auxiliary(self, event_width: int) -> None:
        """Creates the auxiliary net's weights, which a call without negatives does not reach."""
        self._auxiliary.build([[None, None, self._units], [None, None, event_width]])

    def call(
        self,
        target: tf.Tensor,
        short: tf.Tensor,
        mask: tf.Tensor,
        negatives: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Reads the short sequence.

        Args:
          target: candidates ``[B, C, E]``.
          short: events, time-major, ``[S, B, E']``.
          mask: bool ``[S, B]``.
          negatives: auxiliary negatives ``[S, B, E']``, or None.

        Returns:
          Final states ``[B, C, H]``, and the auxiliary loss (None without negatives).
        """
        states, attention = self.attend(target, short, mask)
        final = tf.transpose(self._evolution((states, attention)), [1, 0, 2])  # [B, C, H]
        if negatives is None:
            return final, None
        return final, self._auxiliary((states, short, negatives, mask))

    def attend(
        self, target: tf.Tensor, short: tf.Tensor, mask: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Interest states ``[S, B, H]``, and attention over them, float32 ``[S, C, B]``.

        Arguments as of `call`.
        """
        states = self._extractor((short, mask))  # [S, B, H]
        items = self._slope(self._project(tf.transpose(target, [1, 0, 2])))  # [C, B, H]
        scores = self._attention((items, states))  # [S, C, B]
        return states, masked_softmax(scores, tf.expand_dims(mask, 1), axis=0)

    def weights_in_order(self, auxiliary: bool) -> list[tf.Variable]:
        """The weights, layer after layer, as they come into play.

        Args:
          auxiliary: with those of the auxiliary net, which are the last.
        """
        layers = [self._extractor, self._evolution, self._project, self._slope, self._attention]
        layers += [self._auxiliary] if auxiliary else []
        return [weight for layer in layers for weight in layer.weights]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "units": self._units,
            "aux_mlp_dims": self._aux_mlp_dims,
        }

"""DCNv2: explicit crosses of all features by low-rank matrices, with an MLP behind or beside them.

Wang et al. 2021, "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale
Learning to Rank Systems"; NVIDIA's code for defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import merlin.models.tf as mm
import tensorflow as tf
from merlin.schema import Schema

from lookback.embeddings.config import LOCAL, Sharding
from lookback.models.blocks.mlp_relu import ReluMLP
from lookback.models.click_model import ClickModel
from lookback.models.stored_names import stored_as
from lookback.models.tabular_body import TabularBody, build_tabular, tabular_tables
from lookback.models.tabular_config import DCNv2Config


@stored_as("DCNv2Body", "DCNv2Block")
class DCNv2Body(TabularBody):
    """``x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`` with ``W = V U``: equations 1 and 2 of the paper.

    ``x_0`` is the bottom MLP's output and the embeddings, one after another. Stacked (figure 1,
    left), the top MLP reads the last cross layer; in parallel (right), it reads ``x_0``, and the
    representation is both results, one after the other.
    """

    config_class = DCNv2Config
    scopes = ("tabular_model", "dc_nv2_block")
    _config: DCNv2Config

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Creates the layers; arguments as of `ClickBody`, with a `DCNv2Config`."""
        super().__init__(*args, **kwargs)
        config = self._config
        self._cross = mm.CrossBlock(
            config.num_cross_layers, low_rank_dim=config.cross_layer_projection_dim
        )
        self._top = ReluMLP(config.top_mlp_sizes[:-1], name="top_mlp")

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Represents every row.

        Args:
          inputs: a batch, see `formats.tabular_schema`.

        Returns:
          ``[B, D]``.
        """
        joined = self.joined_vectors(inputs)  # [B, H + M D]
        crossed = self._cross(joined)
        if self._config.structure == "stacked":
            return self._top(crossed)
        return tf.concat([crossed, self._top(joined)], 1)

    @property
    def output_width(self) -> int:
        """D: of the top MLP's last hidden layer, and in parallel of the crosses beside it."""
        top = super().output_width
        return top if self._config.structure == "stacked" else self.vectors_width + top


tables = tabular_tables


def build(schema: Schema, config: DCNv2Config, sharding: Sharding = LOCAL) -> ClickModel:
    """Builds DCNv2 for a dataset; see `build_tabular`."""
    return build_tabular(DCNv2Body, schema, config, sharding)

"""DLRM: numbers through an MLP, ids through embeddings, all pairs multiplied, another MLP.

Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and Recommendation
Systems"; NVIDIA's DLRM for defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from merlin.schema import Schema

from lookback.embeddings.config import LOCAL, Sharding
from lookback.models.blocks.interaction import DotInteraction
from lookback.models.blocks.mlp_relu import ReluMLP
from lookback.models.click_model import ClickModel
from lookback.models.stored_names import stored_as
from lookback.models.tabular_body import TabularBody, build_tabular, tabular_tables
from lookback.models.tabular_config import DLRMConfig


@stored_as("DLRMBody", "DLRMBlock")
class DLRMBody(TabularBody):
    """``MLP_top(interact(MLP_bottom(x), e_1, ..., e_M))``, section 2 of the paper.

    The interaction is `DotInteraction`, or the vectors one after another.
    """

    config_class = DLRMConfig
    scopes = ("tabular_model", "dlrm_block")
    _config: DLRMConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Creates the layers; arguments as of `ClickBody`, with a `DLRMConfig`."""
        super().__init__(*args, **kwargs)
        dot = self._config.interaction_op == "dot"
        self._interaction = DotInteraction(name="interaction") if dot else None
        self._top = ReluMLP(self._config.top_mlp_sizes[:-1], name="top_mlp")

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Represents every row.

        Args:
          inputs: a batch, see `formats.tabular_schema`.

        Returns:
          ``[B, top_mlp_sizes[-2]]``.
        """
        if self._interaction is None:
            return self._top(self.joined_vectors(inputs))
        ids = self.lookups(inputs)
        found = self.embeddings.sources(ids)
        # Of a collection's tables, all can be read where they are, or none.
        vectors = [x for x in found.values() if not isinstance(x, tf.Variable)]
        rows = [(x, ids[name]) for name, x in found.items() if isinstance(x, tf.Variable)]
        return self._top(self._interaction([self.bottom(inputs), *vectors], rows))


tables = tabular_tables


def build(schema: Schema, config: DLRMConfig, sharding: Sharding = LOCAL) -> ClickModel:
    """Builds DLRM for a dataset; see `build_tabular`."""
    return build_tabular(DLRMBody, schema, config, sharding)

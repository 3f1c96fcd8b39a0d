"""What MODELS holds: a model's options at once, the model itself when it is built."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.types import TableSpec

if TYPE_CHECKING:
    from merlin.schema import Schema

    from lookback.models.click_model import ClickModel
    from lookback.models.model_config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """A model by name.

    Attributes:
      module: module with functions `build(schema, config, sharding)` and `tables(schema, config)`.
        It imports TensorFlow, so it is imported when the model is built: `train.py --help` and a
        mistyped option answer at once.
      config_class: dataclass of the model's options.
    """

    module: str
    config_class: type[ModelConfig]

    def __call__(
        self, schema: Schema, config: ModelConfig, sharding: Sharding = LOCAL
    ) -> ClickModel:
        """Builds the model.

        Args:
          schema: of the dataset.
          config: an instance of `config_class`.
          sharding: where the tables' rows live.

        Raises:
          TypeError: if `config` is that of another model.
        """
        model: ClickModel = self._module(config).build(schema, config, sharding)
        return model

    def tables(self, schema: Schema, config: ModelConfig) -> list[TableSpec]:
        """The model's embedding tables, before it is built; arguments as of a call."""
        tables: list[TableSpec] = self._module(config).tables(schema, config)
        return tables

    def _module(self, config: ModelConfig) -> Any:
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{self.module} takes a {self.config_class.__name__}, received a "
                f"{type(config).__name__}."
            )
        return importlib.import_module(self.module)

"""What MODELS holds: a model's options at once, the model itself when it is built."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING

from models.config import HistoryModelConfig

if TYPE_CHECKING:
    from merlin.schema import Schema

    from models.base import HistoryModel


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """A model by name.

    Attributes:
      module: module with a function `build(schema, config)`. It imports TensorFlow, so it is
        imported when the model is built: `train.py --help` and a mistyped option answer at once.
      config_class: dataclass of the model's options.
    """

    module: str
    config_class: type[HistoryModelConfig]

    def __call__(self, schema: Schema, config: HistoryModelConfig) -> HistoryModel:
        """Builds the model.

        Args:
          schema: of the dataset.
          config: an instance of `config_class`.

        Raises:
          TypeError: if `config` is that of another model.
        """
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{self.module} takes a {self.config_class.__name__}, received a "
                f"{type(config).__name__}."
            )
        model: HistoryModel = importlib.import_module(self.module).build(schema, config)
        return model

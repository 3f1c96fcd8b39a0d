"""What the options of every model declare. Pure Python, so that command lines answer fast."""

from __future__ import annotations

from typing import ClassVar

from lookback.core.options import ChangesDefaults


class ModelConfig(ChangesDefaults):
    """Base of the frozen dataclasses of models' options.

    Attributes:
      scope: the group of a command's help under which the options are listed.
      layout: key of `dataloading.LAYOUTS`: the data that the model reads.
    """

    scope: ClassVar[str] = "model"
    layout: ClassVar[str]

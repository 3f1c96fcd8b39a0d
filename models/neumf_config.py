"""Options of NeuMF. Pure Python, so that command lines answer fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from lookback.core.errors import UserError
from lookback.core.limits import MOST_WIDTH
from lookback.core.options import check_options, option
from lookback.models.model_config import ModelConfig


@dataclasses.dataclass(frozen=True)
class NeuMFConfig(ModelConfig):
    """Options of NeuMF; names and defaults are those of NVIDIA's NCF.

    It reads users and items of a dataset of histories, one pair a row.
    """

    layout: ClassVar[str] = "interactions"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "nvidia": {
            "epochs": 30,
            "global_batch_size": 1 << 20,
            "optimizer": "full_adam",
            "lr": 0.0045,
            "beta1": 0.25,
            "beta2": 0.5,
            "eps": 1e-8,
        }
    }

    factors: int = option(
        64,
        help="width of the matrix factorisation's embeddings",
        at_least=1,
        needs={"branches": ("both", "mf")},
        limit=MOST_WIDTH,
    )
    layers: tuple[int, ...] = option(
        (256, 256, 128, 64),
        help="widths of the MLP: of its input, half of it the user's embedding and half the "
        "item's, then of its layers",
        at_least=1,
        nonempty=True,
        needs={"branches": ("both", "mlp")},
        limit=MOST_WIDTH,
    )
    dropout: float = option(
        0.5,
        help="share of each MLP layer's units that training drops",
        at_least=0,
        below=1,
        needs={"branches": ("both", "mlp")},
    )
    branches: Literal["both", "mf", "mlp"] = option(
        "both", help="NeuMF, or one branch of it: mf is the paper's GMF, mlp its MLP"
    )

    def __post_init__(self) -> None:
        """Validates.

        Raises:
          UserError: naming the option, what it may be and what came.
        """
        object.__setattr__(self, "layers", tuple(self.layers))  # JSON gives lists back
        check_options(self)
        if len(self.layers) < 2 or self.layers[0] % 2:
            raise UserError(
                "layers: expected an even width of the input and at least one of a layer, such "
                f"as 256,256,128,64, received {self.layers}."
            )

    @property
    def has_mf(self) -> bool:
        """Whether the matrix factorisation takes part."""
        return self.branches != "mlp"

    @property
    def has_mlp(self) -> bool:
        """Whether the MLP takes part."""
        return self.branches != "mf"

"""Options of all models over histories. Pure Python, so that command lines answer fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from lookback.core.errors import UserError
from lookback.core.limits import MOST_WIDTH
from lookback.core.options import check_options, option
from lookback.formats.description import MATERIALISED
from lookback.models.model_config import ModelConfig


def _widths(default: tuple[int, ...], help: str) -> Any:
    """A field for the widths of an MLP's layers: at least one layer, of at least one unit."""
    return option(default, help=help, at_least=1, limit=MOST_WIDTH, nonempty=True)


@dataclasses.dataclass(frozen=True)
class HistoryModelConfig(ModelConfig):
    """Options that every model over histories has; defaults are those of NVIDIA's SIM.

    Attributes:
      auxiliary_negatives: whether training needs a negative for each short slot.
    """

    layout: ClassVar[str] = "histories"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "nvidia": {"global_batch_size": 131_072, "lr": 0.01}
    }
    auxiliary_negatives: ClassVar[bool] = False

    embedding_dim: int = option(
        16, help="width of an embedding of users, items, categories", at_least=1, limit=MOST_WIDTH
    )
    max_seq_length: int = option(
        100, help="history slots; the newest interactions are kept", at_least=1, limit=MOST_WIDTH
    )
    long_seq_length: int = option(
        90,
        help="the first of these slots are the long history, the rest the short one",
        at_least=0,
        limit=MOST_WIDTH,
    )
    stage_two_mlp_dims: tuple[int, ...] = _widths(
        (200, 80), "hidden widths of the (last) classification MLP"
    )
    dropout_rate: float | None = option(
        None,
        help="dropout before the classification layers; none (or -1): no dropout",
        above=0,
        below=1,
        none=(-1,),
    )
    time_features: bool = option(
        False,
        help="embed the log-bucketed time gap between each event and the target",
        unserved={MATERIALISED: "have no timestamps"},
    )
    features: tuple[str, ...] | None = option(
        None,
        help="what the model reads of the dataset's features beside the ids; none: all of them",
        unserved={MATERIALISED: "are read with all their columns"},
        younger=True,
    )

    def __post_init__(self) -> None:
        """Validates.

        Raises:
          UserError: naming the option, what it may be and what came.
        """
        check_options(self)
        if self.long_seq_length >= self.max_seq_length:
            raise UserError(
                f"long_seq_length: expected less than max_seq_length ({self.max_seq_length}), "
                f"received {self.long_seq_length}."
            )

    @property
    def short_seq_length(self) -> int:
        """S, the slots of the short history."""
        return self.max_seq_length - self.long_seq_length


@dataclasses.dataclass(frozen=True)
class SIMConfig(HistoryModelConfig):
    """Options of SIM; defaults are those of NVIDIA's SIM."""

    auxiliary_negatives: ClassVar[bool] = True

    stage_one_mlp_dims: tuple[int, ...] = _widths(
        (200,), "hidden widths of the search unit's classification MLP"
    )
    aux_mlp_dims: tuple[int, ...] = _widths((100, 50), "hidden widths of the auxiliary net")
    k: int = option(
        50, help="events of the long history that the search keeps", at_least=1, limit=MOST_WIDTH
    )
    gsu: Literal["soft", "hard"] = option(
        "soft", help="search by embedding similarity, or by the candidate's category"
    )
    category_feature: str | None = option(
        None,
        help="item feature that hard search matches; default: the first but the id",
        needs={"gsu": ("hard",)},
    )

    def __post_init__(self) -> None:
        """Validates."""
        super().__post_init__()
        if self.long_seq_length < 1:
            raise UserError(
                "long_seq_length: expected 1 or more, as SIM searches the long history, received "
                f"{self.long_seq_length}."
            )
        if self.k > self.long_seq_length and self.k != SIMConfig.k:
            raise UserError(
                f"k: expected at most the {self.long_seq_length} events of --long_seq_length, of "
                f"which the search keeps some, received {self.k}."
            )


@dataclasses.dataclass(frozen=True)
class DINConfig(HistoryModelConfig):
    """Options of DIN; defaults are those of NVIDIA's SIM."""

    interaction: Literal["dot", "activation_unit"] = option(
        "dot", help="how an event is scored against the candidate"
    )


@dataclasses.dataclass(frozen=True)
class DIENConfig(HistoryModelConfig):
    """Options of DIEN; defaults are those of NVIDIA's SIM. It reads the short history only."""

    auxiliary_negatives: ClassVar[bool] = True

    aux_mlp_dims: tuple[int, ...] = _widths((100, 50), "hidden widths of the auxiliary net")

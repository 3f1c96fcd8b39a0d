"""What all models over histories can be told. Pure Python, so that command lines answer fast."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from lookback.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class HistoryModelConfig:
    """Options that every model over histories has; defaults are seed 000's.

    Attributes:
      layout: what the model reads.
      auxiliary_negatives: whether training needs a negative for each short slot.
    """

    scope: ClassVar[str] = "model"
    layout: ClassVar[str] = "histories"
    auxiliary_negatives: ClassVar[bool] = False

    embedding_dim: int = dataclasses.field(
        default=16, metadata={"help": "width of an embedding of users, items, categories"}
    )
    max_seq_length: int = dataclasses.field(
        default=100, metadata={"help": "history slots; the newest interactions are kept"}
    )
    long_seq_length: int = dataclasses.field(
        default=90,
        metadata={"help": "the first of these slots are the long history, the rest the short one"},
    )
    stage_two_mlp_dims: tuple[int, ...] = dataclasses.field(
        default=(200, 80), metadata={"help": "hidden widths of the (last) classification MLP"}
    )
    dropout_rate: float | None = dataclasses.field(
        default=None,
        metadata={
            "help": "dropout before the classification layers; none (or -1): no dropout",
            "none": (-1,),
        },
    )
    time_features: bool = dataclasses.field(
        default=False,
        metadata={"help": "embed the log-bucketed time gap between each event and the target"},
    )

    def __post_init__(self) -> None:
        """Validates.

        Raises:
          UserError: naming the option, what it may be and what came.
        """
        if not 0 <= self.long_seq_length < self.max_seq_length:
            raise UserError(
                "long_seq_length must be at least 0 and less than max_seq_length, received "
                f"{self.long_seq_length} and {self.max_seq_length}."
            )
        if self.embedding_dim < 1:
            raise UserError(f"embedding_dim must be at least 1, received {self.embedding_dim}.")
        if self.dropout_rate is not None and not 0 < self.dropout_rate < 1:
            raise UserError(
                f"dropout_rate must lie between 0 and 1, received {self.dropout_rate}. Leave it "
                "out for no dropout."
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_mlp_dims") and (not value or min(value) < 1):
                raise UserError(
                    f"{field.name} must be widths of at least 1 such as 200,80, received {value}."
                )

    @property
    def short_seq_length(self) -> int:
        """S, the slots of the short history."""
        return self.max_seq_length - self.long_seq_length


@dataclasses.dataclass(frozen=True)
class SIMConfig(HistoryModelConfig):
    """Options of SIM; defaults are seed 000's."""

    auxiliary_negatives: ClassVar[bool] = True

    stage_one_mlp_dims: tuple[int, ...] = dataclasses.field(
        default=(200,), metadata={"help": "hidden widths of the search unit's classification MLP"}
    )
    aux_mlp_dims: tuple[int, ...] = dataclasses.field(
        default=(100, 50), metadata={"help": "hidden widths of the auxiliary net"}
    )
    k: int = dataclasses.field(
        default=50, metadata={"help": "events of the long history that the search keeps"}
    )
    gsu: Literal["soft", "hard"] = dataclasses.field(
        default="soft",
        metadata={"help": "search by embedding similarity, or by the candidate's category"},
    )
    category_feature: str | None = dataclasses.field(
        default=None,
        metadata={"help": "item feature that hard search matches; default: the first but the id"},
    )

    def __post_init__(self) -> None:
        """Validates."""
        super().__post_init__()
        if self.k < 1:
            raise UserError(f"k must be at least 1, received {self.k}.")
        if self.gsu not in ("soft", "hard"):
            raise UserError(f"gsu must be soft or hard, received {self.gsu!r}.")
        if self.long_seq_length < 1:
            raise UserError("SIM searches the long history: long_seq_length must be at least 1.")


@dataclasses.dataclass(frozen=True)
class DINConfig(HistoryModelConfig):
    """Options of DIN; defaults are seed 000's."""

    interaction: Literal["dot", "activation_unit"] = dataclasses.field(
        default="dot", metadata={"help": "how an event is scored against the candidate"}
    )

    def __post_init__(self) -> None:
        """Validates."""
        super().__post_init__()
        if self.interaction not in ("dot", "activation_unit"):
            raise UserError(
                f"interaction must be dot or activation_unit, received {self.interaction!r}."
            )


@dataclasses.dataclass(frozen=True)
class DIENConfig(HistoryModelConfig):
    """Options of DIEN; defaults are seed 000's. It reads the short history only."""

    auxiliary_negatives: ClassVar[bool] = True

    aux_mlp_dims: tuple[int, ...] = dataclasses.field(
        default=(100, 50), metadata={"help": "hidden widths of the auxiliary net"}
    )

"""What all models over tabular rows can be told. Pure Python, so that command lines answer fast.

Of the options in seeds 002 and 004, `interaction_op cuda_dot` has no counterpart here: it is `dot`,
as there is no kernel to choose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from lookback.core.errors import UserError

SCHEDULE: Mapping[str, Any] = {
    "global_batch_size": 65_536,
    "epochs": 1,
    "decay_start_step": 48_000,
    "decay_steps": 24_000,
}
"""What the seeds' DLRM and DCNv2 have in common (their code's defaults, for Criteo's 4 billion
rows)."""

JOINT: Mapping[str, bool] = {
    "joint_fused": True,
    "joint": True,
    "joint_sparse": True,
    "separate": False,
    "multi_table": False,
}
"""Spellings of `embedding_type` -> whether tables share variables. Seed 004's joint types differ in
their kernels, and in whether the gradient is sparse, which here it always is."""


@dataclasses.dataclass(frozen=True)
class TabularModelConfig:
    """Options that every model over rows of numbers and ids has; defaults are the seeds'.

    Attributes:
      layout: of the datasets that these models read.
      run_defaults: defaults of the run's options that this model changes.
    """

    scope: ClassVar[str] = "model"
    layout: ClassVar[str] = "tabular"
    run_defaults: ClassVar[Mapping[str, Any]] = SCHEDULE

    embedding_dim: int = dataclasses.field(
        default=128, metadata={"help": "width of the embedding of a categorical value"}
    )
    embedding_type: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "joint_fused (or joint, joint_sparse): the tables of an optimizer share one "
            "variable, read and updated at once; separate (or multi_table): each has its own; "
            "none: separate in one process, joint_fused in several. Results and checkpoints are "
            "the same"
        },
    )
    bottom_mlp_sizes: tuple[int, ...] = dataclasses.field(
        default=(512, 256, 128),
        metadata={"help": "widths of the layers that numerical features pass"},
    )
    top_mlp_sizes: tuple[int, ...] = dataclasses.field(
        default=(1024, 1024, 512, 256, 1),
        metadata={"help": "widths of the layers behind the interaction; the last, 1, is the logit"},
    )
    hash_indices: bool = dataclasses.field(
        default=False,
        metadata={"help": "look up id modulo the table's rows, so that every id has a row"},
    )
    max_table_size: int | None = dataclasses.field(
        default=None,
        metadata={"help": "rows of a table at most; needs --hash_indices. none: as in the dataset"},
    )

    def __post_init__(self) -> None:
        """Validates.

        Raises:
          UserError: naming the option, what it may be and what came.
        """
        require_at_least_1("embedding_dim", self.embedding_dim)
        if self.embedding_type == "custom_cuda":
            raise UserError(
                "embedding_type custom_cuda chose between two CUDA kernels of NVIDIA's, and there "
                "are none here. Use joint_fused, which stores tables as they did."
            )
        if self.embedding_type is not None and self.embedding_type not in JOINT:
            raise UserError(
                f"embedding_type must be one of {', '.join(JOINT)}, or none, received "
                f"{self.embedding_type!r}."
            )
        require_widths("bottom_mlp_sizes", self.bottom_mlp_sizes)
        require_widths("top_mlp_sizes", self.top_mlp_sizes)
        if len(self.top_mlp_sizes) < 2 or self.top_mlp_sizes[-1] != 1:
            raise UserError(
                "top_mlp_sizes must be at least one hidden width and then 1, the logit, such as "
                f"512,256,1; received {self.top_mlp_sizes}."
            )
        if self.max_table_size is not None:
            require_at_least_1("max_table_size", self.max_table_size)
            if not self.hash_indices:
                raise UserError(
                    f"max_table_size {self.max_table_size} leaves ids without a row. Add "
                    "--hash_indices, or leave --max_table_size out."
                )

    @property
    def joint_tables(self) -> bool | None:
        """Whether tables share variables; None leaves it to the embedding backend."""
        return None if self.embedding_type is None else JOINT[self.embedding_type]


@dataclasses.dataclass(frozen=True)
class DLRMConfig(TabularModelConfig):
    """Options of DLRM; defaults are those of seeds 002 and 004.

    The learning rate belongs to SGD on batches of 65,536: for smaller batches lower it.
    """

    run_defaults: ClassVar[Mapping[str, Any]] = {
        **SCHEDULE,
        "optimizer": "sgd",
        "lr": 24.0,
        "warmup_steps": 8_000,
    }

    interaction_op: Literal["dot", "cat"] = dataclasses.field(
        default="dot",
        metadata={
            "help": "how features meet: products of all pairs of vectors, or one after other"
        },
    )

    def __post_init__(self) -> None:
        """Validates."""
        super().__post_init__()
        if self.interaction_op not in ("dot", "cat"):
            raise UserError(f"interaction_op must be dot or cat, received {self.interaction_op!r}.")
        if self.interaction_op == "dot" and self.bottom_mlp_sizes[-1] != self.embedding_dim:
            raise UserError(
                "The dot interaction multiplies the bottom MLP's output with embeddings: the last "
                f"of bottom_mlp_sizes {self.bottom_mlp_sizes} must be embedding_dim "
                f"{self.embedding_dim}. Make them equal, or use --interaction_op cat."
            )


@dataclasses.dataclass(frozen=True)
class DCNv2Config(TabularModelConfig):
    """Options of DCNv2; defaults are those of seed 002's code."""

    run_defaults: ClassVar[Mapping[str, Any]] = {
        **SCHEDULE,
        "optimizer": "adam",
        "lr": 1e-4,
        "warmup_steps": 100,
    }

    num_cross_layers: int = dataclasses.field(
        default=3, metadata={"help": "cross layers, one after another"}
    )
    cross_layer_projection_dim: int | None = dataclasses.field(
        default=512, metadata={"help": "rank of a cross layer's matrix; none: full"}
    )
    structure: Literal["stacked", "parallel"] = dataclasses.field(
        default="stacked",
        metadata={"help": "the top MLP behind the cross layers, or beside them"},
    )

    def __post_init__(self) -> None:
        """Validates."""
        super().__post_init__()
        require_at_least_1("num_cross_layers", self.num_cross_layers)
        if self.cross_layer_projection_dim is not None:
            require_at_least_1("cross_layer_projection_dim", self.cross_layer_projection_dim)
        if self.structure not in ("stacked", "parallel"):
            raise UserError(f"structure must be stacked or parallel, received {self.structure!r}.")


def require_at_least_1(option: str, value: int) -> None:
    """Refuses a number below 1 with a `UserError`."""
    if value < 1:
        raise UserError(f"{option} must be at least 1, received {value}.")


def require_widths(option: str, sizes: Sequence[int]) -> None:
    """Refuses an empty list of widths, and widths below 1, with a `UserError`."""
    if not sizes or min(sizes) < 1:
        raise UserError(f"{option} must be widths of at least 1 such as 512,256, received {sizes}.")

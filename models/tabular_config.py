"""Options of all models over tabular rows. Pure Python, so that command lines answer fast.

Of the options of NVIDIA's DLRM, `interaction_op cuda_dot` has no counterpart here: it is `dot`,
as there is no kernel to choose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from lookback.core.errors import UserError, shown
from lookback.core.limits import MOST_LAYERS, MOST_ROWS, MOST_WIDTH
from lookback.core.options import check_options, option
from lookback.models.model_config import ModelConfig

_NVIDIA: Mapping[str, Any] = {
    "global_batch_size": 65_536,
    "epochs": 1,
    "decay_start_step": 48_000,
    "decay_steps": 24_000,
}
"""What NVIDIA's DLRM and DCNv2 have in common (their code's defaults, for Criteo's 4 billion
rows)."""

JOINT: Mapping[str, bool] = {
    "joint_fused": True,
    "joint": True,
    "joint_sparse": True,
    "separate": False,
    "multi_table": False,
}
"""Spellings of `embedding_type` -> whether tables share variables. NVIDIA's joint types differ in
their kernels, and in whether the gradient is sparse, which here it always is."""


DYNAMIC = "dynamic"
"""The `embedding_type` of tables that grow."""


@dataclasses.dataclass(frozen=True)
class TabularModelConfig(ModelConfig):
    """Options that every model over rows of numbers and ids has; defaults are NVIDIA's."""

    layout: ClassVar[str] = "tabular"
    run_defaults: ClassVar[Mapping[str, Any]] = {"epochs": 1}
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"nvidia": _NVIDIA}

    embedding_dim: int = option(
        128, help="width of the embedding of a categorical value", at_least=1, limit=MOST_WIDTH
    )
    embedding_type: str | None = option(
        None,
        help="joint_fused (or joint, joint_sparse): the tables of an optimizer share one "
        "variable, read and updated at once; separate (or multi_table): each has its own; "
        "none: separate in one process, joint_fused in several. Results and checkpoints are "
        "the same. dynamic, with --backend sok: hash tables of the rows that were used",
        storage=True,
    )
    embedding_capacity: int | None = option(
        None,
        help="rows that a process holds at most of a dynamic table; beyond, those that were not "
        "used for longest begin anew. none: all",
        at_least=1,
        limit=MOST_ROWS,
        needs={"embedding_type": (DYNAMIC,)},
        storage=True,
    )
    bottom_mlp_sizes: tuple[int, ...] = option(
        (512, 256, 128),
        help="widths of the layers that numerical features pass",
        at_least=1,
        nonempty=True,
        limit=MOST_WIDTH,
    )
    top_mlp_sizes: tuple[int, ...] = option(
        (1024, 1024, 512, 256, 1),
        help="widths of the layers behind the interaction; the last, 1, is the logit",
        at_least=1,
        nonempty=True,
        limit=MOST_WIDTH,
    )
    hash_indices: bool = option(
        False, help="look up id modulo the table's rows, so that every id has a row"
    )
    max_table_size: int | None = option(
        None,
        help="rows of a table at most; needs --hash_indices. none: as in the dataset",
        at_least=1,
        limit=MOST_ROWS,
    )

    def __post_init__(self) -> None:
        """Validates.

        Raises:
          UserError: naming the option, what it may be and what came.
        """
        check_options(self)
        if self.embedding_type == "custom_cuda":
            raise UserError(
                "embedding_type custom_cuda chose between two CUDA kernels of NVIDIA's, and there "
                "are none here. Use joint_fused, which stores tables as they did."
            )
        if self.embedding_type not in (None, DYNAMIC, *JOINT):
            raise UserError(
                f"embedding_type must be one of {', '.join(JOINT)}, {DYNAMIC}, or none, received "
                f"{shown(self.embedding_type)}."
            )
        if len(self.top_mlp_sizes) < 2 or self.top_mlp_sizes[-1] != 1:
            raise UserError(
                "top_mlp_sizes must be at least one hidden width and then 1, the logit, such as "
                f"512,256,1; received {self.top_mlp_sizes}."
            )
        if self.max_table_size is not None and not self.hash_indices:
            raise UserError(
                f"max_table_size {self.max_table_size} leaves ids without a row. Add "
                "--hash_indices, or leave --max_table_size out."
            )

    @property
    def joint_tables(self) -> bool | None:
        """Whether tables share variables; None leaves it to the embedding backend."""
        if self.embedding_type is None or self.embedding_type == DYNAMIC:
            return None
        return JOINT[self.embedding_type]


@dataclasses.dataclass(frozen=True)
class DLRMConfig(TabularModelConfig):
    """Options of DLRM; defaults are those of NVIDIA's."""

    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "nvidia": {**_NVIDIA, "optimizer": "sgd", "lr": 24.0, "warmup_steps": 8_000}
    }

    interaction_op: Literal["dot", "cat"] = option(
        "dot", help="how features meet: products of all pairs of vectors, or one after other"
    )

    def __post_init__(self) -> None:
        """Validates."""
        super().__post_init__()
        if self.interaction_op == "dot" and self.bottom_mlp_sizes[-1] != self.embedding_dim:
            raise UserError(
                "The dot interaction multiplies the bottom MLP's output with embeddings: the last "
                f"of bottom_mlp_sizes {self.bottom_mlp_sizes} must be embedding_dim "
                f"{self.embedding_dim}. Make them equal, or use --interaction_op cat."
            )


@dataclasses.dataclass(frozen=True)
class DCNv2Config(TabularModelConfig):
    """Options of DCNv2; defaults are those of NVIDIA's code for TensorFlow 2."""

    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "nvidia": {**_NVIDIA, "optimizer": "adam", "lr": 1e-4, "warmup_steps": 100}
    }

    num_cross_layers: int = option(
        3, help="cross layers, one after another", at_least=1, limit=MOST_LAYERS
    )
    cross_layer_projection_dim: int | None = option(
        512, help="rank of a cross layer's matrix; none: full", at_least=1, limit=MOST_WIDTH
    )
    structure: Literal["stacked", "parallel"] = option(
        "stacked", help="the top MLP behind the cross layers, or beside them"
    )

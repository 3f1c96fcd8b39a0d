"""How a trained model becomes a bundle: where its tables go, and what rounding them costs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lookback.checkpoints.store import Checkpoint
from lookback.core.world import World
from lookback.embeddings.config import LOCAL
from lookback.models import MODELS
from lookback.training.config import RunConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lookback.dataloading.sources import BatchSource
    from lookback.models.click_model import ClickModel
    from lookback.training.start import Origin

WHOLE = "fp32"
"""The type that rounds nothing."""

MOST_IN_THE_GRAPH = 1 << 28
"""Bytes of tables beyond which they go into files: a SavedModel of them takes a second to open, and
each process that serves it has a copy of its own."""


class Exporter(Protocol):
    """Writes trained models for serving, which lies above training: the doors hand it down."""

    def check_export_target(
        self, export_dir: Path, dataset_dir: Path, inputs: Sequence[Path] = ()
    ) -> None:
        """Refuses a directory that a bundle must not replace, before any work."""

    def bundle_digest(self, export_dir: Path) -> str:
        """The digest by which a bundle can be trusted."""

    def is_bundle(self, directory: Path) -> bool:
        """Whether a directory holds a bundle, of whatever version or state."""

    def load_origin(self, directory: Path, trusted_digest: str | None) -> Origin:
        """The model of a bundle, verified, to start from."""

    def export_bundle(
        self,
        model: ClickModel,
        dataset_dir: Path,
        export_dir: Path,
        *,
        table_dtype: str | None = None,
        tables: Mapping[str, Callable[[], Iterable[NDArray[Any]]]] | None = None,
    ) -> Path:
        """Writes a bundle of `model` and what its dataset says about raw values."""

    def take_tables(self, model: ClickModel, export_dir: Path) -> None:
        """Gives a model, or this process's part of it, the rows of a bundle's files."""


def _table_dtype(run: RunConfig, model: ClickModel) -> str | None:
    """The type in which the tables of an exported model go into files; None: into the graph."""
    if run.table_files == "none":
        return None
    size = 4 * sum(table.parameters for table in model.body.embeddings.tables)
    if run.table_files == "all" or run.table_dtype != WHOLE or size > MOST_IN_THE_GRAPH:
        return run.table_dtype
    return None


def export(
    model: ClickModel,
    source: BatchSource,
    run: RunConfig,
    options: Any,
    world: World,
    exporter: Exporter,
) -> str | None:
    """Exports a model, which may be sharded.

    Tables that go into files pass through one of each rank's: no rank needs memory for more than
    its part and a block. To go into the graph, they are put together on rank 0.

    Args:
      model: trained; each rank has its part.
      source: of batches for it.
      run: says where to.
      options: of the model.
      world: the ranks, each of which calls this function.
      exporter: of `serving`.

    Returns:
      The type of the tables in files; None: there are none.
    """
    if run.export_dir is None:
        return None
    table_dtype = _table_dtype(run, model)
    write = functools.partial(
        exporter.export_bundle, dataset_dir=run.dataset_dir, export_dir=run.export_dir
    )
    if model.body.embeddings.sharding.backend == LOCAL.backend:
        write(model, table_dtype=table_dtype)
        return table_dtype
    from lookback.training.parallel.gathering import gathered, with_whole_model

    beside = run.export_dir.absolute().parent
    if table_dtype is None:
        make = functools.partial(MODELS[run.model_type], source.schema, options)
        with_whole_model(model, make, source, beside, world, write)
        return None

    def stream(checkpoint: Checkpoint) -> None:
        names = [table.name for table in model.body.embeddings.tables]
        rows = {name: functools.partial(checkpoint.blocks, f"table/{name}") for name in names}
        write(model, table_dtype=table_dtype, tables=rows)

    gathered(model, beside, world, stream)
    return table_dtype


def cost_in_auc(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """How AUCs have changed, for people.

    Args:
      before: figures of an evaluation with the model as it was trained.
      after: the same with the tables as they were exported.
    """
    both = [
        f"{name} {before[name]:.6f} -> {value:.6f} ({value - before[name]:+.6f})"
        for name, value in after.items()
        if name.endswith("_auc") and value is not None and before.get(name) is not None
    ]
    return ", ".join(both) or "what that costs is unknown, as no AUC was to be had"

"""When a run saves itself, what it goes on from, and which of its checkpoints is the best."""

from __future__ import annotations

import dataclasses

from lookback.checkpoints.store import BEST, Checkpoint, CheckpointStore
from lookback.core.world import SOLO, World
from lookback.training.best import BestEvaluation
from lookback.training.config import RunConfig
from lookback.training.contents import RunContents
from lookback.training.milestones import Position
from lookback.training.output.logging import RunLogger


class RunCheckpoints:
    """The checkpoints of one run: its contents at its positions, and the best of them.

    Without `--save_checkpoint_path` nothing is saved. All methods are collectives.
    """

    def __init__(
        self,
        config: RunConfig,
        contents: RunContents,
        best: BestEvaluation | None,
        world: World = SOLO,
    ) -> None:
        """Touches nothing on disk.

        Args:
          config: of the run.
          contents: what is saved and restored.
          best: which evaluation of the run is the best, if any can be; saved and restored too.
          world: the processes that train together.
        """
        path = config.save_checkpoint_path
        self._contents, self._best = contents, best
        self._store: CheckpointStore | None = None
        if path is not None:
            keeps_best = best is not None
            self._store = CheckpointStore(
                path, keep=config.keep_checkpoints, best=keeps_best, world=world
            )
        self._resumed_from: Checkpoint | None = None
        self._saved: Position | None = None

    @property
    def saves(self) -> bool:
        """Whether the run is saved at all."""
        return self._store is not None

    def restore(self, checkpoint: Checkpoint) -> Position:
        """Restores everything to continue a run, or the model alone to use it.

        Returns:
          Where the run stood.

        Raises:
          UserError: if the checkpoint is of another model, dataset or configuration.
        """
        self._contents.restore(checkpoint)
        if self._best is not None:
            self._best.restore(checkpoint.meta.get("evaluations", {}))
        self._resumed_from = checkpoint
        self._saved = Position(**checkpoint.meta["position"])
        return self._saved

    def begin(self, log: RunLogger) -> None:
        """Prepares to save; warns where the disk has no room for all that is to be kept.

        Raises:
          UserError: if the directory holds another run, or has no room for one checkpoint.
        """
        if self._store is None:
            return
        self._store.begin(self._resumed_from)
        warning = self._store.check_room(self._contents.pieces)
        if warning is not None:
            log.message(f"warning: {warning}")

    def save(self, position: Position) -> None:
        """Saves the run as it is, at its position."""
        if self._store is None:
            return
        best = {} if self._best is None else {"evaluations": self._best.meta}
        meta = {**self._contents.meta, "position": dataclasses.asdict(position), **best}
        self._store.save(position.total_steps, self._contents.pieces, meta)
        self._saved = position

    def save_and_leave(self, position: Position, log: RunLogger) -> None:
        """Saves what is not saved yet, of a run that was told to end; says how to go on."""
        place = f"told to end after {position}"
        if self._store is None:
            log.message(f"{place}; nothing is saved without --save_checkpoint_path")
            return
        log.message(
            f"{place}; its checkpoint goes to {self._store.directory}, to go on from with "
            "--load_checkpoint_path (Ctrl-C again: without it)"
        )
        if self._saved != position:
            self.save(position)

    def keep_as_best(self, position: Position) -> None:
        """Keeps the checkpoint of this position until a better one comes."""
        if self._store is None:
            return
        if not self._store.holds(position.total_steps):
            self.save(position)
        self._store.keep_best(position.total_steps)

    def take_best(self, position: Position, log: RunLogger) -> bool:
        """Restores the best model; returns whether it is another than that of this position."""
        if self._store is None or self._best is None:
            return False
        step = self._best.step
        if step is None or self._store.best_step != step:
            reason = f"{self._store.directory / BEST} does not hold it: a run was saved elsewhere"
            reason = "no evaluation had the figure" if step is None else reason
            log.message(f"warning: {reason}; the last checkpoint counts")
            return False
        if step == position.total_steps:
            return False
        self._contents.take_model(self._store.load(self._store.best))
        return True

"""A run's checkpoints: each is whole under its name, or not there.

The ranks of a run write a checkpoint together, each a file with the pieces that it holds (format:
`checkpoints.format`), to a temporary name in a directory that all of them see; rank 0 checks
that the pieces make up every tensor, writes the manifest, flushes to disk and renames. If one rank
fails, all do, and nothing is left. A process killed at any moment leaves the earlier checkpoints as
they were; what it leaves besides has a name that starts with a dot, which readers ignore and the
next run's `begin` removes. One run at a time may save to a store. No TensorFlow here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lookback.checkpoints.data_file import (
    RowBlocks,
    Tensor,
    bytes_of,
    data_file,
    full_disk_means,
    layout_of,
    require_space,
    write_pieces,
)
from lookback.checkpoints.format import Checkpoint
from lookback.checkpoints.manifest import (
    CHECKPOINT,
    MANIFEST,
    STEP,
    TensorSpec,
    checkpoint_name,
    checkpoints_in,
    find_checkpoint,
    merge_entries,
    plain,
    step_of,
    write_manifest,
)
from lookback.core.errors import UserError
from lookback.core.files import atomic_directory, clear_up, remove_directory, require_writable
from lookback.core.sizes import format_size
from lookback.core.world import SOLO, World, agree

__all__ = [
    "MANIFEST",
    "Checkpoint",
    "CheckpointStore",
    "RowBlocks",
    "Tensor",
    "TensorSpec",
    "find_checkpoint",
    "open_checkpoint",
]


BEST = "best"
"""Directory, in a store, of the best checkpoint of a run."""


class CheckpointStore:
    """A directory of checkpoints, of which the last few are kept.

    `begin`, `save` and `load` are collectives: every rank of the world calls them alike, and if
    they fail on one rank they fail on all.

    Example:
      store = CheckpointStore(directory, keep=3)
      store.begin(resumed_from=None)
      store.save(100, {"table/item_id": table, "step": np.array(100)}, {"epoch": 1})
      checkpoint = store.load()
      checkpoint["table/item_id"]
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        best: bool = False,
        world: World = SOLO,
    ) -> None:
        """Names a store; touches nothing on disk.

        Args:
          directory: created by the first save. All ranks must see the same one.
          keep: how many of the latest steps to keep.
          best: whether `keep_best` will keep one more.
          world: the processes that save together.
        """
        if keep < 1:
            raise ValueError(f"keep: expected 1 or more, received {keep}")
        self.directory = Path(directory)
        self.keep = keep
        self._keeps_best = best
        self._world = world

    def begin(self, resumed_from: Checkpoint | None) -> None:
        """Prepares for the saves of a run: clears leftovers, refuses to mix two runs.

        Args:
          resumed_from: the checkpoint the run continues from, wherever it lies; None for a run
            that starts at step 0.

        Raises:
          UserError: if the store holds checkpoints that are not earlier steps of this run, or some
            rank does not see the directory.
        """
        with contextlib.ExitStack() as stack:

            def prepare() -> str | None:
                if self._world.rank != 0:
                    return None
                if resumed_from is None:
                    self.refuse_another_run()
                else:
                    self.refuse_another_run(resumed_from.path, resumed_from.step)
                require_writable(self.directory, "save_checkpoint_path")
                for directory in (self.directory, self.directory / BEST):
                    clear_up(directory, STEP)
                for path in self.directory.glob(".step-probe-*"):
                    with contextlib.suppress(OSError):  # not empty: no probe of a killed run
                        path.rmdir()
                # Something that only those who share the directory can see.
                probe = tempfile.TemporaryDirectory(prefix=".step-probe-", dir=self.directory)
                return Path(stack.enter_context(probe)).name

            probe = agree(self._world, prepare)[0]
            agree(self._world, lambda: self._require_visible(probe))

    def check_room(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Compares what checkpoints will take with what is free; a collective.

        Args:
          tensors: as those of `save`.

        Returns:
          A warning, if one checkpoint fits and not all that are kept.

        Raises:
          UserError: if not even one fits.
        """
        layouts = agree(self._world, lambda: layout_of(tensors))

        def check() -> str | None:
            if self._world.rank != 0:
                return None
            size, free = sum(map(bytes_of, layouts)), shutil.disk_usage(self.directory).free
            # Before the oldest goes, the newest is whole; some may be there already.
            there = len(self.checkpoints()) + len(checkpoints_in(self.directory / BEST))
            needed = max(1, self.keep + self._keeps_best + 1 - there)
            if free >= size * needed:
                return None
            room = (
                f"{self.directory} has {format_size(free)} free, and a checkpoint of this model "
                f"takes {format_size(size)}"
            )
            if free < size:
                raise UserError(
                    f"save_checkpoint_path: {room}. Free some space, or choose another directory."
                )
            return (
                f"{room}; keeping {self.keep}{' and the best' * self._keeps_best}, and one more "
                f"while it is written, takes "
                f"{format_size(size * needed)}. Free some space, or lower --keep_checkpoints."
            )

        warning: str | None = agree(self._world, check)[0]
        return warning

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Saves a checkpoint, then deletes those beyond the last `keep` steps.

        Saving a step again replaces it, once the new one is whole.

        Args:
          step: the number of training steps done.
          tensors: name -> what this rank holds of it, maybe nothing. What all ranks hold alike is
            passed by rank 0 only. Arrays of bool, integers or floats.
          meta: facts about the run that JSON can hold; those of rank 0 are saved.

        Returns:
          The checkpoint's directory.

        Raises:
          UserError: if the disk is full, or not shared; the earlier checkpoints stay as they were.
          ValueError: if `step` is earlier than the latest of the store, blocks do not deliver the
            rows they name, the pieces of all ranks do not hold each row once, or a type cannot be
            stored.
        """
        world = self._world
        with contextlib.ExitStack() as stack:
            layouts = agree(world, lambda: layout_of(tensors))

            def prepare() -> list[str] | None:
                if world.rank != 0:
                    return None
                json.dumps(plain(dict(meta)), allow_nan=False)  # fails now, not after the tables
                merge_entries(layouts)
                with self._room_for(step):
                    require_space(self.directory, sum(map(bytes_of, layouts)))
                    path = self.directory / self._new_name(step)
                    new = stack.enter_context(atomic_directory(path, CHECKPOINT))
                    return [path.name, str(new.relative_to(self.directory))]

            name, temporary = agree(world, prepare)[0]

            def write() -> list[Any]:
                self._require_visible(temporary)
                with self._room_for(step):
                    path = self.directory / temporary / data_file(world.rank)
                    return list(write_pieces(path, tensors))

            written = agree(world, write)

            def publish() -> None:
                if world.rank == 0:
                    with self._room_for(step):
                        self._complete(temporary, step, meta, written)
                        stack.close()
                    self._delete_old()

            agree(world, publish)
        return self.directory / name

    def holds(self, step: int) -> bool:
        """Whether there is a checkpoint of a step, as rank 0 sees it; a collective."""
        steps = agree(self._world, lambda: [step_of(path)[0] for path in self.checkpoints()])
        return step in steps[0]

    def keep_best(self, step: int) -> Path:
        """Keeps the checkpoint of a step in `BEST`, whatever becomes of it here; a collective.

        What was there before goes once it is whole. Where the file system has hard links it takes
        no room before the checkpoint is deleted here.

        Raises:
          UserError: if the disk is full.
        """

        def keep() -> str | None:
            if self._world.rank != 0:
                return None
            (source, *_) = [p for p in reversed(self.checkpoints()) if step_of(p)[0] == step]
            target = self.directory / BEST / source.name
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                with (
                    self._room_for(step),
                    atomic_directory(target, CHECKPOINT, inputs=[source]) as new,
                ):
                    for file in source.iterdir():
                        _link_or_copy(file, new / file.name)
            for path in checkpoints_in(target.parent):
                if path != target:
                    remove_directory(path, CHECKPOINT)
            return source.name

        return self.directory / BEST / agree(self._world, keep)[0]

    @property
    def best(self) -> Path | None:
        """The checkpoint that `keep_best` kept, or None."""
        kept = checkpoints_in(self.directory / BEST)
        return kept[-1] if kept else None

    @property
    def best_step(self) -> int | None:
        """Its step; the same on every rank, as rank 0 sees it; a collective."""
        return agree(self._world, lambda: None if self.best is None else step_of(self.best)[0])[0]

    def checkpoints(self) -> list[Path]:
        """The checkpoints that are there, earliest first."""
        return checkpoints_in(self.directory)

    def latest(self) -> Path | None:
        """The checkpoint of the latest step, or None."""
        existing = self.checkpoints()
        return existing[-1] if existing else None

    def load(self, path: Path | None = None, *, verify: bool = True) -> Checkpoint:
        """Opens a checkpoint; the latest if `path` is None.

        Raises:
          UserError: if there is none, or it cannot be trusted.
        """
        return open_checkpoint(path or self.directory, world=self._world, verify=verify)

    def refuse_another_run(self, resumed_from: Path | None = None, step: int = 0) -> None:
        """Refuses to mix two runs.

        Args:
          resumed_from: the checkpoint that a run continues from; None: it starts at step 0.
          step: of that checkpoint.

        Raises:
          UserError: if the store holds checkpoints that are not earlier steps of the run.
        """
        existing = self.checkpoints()
        best = checkpoints_in(self.directory / BEST)
        if not existing and not best:
            return
        existing = existing or best
        if resumed_from is None:
            raise UserError(
                f"{self.directory} already holds the checkpoints of a run (the latest is "
                f"{existing[-1].name}). To continue it, give --load_checkpoint_path "
                f"{self.directory}; for a new run choose another --save_checkpoint_path, or remove "
                f"the directory."
            )
        if resumed_from.resolve().parent != self.directory.resolve():
            raise UserError(
                f"{self.directory} holds the checkpoints of another run than "
                f"{resumed_from}, from which this run continues; saving there would "
                "delete them. Choose another --save_checkpoint_path."
            )
        if step_of(existing[-1])[0] > step:
            raise UserError(
                f"{self.directory} holds {existing[-1].name}, which is later than step "
                f"{step} of {resumed_from}, from which this run continues. "
                f"Choose another --save_checkpoint_path, or remove the later checkpoints."
            )

    def _new_name(self, step: int) -> str:
        saved = [step_of(path) for path in self.checkpoints()]
        if saved and saved[-1][0] > step:
            latest = self.checkpoints()[-1].name
            raise ValueError(f"save at step {step}: the store already holds {latest}; call begin()")
        revisions = [revision for other, revision in saved if other == step]
        return checkpoint_name(step, max(revisions) + 1 if revisions else 0)

    def _require_visible(self, name: str) -> None:
        """Refuses a directory of rank 0 that this rank does not see."""
        if not (self.directory / name).is_dir():
            raise UserError(
                f"{self.directory.absolute()} is not the directory that rank 0 sees under that "
                "name, and checkpoints are written by all ranks together. Choose a "
                "--save_checkpoint_path on a file system that all hosts share."
            )

    def _complete(
        self, temporary: str, step: int, meta: Mapping[str, Any], written: Sequence[Any]
    ) -> None:
        """Makes the ranks' files a checkpoint."""
        directory = self.directory / temporary
        files = {data_file(rank): size for rank, (_, size) in enumerate(written)}
        for name, size in files.items():
            path = directory / name
            if not path.is_file() or path.stat().st_size != size:
                raise UserError(
                    f"rank 0 does not see the {size} bytes of {path} that another rank wrote. "
                    "Choose a --save_checkpoint_path on a file system that all hosts share."
                )
        write_manifest(
            directory,
            step=int(step),
            meta=plain(dict(meta)),
            files=files,
            entries=merge_entries(entries for entries, _ in written),
        )

    def _room_for(self, step: int) -> contextlib.AbstractContextManager[None]:
        return full_disk_means(
            f"no space left for the checkpoint of step {step} in {self.directory}; the earlier "
            f"ones are unharmed. Free some space, lower --keep_checkpoints, or choose another "
            f"--save_checkpoint_path, and continue with --load_checkpoint_path {self.directory}."
        )

    def _delete_old(self) -> None:
        """Keeps the latest save of each of the last `keep` steps, and what is not only ours."""
        latest_of_step = {step_of(path)[0]: path for path in self.checkpoints()}
        kept = list(latest_of_step.values())[-self.keep :]
        for path in self.checkpoints():
            if path not in kept:
                remove_directory(path, CHECKPOINT)


def _link_or_copy(source: Path, target: Path) -> None:
    """Another name of a file that nobody changes, or its copy where file systems have none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    world: World = SOLO,
    verify: bool = True,
    trusted_digest: str | None = None,
) -> Checkpoint:
    """Opens a checkpoint on every rank; each verifies a share of it.

    Args:
      path: a checkpoint, or a directory of them, of which the latest counts.
      world: the processes that open it together.
      verify: compare the checksums of all data.
      trusted_digest: SHA-256 that its manifest must have; None: any.

    Raises:
      UserError: on every rank, if one of them does not find it, finds another one than rank 0, or
        its share cannot be trusted.
    """
    opened: list[Checkpoint] = []

    def find() -> list[Any]:
        place = find_checkpoint(path)
        checkpoint = Checkpoint(place, verify=False, trusted_digest=trusted_digest)
        opened.append(checkpoint)
        return [str(checkpoint.path), checkpoint.digest]

    found = agree(world, find)

    def check() -> None:
        mine, first = found[world.rank], found[0]
        if mine[1] != first[1]:
            raise UserError(
                f"{mine[0]} is not the checkpoint {first[0]} that rank 0 opened: their manifests "
                "differ. Give a path whose content is the same on all hosts."
            )
        if verify:
            opened[0].verify(part=(world.rank, world.size))

    agree(world, check)
    return opened[0]

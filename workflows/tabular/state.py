"""The working directory beside an output: what lets a run go on where another was killed.

``OUTPUT.partial`` belongs to one input and one set of options. Each finished stage leaves a
record there; a record is written after all that it speaks of, so what it says is on disk. It has
the digests of the stage's files (`core.manifests`): what a run goes on with is what was written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.core.files import atomic_file, inside_ours, located
from lookback.core.json_files import read_json
from lookback.core.manifests import (
    FILES,
    Files,
    entries_of,
    fault_of,
    is_whole,
    sealed,
    visible_files,
)
from lookback.core.outputs import check_apart
from lookback.workflows.output import Output, megabytes

IDENTITY = "identity.json"
_AGAIN = "Remove that directory, and start the run anew."
OURS = re.compile(
    r"identity\.json|data|counts|vocabulary|(counts|rows|written|fitted)-.+\.json"
    r"|\..+\.json\.\w+\.tmp"
)
"""Names of what a run writes to its working directory."""
_FINISHED = re.compile(r"(counts|rows|written|fitted)-.+\.json")
"""Names of the records of its finished stages."""


@dataclass(frozen=True)
class Working:
    """The open working directory of a run.

    Attributes:
      path: ``OUTPUT.partial``.
      output: what the run is to create.
    """

    path: Path
    output: Output

    @property
    def data(self) -> Path:
        """What becomes the output."""
        return self.path / "data"

    @property
    def counts(self) -> Path:
        """Counts of finished days."""
        return self.path / "counts"

    def record(self, stage: str, name: str) -> dict[str, Any] | None:
        """What a finished stage left, or None; its files are under `FILES`.

        Raises:
          UserError: if it, or one of its files, is not as it was left.
        """
        file = self._record_file(stage, name)
        if not file.exists():
            return None
        content = read_json(file, _AGAIN)
        if not is_whole(content):
            raise self._damaged(f"the content of {file.name} is not what was written")
        fault = fault_of(self.path, content[FILES])
        if fault is not None:
            raise self._damaged(fault)
        return content

    def finish(
        self, stage: str, name: str, content: Mapping[str, Any], files: Files | None = None
    ) -> None:
        """Records that a stage is finished.

        Args:
          stage: its name.
          name: of what it was done with.
          content: what to know of it later.
          files: that it left, by names relative to `path`.
        """
        record = sealed({**content, FILES: files or {}})
        with atomic_file(self._record_file(stage, name), replaces=inside_ours) as file:
            file.write_text(json.dumps(record))

    def entries(self, directory: Path) -> Files:
        """Sizes and digests of what is in a directory of `path` now, for `finish`."""
        inside = directory.relative_to(self.path)
        return entries_of(
            self.path, [(inside / name).as_posix() for name in visible_files(directory)]
        )

    def of_data(self, files: Files) -> Files:
        """Of a record's files those that become the output, as it will name them."""
        front = f"{self.data.name}/"
        return {
            name.removeprefix(front): entry
            for name, entry in files.items()
            if name.startswith(front)
        }

    def used(self) -> int:
        """Bytes of the files so far."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"{self.path} is not as the run that was interrupted left it: {what}. {_AGAIN}"
        )

    def _record_file(self, stage: str, name: str) -> Path:
        return self.path / f"{stage}-{name}.json"


@contextlib.contextmanager
def open_working(output: Output, identity: Mapping[str, Any]) -> Iterator[Working]:
    """The working directory of an output, new or as a killed run left it.

    If the block succeeds, its data becomes the output, and the rest is removed.

    Args:
      output: what the run is to create; if it may be overwritten, so may be what an unfinished run
        with another identity left.
      identity: input and options, as JSON: of all that has a say in the output.

    Raises:
      UserError: if the output is in the way, if another process works on it, if the working
        directory is not ours, or if the unfinished run had another identity.
    """
    with output.create() as temporary:  # first: nobody else writes it from now on
        path = located(output.path)
        working = Working(path.with_name(f"{path.name}.partial"), output)
        check_apart(working.path, output.inputs)
        try:
            working.path.mkdir(parents=True, exist_ok=True)
            os.close(os.open(working.path, os.O_RDONLY | os.O_NOFOLLOW))
        except OSError as error:
            raise UserError(
                f"--output: {working.path} cannot be written to ({error.strerror}). Choose another "
                "directory, or mend its permissions."
            ) from error
        _take_over(working, json.loads(json.dumps(dict(identity))))
        try:
            yield working
        except BaseException:
            with contextlib.suppress(OSError):
                if not any(_FINISHED.fullmatch(entry.name) for entry in working.path.iterdir()):
                    _clear(working.path)  # there is nothing to go on with
                    working.path.rmdir()
            raise
        temporary.rmdir()
        working.data.rename(temporary)
    _clear(working.path)
    with contextlib.suppress(OSError):  # somebody has put something there meanwhile
        working.path.rmdir()


def check_space(working: Working, needed: int, *, what: str) -> None:
    """Checks that the disk has room for what is still to be written.

    Args:
      working: the run's.
      needed: bytes that the whole run takes at its height, by estimate.
      what: how they were estimated.

    Raises:
      UserError: if it has not.
    """
    used, free = working.used(), shutil.disk_usage(working.path).free
    if needed - used > free:
        there = f", of which {megabytes(used)} are written" if used else ""
        raise UserError(
            f"{working.output.path.parent} has {megabytes(free)} free, but the run needs about "
            f"{megabytes(needed)} ({what}){there}. Free some space, or choose an --output on "
            "another disk."
        )


def _take_over(working: Working, identity: dict[str, Any]) -> None:
    file = working.path / IDENTITY
    if any(working.path.glob("[!.]*")):
        found = _identity(working.path, identity)
        if found != identity:
            if not working.output.overwrite:
                different = [key for key in identity if found.get(key) != identity[key]]
                raise UserError(
                    f"{working.path} holds an unfinished run of another input or other options "
                    f"({_differences(found, identity, different)}). Give the same command as "
                    "then to continue it, pass --overwrite to start anew, or remove it."
                )
            _clear(working.path)
    if not file.exists():
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(identity, indent=1))
    if not working.data.exists():
        # New, or killed in the moment between the last rename and the output's.
        for record in working.path.glob("written-*.json"):
            record.unlink()
        (working.path / "fitted-workflow.json").unlink(missing_ok=True)
    working.data.mkdir(exist_ok=True)
    working.counts.mkdir(exist_ok=True)


def _identity(path: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """Whose run a working directory is of; it must be ours, and nothing else in it.

    Raises:
      UserError: if it is not.
    """
    foreign = sorted(entry.name for entry in path.iterdir() if not OURS.fullmatch(entry.name))
    if foreign:
        raise UserError(
            f"{path} holds {foreign[0]}, which we did not write; it is where unfinished runs are "
            "kept. Move that away, or choose another --output."
        )
    with contextlib.suppress(UserError):
        found = read_json(path / IDENTITY)
        if found.keys() == like.keys():
            return found
    raise UserError(
        f"{path} is in the way: unfinished runs are kept there, and its {IDENTITY} says of none. "
        "Remove it, or choose another --output."
    )


def _clear(path: Path) -> None:
    """Removes what we wrote to a working directory."""
    for entry in path.iterdir():
        if OURS.fullmatch(entry.name):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _differences(found: dict[str, Any], identity: dict[str, Any], keys: list[str]) -> str:
    texts = []
    for key in keys:
        before, now = found.get(key), identity[key]
        if isinstance(now, dict) and isinstance(before, dict):
            names = [name for name in now if before.get(name) != now[name]]
            texts += [f"{name}: {before.get(name)!r} then, {now[name]!r} now" for name in names[:3]]
        else:
            texts.append(f"{key}: {before!r} then, {now!r} now")
    return "; ".join(texts) or "other files"

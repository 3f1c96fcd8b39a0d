"""A job of offline scoring: parts written as they are done, by processes, resumable, then joined.

    OUTPUT.parts/
      manifest.json       what is scored: digests of bundle and inputs, options, ranges of rows
      part-00000.parquet  of the first range, ...
    OUTPUT                all parts, in order; then the directory goes

A part is whole or not there (`core.files`), and holds what its range alone says, so whoever goes on
after a kill has what an uninterrupted job has. A directory of another job is never gone on with.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet
from lookback.core.devices import cores, require_shared_locks
from lookback.core.errors import UserError
from lookback.core.files import atomic_file, held, inside_ours, remove_directory
from lookback.core.json_files import read_json
from lookback.core.manifests import SIZES
from lookback.core.outputs import OutputKind, check_apart, check_file
from lookback.core.processes import ends_with_parent
from lookback.formats.part_files import part_name
from lookback.serving.offline.ranking import Counts
from lookback.serving.offline.work import Task, Work

FORMAT, FORMAT_VERSION = "lookback-parts-of-scores", 1
MANIFEST = "manifest.json"
_PART = re.compile(r"part-\d{5,}\.parquet")
_LEFT = re.compile(r"\.(part-\d{5,}\.parquet|manifest\.json)\.\w{8}\.tmp")
_COUNTS = b"lookback"  # key of a part's metadata


def parts_directory(output: Path) -> Path:
    """Where the parts of an output lie until all are there."""
    return output.with_name(f"{output.name}.parts")


def _entries(directory: Path) -> dict[str, int | None] | None:
    """Parts, and what killed processes left of them; None of a directory that is no such."""
    try:
        if read_json(directory / MANIFEST).get("format") != FORMAT:
            return None
    except UserError:
        return None
    names = [path.name for path in directory.iterdir()]
    return {name: None for name in names if _PART.fullmatch(name) or _LEFT.fullmatch(name)}


PARTS = OutputKind("directory of parts of scores", MANIFEST, _entries)


def run_job(task: Task, output: Path, workers: int) -> tuple[Counts, float]:
    """Does a task, or goes on with it where it was left.

    Args:
      task: to do.
      output: the Parquet file to write; it must not be there.
      workers: processes, each with a range of the rows; 1: this one.

    Returns:
      What was found on the way, by name, all parts together; and the seconds that this run took
      for scoring.

    Raises:
      UserError: if the output is in the way, parts of another job lie there, or a row is wrong;
        what is done stays, and the next run goes on there.
    """
    inputs = [p for p in (task.bundle, task.input, task.dataset_dir, task.candidates) if p]
    check_file(output, None, inputs)
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no directory {output.parent}.")
    directory = parts_directory(output)
    check_apart(directory, inputs)
    if workers > 1:
        require_shared_locks("give --workers 1")
    work = Work(task)
    for note in work.notes():
        print(note, file=sys.stderr)
    ranges = work.parts()
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **work.digests(),
        "options": task.options(),
        "parts": [list(part) for part in ranges],
    }
    with held(directory, "--output"):
        _begin(directory, manifest)
        missing = [n for n in range(len(ranges)) if not (directory / part_name(n)).is_file()]
        if len(missing) < len(ranges):
            done = len(ranges) - len(missing)
            print(f"{directory}: {done} of {len(ranges)} parts are there already", file=sys.stderr)
        start = time.monotonic()
        if workers == 1 or len(missing) < 2:
            _do(work, directory, ranges, missing)
        else:
            _share(task, directory, ranges, missing, min(workers, len(missing)))
        seconds = time.monotonic() - start
        files = [directory / part_name(n) for n in range(len(ranges))]
        counts = _join(files, output, inputs)
        remove_directory(directory, PARTS)
    return counts, seconds


def _begin(directory: Path, manifest: dict[str, Any]) -> None:
    """Writes down what is done in a directory, or compares it with what was begun there."""
    path = directory / MANIFEST
    if not path.exists():
        names = sorted(path.name for path in directory.iterdir() if not _LEFT.fullmatch(path.name))
        if names:
            raise UserError(
                f"{directory} holds {names[0]} and no {MANIFEST} of ours, and is "
                "where parts of the output go. Move it away, or give another --output."
            )
        with atomic_file(path, replaces=inside_ours) as file:
            file.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        return
    begun = read_json(path)
    differing = sorted(
        name for name in {*begun, *manifest} if begun.get(name) != manifest.get(name)
    )
    if differing:
        raise UserError(
            f"{directory} holds parts of another job: {', '.join(differing)} differ. Go on with "
            "the same bundle, inputs and options, or remove it and begin anew, or give another "
            "--output."
        )


def _do(
    work: Work, directory: Path, ranges: Sequence[tuple[int, int]], numbers: Sequence[int]
) -> None:
    for number in numbers:
        write_part(work, directory / part_name(number), *ranges[number])
        _tell(number, len(ranges))


def _tell(number: int, parts: int) -> None:
    if parts > 1:
        print(f"part {number + 1} of {parts} is done", file=sys.stderr, flush=True)


def write_part(work: Work, path: Path, start: int, stop: int) -> None:
    """Scores a range of rows and writes the part, whole or not at all."""
    table, counts = work.score(start, stop)
    said = json.dumps(dict(counts)).encode()
    with atomic_file(path, replaces=inside_ours) as file:
        pq.write_table(table.replace_schema_metadata({_COUNTS: said}), file, compression="zstd")


def _share(
    task: Task,
    directory: Path,
    ranges: Sequence[tuple[int, int]],
    missing: Sequence[int],
    workers: int,
) -> None:
    """Has processes do parts, each a range of them."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, cores() // workers)
    task = dataclasses.replace(task, verification=SIZES)  # the digests are compared by now
    bounds = [len(missing) * n // workers for n in range(workers + 1)]
    processes, ends = [], []
    try:
        for low, high in itertools.pairwise(bounds):
            own, theirs = context.Pipe(duplex=False)
            numbers = list(missing[low:high])
            arguments = (task, directory, ranges, numbers, threads, theirs)
            process = context.Process(target=_worker, args=arguments, daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            ends.append(own)
        for heard in _heard(ends):
            if isinstance(heard, str):
                raise UserError(heard)
            _tell(heard, len(ranges))
        for process in processes:
            process.join()
            if process.exitcode:
                raise UserError(
                    f"--workers: a process ended with status {process.exitcode}, maybe for want of "
                    f"memory. What is done is in {directory}: give fewer workers, and the same "
                    "command goes on there."
                )
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _heard(ends: Sequence[Connection]) -> Iterator[int | str]:
    """What processes say before they end: the number of a part that is done, or what is wrong."""
    left = list(ends)
    while left:
        for end in wait(left):
            assert isinstance(end, Connection)
            try:
                yield end.recv()
            except EOFError:
                left.remove(end)


def _worker(
    task: Task,
    directory: Path,
    ranges: Sequence[tuple[int, int]],
    numbers: Sequence[int],
    threads: int,
    said: Connection,
) -> None:
    """What a process does."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    # Or else it would go on writing parts where somebody else may have begun anew.
    (ends_with_parent() or bool)()
    try:
        work = Work(task)
        for number in numbers:
            write_part(work, directory / part_name(number), *ranges[number])
            said.send(number)
    except UserError as error:
        said.send(str(error))


def _join(files: Sequence[Path], output: Path, inputs: Sequence[Path]) -> Counts:
    """Writes all parts to one file; gives the sum of what they counted."""
    total = Counts()
    schema: pa.Schema | None = None
    for path in files:
        with open_parquet(path) as part:
            found = part.schema_arrow
            total.update(json.loads((found.metadata or {})[_COUNTS]))
            schema = schema or found.remove_metadata()
    with (
        atomic_file(output, inputs=inputs) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for path in files:
            with open_parquet(path) as part:
                for group in range(part.num_row_groups):
                    writer.write_table(part.read_row_group(group).replace_schema_metadata(None))
    return total

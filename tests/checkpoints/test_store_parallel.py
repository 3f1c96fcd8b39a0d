"""Checkpoints that several ranks write together. Here the ranks are threads; last, processes."""

from __future__ import annotations

import errno
import json
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookback.checkpoints import store as module
from lookback.checkpoints.store import (
    MANIFEST,
    Checkpoint,
    CheckpointStore,
    RowBlocks,
    find_checkpoint,
    open_checkpoint,
)
from lookback.core.errors import UserError
from lookback.core.world import agree
from lookback.embeddings.sharding import shards_of
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec

ROOT = Path(__file__).parents[2]
TABLES = (TableSpec("item", 29, 8), TableSpec("user", 3, 4), TableSpec("shop", 11, 6))


class Meeting:
    """Where threads meet; who waits for one that never comes fails instead of hanging."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=10)
        self.values: list[Any] = [None] * size


class Rank:
    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size = rank, len(meeting.values)
        self.gathers = 0
        self._meeting = meeting

    def gather(self, value: Any) -> list[Any]:
        self.gathers += 1
        self._meeting.values[self.rank] = json.dumps(value)
        self._meeting.barrier.wait()
        values = [json.loads(text) for text in self._meeting.values]
        self._meeting.barrier.wait()
        return values


def on_ranks(size: int, work: Callable[[Any], Any]) -> list[Any]:
    """What `work(world)` returns on each rank, or raises; all have gathered equally often."""
    meeting = Meeting(size)
    ranks = [Rank(rank, meeting) for rank in range(size)]
    results: list[Any] = [None] * size

    def run(world: Rank) -> None:
        try:
            results[world.rank] = work(world)
        except BaseException as error:
            results[world.rank] = error

    threads = [threading.Thread(target=run, args=(world,)) for world in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({world.gathers for world in ranks}) == 1, results
    return results


def placed(ranks: int) -> ShardingPlan:
    """A plan with every strategy."""
    owners = tuple(range(min(ranks, 4)))[::-1]
    placements = (
        Placement("item", "row_wise"),
        Placement("user", "table_wise", (ranks - 1,)),
        Placement("shop", "column_wise", owners),
    )
    return ShardingPlan(ranks, TABLES, placements)


def state(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {}
    for table in TABLES:
        shape = (table.rows, table.dim)
        tensors[f"table/{table.name}"] = rng.normal(size=shape).astype(np.float32)
        tensors[f"optimizer/{table.name}/m"] = rng.normal(size=shape).astype(np.float32)
    return {**tensors, "model/kernel": rng.normal(size=(3, 5)), "optimizer/step": np.array(4)}


def held_by(rank: int, plan: ShardingPlan, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """What a rank passes to `save`: its shards, and on rank 0 what is not sharded."""
    mine: dict[str, Any] = {}
    for shard in shards_of(plan):
        if shard.rank != rank:
            continue
        for name in (f"table/{shard.table}", f"optimizer/{shard.table}/m"):
            whole = tensors[name]
            part = whole[shard.rows.start : shard.rows.stop : shard.rows.step]
            part = part[:, shard.columns.start : shard.columns.stop]
            mine[name] = RowBlocks(
                whole.shape,
                whole.dtype,
                lambda part=part: [part[:2], part[2:]],
                shard.rows,
                shard.columns,
            )
    if rank == 0:
        mine |= {name: tensors[name] for name in ("model/kernel", "optimizer/step")}
    return mine


def saved(directory: Path, ranks: int, step: int = 4, seed: int = 0) -> list[Any]:
    plan = placed(ranks)

    def work(world: Any) -> Path:
        store = CheckpointStore(directory, world=world)
        return store.save(step, held_by(world.rank, plan, state(seed)), {"ranks": ranks})

    return on_ranks(ranks, work)


def assert_holds(checkpoint: Checkpoint, tensors: dict[str, np.ndarray]) -> None:
    assert set(checkpoint) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(checkpoint[name], array)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_what_ranks_save_together_any_number_of_ranks_reads(tmp_path, ranks):
    paths = saved(tmp_path / "store", ranks)
    assert paths == [tmp_path / "store" / "step-00000004"] * ranks
    files = {f"data-{rank:05d}.bin" for rank in range(ranks)}
    assert {path.name for path in paths[0].iterdir()} == {*files, MANIFEST}
    tensors = state()
    assert_holds(Checkpoint(paths[0]), tensors)
    for readers in (1, 2, 3, 5, 8):
        checkpoint = CheckpointStore(tmp_path / "store").load()
        for shard in shards_of(placed(readers)):
            for name in (f"table/{shard.table}", f"optimizer/{shard.table}/m"):
                expected = tensors[name][shard.rows.start : shard.rows.stop : shard.rows.step]
                np.testing.assert_array_equal(
                    checkpoint.rows(name, shard.rows, shard.columns),
                    expected[:, shard.columns.start : shard.columns.stop],
                )


def test_ranks_may_hold_nothing(tmp_path):
    array = np.arange(12.0).reshape(4, 3)

    def work(world: Any) -> Path:
        given: dict[str, Any] = {"all": array, "some": []} if world.rank == 0 else {}
        if world.rank == 2:
            given = {"some": [RowBlocks(array.shape, array.dtype, lambda: [array])]}
        return CheckpointStore(tmp_path, world=world).save(1, given, {"rank": world.rank})

    assert not [r for r in on_ranks(4, work) if isinstance(r, BaseException)]
    checkpoint = Checkpoint(find_checkpoint(tmp_path))
    assert_holds(checkpoint, {"all": array, "some": array})
    assert checkpoint.meta == {"rank": 0}
    assert list(checkpoint.files.values()) == [96, 0, 96, 0]


def test_old_checkpoints_go_and_a_step_is_saved_again(tmp_path):
    def work(world: Any) -> list[str]:
        store = CheckpointStore(tmp_path, keep=2, world=world)
        store.begin(None)
        for step in (1, 2, 3, 3):
            paths = store.save(step, held_by(world.rank, placed(3), state(step)), {})
        return [paths.name, *(path.name for path in store.checkpoints())]

    expected = ["step-00000003.1", "step-00000002", "step-00000003.1"]
    assert on_ranks(3, work) == [expected] * 3
    assert len(list(tmp_path.iterdir())) == 2
    assert_holds(CheckpointStore(tmp_path).load(), state(3))


def blocks_that(fail: BaseException, then: np.ndarray) -> Callable[[], Any]:
    def blocks():
        yield then[:1]
        raise fail

    return blocks


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize(
    ("error", "own", "others"),
    [
        (RuntimeError("the device is gone"), RuntimeError, RuntimeError),
        (UserError("the table is on fire"), UserError, UserError),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, RuntimeError),
        (OSError(errno.ENOSPC, "full"), UserError, UserError),
        (OSError(errno.EIO, "broken"), OSError, UserError),
    ],
)
def test_if_one_rank_fails_all_do_and_nothing_is_left(tmp_path, failing, error, own, others):
    saved(tmp_path, 3, step=3)

    def work(world: Any) -> Path:
        mine = held_by(world.rank, placed(3), state(1))
        if world.rank == failing:
            piece = mine["table/item"]
            blocks = blocks_that(error, np.zeros((1, 8), np.float32))
            mine["table/item"] = RowBlocks(piece.shape, piece.dtype, blocks, piece.rows)
        return CheckpointStore(tmp_path, world=world).save(4, mine, {})

    results = on_ranks(3, work)
    text = str(error.strerror if isinstance(error, OSError) else error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        text = "no space left for the checkpoint of step 4"
    for rank, result in enumerate(results):
        assert type(result) is (own if rank == failing else others), (rank, result)
        assert text in str(result)
        assert rank == failing or str(result).startswith(f"rank {failing}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert_holds(CheckpointStore(tmp_path).load(), state())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda mine: mine.pop("table/item"), "table/item: row 1 is in 0 pieces, .*10 are missing"),
        (lambda mine: mine.update({"model/kernel": np.zeros((3, 5))}), "row 0 is in 2 pieces"),
        (lambda mine: mine.update({"model/kernel": np.zeros((2, 5))}), "model/kernel: .* differ"),
        (lambda mine: mine.update({"optimizer/step": np.array(4.0)}), "optimizer/step: .* differ"),
        (lambda mine: mine.update({"new": []}), "new: no process holds a piece of it"),
        (lambda mine: mine.update({"text": np.array(["a"])}), "expected bool, integers or floats"),
    ],
)
def test_pieces_that_do_not_fit_together_are_refused_before_any_is_written(tmp_path, change, text):
    def work(world: Any) -> Path:
        mine = held_by(world.rank, placed(3), state())
        if world.rank == 1:
            change(mine)
        return CheckpointStore(tmp_path / "store", world=world).save(4, mine, {})

    results = on_ranks(3, work)
    assert sum(isinstance(result, ValueError) for result in results) == 1
    for result in results:
        with pytest.raises((ValueError, RuntimeError), match=text):
            raise result
    assert not (tmp_path / "store").exists()


def test_directories_that_are_not_shared_are_refused(tmp_path):
    def work(world: Any, call: str) -> Any:
        store = CheckpointStore(tmp_path / f"host{world.rank // 2}", world=world)
        if call == "begin":
            return store.begin(None)
        return store.save(4, held_by(world.rank, placed(3), state()), {})

    for call in ("begin", "save"):
        for result in on_ranks(3, lambda world, call=call: work(world, call)):
            assert isinstance(result, UserError)
            assert "host1 is not the directory that rank 0 sees" in str(result)
            assert "file system that all hosts share" in str(result)
        assert not list((tmp_path / "host0").iterdir())
        assert not (tmp_path / "host1").exists()


def test_a_file_that_rank_0_does_not_see_is_refused(tmp_path, monkeypatch):
    def lost(path: Path, tensors: Any) -> tuple[list[Any], int]:
        written = write(path, tensors)
        if path.name == "data-00001.bin":
            path.unlink()
        return written

    write = module.write_pieces
    monkeypatch.setattr(module, "write_pieces", lost)
    for result in saved(tmp_path, 2):
        assert isinstance(result, UserError)
        assert "rank 0 does not see the" in str(result) and "data-00001.bin" in str(result)
    assert not list(tmp_path.iterdir())


def test_the_space_of_all_ranks_counts(tmp_path, monkeypatch):
    needed = sum(array.nbytes for array in state().values())
    free = shutil_usage(needed - 1)
    monkeypatch.setattr("lookback.checkpoints.data_file.shutil.disk_usage", lambda path: free)
    for result in saved(tmp_path / "store", 3):
        assert isinstance(result, UserError)
        assert "no space left for the checkpoint of step 4" in str(result)
    assert not (tmp_path / "store").exists()


def shutil_usage(free: int) -> Any:
    return type("Usage", (), {"free": free})()


def test_begin_gives_every_rank_the_same_verdict(tmp_path):
    saved(tmp_path, 2)
    left = tmp_path / ".step-00000009.lookback"
    left.mkdir()

    def work(world: Any, resumed: Checkpoint | None) -> Any:
        store = CheckpointStore(tmp_path, world=world)
        return store.begin(resumed), sorted(path.name for path in tmp_path.glob("step-*"))

    for result in on_ranks(3, lambda world: work(world, None)):
        assert isinstance(result, UserError)
        assert "already holds the checkpoints of a run" in str(result)
    assert left.exists()
    resumed = Checkpoint(find_checkpoint(tmp_path))
    assert on_ranks(3, lambda world: work(world, resumed)) == [(None, ["step-00000004"])] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_every_rank_opens_and_one_that_cannot_stops_all(tmp_path):
    path = saved(tmp_path / "store", 3)[0]
    opened = on_ranks(2, lambda world: open_checkpoint(tmp_path / "store", world=world))
    assert [checkpoint.path for checkpoint in opened] == [path] * 2
    on_store = on_ranks(2, lambda world: CheckpointStore(path.parent, world=world).load())
    assert [checkpoint.path for checkpoint in on_store] == [path] * 2

    def elsewhere(world: Any) -> Checkpoint:
        return open_checkpoint(tmp_path / ("store" if world.rank == 0 else "none"), world=world)

    for result in on_ranks(2, elsewhere):
        assert isinstance(result, UserError) and "but there is nothing" in str(result)
    saved(tmp_path / "none", 3, seed=1)
    for result in on_ranks(2, elsewhere):
        assert isinstance(result, UserError)
        assert "is not the checkpoint" in str(result) and "same on all hosts" in str(result)

    data = bytearray((path / "data-00002.bin").read_bytes())
    data[0] ^= 1
    (path / "data-00002.bin").write_bytes(data)
    for ranks in (1, 2, 5):
        for result in on_ranks(ranks, lambda world: open_checkpoint(path, world=world)):
            assert isinstance(result, UserError)
            assert "data-00002.bin: the content of tensor" in str(result)
    assert not [
        result
        for result in on_ranks(2, lambda world: open_checkpoint(path, world=world, verify=False))
        if isinstance(result, BaseException)
    ]


def test_agreement_tells_the_first_failure_and_keeps_ones_own():
    def work(world: Any, failing: dict[int, BaseException]) -> list[Any]:
        def mine() -> int:
            if world.rank in failing:
                raise failing[world.rank]
            return world.rank**2

        return agree(world, mine)

    assert on_ranks(4, lambda world: work(world, {})) == [[0, 1, 4, 9]] * 4
    own = {2: ValueError("two"), 3: UserError("three")}
    results = on_ranks(4, lambda world: work(world, own))
    assert results[2] is own[2] and results[3] is own[3]
    assert [str(result) for result in results[:2]] == ["rank 2: ValueError: two"] * 2


SAVER = textwrap.dedent(
    """
    import json, sys, time
    from pathlib import Path
    import numpy as np
    from lookback.checkpoints.store import CheckpointStore, RowBlocks, open_checkpoint

    class Files:
        '''Ranks that talk through files.'''

        def __init__(self, rank, size, place):
            self.rank, self.size, self.place, self.calls = rank, size, Path(place), 0

        def gather(self, value):
            self.calls += 1
            new = self.place / f"new-{self.rank}"
            new.write_text(json.dumps(value))
            new.rename(self.place / f"{self.calls}-{self.rank}")
            values = []
            for rank in range(self.size):
                path = self.place / f"{self.calls}-{rank}"
                while not path.exists():
                    time.sleep(0.0005)
                values.append(json.loads(path.read_text()))
            return values

    rank, size, store, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    world = Files(rank, size, place)
    store = CheckpointStore(store, keep=2, world=world)
    resumed = store.load() if agree_exists else None
    store.begin(resumed)
    step = resumed.step + 1 if resumed else 0
    while True:
        shape, held = (60_000, 16), range(rank, 60_000, size)  # 3.8 MB
        block = np.full((len(held), 16), step, np.float32)
        piece = RowBlocks(shape, block.dtype, lambda: [block], held)
        store.save(step, {"table": piece}, {"step": step})
        if rank == 0:
            print(step, flush=True)
        step += 1
    """
)


def test_sigkill_of_the_ranks_leaves_the_last_checkpoint_whole(tmp_path):
    """One rank is killed, the others a moment later, as a launcher does it."""
    store = CheckpointStore(tmp_path / "store", keep=2)
    rng = random.Random(0)
    half_done, last = 0, -1
    for attempt in range(6):
        place = tmp_path / f"talk{attempt}"
        place.mkdir()
        code = SAVER.replace("agree_exists", str(store.latest() is not None))
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(rank), "3", str(store.directory), str(place)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(3)
        ]
        assert processes[0].stdout is not None
        first = processes[0].stdout.readline()
        assert first == f"{last + 1}\n"
        time.sleep(rng.uniform(0, 0.08))
        rng.shuffle(processes)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.01))
        for process in processes:
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        last = store.load().step
        for path in store.checkpoints():
            checkpoint = Checkpoint(path)
            assert np.all(checkpoint["table"] == checkpoint.step)
        half_done += any(path.name.startswith(".") for path in store.directory.iterdir())
    assert half_done > 0  # else the kills came at the wrong moments, and nothing was tested
    store.begin(store.load())
    assert all(path.name.startswith("step-") for path in store.directory.iterdir())

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.benchmarks.criteo_workflow import differing_columns
from lookback.benchmarks.peers import client
from lookback.benchmarks.peers.client import ENVIRONMENTS, PEERS, contender, missing, start_peer
from lookback.benchmarks.peers.usage import directory_bytes, measure

ROOT = Path(__file__).resolve().parents[2]

# A peer without any software of others: counts steps, and breaks when told to.
PROGRAM = """
import sys
from lookback.benchmarks.child_server import serve_steps

samples = int(sys.argv[2])

def count():
    print("a library talks")
    return samples

def fail():
    raise ValueError("no such row")

serve_steps({"count": count, "fail": fail}, {"version": "1"})
"""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes "counting" a peer whose environment is this one."""
    python = tmp_path / "own" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "program.py").write_text(PROGRAM)
    python.write_text(f'#!/bin/sh\nshift 2\nexec "{sys.executable}" "{tmp_path}/program.py" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "own" / ".lookback-ready").touch()
    monkeypatch.setattr(client, "ENVIRONMENTS", tmp_path)
    monkeypatch.setitem(PEERS, "counting", "own")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for(pid: int, expected: str) -> None:
    deadline = time.monotonic() + 10
    while state(pid) != expected:
        assert time.monotonic() < deadline, state(pid)
        time.sleep(0.01)


def test_a_peer_works_when_told_and_is_stopped_otherwise(counting: None) -> None:
    with start_peer("counting", batch=7, quiet=True, absent=None, no=False) as peer:
        assert peer.facts == {"version": "1"}
        pid = peer.pid
        wait_for(pid, "T")
        found = peer.ask(do="count", steps=3)
        assert found["samples"] == 21
        assert 0 <= found["seconds"] < 5
        wait_for(pid, "T")
        with pytest.raises(RuntimeError, match=r'of count, fail; got {"do": "dance"}'):
            peer.ask(do="dance")
        assert peer.ask(do="count")["samples"] == 7
        assert 1e6 < peer.peak_rss_bytes() < 1e9
    assert not Path(f"/proc/{pid}").exists()


def test_a_peer_that_ends_says_why(counting: None) -> None:
    with start_peer("counting", batch=1) as peer, pytest.raises(RuntimeError, match="no such row"):
        peer.ask(do="fail")
    with pytest.raises(RuntimeError, match="IndexError"):  # no --batch, so no second argument
        start_peer("counting")


def test_a_contender_returns_samples(counting: None) -> None:
    with contender("counting", "count", steps=2, batch=5) as work:
        assert work is not None
        assert [work(), work()] == [10, 10]


def test_a_peer_that_is_not_set_up_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(client, "ENVIRONMENTS", tmp_path)
    with contender("torch_dlrm", "train", batch=5) as work:
        assert work is None
    note = missing("torch_dlrm")
    assert note == "torch_dlrm was not measured: benchmarks/peers/setup.sh torch sets it up."


def test_a_stopped_peer_ends_with_its_parent(counting: None, tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from lookback.benchmarks.peers import client\n"
        "client.ENVIRONMENTS = Path(sys.argv[1])\nclient.PEERS['counting'] = 'own'\n"
        "print(client.start_peer('counting', batch=1).pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, deadline = int(done.stdout), time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and state(pid) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("name", sorted(set(PEERS)))
def test_every_peer_has_a_program_and_locked_requirements(name: str) -> None:
    assert (ROOT / "benchmarks/peers" / f"{name}.py").exists()
    lock = ROOT / "benchmarks/peers/requirements" / f"{PEERS[name]}.txt"
    text = lock.read_text()
    assert text.count("==") >= 1
    assert text.count("--hash=sha256:") >= text.count("==")
    assert "http" not in text


def test_setup_refuses_what_it_does_not_know() -> None:
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/peers/setup.sh", "jax"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        "expected the name of a peer (deepctr_torch fuxictr gpu_placement spark torch); "
        "got: jax" in done.stderr
    )


def test_usage_counts_time_memory_and_disk_of_all_processes(tmp_path: Path) -> None:
    child = (
        "import time; kept = bytearray(b'x') * 60_000_000; "
        f"open('{tmp_path}/file', 'wb').write(kept[:5_000_000]); time.sleep(1.2)"
    )
    parent = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {child!r}]); print(5)'
    usage = measure([sys.executable, "-c", parent], tmp_path, tmp_path, every=0.1)
    assert usage.output == "5\n"
    assert 1.2 < usage.seconds < 20
    assert 60e6 < usage.peak_memory_bytes < 200e6
    assert usage.peak_disk_bytes == directory_bytes(tmp_path) == 5_000_000
    with pytest.raises(RuntimeError, match="ended with 1"):
        measure([sys.executable, "-c", "raise ValueError"], tmp_path, tmp_path)


def _write_vocabularies(directory: Path, values: list[str], ids: list[int]) -> tuple[Path, Path]:
    ours, spark = directory / "ours", directory / "spark"
    vocabulary = ours / "workflow/vocabulary"
    vocabulary.mkdir(parents=True)
    keys = np.array([int(value, 16) for value in values], np.uint32)
    table = pa.table(
        {"key": keys, "id": np.array(ids, np.int32), "count": np.arange(len(keys)) + 1}
    )
    with pa.ipc.new_file(str(vocabulary / "cat_0.arrow"), table.schema) as writer:
        writer.write_table(table)
    part = spark / "vocabulary/column=0"
    part.mkdir(parents=True)
    backwards = slice(None, None, -1)
    columns = {
        "value": values[backwards],
        "id": ids[backwards],
        "count": list(range(len(values), 0, -1)),
    }
    pq.write_table(pa.table(columns), part / "part-0.parquet")
    return ours, spark


def test_vocabularies_are_compared_value_by_value(tmp_path: Path) -> None:
    values, ids = ["0000000a", "fffffff0", "00000b00"], [3, 1, 2]
    ours, spark = _write_vocabularies(tmp_path, values, ids)
    assert differing_columns(ours, spark) == []
    file = spark / "vocabulary/column=0/part-0.parquet"
    table = pq.read_table(file)
    for name, wrong in (("value", ["0000000b"]), ("id", [4]), ("count", [9])):
        index = table.column_names.index(name)
        column = pa.array(wrong + table[name].to_pylist()[1:])
        pq.write_table(table.set_column(index, name, column), file)
        assert differing_columns(ours, spark) == ["cat_0"], name
    file.unlink()
    file.parent.rmdir()
    assert differing_columns(ours, spark) == ["cat_0"]


@pytest.mark.skipif(
    not (ENVIRONMENTS / "torch" / ".lookback-ready").exists(),
    reason="benchmarks/peers/setup.sh torch was not run",
)
def test_the_torch_peer_trains_and_infers() -> None:
    options = {"batch": 64, "rows": 50, "tables": 3, "dim": 128, "threads": 1}
    with start_peer("torch_dlrm", **options) as peer:
        assert peer.ask(do="train", steps=2)["samples"] == 128
        assert peer.ask(do="infer", steps=3)["samples"] == 192


BATCHES = """
import json, sys
from lookback.benchmarks.peers.history_batches import given_batches

(batch,) = given_batches(sys.argv[1], slots=3)
moved = batch.padded_behind()
print(json.dumps([
    batch.history["item_id"].tolist(), batch.lengths.tolist(), moved.history["item_id"].tolist(),
    moved.history["category_id"].tolist(), moved.target["item_id"].tolist(), moved.labels.tolist(),
]))
"""


def write_rows(path: Path, rows: int = 4, slots: int = 4) -> None:
    """One batch; the histories have 4, 1, 0 and 3 events, and their newest is in the last slot."""
    lengths = np.resize([4, 1, 0, 3], rows)
    events = np.arange(1, slots + 1) * (np.arange(slots) >= slots - lengths[:, np.newaxis])
    np.savez(
        path,
        user_id=[np.arange(rows)],
        item_id=[np.arange(rows) + 1],
        category_id=[np.ones(rows)],
        item_id_history=[events],
        category_id_history=[10 * events],
        labels=[np.resize([1, 0], rows)],
    )


@pytest.mark.skipif(
    not (ENVIRONMENTS / "torch" / ".lookback-ready").exists(),
    reason="benchmarks/peers/setup.sh torch was not run",
)
def test_histories_are_given_as_others_want_them(tmp_path: Path) -> None:
    write_rows(tmp_path / "b.npz")
    done = subprocess.run(
        [client.peer_python("torch_dlrm"), "-c", BATCHES, tmp_path / "b.npz"],
        cwd=ROOT,
        env={"PYTHONPATH": str(client.SOURCES)},
        capture_output=True,
        text=True,
        check=True,
    )
    history, lengths, moved, categories, targets, labels = json.loads(done.stdout)
    assert history == [[2, 3, 4], [0, 0, 4], [0, 0, 0], [2, 3, 4]]
    assert lengths == [3, 1, 0, 3]
    assert moved == [[2, 3, 4], [4, 0, 0], [0, 0, 0], [2, 3, 4]]
    assert categories == [[20, 30, 40], [40, 0, 0], [0, 0, 0], [20, 30, 40]]
    assert targets == [1, 2, 3, 4]
    assert labels == [1, 0, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"),
    [
        *(("fuxictr_histories", model) for model in ("sim", "din", "dien")),
        *(("deepctr_histories", model) for model in ("din", "dien")),
    ],
)
def test_peers_of_histories_train_and_score(name: str, model: str, tmp_path: Path) -> None:
    note = missing(name)
    if note is not None:
        pytest.skip(note)
    write_rows(tmp_path / "b.npz", rows=32, slots=12)
    options = {"batches": tmp_path / "b.npz", "rows": "32,33,121", "slots": 12, "threads": 1}
    with start_peer(name, model=model, **options) as peer:
        assert peer.ask(do="train", steps=2)["samples"] == 64  # it refuses a loss that is no number
        assert peer.ask(do="infer", steps=3)["samples"] == 96


def test_a_directory_is_as_large_as_the_files_below(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"12345")
    (tmp_path / "g").write_text("[]")
    assert directory_bytes(tmp_path) == 7

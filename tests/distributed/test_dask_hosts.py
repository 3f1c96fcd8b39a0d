"""`workflows run --scheduler` on a Dask cluster of two machines, one of which is lost on the way.

The machines are network namespaces: the client and a worker on one, a worker on the other.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from lookback.workflows.commands import PROGRAM

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PORT = 29786


@pytest.fixture
def raw(tmp_path) -> Path:
    """Clicks in a compressed file, whose blocks travel to the workers."""
    random = np.random.default_rng(0)
    events = pd.DataFrame(
        {
            "user_id": random.integers(0, 3_000, 200_000),
            "item_id": random.integers(0, 500, 200_000),
            "timestamp": random.permutation(200_000) + 1_400_000_000,
        }
    )
    events.to_csv(tmp_path / "raw.csv.gz", index=False)
    return tmp_path / "raw.csv.gz"


def words(raw: Path, output: Path, *more: str) -> list[str]:
    found = ["run", "--dataset", "interactions", "--input", raw, "--output", output]
    return [*map(str, found), "--partition_events", "4000", *more]


@contextlib.contextmanager
def dask(two_hosts, directory: Path) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """A scheduler and a worker on each machine: the address, and the processes."""
    first = two_hosts.options[1].split(":")[0]
    address = f"tcp://{first}:{PORT}"
    environment = {**os.environ, "PYTHONPATH": str(Path(sys.prefix) / "src")}
    said = (directory / "dask.log").open("a")

    def start(place: tuple[str, ...], *command: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*place, sys.executable, "-m", "distributed.cli." + command[0], *command[1:]],
            env=environment,
            cwd=directory,
            stderr=said,
            start_new_session=True,
        )

    quiet = ("--no-dashboard",)
    started = [
        start(two_hosts.here, "dask_scheduler", "--host", first, "--port", str(PORT), *quiet)
    ]
    try:
        for place in (two_hosts.here, two_hosts.there):
            own = ("--nthreads", "1", "--no-nanny", "--local-directory", str(directory))
            started.append(start(place, "dask_worker", address, *own, *quiet))
        await_workers(directory / "dask.log", 2)
        yield address, started
    finally:
        said.close()
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def await_workers(log: Path, workers: int, seconds: float = 120) -> None:
    """Waits until so many have found the scheduler."""
    deadline = time.monotonic() + seconds
    while log.read_text().count("Registered to:") < workers:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def busy(process: subprocess.Popen, seconds: float) -> None:
    """Waits until a worker has worked for so many seconds of a core."""
    worker = psutil.Process(process.pid)
    deadline = time.monotonic() + 120

    def spent() -> float:
        return sum(sum(p.cpu_times()[:2]) for p in (worker, *worker.children(recursive=True)))

    before = spent()
    while spent() < before + seconds:
        assert time.monotonic() < deadline, "it was given nothing to do"
        time.sleep(0.05)


def contents(directory: Path) -> dict[str, bytes]:
    """The files of a dataset, but for those that say when and how it was written."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*.parquet")
    }


def start_run(two_hosts, *arguments: str) -> subprocess.Popen:
    program = (sys.executable, "-m", "workflows", *arguments)
    return subprocess.Popen(
        [*two_hosts.here, *program],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_one_worker_killed_on_the_way_changes_nothing_and_all_end_the_run(raw, two_hosts, tmp_path):
    """On one cluster: what is lost in the first run is not there in the second."""
    assert PROGRAM.main(words(raw, tmp_path / "alone", "--workers", "0"), "workflows") == 0
    with dask(two_hosts, tmp_path) as (address, (_, here, there)):
        run = start_run(two_hosts, *words(raw, tmp_path / "cluster", "--scheduler", address))
        busy(there, 1.5)
        os.killpg(there.pid, signal.SIGKILL)
        assert run.poll() is None, "it was done before the worker was killed"
        out, err = run.communicate(timeout=200)
        assert run.returncode == 0, err
        assert "2 workers" in out + err
        expected, found = contents(tmp_path / "alone"), contents(tmp_path / "cluster")
        assert expected
        assert found == expected

        run = start_run(two_hosts, *words(raw, tmp_path / "nobody", "--scheduler", address))
        busy(here, 1.0)
        os.killpg(here.pid, signal.SIGKILL)
        _, err = run.communicate(timeout=100)
    assert run.returncode == 2, err
    assert f"All workers of {address} have ended" in err
    assert not (tmp_path / "nobody").exists()

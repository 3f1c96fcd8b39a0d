from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator

import psutil
import pytest

from lookback.core.errors import UserError
from lookback.workflows.cluster import (
    MAX_PARTITION_EVENTS,
    Runner,
    available_memory,
    make_plan,
    open_runner,
    takes_gpu,
)

GB = 10**9


def _square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def _refuse(number: int) -> int:
    raise UserError(f"no {number}")


def test_partition_size_follows_from_the_memory() -> None:
    little = make_plan(20_000_000, workers=2, memory=3 * GB)
    more = make_plan(20_000_000, workers=2, memory=4 * GB)
    plenty = make_plan(20_000_000, workers=2, memory=64 * GB)
    assert little.partition_events < more.partition_events < plenty.partition_events
    assert plenty.partition_events == MAX_PARTITION_EVENTS
    assert little.partitions > more.partitions > plenty.partitions == 20
    for plan in (little, more):
        assert plan.partitions * plan.partition_events >= 20_000_000


def test_workers_follow_from_the_size() -> None:
    assert make_plan(1000, memory=8 * GB).workers == 0
    large = make_plan(100_000_000, memory=8 * GB)
    assert large.workers in (0, min(len(os.sched_getaffinity(0)), 4))
    assert make_plan(100_000_000, memory=GB).workers == 0
    assert make_plan(10, workers=3, memory=8 * GB).workers == 3


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(UserError, match=r"for 2 worker.*Raise --memory_limit, or lower --workers"):
        make_plan(1000, workers=2, memory=GB)
    with pytest.raises(UserError, match=r"too little for 1 worker.*Raise --memory_limit\.$"):
        make_plan(1000, workers=0, memory=GB // 4)


def test_available_memory() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_in_this_process_items_are_drawn_as_results_are() -> None:
    drawn = []

    def items() -> Iterator[int]:
        for number in range(5):
            drawn.append(number)
            yield number

    results = Runner().map(_square, items(), label="x")
    assert next(results)[0] == 0
    assert drawn == [0]
    assert [square for square, _ in results] == [1, 4, 9, 16]


@pytest.mark.slow
def test_cluster_keeps_the_order_and_its_bounds() -> None:
    drawn = []

    def items() -> Iterator[int]:
        for number in range(20):
            drawn.append(number)
            yield number

    with open_runner(2) as runner:
        assert runner.workers == 2
        # Nobody reaches the workers from elsewhere.
        processes = psutil.Process().children(recursive=True)
        sockets = [found for process in processes for found in process.net_connections("inet")]
        listening = {found.laddr.ip for found in sockets if found.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        results = runner.map(_square, items(), label="x", carries_data=True)
        first = next(results)
        assert first[0] == 0 and first[1] != os.getpid()
        assert len(drawn) <= 4
        assert [square for square, _ in results] == [n * n for n in range(1, 20)]
        # What a task refuses comes back as it is; an address serves as --scheduler does.
        with pytest.raises(UserError, match="no 0"):
            list(runner.map(_refuse, range(9), label="x"))
        with open_runner(0, scheduler=runner.client.scheduler.address) as other:
            assert other.workers == 2
            assert [square for square, _ in other.map(_square, range(4), label="x")] == [0, 1, 4, 9]


def test_threads_keep_the_order_and_their_bounds() -> None:
    drawn, here = [], set()

    def items() -> Iterator[int]:
        for number in range(20):
            drawn.append(number)
            yield number

    def late(number: int) -> int:
        here.add(threading.get_ident())
        time.sleep(0.02 if number % 3 == 0 else 0)  # later ones are done first
        return number * number

    with open_runner(3, threads=True) as runner:
        assert runner.place == "3 workers"
        results = runner.map(late, items(), label="x")
        assert next(results) == 0
        assert len(drawn) <= 6
        assert list(results) == [n * n for n in range(1, 20)]
    assert 1 < len(here) <= 3 and threading.get_ident() not in here


def test_the_first_mistake_ends_threads() -> None:
    done = []

    def work(number: int) -> int:
        if number == 2:
            raise UserError(f"no {number}")
        time.sleep(0.01)
        done.append(number)
        return number

    with (
        pytest.raises(UserError, match="no 2"),
        open_runner(2, threads=True) as runner,
    ):
        list(runner.map(work, range(1000), label="x"))
    assert max(done) < 10  # what was not begun is not begun any more


@pytest.fixture
def terminal() -> Iterator[None]:
    """Ctrl-C interrupts. A shell's background jobs ignore it, and the tests may run in one."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_ends_threads(terminal: None) -> None:
    """One that came while the results were taken; the tasks that run are waited for."""
    done = []
    with (
        pytest.raises(KeyboardInterrupt),
        open_runner(2, threads=True) as runner,
    ):
        for result in runner.map(
            lambda number: done.append(number) or number, range(1000), label="x"
        ):
            if result == 5:
                signal.raise_signal(signal.SIGINT)
    assert max(done) < 15


def test_no_scheduler() -> None:
    with (
        pytest.raises(UserError, match=r"No Dask scheduler answers at nowhere"),
        open_runner(0, scheduler="nowhere"),
    ):
        pass


def _pretend(monkeypatch: pytest.MonkeyPatch, installed: set[str], gpu: bool) -> None:
    """Packages and a GPU, or none; `find_spec` of others is as it is."""
    found, names = importlib.util.find_spec, {"cudf", "dask_cuda"}
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (name in installed or None) if name in names else found(name),
    )
    merlin = types.ModuleType("merlin.core.has_gpu")
    merlin.HAS_GPU = gpu  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "merlin.core.has_gpu", merlin)


@pytest.mark.parametrize(
    ("installed", "gpu", "why"),
    [
        ({"cudf", "dask_cuda"}, True, None),
        ({"cudf", "dask_cuda"}, False, "this machine has no GPU"),
        ({"dask_cuda"}, True, "cudf is not installed"),
        ({"cudf"}, True, "dask_cuda is not installed"),
        (set(), False, "cudf is not installed"),
    ],
)
def test_the_device_follows_from_packages_and_gpu(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], gpu: bool, why: str | None
) -> None:
    _pretend(monkeypatch, installed, gpu)
    assert takes_gpu("auto") is (why is None)
    assert not takes_gpu("cpu")
    if why is None:
        assert takes_gpu("gpu")
        assert not takes_gpu("auto", "it is too odd")
        with pytest.raises(UserError, match=r"--device gpu: .*; it is too odd\. Leave"):
            takes_gpu("gpu", "it is too odd")
    else:
        with pytest.raises(UserError, match=f"--device gpu: .*; {why}"):
            takes_gpu("gpu")

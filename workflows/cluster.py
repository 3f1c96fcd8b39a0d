"""Where tasks run: in this process or threads of it, on a Dask cluster of its own, or on one there.

The same functions run in the same order of results either way, so the output does not depend on
the choice. A cluster costs some seconds to start; small inputs are faster without.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from lookback.core.devices import cores, require_shared_locks
from lookback.core.errors import UserError
from lookback.workflows.options import Device

if TYPE_CHECKING:
    from distributed import Client

LINES_WORTH_A_CLUSTER = 5_000_000
"""Below this a run takes less time than a cluster saves (measured on 2 cores)."""

BYTES_PER_EVENT = 1_000
"""Peak memory of a partition's tasks for each of its events: three Python strings with their
pointers, a sorted copy, and the Arrow tables (measured, rounded up)."""

BYTES_PER_FEATURE = 60
"""The same for each typed feature beside: raw, joined and encoded (measured, rounded up)."""

BYTES_PER_PROCESS = 400 << 20
"""A worker before it has any data: interpreter, pandas, Arrow, NVTabular, vocabulary."""

MEMORY_SHARE = 0.6
"""Part of the available memory to plan with; the rest is for what the plan does not see."""

MAX_PARTITION_EVENTS = 1_000_000
"""Larger partitions measured no faster."""

MIN_PARTITION_EVENTS = 20_000

FREE, RAISE = "Free memory", "Raise --memory_limit"
"""What helps where memory is too little: as much as is free, or as was asked for."""

TASKS_IN_FLIGHT = 2
"""For each worker: one that runs and one that waits."""

_SECONDS_BETWEEN_LOOKS = 10.0
"""At whether a cluster of others still has workers."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class ResourcePlan:
    """How a run is cut to the machine.

    Attributes:
      workers: processes beside this one; 0 for none.
      memory: bytes to stay within.
      partition_events: events a partition should not exceed.
      partitions: number of partitions, from an estimate of the events.
    """

    workers: int
    memory: int
    partition_events: int
    partitions: int


def make_plan(
    lines: int,
    *,
    workers: int | None = None,
    memory: int | None = None,
    partition_events: int | None = None,
    features: int = 0,
) -> ResourcePlan:
    """Chooses workers and partition size.

    Args:
      lines: estimate of the input's lines.
      workers: as asked for; None chooses.
      memory: bytes, as asked for; None takes what is free.
      partition_events: as asked for; None follows from the memory.
      features: typed ones of an event.

    Raises:
      UserError: if the memory does not suffice for the workers.
    """
    memory, remedy = (available_memory(), FREE) if memory is None else (memory, RAISE)
    if workers is None:
        affordable = int(memory * MEMORY_SHARE) // (2 * BYTES_PER_PROCESS) - 1
        workers = min(cores(), affordable) if lines > LINES_WORTH_A_CLUSTER else 0
        workers = workers if workers > 1 else 0
    budget = int(memory * MEMORY_SHARE) - (workers + 1) * BYTES_PER_PROCESS
    event_bytes = BYTES_PER_EVENT + BYTES_PER_FEATURE * features
    fits = budget // (max(workers, 1) * event_bytes)
    if fits < MIN_PARTITION_EVENTS and partition_events is None:
        needed = (workers + 1) * BYTES_PER_PROCESS
        needed += max(workers, 1) * event_bytes * MIN_PARTITION_EVENTS
        raise UserError(
            f"{memory >> 20} MiB of memory is too little for {workers or 1} worker(s): about "
            f"{int(needed / MEMORY_SHARE) >> 20} MiB are needed. {remedy}"
            + (", or lower --workers." if workers else ".")
        )
    if partition_events is None:
        partition_events = min(fits, MAX_PARTITION_EVENTS)
    partitions = max(1, -(-lines // partition_events))
    if workers and lines > MIN_PARTITION_EVENTS * workers:
        partitions = max(partitions, workers)
    return ResourcePlan(workers, memory, partition_events, partitions)


class Runner:
    """Runs tasks and hands back their results in order.

    Args:
      client: of a Dask cluster, a pool of threads, or None to run each task in this thread when its
        result is due.
      workers: how many run at once.
      progress: shows a bar for each phase, if the error stream is a terminal.
      elsewhere: address of the cluster, if it is others'; None: it is our own.
    """

    def __init__(
        self,
        client: Client | ThreadPoolExecutor | None = None,
        workers: int = 0,
        progress: bool = False,
        elsewhere: str | None = None,
    ) -> None:
        self.client = client
        self.elsewhere = elsewhere
        self.workers = workers
        self.progress = progress and sys.stderr.isatty()

    @property
    def place(self) -> str:
        """Where it runs, in words."""
        return "this process" if self.client is None else f"{self.workers} workers"

    def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        label: str,
        total: int | None = None,
        carries_data: bool = False,
    ) -> Iterator[R]:
        """Yields ``function(item)`` for each item, in order; few items are held at a time.

        Args:
          function: must pickle for processes.
          items: may be a generator; it is drawn from as results are taken.
          label: names the phase on the progress bar.
          total: number of items, where known.
          carries_data: whether items are large; they then travel to processes by themselves.
        """
        with self._bar(label, total) as advance:
            for result in self._results(function, items, carries_data):
                advance()
                yield result

    def _results(
        self, function: Callable[[T], R], items: Iterable[T], carries_data: bool
    ) -> Iterator[R]:
        if self.client is None:
            yield from map(function, items)
            return
        pending: deque[Any] = deque()
        try:
            for item in items:
                future = self._submit(function, item, carries_data)
                # Data that lay on a worker of another machine is lost with it; ours are watched.
                again = partial(self._submit, function, item, carries_data)
                pending.append((future, again if self.elsewhere else None))
                del item, again
                if len(pending) >= TASKS_IN_FLIGHT * self.workers:
                    yield self._result(*pending.popleft())
            while pending:
                yield self._result(*pending.popleft())
        finally:
            for future, _ in pending:
                future.cancel()

    def _submit(self, function: Callable[[T], R], item: T, carries_data: bool) -> Any:
        """A future of ``function(item)``."""
        if isinstance(self.client, ThreadPoolExecutor):
            return self.client.submit(function, item)
        assert self.client is not None
        argument = self.client.scatter(item, hash=False) if carries_data else item
        return self.client.submit(function, argument, pure=False)

    def _result(self, future: Any, again: Callable[[], Any] | None = None) -> Any:
        """What a future comes to, on a cluster of others in spite of workers that end.

        Args:
          future: Dask's, or a thread's.
          again: submits its task again, where what it works on may be lost; None: it cannot.

        Raises:
          UserError: if the cluster, all its workers, or each that was given the task, end.
        """
        if not self.elsewhere:
            return future.result()
        from distributed.client import TimeoutError as NotYetError
        from distributed.scheduler import KilledWorker

        while True:
            try:
                return future.result(timeout=_SECONDS_BETWEEN_LOOKS)
            except NotYetError:
                if future.status == "error":  # the task's own
                    raise
                self._require_workers()
            except CancelledError:
                self._require_workers()
                if again is None:
                    raise
                future = again()
            except KilledWorker as error:
                raise UserError(
                    f"Workers of {self.elsewhere} have ended, one after another, in the same task: "
                    f"{error}. If memory ran out, give them more, or lower --partition_events."
                ) from error

    def _require_workers(self) -> None:
        """Refuses to wait for nobody.

        Raises:
          UserError: if the cluster has ended, or none of its workers is left.
        """
        assert self.client is not None and not isinstance(self.client, ThreadPoolExecutor)
        if self.client.status != "running":  # it tries to connect again for a while, in vain
            raise UserError(
                f"The Dask scheduler at {self.elsewhere} has ended. Nothing is half written; start "
                "it and its workers, and run this again."
            )
        if not self.client.scheduler_info()["workers"]:
            raise UserError(
                f"All workers of {self.elsewhere} have ended. Nothing is half written; start some "
                f"(`dask worker {self.elsewhere}`), and run this again."
            )

    def guard_client(self) -> None:
        """Lets Merlin, which asks the client itself, meet workers that end as `map` meets them."""
        client: Any = self.client
        client.run = partial(self._run_on_those_left, client.run)
        client.compute = partial(self._computed, client.compute)

    def _run_on_those_left(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`Client.run`, for which a worker that ends meanwhile is no fault.

        Merlin clears caches by it before each phase (merlin/dag/executors.py:550), and the
        scheduler does not know at once that a worker has ended.
        """
        found = run(*args, **{**kwargs, "on_error": "return"})
        for value in found.values():
            if isinstance(value, Exception) and not isinstance(value, OSError):
                raise value
        return {w: value for w, value in found.items() if not isinstance(value, OSError)}

    def _computed(self, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`Client.compute`, which returns when all is done, and does not wait for nobody.

        Raises:
          UserError: as `_require_workers`.
        """
        from distributed import wait
        from distributed.client import TimeoutError as NotYetError
        from distributed.client import futures_of

        found = compute(*args, **kwargs)
        while True:
            try:
                wait(futures_of(found), timeout=_SECONDS_BETWEEN_LOOKS)
                return found
            except NotYetError:
                self._require_workers()

    def compute(self, tasks: list[Any], *, label: str) -> Iterator[Any]:
        """Yields the results of some Dask delayed values, in order."""
        import dask

        with self._bar(label, len(tasks)) as advance:
            if self.client is None or isinstance(self.client, ThreadPoolExecutor):
                for task in tasks:
                    yield dask.compute(task, scheduler="synchronous")[0]
                    advance()
                return
            for future in self.client.compute(tasks):
                yield self._result(future)
                advance()

    @contextlib.contextmanager
    def _bar(self, label: str, total: int | None) -> Iterator[Callable[[], None]]:
        if not self.progress:
            yield lambda: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(label, total=total)
            yield lambda: progress.advance(task)


@contextlib.contextmanager
def open_runner(
    workers: int,
    *,
    threads: bool = False,
    scheduler: str | None = None,
    progress: bool = False,
    gpu: bool = False,
) -> Iterator[Runner]:
    """A runner, and the threads or the cluster behind it for as long as the block lasts.

    Args:
      workers: 0 runs in this thread; else a `LocalCluster` of so many processes, or with `gpu`
        a `LocalCUDACluster` of one worker for each GPU.
      threads: workers are threads instead. For tasks that let go of the interpreter's lock: threads
        start in no time, share what they read, and pass data on without a copy.
      scheduler: address of an existing Dask cluster, which is used instead. Its workers need this
        package on their path, and the same file system.
      progress: shows progress bars on a terminal.
      gpu: whether tasks work on GPUs.

    Raises:
      UserError: if the scheduler does not answer or its workers cannot import this package.
    """
    if scheduler is None and not workers:
        yield Runner(progress=progress)
        return
    if scheduler is None and threads:
        with ThreadPoolExecutor(workers) as pool:
            yield Runner(pool, workers, progress)
        return
    from distributed import Client

    with contextlib.ExitStack() as stack:
        if scheduler is not None:
            try:
                client = stack.enter_context(Client(scheduler, timeout="10s"))
            except (OSError, ValueError) as error:
                raise UserError(
                    f"No Dask scheduler answers at {scheduler}: {error}. Start one "
                    "(`dask scheduler`), correct the address, or leave --scheduler out to run on "
                    "this machine."
                ) from error
            _check_workers(client, scheduler)
        else:
            require_shared_locks("start no other processes (--workers 0)")
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="workflows-"))
            cluster = stack.enter_context(_local_cluster(workers, directory, gpu))
            client = stack.enter_context(Client(cluster))
            client.run(prepare_worker)
        count = len(client.scheduler_info()["workers"])
        runner = Runner(client, max(count, 1), progress, scheduler)
        if scheduler is not None:
            runner.guard_client()
        yield runner


def takes_gpu(device: Device, obstacle: str | None = None) -> bool:
    """Whether frames lie on the GPU (cuDF, dask-cuda), for what `--device` says.

    Args:
      device: auto: where there is a GPU and the packages to use it.
      obstacle: why this work cannot be done there, as the end of a sentence; None: it can.

    Raises:
      UserError: if it is gpu, and cannot be.
    """
    if device == "cpu":
        return False
    why = obstacle or _why_no_gpu_frames()
    if device == "gpu" and why:
        raise UserError(
            f"--device gpu: expected a GPU, cuDF and dask-cuda, and work that they can do; {why}. "
            "Leave --device out: the dataset is the same."
        )
    return why is None


def _why_no_gpu_frames() -> str | None:
    for name in ("cudf", "dask_cuda"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed (the Docker image for GPUs has it)"
    from merlin.core.has_gpu import HAS_GPU

    return None if HAS_GPU else "this machine has no GPU that they see"


def available_memory() -> int:
    """Bytes this process may still take: free memory, or what its control group leaves."""
    free = int(psutil.virtual_memory().available)
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        with contextlib.suppress(OSError, ValueError):  # no limit reads as "max"
            limit = int(Path(limit_file).read_text())
            free = min(free, limit - int(Path(used_file).read_text()))
    return max(free, 0)


def forgo_tensorflow() -> None:
    """Makes NVTabular load without TensorFlow in this process, if neither is loaded yet.

    merlin-core imports TensorFlow when it can (merlin/core/compat/tensorflow.py:26) and goes
    without when it cannot. Nothing here uses it, and it costs each process 3 s and 350 MB. Only
    for processes of our own: what is imported after must not need TensorFlow.
    """
    if "tensorflow" not in sys.modules and "merlin" not in sys.modules:
        sys.modules["tensorflow"] = None  # type: ignore[assignment]


def recall_tensorflow() -> None:
    """Lets what is imported from now on have TensorFlow again, quiet and on the CPU.

    Only `forgo_tensorflow` is undone; where it did nothing, nothing is done.
    """
    if "tensorflow" in sys.modules and sys.modules["tensorflow"] is None:
        del sys.modules["tensorflow"]
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors; not which CPU instructions
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # it would take all of a GPU's memory


def prepare_worker() -> None:
    """Prepares a worker process of our own, before its first task."""
    import pyarrow as pa

    # A terminal's Ctrl-C goes to all; this one ends with the process that started it, in silence.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    forgo_tensorflow()
    warnings.filterwarnings("ignore", message=".*dtype mappings did not load.*")
    pa.set_cpu_count(1)  # the workers are the parallelism


def _local_cluster(workers: int, directory: str, gpu: bool) -> Any:
    import dask
    from distributed import LocalCluster

    # Long tasks that hold the interpreter's lock are how this works, not worth a warning each.
    dask.config.set({"distributed.admin.tick.limit": "60s"})
    options: dict[str, Any] = {
        "local_directory": directory,
        "dashboard_address": "127.0.0.1:0",  # any free port; without one it insists on 8787
        # Without an address, workers serve their state to every network, page or no page.
        "worker_dashboard_address": "127.0.0.1:0",
    }
    if gpu:
        from dask_cuda import LocalCUDACluster

        return LocalCUDACluster(**options)
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        # Partitions are sized to fit. Dask's own measures against full memory (spilling, pausing,
        # killing) go by the process's size, which Arrow's allocator keeps high for reuse.
        memory_limit=0,
        silence_logs=logging.CRITICAL,
        **options,
    )


def _check_workers(client: Any, scheduler: str) -> None:
    found = client.run(_can_import_us)
    if not found:
        raise UserError(
            f"The Dask cluster at {scheduler} has no workers. Start some "
            f"(`dask worker {scheduler}`)."
        )
    if not all(found.values()):
        raise UserError(
            f"Workers of {scheduler} cannot import this package. Start them with PYTHONPATH set "
            "to .venv/src of this checkout, in the same Python environment."
        )


def _can_import_us() -> bool:
    try:
        return importlib.util.find_spec("lookback.workflows.histories.ops") is not None
    except ImportError:
        return False

"""One rank fails, all end: in time, with the error that was first, and nothing is lost.

One run is interrupted, goes on, is killed, and goes on across two machines (network namespaces,
horovodrun's own way to get there), to what a run that nothing disturbed arrives at. Across machines
scripts/run_model.sh starts it, as users do; the other ranks are forks (preloaded.py).
"""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lookback.checkpoints.store import find_checkpoint, open_checkpoint
from lookback.core.faults import INTERRUPTED

pytestmark = pytest.mark.slow

FAULTY = Path(__file__).parent / "faulty.py"
SECONDS_TO_END = 30


@pytest.fixture(scope="module")
def in_peace(launch, kills, dataset, tmp_path_factory) -> Path:
    """The last checkpoint of a run that nothing disturbed."""
    steps = ("--max_steps", "90", "--checkpoint_every", "none")  # the others save there, too
    return kills.in_peace(launch, dataset, tmp_path_factory.mktemp("peace"), 1, *steps)


@dataclasses.dataclass(frozen=True)
class Terminated:
    """The run after Ctrl-C.

    Attributes:
      result: what the command left.
      seconds: until it had ended.
      left_over: its processes that had not.
      directory: for what follows; checkpoints are in `saved`.
      checkpoint: the latest then.
    """

    result: Any
    seconds: float
    left_over: list
    directory: Path
    checkpoint: Path


@pytest.fixture(scope="module")
def terminated(launch, kills, preloaded, dataset, tmp_path_factory) -> Terminated:
    directory = tmp_path_factory.mktemp("war")
    words = kills.arguments(launch, dataset, directory, "terminated", epochs=1)
    with launch.start_script(2, *preloaded, launch.TRAIN, *words) as started:
        started.wait_for_steps(directory / "terminated" / "log.json", 15)
        began = time.monotonic()
        started.press_ctrl_c()
        result = started.finish(SECONDS_TO_END)
        seconds, left_over = time.monotonic() - began, started.left_over()
    saved = find_checkpoint(directory / "saved")
    return Terminated(result, seconds, left_over, directory, saved)


@pytest.fixture(scope="module")
def killed(launch, kills, preloaded, dataset, terminated) -> Path:
    """The run after going on and SIGKILL of one rank, which `kill_one` looks at: its directory."""
    directory = terminated.directory
    words = kills.resumed(launch, dataset, directory, "killed", epochs=1)
    log = directory / "killed" / "log.json"
    kills.kill_one(launch, [*preloaded, launch.TRAIN], words, log, step=12, victim=1)
    return directory


def test_ctrl_c_saves_and_ends_all(launch, in_peace, terminated):
    assert terminated.seconds < SECONDS_TO_END
    assert terminated.result.status == INTERRUPTED, terminated.result.stderr
    said = terminated.result.stderr
    assert "told to end: the processes save a checkpoint first" in said
    assert "Traceback" not in said
    assert said.endswith("ended with status 130: interrupted (Ctrl-C)\n")
    assert not terminated.left_over
    # At the step where it was, not at one of those at which it saves anyway.
    steps = launch.steps_in(terminated.directory / "terminated" / "log.json")
    saved = open_checkpoint(terminated.checkpoint).meta["position"]["total_steps"]
    assert saved == steps
    assert open_checkpoint(in_peace).meta["position"]["total_steps"] > steps


def test_sigkill_loses_nothing_and_two_machines_train_as_one_does_and_end_together(
    launch, kills, dataset, in_peace, killed, two_hosts
):
    last, first = (
        open_checkpoint(path).step for path in (in_peace, find_checkpoint(killed / "saved"))
    )
    words = kills.resumed(launch, dataset, killed, "across", epochs=1000)
    across = launch.Started(
        *(*two_hosts.here, launch.RUN_MODEL, *two_hosts.options),
        *(*words, "--keep_checkpoints", "1000"),
        PATH=two_hosts.path,
    )
    with across:
        across.wait_for_steps(killed / "across" / "log.json", last - first + 1)
        namespaces = {Path(f"/proc/{p.pid}/ns/net").readlink() for p in across.ranks().values()}
        assert len(namespaces) == (2 if two_hosts.how == "namespaces" else 1)
        across.ranks()[0].send_signal(signal.SIGKILL)
        result = across.finish(40)
        assert result.status == 137, result.stderr
        assert "rank 0 ended with status 137: killed (SIGKILL)" in result.stderr
        # No ssh tells the other machine that the job is over: its process finds out by itself.
        assert not across.left_over(30)
    kills.assert_equal(in_peace, killed / "saved" / in_peace.name)


def fail(launch, preloaded, dataset, directory, fault: str, *, step: int = 5):
    """Trains on two ranks, of which the second fails."""
    words = ["--dataset_dir", dataset.name, "--results_dir", str(directory / "run")]
    words += [*launch.TINY_NEUMF, "--epochs", "1000", "--eval_every", "0"]
    script = (*preloaded, FAULTY, str(launch.ROOT), fault, "1", str(step))
    with launch.start_script(2, *script, *words, cwd=dataset.parent) as started:
        if fault != "no_dataset":
            started.wait_for_steps(directory / "run" / "log.json", step)
        began = time.monotonic()
        result = started.finish()
        assert fault == "no_dataset" or time.monotonic() - began < SECONDS_TO_END
        assert not started.left_over()
    return result


def test_an_exception_on_one_rank_is_everybodys(launch, preloaded, dataset, tmp_path):
    result = fail(launch, preloaded, dataset, tmp_path, "memory")
    assert result.status == 2
    said = "memory ran out (no memory for a batch of 3 TB). Lower"
    assert f"[1] error: {said}" in result.stderr
    assert f"\nerror: rank 1 failed: {said}" in result.stderr
    assert result.stderr.endswith("\nrun_model: rank 1 ended with status 2\n")
    assert "Graph execution error" not in result.stderr


def test_a_dataset_that_one_machine_lacks_ends_all_before_training(
    launch, preloaded, dataset, tmp_path
):
    result = fail(launch, preloaded, dataset, tmp_path, "no_dataset")
    assert result.status == 2
    missing = f"{dataset.name} is not a dataset"
    assert f"[1] error: {missing}" in result.stderr
    assert f"\nerror: rank 1 failed: {missing}" in f"\n{result.stderr}"
    assert "Traceback" not in result.stderr
    assert result.stderr.endswith("\nrun_model: rank 1 ended with status 2\n")

"""One rank fails, all end: in time, with the error that was first, and nothing is lost."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from training.checkpoint import find_checkpoint, open_checkpoint
from training.signals import TERMINATED_EXIT_STATUS

FAULTY = Path(__file__).parent / "faulty.py"
SECONDS_TO_END = 30


@pytest.fixture(scope="module")
def in_peace(launch, kills, dataset, tmp_path_factory) -> Path:
    """The last checkpoint of a run that nothing disturbed."""
    return kills.in_peace(launch, dataset, tmp_path_factory.mktemp("peace"), epochs=1)


def test_sigterm_saves_and_sigkill_loses_nothing(launch, kills, dataset, in_peace, tmp_path):
    words = kills.arguments(launch, dataset, tmp_path, "terminated", epochs=1)
    with launch.Started(launch.RUN_MODEL, *words) as started:
        started.wait_for_steps(tmp_path / "terminated" / "log.json", 15)
        began = time.monotonic()
        started.send(signal.SIGTERM)
        result = started.finish(SECONDS_TO_END)
        assert time.monotonic() - began < SECONDS_TO_END
        assert result.status == TERMINATED_EXIT_STATUS, result.stderr
        assert "told to end: the processes save a checkpoint first" in result.stderr
        assert not started.left_over()
    # At the step where it was, not at one of those at which it saves anyway.
    steps = launch.steps_in(tmp_path / "terminated" / "log.json")
    saved = find_checkpoint(tmp_path / "saved")
    assert open_checkpoint(saved).meta["position"]["total_steps"] == steps
    assert open_checkpoint(in_peace).meta["position"]["total_steps"] > steps

    found = kills.kill_and_resume(launch, dataset, tmp_path, epochs=1, kills=1, seed=1)
    kills.assert_equal(in_peace, found)


def fail(launch, dataset, directory, fault: str, *, step: int = 5, **environment: str):
    """Trains on two ranks, of which the second fails."""
    words = ["--dataset_dir", dataset.name, "--results_dir", str(directory / "run")]
    words += [*launch.TINY_DIN, "--epochs", "1000", "--eval_every", "0"]
    script = (FAULTY, str(launch.ROOT), fault, "1", str(step))
    with launch.start_script(2, *script, *words, cwd=dataset.parent, **environment) as started:
        if fault != "no_dataset":
            started.wait_for_steps(directory / "run" / "log.json", step)
        began = time.monotonic()
        result = started.finish()
        assert fault == "no_dataset" or time.monotonic() - began < SECONDS_TO_END
        assert not started.left_over()
    return result


def test_an_exception_on_one_rank_is_everybodys(launch, dataset, tmp_path):
    result = fail(launch, dataset, tmp_path, "memory")
    assert result.status == 1
    assert "[1] MemoryError: no memory for a batch of 3 TB" in result.stderr
    assert "\nerror: rank 1 failed: MemoryError: no memory for a batch of 3 TB\n" in result.stderr
    assert result.stderr.endswith("\nrun_model: rank 1 ended with status 1\n")
    assert "Graph execution error" not in result.stderr


def test_a_dataset_that_one_machine_lacks_ends_all_before_training(launch, dataset, tmp_path):
    result = fail(launch, dataset, tmp_path, "no_dataset")
    assert result.status == 2
    missing = f"{dataset.name} is not a dataset"
    assert f"[1] error: {missing}" in result.stderr
    assert f"\nerror: rank 1 failed: {missing}" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.endswith("\nrun_model: rank 1 ended with status 2\n")

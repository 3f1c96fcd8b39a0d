"""Kills one of two ranks at random steps, resumes, and compares with a run in peace.

The run in peace is this process alone: in micro-batches, the number of ranks leaves no bit
different.

usage: python tests/distributed/kills.py [KILLS] [SEED]     (default: 20 kills, seed 0)

pytest does it with one kill.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SECONDS_TO_END = 30.0


def arguments(
    launch: ModuleType, dataset: Path, directory: Path, name: str, epochs: int
) -> list[str]:
    """A run of epochs of about 170 steps that saves often."""
    words = [
        *("--dataset_dir", dataset, "--results_dir", directory / name, "--micro_batches", 2),
        *(*launch.TINY_NEUMF, "--epochs", epochs, "--eval_every", 0),
        *("--checkpoint_every", 10, "--save_checkpoint_path", directory / "saved"),
    ]
    return [str(word) for word in words]


def in_peace(launch: ModuleType, dataset: Path, directory: Path, epochs: int, *more: str) -> Path:
    """Trains without interruption, in this process; returns the last checkpoint."""
    from lookback import cli
    from lookback.checkpoints.store import find_checkpoint

    cli.train([*arguments(launch, dataset, directory, "run", epochs), *more])
    return find_checkpoint(directory / "saved")


def resumed(
    launch: ModuleType, dataset: Path, directory: Path, name: str, epochs: int
) -> list[str]:
    """Arguments of train.py that continue from the latest checkpoint, if there is one."""
    from lookback.checkpoints.store import find_checkpoint
    from lookback.core.errors import UserError

    words = arguments(launch, dataset, directory, name, epochs)
    try:
        find_checkpoint(directory / "saved")
    except UserError:  # killed before the first
        return words
    return [*words, "--load_checkpoint_path", str(directory / "saved")]


def kill_one(
    launch: ModuleType,
    program: Sequence[str | Path],
    words: list[str],
    log: Path,
    *,
    step: int,
    victim: int,
) -> float:
    """Kills a rank of a program once so many steps are logged.

    Returns:
      The seconds until all had ended.
    """
    with launch.start_script(2, *program, *words) as started:
        started.wait_for_steps(log, step)
        began = time.monotonic()
        started.ranks()[victim].send_signal(signal.SIGKILL)
        result = started.finish(2 * SECONDS_TO_END)
        seconds = time.monotonic() - began
        assert not started.left_over(), result.stderr
    assert seconds < SECONDS_TO_END
    assert result.status == 137, result.stderr
    assert f"rank {victim} ended with status 137: killed (SIGKILL)" in result.stderr
    assert f"error: rank {1 - victim} of 2 lost the connection to another" in result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    return seconds


def kill_and_resume(
    launch: ModuleType,
    dataset: Path,
    directory: Path,
    *,
    epochs: int,
    kills: int,
    seed: int,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Trains with interruptions; returns the last checkpoint."""
    from lookback.checkpoints.store import find_checkpoint

    rng = random.Random(seed)
    slowest = 0.0
    for number in range(kills):
        words = resumed(launch, dataset, directory, f"killed-{number}", epochs)
        step, victim = rng.randint(1, 25), rng.randrange(2)
        log = directory / f"killed-{number}" / "log.json"
        seconds = kill_one(launch, [launch.TRAIN], words, log, step=step, victim=victim)
        slowest = max(slowest, seconds)
        say(f"kill {number + 1}: rank {victim} at its step {step}; all ended in {seconds:.1f} s")
    result = launch.run_model(
        "--np", "2", "--bind", "none", *resumed(launch, dataset, directory, "last", epochs)
    )
    assert result.status == 0, result.stderr
    say(f"{kills} kills; the slowest end took {slowest:.1f} s")
    return find_checkpoint(directory / "saved")


def assert_equal(expected: Path, found: Path) -> None:
    """Holds two checkpoints equal: weights and optimizer state, bit for bit."""
    from lookback.checkpoints.store import open_checkpoint

    one, two = open_checkpoint(expected), open_checkpoint(found)
    assert expected.name == found.name
    assert set(one) == set(two)
    different = [name for name in one if (one[name] != two[name]).any()]
    assert not different


def main() -> None:
    """Does it as often as asked."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    warnings.filterwarnings("ignore", message=".*dtype mappings did not load.*")
    sys.path[:0] = [str(ROOT), str(HERE)]
    import conftest
    import launch

    spec = importlib.util.spec_from_file_location("factories", ROOT / "tests" / "conftest.py")
    assert spec is not None and spec.loader is not None
    factories = importlib.util.module_from_spec(spec)
    sys.modules["factories"] = factories
    spec.loader.exec_module(factories)
    kills, seed = (int(word) for word in (*sys.argv[1:], *("20", "0")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        make_histories = factories.make_histories.__wrapped__(factories.make_schema.__wrapped__())
        write = factories.write_dataset.__wrapped__()
        dataset = conftest.write_tiny_dataset(make_histories, write, directory / "dataset")
        epochs = 1 + kills // 8  # more steps than the kills let happen
        expected = in_peace(launch, dataset, directory / "peace", epochs)
        found = kill_and_resume(
            *(launch, dataset, directory / "war"), epochs=epochs, kills=kills, seed=seed, say=print
        )
        assert_equal(expected, found)
        print(f"{found.name}: weights and optimizer state equal the run in peace, bit for bit")


if __name__ == "__main__":
    main()

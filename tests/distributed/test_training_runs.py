"""Whole runs on several ranks: what they train, save, continue, score and export.

Runs on different numbers of ranks add float32 numbers up in another order, and Adam divides by the
square root of what may be almost nothing: their weights agree to 1e-5.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lookback.checkpoints.store import Checkpoint, find_checkpoint, open_checkpoint
from tests.serving.tabular_data import write_dataset

pytestmark = pytest.mark.slow

MANY_RUNS = Path(__file__).parent / "many_runs.py"
LENGTHS = (9, 5)  # of the window: all slots, those of the long sequence
EPOCHS = 3
TINY_DLRM = (
    *("--model_type", "dlrm", "--embedding_dim", "4", "--bottom_mlp_sizes", "6,4"),
    *("--top_mlp_sizes", "8,1", "--global_batch_size", "200", "--micro_batches", "4"),
    *("--optimizer", "adagrad", "--lr", "0.1", "--warmup_steps", "0", "--seed", "3"),
)
TINY_NEUMF = (
    *("--model_type", "neumf", "--factors", "4", "--layers", "8,6", "--global_batch_size", "550"),
    *("--micro_batches", "4", "--lr", "0.01", "--test_negatives", "20", "--seed", "3"),
    *("--exact_negatives", "--full_catalogue"),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Reviews that went through the real workflow, without which nothing can be exported."""
    from lookback.workflows.pipeline import run_dataset

    rng = np.random.default_rng(0)
    directory = tmp_path_factory.mktemp("data")
    raw = directory / "raw"
    raw.mkdir()
    reviews = [
        {"reviewerID": f"U{user}", "asin": f"B{rng.integers(60)}", "unixReviewTime": 10**9 + event}
        for user in range(61)
        for event in range(rng.integers(5, 15))
    ]
    items = [{"asin": f"B{item}", "categories": [["All", f"C{item % 5}"]]} for item in range(60)]
    for name, rows in (("reviews", reviews), ("meta", items)):
        (raw / f"{name}_Test.json").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    run_dataset("amazon", raw, directory / "dataset", min_interactions=5, workers=0)
    return directory / "dataset"


@dataclasses.dataclass(frozen=True)
class Runs:
    """Where the runs of this file are, each in a directory of its name."""

    root: Path
    dataset: Path
    rows: Path
    tiny: tuple[str, ...]

    def words(self, name: str, *more: object, saves: bool = False) -> list[str]:
        """Arguments of train.py."""
        words = [*self._paths(name, self.dataset, saves), *self.tiny, *more]
        return [str(word) for word in words]

    def loaded(self, name: str, mode: str, of: str) -> list[str]:
        """Arguments that score with another run's weights."""
        return self.words(name, "--mode", mode, "--load_checkpoint_path", self.saved(of))

    def dlrm(self, name: str) -> list[str]:
        """Arguments of train.py for DLRM, so that the number of ranks leaves no bit different."""
        words = [*self._paths(name, self.rows, True), *TINY_DLRM, "--epochs", 1]
        return [str(word) for word in words]

    def neumf(self, name: str, *more: str) -> list[str]:
        """Arguments of train.py for NeuMF, likewise, dropout included."""
        words = [*self._paths(name, self.dataset, True), *TINY_NEUMF, "--epochs", 1, *more]
        return [str(word) for word in words]

    def _paths(self, name: str, dataset: Path, saves: bool) -> list[object]:
        saved = ["--save_checkpoint_path", self.root / name / "saved"] if saves else []
        return ["--dataset_dir", dataset, "--results_dir", self.root / name, *saved]

    def saved(self, name: str, epoch: int | None = None) -> Path:
        """A run's checkpoint after `epoch` epochs; the last one without."""
        directory = self.root / name / "saved"
        if epoch is None:
            return find_checkpoint(directory)
        return sorted(directory.glob("step-*"))[epoch - 1]

    def checkpoint(self, name: str, epoch: int | None = None) -> Checkpoint:
        return open_checkpoint(self.saved(name, epoch))

    def scores(self, name: str) -> np.ndarray:
        """Users, labels and logits of an inference run, in the order of users."""
        table = pq.read_table(self.root / name / "scores.parquet").to_pandas()
        columns = ["user_id_row", "label", "logit"]
        return table[columns].sort_values(columns).to_numpy()


@pytest.fixture(scope="module")
def refused() -> dict[str, Any]:
    """Where `runs` leaves what two ranks said of their last run, whose tables fit nowhere."""
    return {}


@pytest.fixture(scope="module")
def runs(launch, forked, preloaded, dataset, refused, running_eagerly, tmp_path_factory) -> Runs:
    """Runs on 1, 2, 3 and again 1 ranks, each of which continues some that came before.

    Two are launched as users do it, three are not, but all are forks; one is this process.
    One run of DIN and one of DLRM have graphs on one and on two ranks; a dozen steps of the others
    are no reason for any. In graphs, NeuMF is the same to the bit in test_failures.py.
    """
    from lookback import cli

    rows = write_dataset(tmp_path_factory.mktemp("rows"))
    runs = Runs(tmp_path_factory.mktemp("runs"), dataset, rows, launch.TINY_DIN)

    def alone(words_of_runs: list[list[str]]) -> None:
        for words in words_of_runs:
            cli.train(words)

    def execute(command: Any, status: int = 0) -> Any:
        with command as started:
            result = started.finish(600)
        assert result.status == status, result.stderr
        return result

    def written(words_of_runs: list[list[str]]) -> tuple[str, str]:
        file = runs.root / f"runs-{len(list(runs.root.glob('runs-*')))}.json"
        file.write_text(json.dumps(words_of_runs))
        return str(launch.ROOT), str(file)

    alone([runs.words("one", "--epochs", 2, saves=True), runs.dlrm("dlrm-one")])
    two = launch.start_script(2, *preloaded, MANY_RUNS, *written(of_two_ranks(runs)))
    refused["result"] = execute(two, status=2)
    continued = ("--load_checkpoint_path", runs.saved("two", 1), "--epochs", 2)
    words = written([["eagerly", *runs.words("two-three", *continued, saves=True)]])
    with forked.rendezvous([3]) as servers:
        execute(launch.Started(sys.executable, MANY_RUNS, *words, *servers))
    three = ("--load_checkpoint_path", runs.saved("two-three"))
    with running_eagerly():
        alone([runs.neumf("neumf-one")])
        alone([runs.words("two-three-one", *three, "--epochs", EPOCHS, saves=True)])
        alone([runs.loaded(f"inferred-{name}", "inference", of=name) for name in ("one", "two")])
    return runs


def of_two_ranks(runs: Runs) -> list[list[str]]:
    """Everything that two ranks are to do."""
    first = ("--load_checkpoint_path", runs.saved("one", 1))
    within = ("--strategies", "row_wise", "--memory", "20kB", "--wire_dtype", "bfloat16")
    exported = ("--export_dir", runs.root / "two-exported")
    return [
        runs.words("two", "--epochs", EPOCHS, *exported, saves=True),
        ["eagerly", *runs.words("one-two", *first, "--epochs", 2, "--prefetch_ids", saves=True)],
        ["eagerly", *runs.words("bfloat16", "--epochs", 1, *within, saves=True)],
        ["eagerly", *runs.words("sharded", "--epochs", 1, "--shard_histories", saves=True)],
        ["eagerly", *runs.loaded("evaluated-by-two", "evaluate", of="one")],
        ["eagerly", *runs.loaded("inferred-by-two", "inference", of="one")],
        runs.dlrm("dlrm-two"),
        ["eagerly", *runs.neumf("neumf-two", "--strategies", "row_wise")],
        runs.words("refused", "--strategies", "table_wise", "--memory", "3kB"),
    ]


def assert_close(one: Checkpoint, other: Checkpoint, tolerance: float = 1e-5) -> None:
    """Holds weights and optimizer state equal, and the place where the runs stand."""
    assert one.meta["position"] == other.meta["position"]
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=tolerance, rtol=0, err_msg=name)


def test_a_run_does_not_depend_on_the_number_of_ranks(runs):
    for epoch in (1, 2):
        assert_close(runs.checkpoint("one", epoch), runs.checkpoint("two", epoch))


@pytest.mark.parametrize(
    ("continued", "whole", "epoch"),
    [("one-two", "one", 2), ("two-three", "two", 2), ("two-three-one", "two", 3)],
)
def test_a_run_continues_on_another_number_of_ranks(runs, continued, whole, epoch):
    assert_close(runs.checkpoint(continued), runs.checkpoint(whole, epoch))


@pytest.mark.parametrize("model", ["dlrm", "neumf"])
def test_in_micro_batches_a_model_is_the_same_to_the_bit(launch, runs, model):
    one, two = runs.checkpoint(f"{model}-one"), runs.checkpoint(f"{model}-two")
    assert set(one) == set(two)
    for name in one:
        np.testing.assert_array_equal(two[name], one[name], err_msg=name)
    logs = [runs.root / f"{model}-{ranks}" / "log.json" for ranks in ("one", "two")]
    losses = [launch.losses(log) for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) > 3
    alone, shared = (launch.summary_of(log) for log in logs)
    evaluated = [name for name in alone if name.startswith("test_")]
    assert {"test_auc", "test_rows"} <= {*evaluated} or {"test_hr@10", "test_catalogue_hr@10"} <= {
        *evaluated
    }
    for name in evaluated:
        assert shared[name] == pytest.approx(alone[name], abs=1e-6), name


def test_half_the_bytes_and_a_memory_limit(launch, runs):
    plain = launch.losses(runs.root / "two" / "log.json")
    half = launch.losses(runs.root / "bfloat16" / "log.json")
    assert half != plain[: len(half)]
    # bfloat16 keeps 8 bits of a number, and a vector on which it rounds otherwise trains otherwise.
    np.testing.assert_allclose(half, plain[: len(half)], rtol=1e-2)


def test_sharded_histories_train_and_evaluate_every_user(launch, runs):
    sharded = launch.summary_of(runs.root / "sharded" / "log.json")
    assert sharded["test_rows"] == launch.summary_of(runs.root / "two" / "log.json")["test_rows"]
    # Adam's second moment of a user's row is above 0 if the user was ever trained on.
    trained, expected = (
        (runs.checkpoint(name, 1)["optimizer/user_id/v"] > 0).any(1) for name in ("sharded", "two")
    )
    assert (trained == expected).all()
    assert trained.sum() == 61


def test_evaluation_is_exact(launch, runs):
    one = launch.summary_of(runs.root / "one" / "log.json")
    two = launch.summary_of(runs.root / "evaluated-by-two" / "log.json")
    for name in ("test_auc", "test_gauc", "test_log_loss", "test_rows", "test_gauc_groups"):
        assert two[name] == pytest.approx(one[name], abs=1e-6), name


def test_inference_scores_every_row_once(runs):
    one, two = runs.scores("inferred-one"), runs.scores("inferred-by-two")
    assert len(two) == len(one)
    np.testing.assert_allclose(two, one, atol=1e-6)


def test_the_export_of_two_ranks_predicts_as_their_checkpoint(runs):
    from lookback.dataloading.histories.resident import Histories
    from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig
    from lookback.serving.bundle import Bundle

    windows = WindowBuilder(Histories.load(runs.dataset), WindowConfig(*LENGTHS))
    rows = 2 * windows.num_samples("test")
    batch, _ = windows.eval_batch("test", 0, 0, rows, 1)
    inputs = {name: value.numpy() for name, value in batch.items()}
    logits, _ = Bundle.load(runs.root / "two-exported").predict(inputs)
    users = np.repeat(inputs["user_id"], 2)
    labels = np.tile([1, 0], len(inputs["user_id"]))
    found = np.stack([users, labels, logits.ravel()], 1)
    found = found[np.lexsort(found.T[::-1])]
    np.testing.assert_allclose(found, runs.scores("inferred-two"), atol=1e-6)


def test_what_does_not_fit_whole_is_refused_with_advice(runs, refused):
    result = refused["result"]
    assert result.status == 2
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr
    assert "row_wise" in result.last_error
    assert "--memory" in result.last_error or "memory" in result.last_error
    assert result.stderr.count("run_model: rank ") == 1

"""What MLflow gets of a run, read back from a file store."""

from __future__ import annotations

import io

import pytest

from lookback import cli
from lookback.core.errors import UserError
from lookback.training.output import mlflow_tracker
from lookback.training.output.logging import RunLogger, read_log
from lookback.training.output.mlflow_tracker import MlflowTracker
from tests.training.test_seeds import TINY
from tests.training.test_trainer import dataset as dataset

pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty file store, and what reads it."""
    monkeypatch.setenv(mlflow_tracker.URI, (tmp_path / "store").as_uri())
    monkeypatch.delenv(mlflow_tracker.EXPERIMENT, raising=False)
    from mlflow.tracking import MlflowClient

    return MlflowClient()


def runs(store, experiment="lookback"):
    found = store.get_experiment_by_name(experiment)
    return [store.get_run(info.run_id) for info in store.list_run_infos(found.experiment_id)]


def history(store, run, metric):
    return [(m.step, m.value) for m in store.get_metric_history(run.info.run_id, metric)]


def test_a_run_sends_its_options_and_metrics(dataset, store, tmp_path, capsys):
    words = ["--dataset_dir", str(dataset), *TINY, "--seed", "4", "--epochs", "2"]
    cli.train([*words, "--results_dir", str(tmp_path / "run")])
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.runName"] == "din on dataset, seed 4"
    assert run.data.params["seed"] == "4"
    assert run.data.params["stage_two_mlp_dims"] == "[4]"
    records = read_log(tmp_path / "run" / "log.json")
    steps = [r for r in records if len(r.step) == 2]
    assert history(store, run, "step/total_loss") == [
        (number, r.data["total_loss"]) for number, r in enumerate(steps)
    ]
    (summary,) = (r.data for r in records if not r.step)
    assert run.data.metrics["test_auc"] == summary["test_auc"]
    assert "warning" not in capsys.readouterr().err


def test_names_batches_and_ends(store, tmp_path, monkeypatch):
    monkeypatch.setenv(mlflow_tracker.EXPERIMENT, "mine")
    tracker = MlflowTracker("name", {"tag": "x"})
    options = {f"o{number}": "v" * 300 for number in range(150)}
    log = RunLogger(
        tmp_path, tensorboard=False, trackers=[tracker], terminal=io.StringIO(), steps_per_epoch=9
    )
    with pytest.raises(RuntimeError), log:
        log.options(options)
        for step in range(1200):
            log.step(0, step, {"loss": step / 8, "said": None})
        log.epoch(0, {"test_hr@10": 0.25})
        raise RuntimeError
    (run,) = runs(store, "mine")
    assert (run.info.status, run.data.tags["tag"]) == ("FAILED", "x")
    assert len(run.data.params) == 150
    assert history(store, run, "step/loss") == [(step, step / 8) for step in range(1200)]
    assert run.data.metrics["epoch/test_hr_at_10"] == 0.25


def test_what_fails_on_the_way_costs_a_line(store, monkeypatch, capsys):
    def broken(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(type(store), "log_batch", broken)
    tracker = MlflowTracker("name", {})
    tracker.options({"lr": 0.1})
    tracker.options({"lr": 0.1})
    tracker.close()
    said = capsys.readouterr().err
    assert said == "warning: what MLflow gets of this run ends here: OSError: no route\n"


def test_without_mlflow_whoever_asks_for_it_is_told(dataset, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mlflow_tracker.importlib.util, "find_spec", lambda name: None)
    words = ["--dataset_dir", str(dataset), *TINY, "--mode", "train"]
    with pytest.raises(UserError, match=r"tracker: expected mlflow, an extra: pip install"):
        cli.train([*words, "--tracker", "mlflow", "--results_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
    cli.train([*words, "--results_dir", str(tmp_path / "run")])
    assert "MLFLOW_TRACKING_URI is set and nothing is sent there: expected mlflow" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_none_sends_nothing(dataset, store, tmp_path):
    words = ["--dataset_dir", str(dataset), *TINY, "--tracker", "none"]
    cli.train([*words, "--results_dir", str(tmp_path / "run")])
    assert store.get_experiment_by_name("lookback") is None


def test_a_store_that_cannot_be_had_is_refused_only_if_it_was_named(
    dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(mlflow_tracker.URI, "nonsense://x")
    words = ["--dataset_dir", str(dataset), *TINY, "--results_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="tracker: expected to begin a run, received of MLflow at"):
        cli.train([*words, "--tracker", "mlflow"])
    cli.train(words)
    assert "warning: nothing is sent to MLflow at nonsense://x" in capsys.readouterr().out

"""Runs with several seeds: what is summed up is what the runs' own logs say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import ks_2samp

from lookback import cli
from lookback.core.errors import UserError
from lookback.core.options import parse
from lookback.training.output.logging import read_log
from lookback.training.run import command_line
from lookback.training.seeds import plot, run_seeds, summary_of, table
from tests.training.test_trainer import dataset as dataset

pytestmark = pytest.mark.usefixtures("eagerly")

TINY = (
    *("--model_type", "din", "--embedding_dim", "2", "--max_seq_length", "4", "--epochs", "1"),
    *("--long_seq_length", "2", "--stage_two_mlp_dims", "4", "--global_batch_size", "64"),
)


def in_here(words, terminal, ends):
    terminal.write_text("said\n")
    cli.train(words)
    return 0


@pytest.fixture(scope="module")
def done(dataset, tmp_path_factory):
    import tensorflow as tf

    directory = tmp_path_factory.mktemp("seeds")
    argv = ["--dataset_dir", str(dataset), *TINY, "--seeds", "3", "--seed", "5"]
    argv += ["--compare", "--lr 0.5"]
    run, *_ = parse(argv, command_line())
    tf.config.run_functions_eagerly(True)
    path = run_seeds(argv, run, directory, start=in_here)
    tf.config.run_functions_eagerly(False)
    return directory, json.loads(path.read_text())


@pytest.mark.slow
def test_each_side_has_a_run_for_each_seed(done):
    directory, content = done
    assert content["seeds"] == [5, 6, 7]
    assert content["options"] == {"base": "", "compared": "--lr 0.5"}
    for side, rate in (("base", 0.001), ("compared", 0.5)):
        for seed, found in zip(content["seeds"], content["runs"][side], strict=True):
            records = read_log(directory / side / f"seed-{seed}" / "log.json")
            (expected,) = [r.data for r in records if not r.step]
            assert found == expected
            steps = [r.data for r in records if len(r.step) == 2]
            assert all(r["lr"] == pytest.approx(rate) for r in steps)
    assert (directory / "seeds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_figures_are_numpys_and_scipys(done):
    _, content = done
    summary = content["metrics"]
    assert {"test_auc", "test_gauc", "test_log_loss"} == set(summary)
    values = {s: [r["test_auc"] for r in content["runs"][s]] for s in ("base", "compared")}
    assert len({*values["base"]}) > 1, "seeds make a difference"
    for side, of_side in values.items():
        found = summary["test_auc"][side]
        assert found["mean"] == pytest.approx(np.mean(of_side))
        assert found["std"] == pytest.approx(np.std(of_side, ddof=1))
        assert (found["min"], found["max"]) == (min(of_side), max(of_side))
    expected = ks_2samp(values["base"], values["compared"]).pvalue
    assert summary["test_auc"]["ks_p_value"] == pytest.approx(expected)
    difference = np.mean(values["compared"]) - np.mean(values["base"])
    assert summary["test_auc"]["difference"] == pytest.approx(difference)


def test_a_metric_that_a_run_lacks_is_left_out():
    runs = {"base": [{"test_auc": 0.5, "test_mrr": 0.1}, {"test_auc": None, "test_mrr": 0.3}]}
    summary = summary_of(runs)
    assert list(summary) == ["test_mrr"]
    assert summary["test_mrr"]["base"]["mean"] == pytest.approx(0.2)
    assert "test_mrr" in table(summary)
    assert len(plot({"base": [{"test_mrr": 0.1}, {"test_mrr": 0.3}]}).axes) == 1


def test_a_run_that_fails_is_named_with_what_it_said(dataset, tmp_path):
    argv = ["--dataset_dir", str(dataset), *TINY, "--seeds", "2"]
    run, *_ = parse(argv, command_line())

    def fails(words, terminal, ends):
        terminal.write_text("error: no room\n")
        return 2

    with pytest.raises(UserError, match=r"seed 0 .*status 2: error: no room"):
        run_seeds(argv, run, tmp_path, start=fails)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seeds", "1"), "seeds: expected an integer, 2 or more"),
        (("--compare", "--amp"), "compare"),
        (("--seeds", "2", "--compare", "--lr fast"), "lr"),
        (("--seeds", "2", "--compare", "'"), "compare: expected options"),
        (("--seeds", "2", "--export_dir", "bundle"), "seeds"),
        (("--seeds", "2", "--mode", "evaluate", "--load_checkpoint_path", "x"), "seeds"),
    ],
)
def test_mistakes_are_told_before_the_first_run(dataset, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        cli.train(["--dataset_dir", str(dataset), *TINY, *more])
    assert not list(tmp_path.glob("runs/*/*"))

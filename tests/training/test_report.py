from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from lookback.training.evaluation.metrics import roc_curve
from lookback.training.output.logging import LogRecord
from lookback.training.output.report import (
    evaluation_plot,
    evaluations,
    learning_curve,
    roc_plot,
    training_loss,
    write_report,
)


def records(epochs: int = 3, steps: int = 200) -> list[LogRecord]:
    rng = np.random.default_rng(0)
    result = []
    for epoch in range(epochs):
        for step in range(steps):
            place = epoch * steps + step
            loss = 0.45 + 0.6 * np.exp(-place / 90) + 0.03 * rng.normal()
            result.append(LogRecord((epoch, step), {"total_loss": float(loss)}, float(place)))
        data = {
            "test_auc": 0.81 - 0.13 * 0.4**epoch,
            "test_gauc": 0.79 - 0.12 * 0.4**epoch,
            "train_auc": 0.86 - 0.14 * 0.4**epoch,
            "test_log_loss": 0.5 + 0.1 * 0.4**epoch,
            "test_catalogue_hr@10": 0.3 + 0.05 * epoch,
            "throughput": 9000.0,
        }
        result.append(LogRecord((epoch,), data, 0.0))
    return [*result, LogRecord((), {"time_to_train": 1.0}, 0.0)]


def curves() -> dict:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 5000)
    return {
        name: roc_curve(labels, rng.normal(size=5000) + shift * labels)
        for name, shift in (("test", 1.2), ("train", 1.5))
    }


def test_the_report_has_plots_and_figures(tmp_path):
    roc = curves()
    metrics = {"test_auc": np.float32(0.5), "bad": float("nan"), "dir": Path("x"), "dims": (1, 2)}
    directory = write_report(
        *(tmp_path, records()),
        metrics=metrics,
        roc=roc,
        baselines={"test_auc": 0.6},
        title="sim on synthetic",
    )
    assert directory == tmp_path / "report"
    assert sorted(path.name for path in directory.iterdir()) == [
        *("learning_curve.png", "metrics.json", "roc.png")
    ]
    content = json.loads((directory / "metrics.json").read_text())
    assert content["results"] == {"test_auc": 0.5, "bad": None, "dir": "x", "dims": [1, 2]}
    assert [epoch["epoch"] for epoch in content["epochs"]] == [0, 1, 2]
    assert content["epochs"][1]["test_auc"] == pytest.approx(0.758)
    assert content["steps"] == 600
    assert content["roc_auc"] == {name: curve.auc for name, curve in roc.items()}
    assert content["popularity"] == {"test_auc": 0.6}
    for name in ("learning_curve.png", "roc.png"):
        pixels = image.imread(directory / name)
        assert 0.02 < np.mean(pixels[..., :3] < 0.9) < 0.5  # something is drawn


def labels_of(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_the_learning_curve_draws_what_was_logged():
    given = records(steps=20)
    figure = learning_curve(given, baselines={"test_auc": 0.6, "test_catalogue_hr@10": 0.1})
    losses, aucs, rankings = figure.axes
    steps = [record for record in given if len(record.step) == 2]
    training, evaluated = losses.lines
    np.testing.assert_array_equal(training.get_xdata(), np.arange(1, 61))
    np.testing.assert_array_equal(training.get_ydata(), [r.data["total_loss"] for r in steps])
    np.testing.assert_array_equal(evaluated.get_xdata(), [20, 40, 60])  # on the scale of training
    assert labels_of(losses) == ["training", "test log loss (last 0.5160)"]
    assert (losses.get_xlabel(), losses.get_ylabel()) == ("Training step", "Loss (nats)")
    assert labels_of(aucs) == [
        *("test AUC (last 0.7892; popularity, dashed: 0.6000)", "test GAUC (last 0.7708)"),
        *("train AUC (last 0.8376)", "chance (0.5)"),
    ]
    dashed, measured, *_ = aucs.lines
    assert (list(dashed.get_ydata()), dashed.get_color()) == ([0.6, 0.6], measured.get_color())
    np.testing.assert_array_equal(measured.get_xdata(), [1, 2, 3])
    (label,) = labels_of(rankings)
    assert label == "test catalogue HR@10 (last 0.4000; popularity, dashed: 0.1000)"
    assert list(rankings.lines[0].get_ydata()) == [0.1, 0.1]


def test_evaluations_within_an_epoch_stand_where_they_were():
    given = [LogRecord((0, step), {"total_loss": 1.0}, 0.0) for step in range(4)]
    given[1] = LogRecord((0, 1), {"total_loss": 1.0, "test_auc": 0.6}, 0.0)
    curves = evaluations([*given, LogRecord((0,), {"test_auc": 0.7}, 0.0)])
    np.testing.assert_array_equal(curves["test_auc"], [[0.5, 1.0], [0.6, 0.7]])


def test_the_short_last_batch_of_an_epoch_is_no_spike():
    given = [
        LogRecord((epoch, step), {"total_loss": loss, "rows": rows}, 0.0)
        for epoch in range(2)
        for step, (loss, rows) in enumerate([(1.0, 90), (1.0, 90), (9.0, 10)])
    ]
    curve, rows = training_loss(given, "total_loss")
    np.testing.assert_array_equal(curve.x, [1, 2, 4, 5])
    np.testing.assert_allclose(curve.y, [1.0, (90 + 9 * 10) / 100, 1.0, 1.8])
    np.testing.assert_array_equal(rows, [90, 100, 90, 100])


def test_the_loss_is_the_heads_without_what_the_model_adds():
    data = {"total_loss": 1.5, "classification_loss": 1.0, "auxiliary_loss": 0.5}
    given = [LogRecord((0, s), data, 0.0) for s in range(3)]
    (losses, *_) = learning_curve(given).axes
    np.testing.assert_array_equal(losses.lines[0].get_ydata(), [1.0] * 3)
    (whole, *_) = learning_curve(given, head_weight=0.5).axes  # as SIM's
    np.testing.assert_array_equal(whole.lines[0].get_ydata(), [2.0] * 3)
    assert labels_of(losses) == ["training, classification loss"]


def test_an_evaluation_shows_what_was_evaluated(tmp_path):
    metrics = {"test_auc": 0.8, "test_hr@10": 0.3, "test_log_loss": 0.4, "test_rows": 1000}
    (axis,) = evaluation_plot(metrics, baselines={"test_auc": 0.6, "test_hr@10": 0.1}).axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == [
        *("test AUC", "test HR@10", "popularity, test AUC", "popularity, test HR@10"),
        "chance (AUC)",
    ]
    assert [bar.get_width() for bar in axis.patches] == [0.8, 0.3, 0.6, 0.1, 0.5]
    assert axis.get_xlabel() == "test log loss 0.4   test rows 1,000"
    write_report(tmp_path, [LogRecord((), metrics, 0.0)], metrics=metrics)
    found = {path.name for path in (tmp_path / "report").iterdir()}
    assert found == {"evaluation.png", "metrics.json"}


def test_the_roc_plot_draws_the_curves_with_their_areas():
    roc = curves()
    (axis,) = roc_plot(roc).axes
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), roc["test"].true_positive_rate)
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels[0] == f"test (AUC {roc['test'].auc:.4f})"
    assert labels[-1] == "chance (AUC 0.5)"


def test_a_run_without_steps_or_evaluation_has_a_report_too(tmp_path):
    nothing = [LogRecord((0, 0), {"total_loss": None}, 0.0), LogRecord((0,), {"auc": None}, 0.0)]
    for name, given, plot in (
        ("a", [], "evaluation.png"),
        ("b", records(1, 1)[:1], "learning_curve.png"),
        ("c", nothing, "learning_curve.png"),
    ):
        write_report(tmp_path / name, given, metrics={})
        assert (tmp_path / name / "report" / plot).stat().st_size > 1000
        assert not (tmp_path / name / "report" / "roc.png").exists()


def test_equal_runs_give_equal_bytes(tmp_path):
    for name in "ab":
        write_report(tmp_path / name, records(steps=10), metrics={}, roc=curves())
    for file in (tmp_path / "a" / "report").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "report" / file.name).read_bytes()


def test_importing_the_report_loads_no_matplotlib():
    code = "import sys, lookback.training.output.report; print('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"

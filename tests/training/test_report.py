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
from lookback.training.output.report import learning_curve, roc_plot, write_report


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
        tmp_path, records(), metrics=metrics, roc=roc, title="sim on synthetic"
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
    for name, size in (("learning_curve.png", (600, 1440)), ("roc.png", (750, 780))):
        pixels = image.imread(directory / name)
        assert pixels.shape[:2] == size
        assert 0.02 < np.mean(pixels[..., :3] < 0.9) < 0.5  # something is drawn


def test_the_learning_curve_draws_what_was_logged():
    given = records(steps=20)
    steps = [record for record in given if len(record.step) == 2]
    epochs = [record for record in given if len(record.step) == 1]
    figure = learning_curve(steps, epochs)
    losses, aucs = figure.axes
    line = losses.lines[0]
    np.testing.assert_array_equal(line.get_xdata(), np.arange(60))
    np.testing.assert_array_equal(line.get_ydata(), [r.data["total_loss"] for r in steps])
    assert (losses.get_xlabel(), losses.get_ylabel()) == ("Training step", "Total loss (nats)")
    drawn = {line.get_label(): line for line in aucs.lines}
    assert list(drawn) == [
        *("test AUC (last 0.7892)", "test GAUC (last 0.7708)", "train AUC (last 0.8376)")
    ]
    np.testing.assert_array_equal(drawn["test AUC (last 0.7892)"].get_xdata(), [1, 2, 3])


def test_the_roc_plot_draws_the_curves_with_their_areas():
    roc = curves()
    (axis,) = roc_plot(roc).axes
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), roc["test"].true_positive_rate)
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels[0] == f"test (AUC {roc['test'].auc:.4f})"
    assert labels[-1] == "chance (AUC 0.5)"


def test_a_run_without_steps_or_evaluation_has_a_report_too(tmp_path):
    write_report(tmp_path / "a", [], metrics={})
    write_report(tmp_path / "b", records(1)[-2:], metrics={})
    write_report(tmp_path / "c", records(1, 1)[:1], metrics={})
    nothing = [LogRecord((0, 0), {"total_loss": None}, 0.0), LogRecord((0,), {"auc": None}, 0.0)]
    write_report(tmp_path / "d", nothing, metrics={})
    for name in "abcd":
        assert (tmp_path / name / "report" / "learning_curve.png").stat().st_size > 1000
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

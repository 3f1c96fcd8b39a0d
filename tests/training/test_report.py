from __future__ import annotations

import base64
import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score

from lookback.training.evaluation.found import AttentionFound, Stratum
from lookback.training.evaluation.metrics import Curves, ScoreAccumulator
from lookback.training.outcome import Outcome
from lookback.training.output.evaluation_plots import (
    attention_plot,
    calibration_plot,
    precision_recall_plot,
    roc_plot,
    strata_plot,
)
from lookback.training.output.logging import LogRecord
from lookback.training.output.plots import (
    evaluation_plot,
    evaluations,
    learning_curve,
    training_loss,
)
from lookback.training.output.report import RunDescription, write_report

pytestmark = pytest.mark.usefixtures("drawing")


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


SHIFTS = {"test": 1.2, "train": 1.5}


def scored(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits of an evaluation."""
    rng = np.random.default_rng(list(SHIFTS).index(name))
    labels = rng.integers(0, 2, 5000)
    return labels, (rng.normal(size=5000) + SHIFTS[name] * (labels - 0.5)).astype(np.float32)


def curves() -> dict[str, Curves]:
    found = {}
    for name in SHIFTS:
        scores = ScoreAccumulator()
        scores.update(*scored(name))
        found[name] = scores.curves()
    return found


STRATA = {
    "history_length": [Stratum(1, 4, 40, 20, 0.6), Stratum(5, 9, 60, 30, 0.7)],
    "item_popularity": [Stratum(0, 0, 30, 0, None), Stratum(1, 1200, 70, 50, 0.8)],
}


def attention() -> AttentionFound:
    recency = np.array([[8.0, 8, 4], [6, 4, 0], [5, 1, 0]])
    time_gap = np.zeros((3, 34))
    time_gap[:, 18], time_gap[:, 25] = [8, 6, 5], [12, 4, 1]
    categories = np.array([[0.0, 10, 4, 6], [0, 8, 0, 2], [0, 1.5, 0, 4.5]])
    return AttentionFound(
        "test", 8, True, recency, time_gap, np.array([5.0, 5, 3]), categories, "category_id"
    )


def everything() -> Outcome:
    metrics = {"test_auc": np.float32(0.5), "bad": float("nan"), "dir": Path("x"), "dims": (1, 2)}
    return Outcome(
        metrics, curves(), {"test_auc": 0.6}, {"test": STRATA}, attention(), ["it <i>fell</i>"]
    )


DESCRIBED = RunDescription(
    title="sim on <synthetic> & more",
    subtitle="adam",
    options={"lr": 0.1, "stage_two_mlp_dims": (200, 80), "features": None, "seed": 1234567},
    changed=["lr", "seed"],
    category_names={3: "Books & <Films>"},
)


@pytest.fixture(scope="module")
def report(drawing, tmp_path_factory) -> Path:
    return write_report(tmp_path_factory.mktemp("run"), records(), everything(), DESCRIBED)


def test_the_report_has_plots_and_figures(report):
    found = curves()
    assert sorted(path.name for path in report.iterdir()) == [
        *("attention.png", "calibration.png", "index.html", "learning_curve.png", "metrics.json"),
        *("precision_recall.png", "roc.png", "strata.png"),
    ]
    content = json.loads((report / "metrics.json").read_text())
    assert content["results"] == {"test_auc": 0.5, "bad": None, "dir": "x", "dims": [1, 2]}
    assert [epoch["epoch"] for epoch in content["epochs"]] == [0, 1, 2]
    assert content["epochs"][1]["test_auc"] == pytest.approx(0.758)
    assert content["steps"] == 600
    assert content["roc_auc"] == {name: curve.roc.auc for name, curve in found.items()}
    assert content["popularity"] == {"test_auc": 0.6}
    assert content["strata"]["test"]["history_length"][1] == {
        **{"low": 5, "high": 9, "rows": 60, "positives": 30, "auc": 0.7}
    }
    assert content["attention"]["categories"] == {"3": [6, 2, 4.5], "1": [10, 8, 1.5]}
    for path in report.glob("*.png"):
        pixels = image.imread(path)
        assert 0.01 < np.mean(pixels[..., :3] < 0.9) < 0.6, path  # something is drawn


class Parsed(HTMLParser):
    """Tags, images and tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.images: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self._inside: list[str] = []
        self.feed(text)
        self.close()
        assert not self._inside, "every tag is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "img":
            self.images[dict(attrs)["alt"]] = dict(attrs)["src"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "img"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag

    def handle_data(self, data):
        if self._inside and self._inside[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self._inside and self._inside[-1] != "style":
            self.words.append(data.strip())

    def table(self, *heads: str) -> list[list[str]]:
        """The rows of the one table with these heads."""
        (found,) = [table[1:] for table in self.tables if table[0] == [*heads]]
        return found


@pytest.fixture(scope="module")
def parsed(report) -> Parsed:
    return Parsed((report / "index.html").read_text())


def test_the_page_needs_nothing_but_itself(report, parsed):
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    text = (report / "index.html").read_text()
    assert "http:" not in text and "https:" not in text and "url(" not in text
    policy = dict(parsed.attributes)["content"], [v for n, v in parsed.attributes if n == "content"]
    assert any("default-src 'none'" in value for value in policy[1])
    head = "data:image/png;base64,"
    drawn = {base64.b64decode(source.removeprefix(head)) for source in parsed.images.values()}
    assert drawn == {path.read_bytes() for path in report.glob("*.png")}


def test_the_pages_curves_are_scikit_learns(parsed):
    rows = parsed.table("", "AUC", "average precision", "share of positives", "rows")
    assert [row[0] for row in rows] == ["test", "train"]
    for name, auc, precision, share, count in rows:
        labels, logits = scored(name)
        assert float(auc) == pytest.approx(roc_auc_score(labels, logits), abs=5e-5)
        expected = average_precision_score(labels, logits)
        assert float(precision) == pytest.approx(expected, abs=5e-5)
        assert float(share) == pytest.approx(labels.mean(), abs=5e-5)
        assert count == "5,000"
    heads = ["mean probability", "share of positives", "rows"]
    bins = [table[1:] for table in parsed.tables if table[0] == heads]
    for name, found in zip(SHIFTS, bins, strict=True):
        labels, logits = scored(name)
        probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
        expected = calibration_curve(labels, probabilities, n_bins=10, strategy="quantile")
        for row, y, x in zip(found, *expected, strict=True):
            assert [float(row[0]), float(row[1])] == pytest.approx([x, y], abs=1e-3)
            assert row[2] == "500"


def test_the_page_tells_all_else(parsed):
    words = " ".join(parsed.words)
    assert "sim on <synthetic> & more" in words
    assert "it <i>fell</i>" in words
    assert "test AUC 0.5000 popularity: 0.6000" in words
    # 5 of 20 events, of 10 found, and 3 of 6 of the attention.
    assert "25.0 % of all events, 50.0 % of found, 50.0 % of attention" in words
    strata = [t[1:] for t in parsed.tables if t[0] == ["", "rows", "positives", "AUC"]]
    assert strata == [
        [["1 to 4", "40", "20", "0.6000"], ["5 to 9", "60", "30", "0.7000"]],
        [["0", "30", "0", "none"], ["1 to 1,200", "70", "50", "0.8000"]],
    ]
    options, every = [t[1:] for t in parsed.tables if t[0] == ["option", "value"]]
    assert options == [["lr", "0.1"], ["seed", "1234567"]]
    assert ["stage_two_mlp_dims", "200,80"] in every and ["features", "none"] in every
    epochs = parsed.tables[0]
    assert epochs[0][:2] == ["epoch", "test AUC"]
    assert [row[0] for row in epochs[1:]] == ["1", "2", "3"]
    assert epochs[2][1] == "0.7580"
    assert ["bad", "none"] in parsed.table("figure", "value")


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
    write_report(tmp_path, [LogRecord((), metrics, 0.0)], Outcome(metrics, {}), RunDescription())
    found = {path.name for path in (tmp_path / "report").iterdir()}
    assert found == {"evaluation.png", "index.html", "metrics.json"}
    page = Parsed((tmp_path / "report" / "index.html").read_text())
    assert list(page.images) == ["Metrics of the evaluation"]
    assert not {"Ranking and calibration", "What it attends to", "Options"} & set(page.words)


def test_the_roc_plot_draws_the_curves_with_their_areas():
    found = curves()
    (axis,) = roc_plot(found).axes
    roc = found["test"].roc
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), roc.true_positive_rate)
    assert labels_of(axis)[0] == f"test (AUC {roc.auc:.4f})"
    assert labels_of(axis)[-1] == "chance (AUC 0.5)"


def test_precision_and_calibration_are_drawn_beside_what_chance_and_truth_would_be():
    found = curves()
    (axis,) = precision_recall_plot(found).axes
    curve, chance, *_ = axis.lines
    np.testing.assert_array_equal(curve.get_xdata(), found["test"].precision_recall.recall)
    assert list(chance.get_ydata()) == pytest.approx([scored("test")[0].mean()] * 2)
    (axis,) = calibration_plot(found).axes
    np.testing.assert_array_equal(axis.lines[1].get_ydata(), found["train"].reliability.observed)


def test_strata_are_drawn_with_their_rows_and_errors():
    lengths, popularity, *counts = strata_plot(STRATA, "test", 0.65).axes
    np.testing.assert_array_equal(lengths.lines[0].get_ydata(), [0.6, 0.7])
    np.testing.assert_allclose(popularity.lines[0].get_ydata().astype(float), [np.nan, 0.8])
    ticks = [label.get_text() for label in popularity.get_xticklabels()]
    assert ticks == ["0", "1-1,200"]
    assert [bar.get_height() for bar in counts[1].patches] == [30, 70]
    # Hanley and McNeil: A = 0.6, 20 positives and 20 negatives.
    one, two = 0.6 / 1.4, 2 * 0.36 / 1.6
    expected = np.sqrt((0.24 + 19 * (one - 0.36) + 19 * (two - 0.36)) / 400)
    assert STRATA["history_length"][0].standard_error == pytest.approx(expected)
    assert STRATA["item_popularity"][0].standard_error is None


def test_attention_is_drawn_as_shares_of_what_it_is_of():
    where, ago, which = attention_plot(attention(), {3: "Books"}).axes
    assert labels_of(where) == ["all events", "found by the search", "attention"]
    np.testing.assert_allclose(where.lines[1].get_ydata(), [0.6, 0.4, 0])
    np.testing.assert_allclose(where.lines[2].get_ydata(), np.array([5, 1, 0]) / 6)
    assert ago.get_xlim() == (18, 26)
    names = [label.get_text() for label in which.get_yticklabels()]
    assert names == ["Books", "row 1"]
    assert [bar.get_width() for bar in which.patches[:2]] == [6 / 20, 10 / 20]
    one = dataclasses.replace(attention(), searched=False, time_gap=None, categories=None)
    (where,) = attention_plot(one, {}).axes
    assert labels_of(where) == ["all events", "attention"]


def test_a_run_without_steps_or_evaluation_has_a_report_too(tmp_path):
    nothing = [LogRecord((0, 0), {"total_loss": None}, 0.0), LogRecord((0,), {"auc": None}, 0.0)]
    for name, given, plot in (
        ("a", [], "evaluation.png"),
        ("b", records(1, 1)[:1], "learning_curve.png"),
        ("c", nothing, "learning_curve.png"),
    ):
        write_report(tmp_path / name, given, Outcome({}, {}), RunDescription())
        assert (tmp_path / name / "report" / plot).stat().st_size > 1000
        assert not (tmp_path / name / "report" / "roc.png").exists()


@pytest.mark.slow
def test_equal_runs_give_equal_bytes(report, tmp_path):
    again = write_report(tmp_path, records(), everything(), DESCRIBED)
    for file in report.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()

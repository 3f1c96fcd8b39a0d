"""Laws of growth, on timings with known answers; what is left out, and what is drawn."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from lookback.benchmarks import scaling, scaling_measures
from lookback.benchmarks.__main__ import main
from lookback.benchmarks.data import equal_histories
from lookback.benchmarks.harness import BenchmarkReport, Timing
from lookback.benchmarks.scaling_measures import fit_memory
from lookback.benchmarks.scaling_plots import write_plots
from lookback.benchmarks.scaling_sweep import (
    Sweep,
    exponent,
    growth_faults,
    superlinear_growth_faults,
)
from lookback.core.errors import UserError


def sweep(seconds: dict[int, float], samples: int = 100) -> Sweep:
    """Three rounds a value, the machine half as fast in the last."""
    return Sweep(
        "table rows",
        dict.fromkeys(seconds, samples),
        {v: Timing((samples / s, samples / s, samples / s / 2)) for v, s in seconds.items()},
    )


def test_a_step_that_takes_as_long():
    flat = sweep({10: 2.0, 100: 2.0, 1000: 2.1})
    assert flat.seconds(1000) == pytest.approx(2.1)
    assert flat.growth(10, 1000) == pytest.approx(1.05)
    assert growth_faults(flat, 0.1) == []
    (wrong,) = growth_faults(sweep({10: 2.0, 100: 2.0, 1000: 3.0}), 0.1)
    assert wrong == (
        "a step takes 1.50 times as long at 1,000 table rows as at 10, and should take as long "
        "(tolerance 10%)"
    )
    assert exponent(flat) == pytest.approx(np.log10(1.05) / 2)


def test_a_step_that_grows_linearly():
    linear = sweep({10: 1.0, 20: 2.0, 40: 4.0})
    assert superlinear_growth_faults(linear, 0.1) == []
    assert exponent(linear) == pytest.approx(1.0)
    assert len(growth_faults(linear, 0.1)) == 2
    square = sweep({10: 1.0, 20: 4.0, 40: 16.0})
    assert exponent(square) == pytest.approx(2.0)
    assert [wrong.split(",")[0] for wrong in superlinear_growth_faults(square, 0.1)] == [
        "a step takes 4.00 times as long at 20 table rows as at 10",
        "a step takes 4.00 times as long at 40 table rows as at 20",
        "a step takes 16.00 times as long at 40 table rows as at 10",
    ]


def test_steps_of_more_samples_are_longer_by_their_number():
    batches = Sweep("rows", {10: 10, 40: 40}, {10: Timing((5.0,)), 40: Timing((10.0,))})
    assert batches.growth(10, 40) == pytest.approx(2.0)  # 2 s and 4 s


def test_tables_are_left_out_where_memory_is_short():
    """Rows of 16 floats with two moments take 192 bytes, and 70 % of what is free may be taken."""
    fitting, left_out = fit_memory([1000, 10, 100], 16, free=30_200)
    assert fitting == [10, 100]  # 21,120 of 21,140 bytes
    assert list(left_out) == [1000]
    assert fit_memory([100, 10], 16, free=30_100)[0] == [10]


def test_equal_histories_see_the_same_draws_in_larger_tables():
    small, large = (equal_histories(users=5, events=40, items=50, item_rows=n) for n in (53, 9000))
    items = [h.item_features["item_id"] for h in (small, large)]
    assert items[0].min() >= 3 and items[1].max() <= 8999 and items[1].max() > 8000
    same = [np.unique(ids, return_inverse=True)[1] for ids in items]
    np.testing.assert_array_equal(*same)
    np.testing.assert_array_equal(np.unique(items[1]), large.catalogue["item_id"])
    for name in ("category_id",):
        np.testing.assert_array_equal(small.item_features[name], large.item_features[name])
    assert large.schema["item_id"].int_domain.max == 8999
    assert small.num_users == 5 and np.diff(small.offsets).tolist() == [40] * 5
    with pytest.raises(UserError, match=r"expected at least 53 rows.*got 52"):
        equal_histories(users=5, events=40, items=50, item_rows=52)


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    scaling.add_arguments(parser)
    return parser.parse_args(words)


def test_values_are_given_or_by_default():
    assert scaling.values_of(options("--lengths", "9", "3", "9"), "lengths") == [3, 9]
    assert scaling.values_of(options("--lengths"), "lengths") == []
    assert scaling.values_of(options("--quick"), "ranks") == []
    assert scaling.values_of(options(), "table_rows")[-1] == 10**8
    for wrong in (["7"], ["0", "3"]):
        with pytest.raises(UserError, match="--lengths: expected two sizes or more"):
            scaling.values_of(options("--lengths", *wrong), "lengths")


def test_what_contradicts_the_laws_is_reported(monkeypatch, tmp_path, capsys):
    for name in ("by_table_rows", "by_history_length", "by_batch", "by_ranks"):
        found = sweep({10: 1.0, 1000: 3.0})
        monkeypatch.setattr(scaling_measures, name, lambda args, values, found=found: found)
    report = scaling.run(options("--output", str(tmp_path / "plots")))
    assert len(report.failures) == 1 and "should take as long" in report.failures[0]
    assert [row[1:4] for row in report.rows[:2]] == [(10, 1000.0, 100), (1000, 3000.0, 33)]
    names = ["batches.png", "lengths.png", "ranks.png", "table_rows.png"]
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == names
    monkeypatch.setattr(scaling, "run", lambda args: report)
    assert main(["scaling"]) == 1
    output = capsys.readouterr().out
    assert "FAILED: a step takes 3.00 times" in output
    assert json.loads(output.splitlines()[-1])["failures"] == list(report.failures)
    fine = BenchmarkReport("t", ["a"], [])
    monkeypatch.setattr(scaling, "run", lambda args: fine)
    assert main(["scaling"]) == 0


def test_a_plot_is_a_picture(drawing, tmp_path):
    (file,) = write_plots({"lengths": sweep({10: 1.0, 20: 2.0})}, tmp_path / "new")
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_steps_are_measured_by_table_rows_and_by_length(eagerly):
    args = options("--quick", "--rounds", "1", "--batch_size", "8", "--distinct_ids", "20")
    args.model_type = "din"
    found = scaling_measures.by_table_rows(args, [23, 100])
    assert found.values == (23, 100) and found.samples == {23: 8, 100: 8}
    assert all(found.seconds(value) > 0 for value in found.values)

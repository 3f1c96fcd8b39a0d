"""What comparisons of models share: options, turns, table, ratios."""

from __future__ import annotations

import argparse
import contextlib

import pytest

from lookback.benchmarks import comparison
from lookback.benchmarks.accuracy import of_seeds, with_deviation
from lookback.benchmarks.harness import Timing, latencies, latency_note
from lookback.benchmarks.options import add_timing, batch_sizes, require_movielens, turns
from lookback.core.errors import UserError


def parse(*arguments: str, quick: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_timing(parser, sizes=(64, 512), quick=(32,))
    return argparse.Namespace(**vars(parser.parse_args(arguments)), quick=quick)


def test_batch_sizes_and_rounds_by_option_or_default():
    assert tuple(batch_sizes(parse())) == (64, 512)
    assert tuple(batch_sizes(parse(quick=True))) == (32,)
    assert tuple(batch_sizes(parse("--global_batch_size", "7", "9", quick=True))) == (7, 9)
    assert turns(parse()) == {"rounds": 5, "warmup": 2, "min_seconds": 3.0}
    assert turns(parse("--rounds", "1", quick=True))["rounds"] == 1


@pytest.mark.parametrize("with_reference", [True, False])
def test_ours_are_set_against_the_others(monkeypatch, with_reference):
    monkeypatch.setattr(
        comparison, "gemm", lambda dtype: lambda: {"float32": 2e3, "bfloat16": 4e3}[dtype]
    )
    rates = {"ours": 40.0, "ours_amp": 80.0, "torch": 20.0}
    if not with_reference:
        del rates["torch"]
    entered = []

    def interleave(functions, **options):
        assert options["rounds"] == 3
        return {name: Timing((function(),) * 3) for name, function in functions.items()}

    monkeypatch.setattr(comparison, "interleave", interleave)

    @contextlib.contextmanager
    def contenders(size):
        entered.append(size)
        yield {name: lambda rate=rate: rate * size for name, rate in rates.items()}

    report = comparison.compare(
        parse("--global_batch_size", "1", "2", quick=True),
        title="t",
        labels={"ours": "A", "ours_amp": "A, --amp", "torch": "B"},
        reference="torch",
        contenders=contenders,
        flops=10.0,
        config={"users": 3},
        notes=["n"],
    )
    assert entered == [1, 2]
    assert report.columns[-1] == "over B"
    over = "4.00 x" if with_reference else ""
    assert report.rows[1] == (1, "A, --amp", 80, 80, 80, "20%", over)  # 80 * 10 / 4e3
    assert report.figures["ours_fraction_of_gemm_peak_2"] == pytest.approx(0.4)
    assert report.config == {"users": 3, "quick": True}
    assert report.notes[1:] == ["n"]
    expected = {
        f"{name}_over_torch_{size}": ratio
        for size in (1, 2)
        for name, ratio in (("ours", 2.0), ("ours_amp", 4.0))
    }
    assert report.ratios == (expected if with_reference else {})


def test_latencies_end_with_their_time():
    """Calls of 1 s each, of which 2.5 s allow three."""
    ticks = iter(range(100))
    found = latencies(lambda: None, 50, warmup=1, max_seconds=2.5, clock=lambda: float(next(ticks)))
    assert found == {"mean": 1000, "p90": 1000, "p95": 1000, "p99": 1000, "calls": 3}
    assert latency_note(1024, "A", found) == (
        "latency of batch 1,024, A, ms: mean 1000.00, p90 1000.00, p95 1000.00, p99 1000.00 "
        "(3 calls)"
    )


def test_a_figure_of_several_seeds():
    found = of_seeds("auc", [{"auc": 0.5}, {"auc": 0.7}])
    assert found == {"auc": [0.5, 0.7], "auc_mean": 0.6, "auc_std": pytest.approx(0.1 * 2**0.5)}
    assert with_deviation("auc", found) == "0.6000 ± 0.1414"
    assert with_deviation("auc", of_seeds("auc", [{"auc": 0.5}])) == "0.5000"


def test_movielens_must_be_there(tmp_path):
    with pytest.raises(UserError, match=r"holds no MovieLens-100k \(u.data\)"):
        require_movielens(tmp_path)
    (tmp_path / "u.data").touch()
    require_movielens(tmp_path)

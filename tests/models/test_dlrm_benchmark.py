"""What the benchmarks of DLRM compute beside times."""

from __future__ import annotations

import itertools

import pytest

from lookback.benchmarks.dlrm_contenders import Contenders, precision
from lookback.benchmarks.harness import latencies
from lookback.models.tabular_config import DLRMConfig

SMALL = DLRMConfig(embedding_dim=4, bottom_mlp_sizes=(6, 4), top_mlp_sizes=(8, 1))


def test_latencies():
    """Calls of 0, 1, ..., 100 ms after the warm-up."""
    ticks = itertools.chain.from_iterable((10 * i, 10 * i + i / 1000) for i in range(101))
    calls = []
    found = latencies(
        lambda: calls.append(1) or 1, 101, warmup=3, clock=lambda ticks=ticks: next(ticks)
    )
    assert len(calls) == 104
    expected = {"mean": 50, "p90": 90, "p95": 95, "p99": 99, "calls": 101}
    assert found == pytest.approx(expected)


@pytest.mark.slow
def test_contenders_do_a_batch_a_call():
    import tensorflow as tf

    contenders = Contenders(SMALL, tables=2, table_rows=9, numerical=3, batch_size=8)
    functions = [
        contenders.train_ours(),
        contenders.train_ours(amp=True),
        contenders.train_plain(tf.keras.optimizers.legacy.SGD(0.01)),
        contenders.infer_ours(amp=True),
        contenders.infer_plain(),
    ]
    assert [function() for function in functions] == [8] * 5
    assert tf.keras.mixed_precision.global_policy().name == "float32"
    with precision(True) as policy:
        assert tf.keras.mixed_precision.global_policy().name == policy != "float32"

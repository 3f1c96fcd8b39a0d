"""What `sim_train` and `sim_inference` time does what it says."""

from __future__ import annotations

import numpy as np
import pytest

from lookback.benchmarks.sim_contenders import Contenders


@pytest.fixture(scope="module")
def contenders(make_histories):
    return Contenders(make_histories(lengths=[120] * 3), batch_size=32)


def test_our_training_step_counts_rows_and_updates_the_model(contenders, eagerly):
    before = contenders.ours.get_weights()
    step = contenders.train_ours()
    assert [step(), step()] == [32, 32]
    after = contenders.ours.get_weights()
    assert any((old != new).any() for old, new in zip(before, after, strict=True))
    assert all(np.isfinite(weights).all() for weights in after)

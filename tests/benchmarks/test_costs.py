"""FLOPs, bytes and rows of a sample, against sums that were done by hand."""

from __future__ import annotations

import pytest

from lookback.benchmarks.costs import (
    history_cost,
    neumf_cost,
    neumf_flops,
    tabular_cost,
    tabular_flops,
)
from lookback.models.config import DIENConfig, DINConfig, SIMConfig
from lookback.models.neumf_config import NeuMFConfig
from lookback.models.tabular_config import DCNv2Config, DLRMConfig

# D = 1: items 2 wide, users 1, GRUs 6; of 5 slots 3 are long.
SMALL = {"embedding_dim": 1, "max_seq_length": 5, "long_seq_length": 3, "stage_two_mlp_dims": (4,)}


def test_din_by_inner_products():
    """2 a multiplication: two products of 5 events with 2 numbers; an MLP of (2 + 2 + 1)-4-1."""
    scoring = history_cost(DINConfig(**SMALL), training=False)
    assert scoring.flops == 2 * (5 * 2 + 5 * 2 + (5 * 4 + 4))
    # Of each of two candidates: 2 ids, and half of a history's 5 x 2 and of its user's.
    assert scoring.rows == {1: 2 + 11 / 2}
    assert scoring.streamed_bytes == 4 * 7.5
    assert scoring.bytes == 8 * 7.5
    training = history_cost(DINConfig(**SMALL), training=True, updated=3.0)
    assert training.flops == 3 * scoring.flops
    assert training.rows == {1: 7.5 + 6 * 3}  # weights and two moments, read and written
    assert training.streamed_bytes == 4 * 7.5 + 2 * 4 * 7.5  # ids; gradients, written and read


def test_din_by_activation_unit():
    """Of 5 events: 2 x 80 once a history and once a pair; 2 x 80 a candidate; 80-40-1 a pair."""
    history = 5 * 2 * 80
    candidate = 2 * 80 + 5 * (2 * 80 + 80 * 40 + 40) + 5 * 2 + (5 * 4 + 4)
    config = DINConfig(**SMALL, interaction="activation_unit")
    assert history_cost(config, training=False).flops == 2 * (history / 2 + candidate)
    assert history_cost(config, training=False, candidates=1).flops == 2 * (history + candidate)


# Two steps: GRU (2 + 6) x 18, inputs of the AUGRU 6 x 18, attention 6 x 80; a candidate: 2 x 6
# projected, 6 x 80, then 6 x 80 and 80-40-1 a step, and 6 x 18 of the AUGRU's state a step.
HISTORY = 2 * (8 * 18 + 6 * 18 + 6 * 80)
CANDIDATE = 2 * 6 + 6 * 80 + 2 * (6 * 80 + 80 * 40 + 40 + 6 * 18)


def test_dien():
    """The auxiliary net of 7-3-1 sees 1 step, its state once and two items."""
    config = DIENConfig(**SMALL, aux_mlp_dims=(7, 3))
    candidate = CANDIDATE + (2 + 6 + 1) * 4 + 4
    scoring = history_cost(config, training=False)
    assert scoring.flops == 2 * (HISTORY / 2 + candidate)
    assert scoring.rows == {1: 2 + (2 * 2 + 1) / 2}
    auxiliary = 6 * 7 + 2 * (2 * 7 + 7 * 3 + 3)
    training = history_cost(config, training=True)
    assert training.flops == 3 * 2 * ((HISTORY + auxiliary) / 2 + candidate)
    assert training.rows == {1: 2 + (2 * 2 + 2 * 2 + 1) / 2}  # with two steps' negatives


def test_sim():
    """Three long events are scored; training sums them 3 times, scoring the 2 found twice."""
    config = SIMConfig(**SMALL, k=2, stage_one_mlp_dims=(3,), aux_mlp_dims=(7, 3))
    stage_two = (2 + 2 + 2 + 6 + 1) * 4 + 4
    scoring = CANDIDATE + 3 * 2 + 2 * 2 * 2 + stage_two
    assert history_cost(config, training=False).flops == 2 * (HISTORY / 2 + scoring)
    stage_one = (2 + 2 + 1) * 3 + 3
    training = CANDIDATE + 3 * 2 + 3 * 3 * 2 + stage_one + stage_two
    auxiliary = 6 * 7 + 2 * (2 * 7 + 7 * 3 + 3)
    expected = 6 * ((HISTORY + auxiliary) / 2 + training)
    assert history_cost(config, training=True).flops == expected


def test_dlrm():
    """Layers 3-6-4 and (4 + 3)-8-1, 3 pairs of vectors of 4."""
    small = DLRMConfig(embedding_dim=4, bottom_mlp_sizes=(6, 4), top_mlp_sizes=(8, 1))
    layers = 3 * 6 + 6 * 4 + 7 * 8 + 8 * 1
    assert tabular_flops(small, tables=2, numerical=3) == 2 * (layers + 3 * 4)
    assert tabular_flops(DLRMConfig(), 26, 13) == pytest.approx(4.83e6, rel=0.01)
    cost = tabular_cost(small, 2, 3, training=True, updated=1.5)
    assert cost.flops == 6 * (layers + 12)
    assert cost.rows == {4: 2 + 2 * 1.5}
    assert cost.streamed_bytes == 4 * 2 + 4 * 3 + 2 * 4 * 4 * 2  # ids, numbers, gradients


def test_dcnv2():
    """Two crosses of 12 numbers by 12 x 5 and 5 x 12, or 12 x 12; an MLP of 12-8-1."""
    small = {"embedding_dim": 4, "bottom_mlp_sizes": (6, 4), "top_mlp_sizes": (8, 1)}
    layers = 3 * 6 + 6 * 4 + 12 * 8 + 8
    low = DCNv2Config(**small, num_cross_layers=2, cross_layer_projection_dim=5)
    assert tabular_flops(low, 2, 3) == 2 * (layers + 2 * 2 * 12 * 5)
    full = DCNv2Config(**small, num_cross_layers=2, cross_layer_projection_dim=None)
    assert tabular_flops(full, 2, 3) == 2 * (layers + 2 * 12 * 12)
    beside = DCNv2Config(
        **small, num_cross_layers=2, cross_layer_projection_dim=None, structure="parallel"
    )
    assert tabular_flops(beside, 2, 3) == 2 * (layers + 2 * 12 * 12 + 12)


def test_neumf():
    """Layers 8-6-4, and 4 + 2 inputs of the logit."""
    small = NeuMFConfig(factors=2, layers=(8, 6, 4))
    assert neumf_flops(small) == 2 * (8 * 6 + 6 * 4 + 4 + 2)
    layers = 256 * 256 + 256 * 128 + 128 * 64
    assert neumf_flops(NeuMFConfig()) == 2 * (layers + 64 + 64)
    cost = neumf_cost(small, training=True, all_rows=0.5)
    assert cost.rows == {2: 2, 4: 2}
    # Ids; gradients of rows, written and read; half a row of 2 + 4 weights is updated: weights and
    # moments are read and written, the gradient of all rows too.
    assert cost.streamed_bytes == 4 * 4 + 2 * 4 * (2 * 2 + 4 * 2) + 8 * 4 * 6 * 0.5

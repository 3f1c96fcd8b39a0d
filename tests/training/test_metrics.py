from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn import metrics as oracle

from lookback.core.errors import UserError
from lookback.core.world import SOLO
from lookback.training.evaluation.metrics import (
    ScoreAccumulator,
    auc,
    group_auc,
    log_loss,
    roc_curve,
)


def random_rows(seed: int, n: int, distinct: int | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    scores = rng.normal(size=n) + 0.5 * labels
    if distinct is not None:
        scores = np.round(scores * distinct) / distinct
    return labels, scores.astype(np.float32)


@pytest.mark.parametrize("distinct", [None, 50, 3, 0.3])
@pytest.mark.parametrize("n", [2, 3, 100, 20_000])
def test_auc_equals_scikit_learn_with_and_without_ties(n, distinct):
    labels, scores = random_rows(n, n, distinct)
    labels[:2] = 0, 1
    assert auc(labels, scores) == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-12)


def test_weighted_auc_equals_scikit_learn():
    labels, scores = random_rows(1, 5000, 20)
    weights = np.random.default_rng(2).uniform(0, 3, 5000)
    expected = oracle.roc_auc_score(labels, scores, sample_weight=weights)
    assert auc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)


def test_rows_of_weight_zero_do_not_count_and_may_hold_anything():
    labels, scores = random_rows(3, 1000, 20)
    padding = np.zeros(1000)
    padding[:900] = 1
    scores[900:] = np.nan
    assert auc(labels, scores, padding) == auc(labels[:900], scores[:900])
    assert log_loss(labels, scores, padding) == log_loss(labels[:900], scores[:900])


def test_auc_does_not_depend_on_the_order_of_rows_to_the_last_digit():
    labels, scores = random_rows(4, 10_001, 100)
    order = np.random.default_rng(5).permutation(10_001)
    assert auc(labels, scores) == auc(labels[order], scores[order])


def test_auc_of_perfect_reversed_and_constant_scores():
    labels = np.array([0, 0, 1, 1])
    assert auc(labels, labels) == 1.0
    assert auc(labels, -labels) == 0.0
    assert auc(labels, np.zeros(4)) == 0.5


def test_half_precision_logits_rank_as_their_values():
    labels, scores = random_rows(6, 2000, None)
    half = scores.astype(np.float16)
    expected = oracle.roc_auc_score(labels, half.astype(np.float64))
    assert auc(labels, half) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_auc_of_one_class_is_refused(label):
    with pytest.raises(UserError, match=rf"both classes, received 3 rows, {3 * label} of them"):
        auc(np.full(3, label), np.arange(3.0))


def test_empty_input_is_refused():
    with pytest.raises(UserError, match="received 0 rows"):
        ScoreAccumulator().result()
    with pytest.raises(UserError, match="at least one row"):
        log_loss([], [])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_by_row(bad):
    with pytest.raises(UserError, match="first in row 2 of 3"):
        auc([0, 1, 1], [0.0, 1.0, bad])


def test_wrong_labels_weights_and_shapes_are_refused():
    with pytest.raises(UserError, match=r"labels: expected 0 or 1, received 2"):
        auc([0, 2], [0.0, 1.0])
    with pytest.raises(UserError, match="at least 0"):
        auc([0, 1], [0.0, 1.0], [1, -1])
    with pytest.raises(ValueError, match="one shape"):
        auc([0, 1, 1], [0.0, 1.0])


@pytest.mark.slow
def test_group_auc_equals_a_loop_over_scikit_learn():
    labels, scores = random_rows(7, 4000, 4)
    groups = np.random.default_rng(8).integers(0, 700, 4000) * 1000 - 5
    total = weight = skipped = used = 0
    for group in np.unique(groups):
        rows = groups == group
        if len(set(labels[rows])) == 1:
            skipped += 1
            continue
        total += rows.sum() * oracle.roc_auc_score(labels[rows], scores[rows])
        weight += rows.sum()
        used += 1
    result = group_auc(labels, scores, groups)
    assert skipped > 0
    assert (result.groups, result.skipped) == (used, skipped)
    assert result.value == pytest.approx(total / weight, abs=1e-12)


def test_group_auc_without_a_group_of_both_classes_is_none():
    result = group_auc([0, 0, 1], [1.0, 2.0, 3.0], [1, 1, 2])
    assert (result.value, result.groups, result.skipped) == (None, 0, 2)
    assert group_auc([], [], np.zeros(0, np.int32)).value is None


def test_group_auc_ignores_the_scale_of_a_group():
    # Within each user the positive wins; over all rows it does not.
    labels, scores, users = [1, 0, 1, 0], [0.2, 0.1, 0.9, 0.8], [1, 1, 2, 2]
    assert group_auc(labels, scores, users).value == 1.0
    assert auc(labels, scores) == 0.75


def test_log_loss_equals_scikit_learn_and_survives_large_logits():
    labels, logits = random_rows(9, 3000, None)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert log_loss(labels, logits) == pytest.approx(oracle.log_loss(labels, probability), abs=1e-9)
    assert log_loss([0, 1], [1e4, 1e4]) == pytest.approx(5000.0)
    assert log_loss([1, 0], [800.0, -800.0]) == 0.0


def test_roc_curve_equals_scikit_learn():
    labels, scores = random_rows(10, 3000, 30)
    fpr, tpr, _ = oracle.roc_curve(labels, scores, drop_intermediate=False)
    curve = roc_curve(labels, scores, max_points=None)
    np.testing.assert_allclose(curve.false_positive_rate, fpr, atol=1e-15)
    np.testing.assert_allclose(curve.true_positive_rate, tpr, atol=1e-15)
    assert curve.auc == auc(labels, scores)


def test_a_thinned_roc_curve_keeps_its_ends_and_area():
    labels, scores = random_rows(11, 50_000, None)
    curve = roc_curve(labels, scores, max_points=200)
    assert 100 < len(curve.true_positive_rate) <= 202
    assert (curve.false_positive_rate[0], curve.true_positive_rate[0]) == (0, 0)
    assert (curve.false_positive_rate[-1], curve.true_positive_rate[-1]) == (1, 1)
    area = np.trapz(curve.true_positive_rate, curve.false_positive_rate)
    assert area == pytest.approx(curve.auc, abs=1e-4)


def test_accumulator_equals_metrics_of_the_whole():
    labels, scores = random_rows(12, 1000, 9)
    users = np.arange(1000) // 10
    scores_by_batch = ScoreAccumulator()
    for start in range(0, 1000, 300):
        rows = slice(start, start + 300)
        scores_by_batch.update(labels[rows], scores[rows], groups=users[rows])
    result = scores_by_batch.result()
    assert result.auc == auc(labels, scores)
    assert result.log_loss == log_loss(labels, scores)
    assert result.gauc == group_auc(labels, scores, users)
    assert (result.rows, result.positives) == (1000, labels.sum())
    assert len(scores_by_batch) == 1000
    assert set(result.as_dict()) == {
        *("auc", "gauc", "gauc_groups", "gauc_skipped"),
        *("log_loss", "rows"),
    }


def test_accumulator_takes_candidates_and_pads_by_weight():
    labels = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])  # [B, C]
    logits = np.array([[2.0, 1.0], [0.0, 3.0], [9.0, 9.0]])
    accumulator = ScoreAccumulator()
    accumulator.update(labels, logits, groups=np.array([7, 8, 0]), weights=np.array([1, 1, 0]))
    np.testing.assert_array_equal(accumulator.groups(), [7, 7, 8, 8])
    np.testing.assert_array_equal(accumulator.logits(), [2, 1, 0, 3])
    assert accumulator.weights() is None
    assert accumulator.result().gauc.value == 0.5


def test_accumulator_copies_what_it_is_given():
    labels, logits = np.array([0, 1]), np.array([0.0, 1.0], np.float32)
    accumulator = ScoreAccumulator()
    accumulator.update(labels, logits)
    logits[:] = -logits
    assert accumulator.result().auc == 1.0


def test_accumulator_keeps_fractional_weights():
    labels, scores = random_rows(13, 200, 5)
    weights = np.linspace(0.5, 2, 200, dtype=np.float32)
    accumulator = ScoreAccumulator()
    accumulator.update(labels[:50], scores[:50])
    accumulator.update(labels[50:], scores[50:], weights=weights[50:])
    expected = np.where(np.arange(200) < 50, 1, weights)
    assert accumulator.result().auc == pytest.approx(auc(labels, scores, expected), abs=1e-12)


def test_accumulator_refuses_mixed_groups_and_wrong_shapes():
    accumulator = ScoreAccumulator()
    accumulator.update([0, 1], [0.0, 1.0])
    with pytest.raises(ValueError, match="every batch, or with none"):
        accumulator.update([0, 1], [0.0, 1.0], groups=[1, 2])
    with pytest.raises(ValueError, match="logits: expected the shape"):
        accumulator.update([[0, 1]], [0.0])


def test_auc_and_group_auc_of_two_million_rows_take_seconds():
    rng = np.random.default_rng(14)
    labels = rng.integers(0, 2, 2_000_000)
    scores = rng.normal(size=2_000_000).astype(np.float32)
    groups = rng.integers(0, 100_000, 2_000_000).astype(np.int32)
    start = time.process_time()
    auc(labels, scores)
    group_auc(labels, scores, groups)
    assert time.process_time() - start < 10


# --- several processes ---


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_scores_of_all_ranks_are_those_of_one_process_to_the_last_digit(
    in_ranks, ranks, grouped, weighted
):
    """Uneven shares, one rank without rows, batches that cut across ranks, and ties."""
    labels, scores = random_rows(21, 1001, 4)
    users = np.random.default_rng(22).integers(0, 90, 1001).astype(np.int32)
    weights = np.random.default_rng(23).uniform(0.5, 2, 1001).astype(np.float32)
    shares = np.array_split(np.arange(1001), ranks - 1)
    shares.insert(1, np.zeros(0, int))

    def given(rows):
        columns = {"groups": users[rows]} if grouped else {}
        return columns | ({"weights": weights[rows]} if weighted else {})

    whole = ScoreAccumulator()
    whole.update(labels, scores, **given(slice(None)))

    def work(world):
        scored = ScoreAccumulator()
        for rows in np.array_split(shares[world.rank], 3):
            scored.update(labels[rows], scores[rows], **given(rows))
        return scored.of_all(world)

    expected = whole.result()
    for together in in_ranks(ranks, work):
        assert together.result() == expected
        np.testing.assert_array_equal(np.sort(together.logits()), np.sort(scores))
        assert (together.weights() is None) == (not weighted)
        assert (together.groups() is None) == (not grouped)
        assert together.curves().roc.auc == whole.curves().roc.auc


def test_a_rank_that_has_scored_nothing_need_not_know_of_groups_or_weights(in_ranks):
    labels, scores = random_rows(24, 50, 4)
    users = np.arange(50) // 5

    def work(world):
        scored = ScoreAccumulator()
        if world.rank == 1:
            scored.update(labels[:20], scores[:20], users[:20])
        if world.rank == 2:  # its rows of weight 1 meet others that have weights
            scored.update(labels[20:], scores[20:], users[20:], weights=np.full(30, 2.5))
        return scored.of_all(world).result()

    weights = np.where(np.arange(50) < 20, 1, 2.5)
    for found in in_ranks(4, work):
        assert found.rows == 50
        assert found.auc == auc(labels, scores, weights)
        assert found.gauc == group_auc(labels, scores, users, weights)


def test_groups_on_some_ranks_only_are_refused_on_all(in_ranks):
    def work(world):
        scored = ScoreAccumulator()
        groups = {"groups": [1, 1]} if world.rank == 1 else {}
        scored.update([0, 1], [0.0, 1.0], **groups)
        with pytest.raises(ValueError, match="groups must be given on every rank, or on none"):
            scored.of_all(world)
        return True

    assert in_ranks(2, work) == [True, True]


def test_scores_of_all_in_one_process_are_its_own():
    scored = ScoreAccumulator()
    assert scored.of_all(SOLO) is scored


def test_nothing_scored_on_any_rank_is_refused_like_nothing_scored(in_ranks):
    def work(world):
        everybody = ScoreAccumulator().of_all(world)
        with pytest.raises(UserError, match="received 0 rows"):
            everybody.result()
        return len(everybody)

    assert in_ranks(3, work) == [0, 0, 0]

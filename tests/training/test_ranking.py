"""Ranking metrics against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.training.evaluation.ranking import RankAccumulator, ranks_of_positives


def brute_force(labels, logits, weights, k):
    """HR@K, NDCG@K and MRR from a sorted list of every row, ties against the positive."""
    hits, gains, reciprocal = [], [], []
    for label, logit, weight in zip(labels, logits, weights, strict=True):
        rows = [(-x, y) for x, y, w in zip(logit, label, weight, strict=True) if w]
        rows.sort()  # of equal scores, label 0 comes first
        rank = [y for _, y in rows].index(1)
        hits.append(rank < k)
        gains.append(1 / math.log2(rank + 2) if rank < k else 0)
        reciprocal.append(1 / (rank + 1))
    return np.mean(hits), np.mean(gains), np.mean(reciprocal)


def data(rows=200, candidates=21, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.zeros((rows, candidates), np.float32)
    labels[np.arange(rows), rng.integers(0, candidates, rows)] = 1
    logits = rng.integers(-5, 6, (rows, candidates)).astype(np.float32) / 2  # many ties
    weights = np.maximum(labels, rng.random(labels.shape) < 0.7).astype(np.float32)
    return labels, logits, weights


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", [1, 5, 10, 50])
def test_metrics_are_those_of_sorted_lists(weighted, k):
    labels, logits, weights = data()
    weights = weights if weighted else np.ones_like(labels)
    ranks = RankAccumulator()
    for begin in range(0, len(labels), 64):
        part = slice(begin, begin + 64)
        given = (weights[part],) if weighted else ()
        ranks.update(*(v.numpy() for v in ranks_of_positives(labels[part], logits[part], *given)))
    found = ranks.result(k)
    hr, ndcg, mrr = brute_force(labels, logits, weights, k)
    assert found.hr == pytest.approx(hr, abs=1e-12)
    assert found.ndcg == pytest.approx(ndcg, abs=1e-12)
    assert found.mrr == pytest.approx(mrr, abs=1e-12)
    assert found.rankings == len(labels)
    x = logits.astype(np.float64)
    losses = np.maximum(x, 0) - x * labels + np.log1p(np.exp(-np.abs(x)))
    expected = (losses * weights).sum() / weights.sum()
    assert found.log_loss == pytest.approx(expected, rel=1e-5)
    assert list(found.as_dict())[:2] == [f"hr@{k}", f"ndcg@{k}"]


def test_equal_scores_count_against_the_positive():
    """A model that scores everything alike has found nothing."""
    labels = np.eye(1, 11, dtype=np.float32)
    ranks, _, _ = ranks_of_positives(labels, np.zeros((1, 11), np.float32))
    assert ranks.numpy().tolist() == [10]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_an_error(bad):
    labels, logits, _ = data(3)
    logits[1, int(labels[1].argmax())] = bad
    ranks, loss, candidates = ranks_of_positives(labels, logits)
    assert np.isnan(bad) <= (ranks.numpy()[1] == labels.shape[1] - 1)
    if np.isnan(bad):
        with pytest.raises(UserError, match="a logit is not finite"):
            RankAccumulator().update(ranks.numpy(), loss.numpy(), candidates.numpy())


def test_ranks_of_all_processes_are_added_up(in_ranks):
    labels, logits, _ = data()
    whole, one, other = RankAccumulator(), RankAccumulator(), RankAccumulator()
    for ranks, part in ((whole, slice(None)), (one, slice(0, 3)), (other, slice(3, None))):
        found = ranks_of_positives(labels[part], logits[part])
        ranks.update(*(value.numpy() for value in found))
    everybody, _ = in_ranks(2, lambda world: (one, other)[world.rank].of_all(world).result(10))
    expected = whole.result(10)
    assert (everybody.hr, everybody.ndcg, everybody.mrr) == (
        expected.hr,
        expected.ndcg,
        expected.mrr,
    )
    assert everybody.log_loss == pytest.approx(expected.log_loss, rel=1e-6)


def test_an_empty_batch_counts_nothing():
    ranks, loss, candidates = ranks_of_positives(tf.zeros([0, 5]), tf.zeros([0, 5]))
    accumulator = RankAccumulator()
    accumulator.update(ranks.numpy(), loss.numpy(), candidates.numpy())
    with pytest.raises(UserError, match="at least one user"):
        accumulator.result(10)

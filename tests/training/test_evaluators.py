"""Which metrics are computed, and that each is what NumPy and scikit-learn say it is."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import log_loss, roc_auc_score

from lookback.core.errors import UserError
from lookback.dataloading.evaluations import EvaluationPass
from lookback.training.evaluation.calibration import calibration
from lookback.training.evaluation.choice import check_goals, choose
from lookback.training.evaluation.evaluator import BinaryEvaluator, RankingEvaluator, ScoredBatch
from lookback.training.evaluation.names import check_names, cutoff, family

ROWS = EvaluationPass("test")
CANDIDATES = EvaluationPass("test", ("binary", "ranking"))
RANKED = EvaluationPass("test", ("ranking", "binary"), topk=5)
CATALOGUE = EvaluationPass("test_catalogue", ("ranking",), topk=5)


@pytest.mark.parametrize("name", ["f1", "hr", "hr@0", "hr@K", "ndcg@-1", "hr@1.5", "mrr@10", "AUC"])
def test_what_is_no_metric_is_refused_with_those_that_are(name):
    with pytest.raises(UserError, match=r"expected of auc, gauc, .*hr@K.*received '" + name):
        check_names(["auc", name])


def test_any_k_is_a_metric():
    check_names(["hr@1", "ndcg@500", "mrr", "calibration"])
    assert (family("ndcg@20"), cutoff("ndcg@20"), cutoff("mrr")) == ("ndcg@K", 20, None)


@pytest.mark.parametrize(
    ("found", "grouped", "expected"),
    [
        (ROWS, False, {"binary": ("auc", "log_loss")}),
        (CANDIDATES, True, {"binary": ("auc", "gauc", "log_loss")}),
        (RANKED, True, {"ranking": ("hr@5", "ndcg@5", "mrr", "log_loss")}),
    ],
)
def test_without_names_a_pass_has_the_metrics_that_it_is_for(found, grouped, expected):
    assert choose([found], None, grouped=grouped) == {found: expected}


def test_each_metric_is_computed_once_and_where_it_can_be():
    names = ("log_loss", "hr@1", "auc", "hr@3", "auc")
    assert choose([CANDIDATES], names, grouped=True) == {
        CANDIDATES: {"binary": ("log_loss", "auc"), "ranking": ("hr@1", "hr@3")}
    }
    assert choose([RANKED, CATALOGUE], names, grouped=True) == {
        RANKED: {"ranking": ("log_loss", "hr@1", "hr@3"), "binary": ("auc",)},
        CATALOGUE: {"ranking": ("log_loss", "hr@1", "hr@3")},
    }


@pytest.mark.parametrize(
    ("passes", "metrics", "grouped", "text"),
    [
        (
            [ROWS],
            ("hr@10",),
            True,
            "expected of auc, gauc, .*calibration, which .* 'hr@10'",
        ),
        ([ROWS], ("gauc",), False, "expected of auc, log_loss, calibration, which .* 'gauc'"),
        ([RANKED, CATALOGUE], ("auc",), True, "hr@K, .* for the evaluation 'test_catalogue'"),
    ],
)
def test_what_the_data_does_not_allow_is_refused(passes, metrics, grouped, text):
    with pytest.raises(UserError, match=text):
        choose(passes, metrics, grouped=grouped)


def test_training_waits_only_for_what_is_evaluated():
    choice = choose([RANKED], ("hr@10", "auc"), grouped=True)
    check_goals({"hr@10": 0.5, "auc": 0.8}, choice, "test")
    with pytest.raises(UserError, match=r"stop at hr@5 0.6, .* received hr@10,auc. Add hr@5"):
        check_goals({"hr@5": 0.6}, choice, "test")


def scored(rows=300, candidates=7, seed=0):
    """Labels, logits with many ties, groups."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((rows, candidates), np.float32)
    labels[np.arange(rows), rng.integers(0, candidates, rows)] = 1
    logits = (rng.integers(-6, 7, labels.shape) / 2 + labels).astype(np.float32)
    return labels, logits, rng.integers(0, 40, rows)


def fed(evaluator, parts, world=None):
    """The evaluator after some batches, as a trainer feeds it."""
    labels, logits, groups = scored()
    for part in parts:
        batch = ScoredBatch(labels[part], logits[part], groups[part], None)
        needed = type(evaluator).needed(ScoredBatch(*map(tensor, batch)))
        evaluator.update(*(value.numpy() for value in needed))
    return evaluator if world is None else evaluator.of_all(world)


def tensor(value):
    return None if value is None else tf.constant(value)


def test_binary_figures():
    names = ("auc", "log_loss", "calibration")
    evaluator = fed(BinaryEvaluator(names), [slice(0, 100), slice(100, 300)])
    labels, logits, _ = (values.reshape(-1) for values in scored())
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = evaluator.result()
    assert list(found) == ["auc", "log_loss", "rows", "calibration", "calibration_error"]
    assert found["rows"] == 2100
    assert found["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert found["log_loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    assert found["calibration"] == pytest.approx(probabilities.sum() / 300, rel=1e-12)
    assert evaluator.curves().roc.auc == found["auc"]
    assert fed(BinaryEvaluator(("log_loss",)), [slice(0, 9)]).curves() is None


def test_calibration_error_is_that_of_bins_of_equal_count():
    rng = np.random.default_rng(1)
    labels = rng.random(1003) < 0.3
    logits = rng.normal(size=1003)
    rows = sorted(zip(logits, labels, strict=True))
    sizes = [101] * 3 + [100] * 7
    expected, begin = 0.0, 0
    for size in sizes:
        x, y = np.array(rows[begin : begin + size]).T
        expected += size / 1003 * abs(np.mean(1 / (1 + np.exp(-x))) - y.mean())
        begin += size
    assert calibration(labels, logits).error == pytest.approx(expected, abs=1e-12)
    order = rng.permutation(1003)
    assert calibration(labels[order], logits[order]) == calibration(labels, logits)


def test_calibration_of_a_model_that_knows_the_probability_is_perfect():
    labels = np.tile([True, False, False, False], 250)
    found = calibration(labels, np.full(1000, np.log(1 / 3)), bins=1)
    assert (found.ratio, found.error) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    none = calibration(np.zeros(3, bool), np.zeros(3))
    assert (none.ratio, none.error) == (None, pytest.approx(0.5))


def test_calibration_counts_a_weight_as_so_many_rows():
    labels, logits = np.array([True, False, True]), np.array([0.5, -1.0, 2.0])
    weighed = calibration(labels, logits, np.array([1.0, 2.0, 3.0]), bins=1)
    repeated = calibration(np.repeat(labels, [1, 2, 3]), np.repeat(logits, [1, 2, 3]), bins=1)
    assert weighed.ratio == pytest.approx(repeated.ratio)
    assert weighed.error == pytest.approx(repeated.error)


def test_ranking_figures_of_several_cutoffs():
    labels, logits, _ = scored()
    positive = logits[labels > 0][:, None]
    ranks = (logits >= positive).sum(1) - 1  # ties count against the positive
    found = fed(RankingEvaluator(("hr@1", "ndcg@3", "mrr", "hr@5")), [slice(0, 300)]).result()
    assert found == {
        "hr@1": pytest.approx((ranks < 1).mean()),
        "hr@5": pytest.approx((ranks < 5).mean()),
        "ndcg@3": pytest.approx(np.where(ranks < 3, 1 / np.log2(ranks + 2), 0).mean()),
        "mrr": pytest.approx((1 / (ranks + 1)).mean()),
        "rankings": 300,
    }


@pytest.mark.parametrize(
    ("made", "names"),
    [(BinaryEvaluator, ("auc", "gauc", "calibration")), (RankingEvaluator, ("hr@2", "mrr"))],
)
def test_evaluators_of_all_processes_are_that_of_one(made, names, in_ranks):
    parts = [[slice(0, 0)], [slice(0, 7), slice(7, 120)], [slice(120, 300)]]
    expected = fed(made(names), [slice(0, 300)]).result()
    for found in in_ranks(3, lambda world: fed(made(names), parts[world.rank], world).result()):
        assert found == expected

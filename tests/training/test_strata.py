"""Strata and attention: counts of several processes are those of one, and NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from lookback.core.world import SOLO
from lookback.models import MODELS
from lookback.models.click_model import contract_of
from lookback.training.evaluation import attention
from lookback.training.evaluation.attention import attention_found
from lookback.training.evaluation.evaluator import ScoredBatch
from lookback.training.evaluation.found import EVENTS, FOUND, LENGTH, POPULARITY, WEIGHT
from lookback.training.evaluation.metrics import ScoreAccumulator
from lookback.training.evaluation.strata import STRATA, StratifiedScores
from tests.training.test_trainer import SMALL, quiet, trainer
from tests.training.test_trainer import dataset as dataset

ITEMS = 50


def rows(number=3000, distinct=300, seed=0):
    """Labels ``[N, 2]``, logits with ties, lengths ``[N]``, items ``[N, 2]``, counts of items."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 40, ITEMS) ** 2
    labels = np.tile(np.array([1.0, 0.0], np.float32), (number, 1))
    lengths = rng.geometric(0.05, number).clip(1, 60).astype(np.int32)
    items = rng.integers(0, ITEMS, (number, 2))
    noise = rng.normal(size=(number, 2))
    logits = np.round((noise + labels * lengths[:, None] / 20) * distinct / 8) * 8 / distinct
    return labels, logits.astype(np.float32), lengths, items, counts


def fed(parts, data):
    labels, logits, lengths, items, counts = data
    scores = ScoreAccumulator()
    evaluator = StratifiedScores(scores, counts)
    for part in parts:
        batch = ScoredBatch(
            labels[part], logits[part], None, None, (items[part] * 0, items[part]), lengths[part]
        )
        scores.update(labels[part], logits[part])
        evaluator.update(*evaluator.needed(batch))
    return evaluator


@pytest.mark.parametrize(("distinct", "off"), [(300, 1e-12), (10**6, 1e-3)])
def test_aucs_of_strata_are_scikit_learns(distinct, off):
    data = labels, logits, lengths, items, counts = rows(distinct=distinct)
    found = fed([slice(0, 700), slice(700, 3000)], data).of_all(SOLO).found
    assert list(found) == [LENGTH, POPULARITY]
    for by, values in ((LENGTH, np.repeat(lengths, 2)), (POPULARITY, counts[items].reshape(-1))):
        strata = found[by]
        assert 5 <= len(strata) <= STRATA
        assert sum(s.rows for s in strata) == 6000
        assert [s.low for s in strata] == sorted(s.low for s in strata)
        for s in strata:
            within = (values >= s.low) & (values <= s.high)
            label, logit = labels.reshape(-1)[within], logits.reshape(-1)[within]
            assert (s.rows, s.positives) == (within.sum(), label.sum())
            assert {s.low, s.high} <= set(values.tolist())
            assert s.auc == pytest.approx(roc_auc_score(label, logit), abs=off)
            assert s.rows < 6000 / STRATA + np.unique(values, return_counts=True)[1].max()


def test_strata_of_several_processes_are_those_of_one(in_ranks):
    data = rows()
    expected = fed([slice(0, 3000)], data).of_all(SOLO).found
    parts = [[slice(0, 0)], [slice(0, 70), slice(70, 1200)], [slice(1200, 3000)]]
    for found in in_ranks(3, lambda world: fed(parts[world.rank], data).of_all(world).found):
        assert found == expected


def test_what_all_rows_have_in_common_is_no_stratum():
    labels, logits, lengths, items, counts = rows(40)
    found = fed([slice(0, 40)], (labels, logits, lengths * 0 + 7, items, None)).of_all(SOLO).found
    assert found == {}
    assert fed([slice(0, 0)], rows(40)).of_all(SOLO).found == {}
    one_class = (labels * 0, logits, lengths, items, counts)
    found = fed([slice(0, 40)], one_class).of_all(SOLO).found
    assert {s.auc for s in found[LENGTH]} == {None}


class TwoBatches:
    """A source of two batches of a test."""

    def __init__(self, schema, batches):
        self.schema, self._batches = schema, batches

    def eval_steps(self, split):
        return len(self._batches)

    def eval_feeds(self, split):
        yield from range(len(self._batches))

    def eval_batch(self, split, feed):
        return self._batches[feed]


@pytest.fixture
def sim(make_schema):
    from lookback.models.config import SIMConfig

    config = SIMConfig(**SMALL, k=2, time_features=True, stage_one_mlp_dims=(4,))
    return MODELS["sim"](make_schema(), config)


def test_what_sim_attends_to_is_what_numpy_counts(make_schema, make_batch, sim, in_ranks):
    batches = [
        make_batch([9, 4, 0], time=True, negatives=False),
        make_batch([7, 5], time=True, negatives=False, seed=1),
    ]
    contract = contract_of(sim)
    sim({name: tf.constant(value) for name, value in batches[0][0].items()})
    found = attention_found(contract, TwoBatches(make_schema(), batches), "test", SOLO)
    recency, gaps, same = np.zeros((3, 5)), np.zeros((3, 34)), np.zeros(3)
    categories = np.zeros((3, 6))
    item, category, gap_table = (
        tf.convert_to_tensor(sim.body.embeddings.backend.variables[name]).numpy()
        for name in ("item_id", "category_id", "time_gap")
    )
    (weight,) = (v.numpy()[:, 0] for v in sim.weights if v.name.endswith("gap_score:0"))
    for features, _ in batches:
        for b in range(len(features["item_id"])):
            target = np.concatenate(
                [item[features["item_id"][b, 0]], category[features["category_id"][b, 0]]]
            )
            events = features["item_id_history"][b, :5]
            groups, ages = features["category_id_history"][b, :5], features["time_gap_history"][b]
            exists = np.flatnonzero(events)
            score = {
                j: target @ np.concatenate([item[events[j]], category[groups[j]]]) for j in exists
            }
            chosen = sorted(exists, key=lambda j: (-score[j], j))[:2]
            exact = {j: score[j] + gap_table[ages[j]] @ weight for j in chosen}
            total = sum(np.exp(v) for v in exact.values())
            for j in exists:
                w = np.exp(exact[j]) / total if j in exact else 0.0
                measure = np.array([1.0, j in chosen, w])
                recency[:, 4 - j] += measure
                gaps[:, ages[j]] += measure
                categories[:, groups[j]] += measure
                same += measure * (groups[j] == features["category_id"][b, 0])
    assert found.searched and (found.candidates, found.category) == (3, "category_id")
    np.testing.assert_allclose(found.recency, recency, atol=1e-5)
    np.testing.assert_allclose(found.time_gap, gaps, atol=1e-5)
    np.testing.assert_allclose(found.categories, categories, atol=1e-5)
    np.testing.assert_allclose(found.same_category, same, atol=1e-5)
    parts = [TwoBatches(make_schema(), [batch]) for batch in batches]
    both = in_ranks(2, lambda world: attention_found(contract, parts[world.rank], "test", world))
    for of_rank in both:
        np.testing.assert_allclose(of_rank.recency, recency, atol=1e-5)
        assert of_rank.candidates == 3


def test_of_a_large_batch_some_histories_are_looked_at(make_schema, make_batch, sim, monkeypatch):
    features, labels = make_batch([9, 4, 0, 7, 5, 8, 6], time=True, negatives=False)
    sim({name: tf.constant(value) for name, value in features.items()})
    some = {name: value[[0, 3, 6]] for name, value in features.items()}, labels[[0, 3, 6]]
    found = []
    for most, batch in ((7, some), (3, (features, labels))):
        monkeypatch.setattr(attention, "HISTORIES", most)
        source = TwoBatches(make_schema(), [batch])
        found.append(attention_found(contract_of(sim), source, "test", SOLO))
    assert found[0].candidates == found[1].candidates == 3
    np.testing.assert_array_equal(found[0].recency, found[1].recency)
    np.testing.assert_array_equal(found[0].categories, found[1].categories)


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("name", ["din", "dien"])
def test_attention_of_all_events_adds_up_to_one_a_candidate(dataset, tmp_path, name):
    made = trainer(dataset, model_type=name)
    with quiet(tmp_path) as log:
        outcome = made.evaluation.run(log)
    found = made.attention()
    assert not found.searched
    np.testing.assert_array_equal(found.recency[EVENTS], found.recency[FOUND])
    assert found.recency[WEIGHT].sum() == pytest.approx(found.candidates)
    assert found.categories[WEIGHT].sum() == pytest.approx(found.candidates)
    slots = {"din": 9, "dien": 4}[name]
    assert found.recency.shape == (3, slots)
    # Histories of 20, 7, 3, 3, 12, 15 and 30 events; the last is the target.
    assert found.recency[EVENTS, 0] == 7
    lengths = np.minimum([19, 6, 2, 2, 11, 14, 29], slots)
    np.testing.assert_array_equal(
        found.recency[EVENTS], [(lengths > place).sum() for place in range(slots)]
    )
    strata = outcome.strata["test"][LENGTH]
    assert (strata[0].low, strata[0].high) == (2, 2)
    assert sum(s.rows for s in strata) == 14

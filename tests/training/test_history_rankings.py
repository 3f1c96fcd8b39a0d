"""HR@K, NDCG@K and MRR of models over histories, against every rank counted by NumPy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookback.core.errors import UserError
from lookback.core.options import from_values
from lookback.dataloading.histories import rankings
from lookback.dataloading.histories.sources import ResidentSource
from lookback.dataloading.histories.windows import WindowConfig
from lookback.dataloading.parts import Part
from lookback.training.output.logging import RunLogger
from lookback.training.run import command_line

SMALL = {"embedding_dim": 4, "max_seq_length": 9, "long_seq_length": 5, "stage_two_mlp_dims": (8,)}
ASKED = ("auc", "hr@1", "hr@5", "ndcg@5", "mrr")
SPLITS = ("validation", "test")
LENGTHS = [20, 7, 3, 3, 12, 15, 30]

pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.fixture(scope="module")
def histories(make_histories) -> Any:
    return make_histories(lengths=LENGTHS, items=40, validation=1, repeats=False)


@pytest.fixture(scope="module")
def dataset(histories, write_dataset, tmp_path_factory) -> Path:
    return write_dataset(histories, tmp_path_factory.mktemp("data") / "dataset")


def given(dataset: Path, model: str, **more: Any) -> Any:
    defaults = {"global_batch_size": 100, "seed": 3, "test_negatives": 20, "metrics": ASKED}
    return from_values(
        command_line(), model_type=model, dataset_dir=dataset, **SMALL, **{**defaults, **more}
    )


def trainer(dataset: Path, model: str, **more: Any) -> Any:
    import tensorflow as tf

    from lookback.models import MODELS
    from lookback.training.data import model_identity, open_source, run_identity
    from lookback.training.trainer import Trainer

    run, data, options = given(dataset, model, **more)
    tf.keras.utils.set_random_seed(run.seed)
    source = open_source(run, data, options)
    built = MODELS[model](source.schema, options)
    made = Trainer(
        built,
        source,
        run,
        model_identity=model_identity(run, {}, source),
        run_identity=run_identity(run, data, options),
        goals=data.goals,
    )
    made.model, made.source = built, source
    return made


def log(directory: Path) -> RunLogger:
    return RunLogger(directory, tensorboard=False, terminal=(directory / "out.txt").open("a"))


def figures_of(ranks: list[int], name: str) -> dict[str, float]:
    rank = np.array(ranks)
    return {
        f"{name}_hr@1": np.mean(rank < 1),
        f"{name}_hr@5": np.mean(rank < 5),
        f"{name}_ndcg@5": np.mean(np.where(rank < 5, 1 / np.log2(rank + 2), 0)),
        f"{name}_mrr": np.mean(1 / (rank + 1)),
        f"{name}_rankings": len(rank),
    }


def batches(made: Any, split: str) -> Any:
    source = made.source
    return [source.eval_batch(split, feed)[0] for feed in source.eval_feeds(split)]


def training_counts(histories: Any) -> dict[int, int]:
    """How often items are among the events before the two that are held out of each history."""
    ids = histories.item_features["item_id"]
    ends = zip(histories.offsets[:-1], histories.offsets[1:], strict=True)
    return Counter(int(item) for begin, end in ends for item in ids[begin : end - 2])


def scores_of(made: Any, features: Any, counts: dict[int, int] | None) -> Any:
    """The model's logits ``[B, C]``; with counts the items' popularity."""
    if counts is None:
        return made.model(features).numpy()
    return np.vectorize(lambda item: counts.get(item, 0))(features["item_id"])


def sampled_ranks(made: Any, split: str, counts: dict[int, int] | None = None) -> list[int]:
    """Of each draw: whether it is another item, an item at all, and scores as much or more."""
    ranks = []
    for features in batches(made, split):
        logits, items = scores_of(made, features, counts), features["item_id"].numpy()
        for scores, ids in zip(logits, items, strict=True):
            others = [s for s, i in zip(scores, ids, strict=True) if i >= 3 and i != ids[0]]
            ranks.append(sum(score >= scores[0] for score in others))
    return ranks


def catalogue_ranks(
    made: Any, split: str, histories: Any, counts: dict[int, int] | None = None
) -> list[int]:
    """Each user's history with one item after another: all that the user has not met."""
    ranks, user = [], 0
    columns = [histories.catalogue[name] for name in ("item_id", "category_id")]
    category_of = dict(zip(*columns, strict=True))
    for features in batches(made, split):
        for row in range(len(features["item_id"])):
            begin, end = histories.offsets[user : user + 2]
            met = set(histories.item_features["item_id"][begin:end])
            positive = features["item_id"][row, 0].numpy()
            others = [item for item in category_of if item >= 3 and item not in met]
            items = np.array([positive, *others], np.int32)[:, None]  # one candidate a row
            one = {name: np.repeat(v[row : row + 1], len(items), 0) for name, v in features.items()}
            one |= {"item_id": items, "category_id": np.vectorize(category_of.get)(items)}
            scores = scores_of(made, one, counts)[:, 0]
            ranks.append(int((scores[1:] >= scores[0]).sum()))
            user += 1
    return ranks


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sim", "din"])  # DIEN: the next test
def test_figures_are_those_of_ranks_counted_one_by_one(dataset, histories, tmp_path, model):
    made = trainer(dataset, model, full_catalogue=True)
    outcome = made.evaluation.run(log(tmp_path))
    found = outcome.summary
    for name, ranks in {
        "test": sampled_ranks(made, "test"),
        "test_catalogue": catalogue_ranks(made, "test", histories),
    }.items():
        assert len(ranks) == len(LENGTHS)
        for figure, value in figures_of(ranks, name).items():
            assert found[figure] == pytest.approx(value, abs=1e-12), figure
    counts = training_counts(histories)
    ranked = sampled_ranks(made, "test", counts), catalogue_ranks(made, "test", histories, counts)
    for name, ranks in zip(("test", "test_catalogue"), ranked, strict=True):
        for figure, value in figures_of(ranks, name).items():
            if not figure.endswith("rankings"):
                assert outcome.baselines[figure] == pytest.approx(value, abs=1e-12), figure
    plain = trainer(dataset, model, metrics=None).evaluation.run(log(tmp_path)).summary
    assert found["test_auc"] == plain["test_auc"]  # of the same draws, repeated positives too
    assert not any("@" in name or "catalogue" in name for name in plain)


@pytest.mark.slow
def test_the_catalogue_in_pieces_gives_the_same_ranks(dataset, histories, tmp_path, monkeypatch):
    whole = trainer(dataset, "dien", full_catalogue=True, eval_split="validation")
    found = whole.evaluation.run(log(tmp_path)).summary
    monkeypatch.setattr(rankings, "SCORES_AT_A_TIME", 7)
    cut = trainer(dataset, "dien", full_catalogue=True, eval_split="validation")
    passes = cut.source.evaluations("validation")
    assert passes[1].pieces.size == 7
    assert cut.source.eval_steps(passes[1].name) == len(LENGTHS)  # a user at a time
    assert cut.evaluation.run(log(tmp_path)).summary == pytest.approx(found, rel=1e-6)
    ranks = catalogue_ranks(cut, "validation", histories)
    for figure, value in figures_of(ranks, "validation_catalogue").items():
        assert found[figure] == pytest.approx(value, abs=1e-12), figure


@pytest.mark.slow
def test_ranks_are_the_same_on_every_number_of_processes(dataset, tmp_path, in_ranks):
    from lookback.training.data import open_source
    from lookback.training.evaluation.evaluator import RankingEvaluator
    from lookback.training.evaluation.steps import EvaluationSteps

    more = {"full_catalogue": True, "negatives": "uniform"}
    made = trainer(dataset, "din", **more)
    summary = made.evaluation.run(log(tmp_path)).summary
    binary = [f"{split}_{name}" for split in SPLITS for name in ("auc", "rows")]
    expected = {name: value for name, value in summary.items() if name not in binary}

    def evaluated(world: Any, shard: bool) -> Any:
        source = open_source(*given(dataset, "din", shard_histories=shard, **more), world)
        steps, found = EvaluationSteps(made.model, source), {}
        for evaluation in (e for split in SPLITS for e in source.evaluations(split)):
            evaluator = RankingEvaluator(("hr@1", "hr@5", "ndcg@5", "mrr"))
            for feed in source.eval_feeds(evaluation.name):
                (needed,) = steps.run(evaluation, feed, [RankingEvaluator])
                evaluator.update(*(value.numpy() for value in needed))
            figures = evaluator.of_all(world).result()
            found |= {f"{evaluation.name}_{name}": value for name, value in figures.items()}
        return found

    for shard in (False, True):
        for found in in_ranks(3, lambda world, shard=shard: evaluated(world, shard)):
            assert found == expected


def test_what_competes_among_sampled_candidates():
    """Draws of the positive do not; others do, as often as they are drawn."""
    items = np.array([[7, 9, 7, 9, 3], [4, 4, 5, 5, 7]], np.int32)
    found = rankings.competing(items).numpy()
    assert found.tolist() == [[1, 1, 0, 1, 1], [1, 0, 1, 1, 1]]


def test_an_empty_part_has_an_empty_batch(histories):
    windows = WindowConfig(max_seq_length=9, long_seq_length=5)
    part = Part(0, 1000)
    source = ResidentSource(
        histories, windows, seed=3, batch_size=100, full_catalogue=True, part=part
    )
    source.eval_steps("test_catalogue")
    features, labels, weights = source.eval_batch("test_catalogue", 0)
    assert labels.shape == weights.shape == features["item_id"].shape
    assert labels.shape[0] == 0


def test_a_catalogue_without_a_metric_of_rankings_is_refused(dataset):
    with pytest.raises(UserError, match="for the evaluation 'validation_catalogue', received auc"):
        trainer(dataset, "din", metrics=("auc",), full_catalogue=True)


def test_the_catalogue_competes_with_every_kind_of_feature():
    """At once, and in pieces that do not divide it; bags have an axis more."""
    import tensorflow as tf

    from lookback.dataloading.evaluations import CandidatePieces
    from lookback.dataloading.histories.sources import ResidentSource
    from lookback.dataloading.histories.windows import WindowConfig
    from lookback.training.evaluation.steps import EvaluationSteps
    from tests.typed_data import typed_histories

    histories = typed_histories((9, 4, 6))
    source = ResidentSource(
        histories, WindowConfig(5, 3), seed=3, batch_size=4, full_catalogue=True
    )
    (_, found) = source.evaluations("test")
    assert source.eval_steps(found.name) == 1
    features, labels, weights = source.eval_batch(found.name, tf.constant(0, tf.int64))
    ids = np.sort(histories.catalogue["item_id"])
    place = np.searchsorted(histories.catalogue["item_id"], ids)
    for name, values in histories.catalogue.items():
        expected = histories.bags[name][values] if name in histories.bags else values
        for row in features[name].numpy():
            np.testing.assert_array_equal(row, expected[place])
    assert weights.shape == labels.shape == (len(labels), len(ids))
    names = CandidatePieces(("item_id", "category_id", "genres", "price"), size=7)

    def model(batch, training):
        assert not training
        genres = tf.reduce_sum(batch["genres"] * [1, 10], -1)  # [B, C]
        ids = tf.cast(batch["item_id"] + batch["category_id"] + genres, tf.float32)
        return ids + batch["price"] + batch["hour"][:, tf.newaxis]

    steps = EvaluationSteps(model, source)
    whole, cut = (steps.logits(features, pieces) for pieces in (None, names))
    np.testing.assert_array_equal(cut, whole)

"""Evaluation and sampling say what is so: cases of what was counted, ranked or refused wrongly.

Cases (`shared/cases`): oov_row_counts_as_item, gauc_unknown_users, one_class_split, late_refusals.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from lookback.core.errors import UserError
from lookback.core.options import from_values
from lookback.dataloading.evaluations import EvaluationPass, LeftOut
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.sources import ResidentSource
from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig
from lookback.dataloading.interactions.source import InteractionSource
from lookback.dataloading.parts import Part
from lookback.formats.labels import both_classes
from lookback.models import MODELS
from lookback.serving.encoding import EncodedIds, VocabularyEncoder
from lookback.serving.layouts.candidates import known
from lookback.serving.layouts.interactions.layout import InteractionRequestLayout
from lookback.serving.layouts.interactions.requests import InteractionsRequestEncoder
from lookback.serving.manifest import InteractionsManifest
from lookback.serving.scores import Scores
from lookback.training.data import open_source
from lookback.training.evaluation.choice import check_cutoffs, check_goals, choose
from lookback.training.evaluation.evaluator import BinaryEvaluator
from lookback.training.milestones import Milestones
from lookback.training.outcome import Outcome
from lookback.training.output.logging import RunLogger
from lookback.training.output.report import RunDescription, write_report
from lookback.training.run import command_line
from lookback.training.trainer import Trainer

LENGTHS = (20, 7, 4, 4, 12, 9)
UNKNOWN = 2
WINDOWS = WindowConfig(max_seq_length=6, long_seq_length=2)
SIZES = {
    "din": {"embedding_dim": 4, "max_seq_length": 6, "long_seq_length": 2},
    "neumf": {"factors": 4, "layers": (8, 6)},
}

pytestmark = pytest.mark.usefixtures("eagerly")


def renamed(histories: Histories, events: Any, items: Any) -> Histories:
    """The histories with other items at some events, and the catalogue that goes with them."""
    item = histories.item_features["item_id"].copy()
    item[events] = items
    distinct = np.unique(item)
    return dataclasses.replace(
        histories,
        item_features={"item_id": item, "category_id": item % 5 + 1},
        catalogue={"item_id": distinct, "category_id": distinct % 5 + 1},
    )


@pytest.fixture(scope="module")
def plain(make_histories) -> Histories:
    """Nobody meets an item twice, and all are known."""
    made = make_histories(LENGTHS, items=60, repeats=False, validation=1)
    return renamed(made, slice(0, 0), 0)


@pytest.fixture(scope="module")
def rare(plain) -> Histories:
    """Of 6 users, 2 have an unknown item last, 1 of them and another one before it, all earlier."""
    ends = plain.offsets[1:]
    events = [ends[0] - 1, ends[3] - 1, ends[3] - 2, ends[4] - 2, *plain.offsets[:-1]]
    return renamed(plain, [*events, 3, 4, 9, 22], UNKNOWN)


def neumf(histories: Histories, **more: Any) -> InteractionSource:
    return InteractionSource(
        histories, **{"seed": 5, "batch_size": 30, "test_negatives": 5, **more}
    )


def windows(histories: Histories, **more: Any) -> ResidentSource:
    return ResidentSource(histories, WINDOWS, **{"seed": 5, "batch_size": 16, **more})


@pytest.fixture
def trainer(write_dataset, tmp_path) -> Callable[..., Trainer]:
    def make(histories: Histories, model: str, **more: Any) -> Trainer:
        directory = tmp_path / "dataset"
        if not directory.exists():
            write_dataset(histories, directory)
        return trainer_on(directory, model, **more)

    return make


def trainer_on(directory: Path, model: str, **more: Any) -> Trainer:
    given = {"global_batch_size": 40, "seed": 3, **SIZES.get(model, {}), **more}
    run, data, options = from_values(
        command_line(), model_type=model, dataset_dir=directory, **given
    )
    source = open_source(run, data, options)
    made = MODELS[model](source.schema, options)
    return Trainer(made, source, run, model_identity={}, run_identity={}, goals=data.goals)


def evaluated(made: Trainer, directory: Path) -> tuple[dict[str, Any], str]:
    """Figures, and what was said."""
    told = directory / "told.txt"
    with told.open("w") as terminal:
        log = RunLogger(directory / "run", tensorboard=False, terminal=terminal)
        figures = dict(made.evaluation.run(log).summary)
        log.summary(figures)
        log.close()
    return figures, told.read_text()


# --- ids that are no item: neither positives, negatives nor targets ---


def test_neumf_trains_on_items_only(rare):
    made = neumf(rare, exact_negatives=True)
    batches = [made.train_batch(feed)[0] for feed in made.train_feeds(0, 0)]
    users = np.concatenate([features["user_id"] for features in batches])
    items = np.concatenate([features["item_id"] for features in batches])
    assert items.min() > UNKNOWN
    inside = rare.in_training()
    positive = inside & (rare.item_features["item_id"] > UNKNOWN)
    user = np.repeat(rare.user_features["user_id"], LENGTHS)
    expected = zip(user[positive], rare.item_features["item_id"][positive], strict=True)
    assert sorted(zip(users, items[:, 0], strict=True)) == sorted(expected)
    assert made.left_out("train") == LeftOut(int((inside & ~positive).sum()))


@pytest.mark.parametrize(("split", "gone"), [("test", [0, 3]), ("validation", [3, 4])])
def test_neumf_ranks_users_whose_target_is_an_item(rare, split, gone):
    made = neumf(rare, full_catalogue=True)
    left = np.delete(rare.user_features["user_id"], gone)
    for name in (split, f"{split}_catalogue"):
        batches = [made.eval_batch(name, feed) for feed in made.eval_feeds(name)]
        users = np.concatenate([batch[0]["user_id"] for batch in batches])
        np.testing.assert_array_equal(users, left)
        assert all(batch[0]["item_id"].numpy().min() > UNKNOWN for batch in batches)
        assert made.left_out(name).figures == {"unknown_targets": 2}


def test_who_else_is_left_out_changes_nobodys_negatives(plain):
    every = everything_met(plain)  # user 0 has too few left for neumf
    some = renamed(every, every.offsets[3] - 1, UNKNOWN)  # of user 2, one that others have met
    uniform = dataclasses.replace(WINDOWS, negatives="uniform")
    for make, rows in [
        (lambda h: neumf(h, batch_size=300), [0, 2, 3, 4]),
        (lambda h: ResidentSource(h, uniform, seed=5, batch_size=300), [0, 1, 3, 4, 5]),
    ]:
        items = []
        for source in (make(every), make(some)):
            (feed,) = source.eval_feeds("test")
            items.append(source.eval_batch("test", feed)[0]["item_id"].numpy())
        np.testing.assert_array_equal(items[0][rows], items[1])


@pytest.mark.parametrize("negatives", ["popularity", "uniform"])
@pytest.mark.parametrize("sharded", [False, True])
def test_windows_have_items_as_targets_and_negatives_only(rare, negatives, sharded):
    config = dataclasses.replace(WINDOWS, negatives=negatives)
    counts = rare.item_counts() if sharded else None
    builder = WindowBuilder(rare, config, counts)
    item = rare.item_features["item_id"]
    expected = [
        (user + 1, int(item[begin + position]))
        for user, (begin, length) in enumerate(zip(rare.offsets, LENGTHS, strict=False))
        for position in range(1, length - 2)
        if item[begin + position] > UNKNOWN
    ]
    found, drawn = [], []
    for step in range(builder.train_steps(10)):
        features, _ = builder.train_batch(7, 0, step, 10)
        found += zip(features["user_id"].numpy(), features["item_id"].numpy()[:, 0], strict=True)
        history = features["item_id_history"].numpy()
        assert UNKNOWN in history  # as context
        short, against = history[:, 2:], features["item_id_negatives"].numpy()
        assert (against[short == UNKNOWN] == UNKNOWN).all()  # so that it teaches nothing
        drawn += [features["item_id"][:, 1].numpy(), against[short > UNKNOWN]]
    assert sorted(found) == sorted(expected)
    assert builder.num_samples("train") == len(expected)
    inside = sum(length - 3 for length in LENGTHS)
    assert builder.left_out("train").unknown_targets == inside - len(expected)
    assert set(np.concatenate(drawn)) <= set(item[item > UNKNOWN])
    numbers = builder.train_numbers(7, 0, 0, 10)
    told = builder.describe(numbers)
    for user, position, (one, target) in zip(
        told["user_id"], told["position"], found[:5], strict=True
    ):
        assert (user, item[rare.offsets[user - 1] + position]) == (one, target)
    features, _ = builder.eval_batch("test", 5, 0, 10**4, 400)
    assert features["user_id"].numpy().tolist() == [2, 3, 5, 6]
    assert features["item_id"].numpy().min() > UNKNOWN


@pytest.mark.parametrize("training", [True, False])
def test_popular_negatives_are_known_events_each_as_likely(rare, training):
    """The draw of each event, by brute force over all numbers that can be drawn."""
    pool = WindowBuilder(rare, WINDOWS).pool
    events = np.flatnonzero(
        (rare.item_features["item_id"] > UNKNOWN) & (rare.in_training() | (not training))
    )
    found = pool.training_events if training else pool.known_events
    np.testing.assert_array_equal(found(tf.range(len(events), dtype=tf.int64)), events)
    if training:
        assert pool.count == len(events)


def test_training_on_unknown_items_alone_is_refused(plain):
    every = renamed(plain, slice(None), UNKNOWN)
    for make in (neumf, windows):
        with pytest.raises(UserError, match=r"are unknown ids.*--frequency_threshold"):
            make(every)


@pytest.mark.parametrize("make", [neumf, windows])
def test_a_split_of_unknown_targets_is_refused_before_training(plain, make):
    last = renamed(plain, plain.offsets[1:] - 1, UNKNOWN)
    text = r"'test', and none is left: 6 targets are unknown ids.*--frequency_threshold"
    with pytest.raises(UserError, match=text):
        make(last).eval_steps("test")


def test_what_is_left_out_is_said_and_a_figure(rare, trainer, tmp_path):
    made = trainer(rare, "neumf", test_negatives=20)
    figures, told = evaluated(made, tmp_path)
    assert figures["test_unknown_targets"] == 2
    assert figures["test_rankings"] == 4
    assert "left out of test: 2 targets are unknown ids" in told
    gone = int((rare.in_training() & (rare.item_features["item_id"] == UNKNOWN)).sum())
    assert f"left out of train: {gone} targets are unknown ids" in told
    assert "repeated" not in str(figures)


# --- targets that were met before, users who have met too much ---


@pytest.fixture(scope="module")
def repeated(plain) -> Histories:
    """Users 1 and 4 had their last item before."""
    ends, begins = plain.offsets[1:], plain.offsets[:-1]
    item = plain.item_features["item_id"]
    return renamed(plain, [ends[1] - 1, ends[4] - 1], [item[begins[1]], item[begins[4] + 2]])


def test_a_target_that_the_user_had_before_is_not_ranked_among_items_never_met(repeated):
    made = neumf(repeated, full_catalogue=True)
    histories = windows(repeated, full_catalogue=True)
    for source, name in [
        (made, "test"),
        (made, "test_catalogue"),
        (histories, "test_catalogue"),
    ]:
        batches = [source.eval_batch(name, feed)[0] for feed in source.eval_feeds(name)]
        users = np.concatenate([features["user_id"] for features in batches])
        assert users.tolist() == [1, 3, 4, 6]
        assert source.left_out(name) == LeftOut(repeated_targets=2)
    # Among sampled candidates of histories items compete that the user has met as well.
    assert histories.left_out("test") == LeftOut()
    # The held-out event of the test split comes after that of the validation split.
    assert made.eval_steps("validation")
    assert made.left_out("validation") == LeftOut()


def test_targets_of_training_that_were_met_before(repeated):
    """With --eval_train every training target is ranked, but for second meetings."""
    item = repeated.item_features["item_id"].copy()
    item[5] = item[2]  # of user 0
    again = renamed(repeated, 5, item[2])
    source = windows(again, full_catalogue=True)
    samples = WindowBuilder(again, WINDOWS).num_samples("train")
    batches = [
        source.eval_batch("train_catalogue", f) for f in source.eval_feeds("train_catalogue")
    ]
    assert sum(len(labels) for _, labels, _ in batches) == samples - 1
    assert source.left_out("train_catalogue") == LeftOut(repeated_targets=1)


def everything_met(plain: Histories) -> Histories:
    """User 0 meets all 20 items, the others some of them."""
    few = renamed(plain, slice(None), np.concatenate([3 + np.arange(n) for n in LENGTHS]))
    assert len(few.catalogue["item_id"]) == 20
    return few


def test_a_user_who_has_met_too_much_is_left_out(plain):
    few = everything_met(plain)
    made, histories = neumf(few, full_catalogue=True), windows(few, full_catalogue=True)
    for source, name in [(made, "test"), (made, "test_catalogue"), (histories, "test_catalogue")]:
        batches = [source.eval_batch(name, feed)[0] for feed in source.eval_feeds(name)]
        users = np.concatenate([features["user_id"] for features in batches])
        assert users.tolist() == [2, 3, 4, 5, 6]
        assert source.left_out(name).figures == {"without_negatives": 1}
    assert neumf(few, test_negatives=16).eval_steps("test")
    with pytest.raises(UserError, match=r"test_negatives: expected at most 16, .* received 17"):
        neumf(few, test_negatives=17).eval_steps("test")


def test_nobody_to_rank_is_refused_before_training(make_histories, trainer):
    """Case late_refusals b: 5 users, 6 items, all met."""
    all_met = renamed(make_histories([6] * 5, items=9, repeats=False), slice(0, 0), 0)
    with pytest.raises(UserError, match="5 targets are of users who have met too many items"):
        trainer(all_met, "neumf", test_negatives=1, topk=1)


# --- K that cuts nothing off ---


def test_a_k_that_no_model_can_miss_is_refused(trainer, plain):
    items = len(plain.catalogue["item_id"])
    for more, text in [
        ({"test_negatives": 10, "topk": 11}, r"K below 11, .* 'validation' .* received hr@11"),
        ({"test_negatives": 20, "metrics": ("ndcg@21",)}, r"below 21, .* received ndcg@21"),
        (
            {"test_negatives": 20, "full_catalogue": True, "metrics": ("mrr", f"hr@{items}")},
            rf"K below 21, .* received hr@{items}",
        ),
    ]:
        with pytest.raises(UserError, match=text):
            trainer(plain, "neumf", **more)
    with pytest.raises(UserError, match=rf"below {items}, .* 'validation_catalogue' .*hr@{items}"):
        trainer(plain, "din", full_catalogue=True, topk=items)


def test_cutoffs_below_the_candidates_are_fine():
    passes = [EvaluationPass("test", ("ranking",), candidates=11)]
    check_cutoffs(choose(passes, ("hr@10", "mrr"), grouped=True))
    with pytest.raises(UserError, match=r"K below 11, .* 'test' .*received hr@11"):
        check_cutoffs(choose(passes, ("hr@11",), grouped=True))


# --- splits of one class ---


def one_class(label: float) -> BinaryEvaluator:
    evaluator = BinaryEvaluator(("auc", "gauc", "log_loss", "calibration"))
    logits = np.array([[0.5], [-1.0], [2.0]], np.float32)
    evaluator.update(np.full((3, 1), label, np.float32), logits, np.array([1, 1, 2]))
    return evaluator


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_has_no_auc_and_all_else(label):
    found, p = one_class(label).result(), 1 / (1 + np.exp(-np.array([0.5, -1.0, 2.0])))
    assert found["auc"] is None
    assert (found["gauc"], found["gauc_groups"], found["gauc_skipped"]) == (None, 0, 2)
    chance = p if label else 1 - p
    assert found["log_loss"] == pytest.approx(-np.log(chance).mean(), rel=1e-6)
    assert found["calibration"] == (pytest.approx(p.mean(), rel=1e-6) if label else None)
    error = abs(p - label).mean()  # three bins of one row
    assert found["calibration_error"] == pytest.approx(error, rel=1e-6)
    assert one_class(label).curves() is None


@pytest.fixture
def samples(tmp_path) -> Path:
    """Materialised samples whose test split has one class; case one_class_split."""
    directory = tmp_path / "samples"
    for split in ("train", "test"):
        (directory / split).mkdir(parents=True)
        lists = pa.array([[1, 2, 3, 4]] * 12, pa.list_(pa.int32()))
        labels = np.arange(12) % 2 if split == "train" else np.zeros(12, np.int64)
        table = {
            "label": pa.array(labels),
            "uid": pa.array(1 + np.arange(12) % 5),
            "item": pa.array(1 + np.arange(12) % 9),
            "item_sequence": lists,
            "neg_item_sequence": lists,
        }
        pq.write_table(pa.table(table), directory / split / "part.0.parquet", row_group_size=5)
    sizes = [{"name": "uid", "value": 50}, {"name": "item", "value": 9}]
    (directory / "metadata.json").write_text(json.dumps({"cardinalities": sizes}))
    return directory


def test_a_run_goes_on_where_a_split_has_one_class(samples, tmp_path):
    tf.config.run_functions_eagerly(False)  # a graph makes tensors of a feed of arrays
    made = trainer_on(samples, "din", global_batch_size=6)
    figures, told = evaluated(made, tmp_path)
    assert figures["test_auc"] is None
    assert figures["test_gauc"] is None
    assert figures["test_log_loss"] > 0
    assert "test_auc is absent: its rows are all of one class" in told
    assert "test_gauc is absent: no user has rows of both classes" in told
    report = write_report(tmp_path / "run", [], Outcome(figures, {}), RunDescription())
    assert json.loads((report / "metrics.json").read_text())["results"]["test_auc"] is None
    log = (tmp_path / "run" / "log.json").read_text()
    assert '"test_auc": null' in log


def test_an_auc_that_cannot_come_is_refused_before_training(samples):
    assert both_classes([(samples / "train" / "part.0.parquet", 0)], "label")
    with pytest.raises(UserError, match="auc_threshold: expected rows of both labels in the test"):
        trainer_on(samples, "din", global_batch_size=6, auc_threshold=0.6, eval_split="test")


def test_a_figure_that_is_absent_reaches_no_goal():
    choice = choose([EvaluationPass("test")], ("auc",), grouped=False)
    check_goals({"auc": 0.5}, choice, "test")
    run, *_ = from_values(command_line(), model_type="din", dataset_dir=Path("x"))
    milestones = Milestones(run, 10, {"auc": 0.5}, watched="test")
    assert not milestones.reached({"test_auc": None})
    assert milestones.reached({"test_auc": 0.5})


# --- GAUC: each row of a dataset of histories is a user, known or not ---


def scored(source: Any, rng_seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores that depend on the sample alone, and groups of a source's test split."""
    labels, logits, groups = [], [], []
    for feed in source.eval_feeds("test"):
        features, label, *_ = source.eval_batch("test", feed)
        items = features["item_id"].numpy()
        labels.append(label.numpy())
        logits.append(np.sin(items * 7.3).astype(np.float32))
        groups.append(source.groups("test", feed).numpy())
    return tuple(map(np.concatenate, (labels, logits, groups)))


@pytest.mark.parametrize("make", [neumf, windows])
def test_unknown_users_are_one_group_each(plain, make, in_ranks):
    """Case gauc_unknown_users; on any number of ranks."""
    strange = dataclasses.replace(plain, user_features={**plain.user_features})
    strange.user_features["user_id"] = np.full(6, UNKNOWN, np.int32)
    labels, logits, groups = scored(make(strange, test_negatives=5))
    assert sorted(groups) == list(range(6))
    expected = np.mean([roc_auc_score(y, x) for y, x in zip(labels, logits, strict=True)])

    def work(world: Any) -> Any:
        source = make(strange, test_negatives=5, part=Part(world.rank, world.size))
        evaluator = BinaryEvaluator(("gauc",))
        evaluator.update(*scored(source))
        return evaluator.of_all(world).result()

    for ranks in (1, 3):
        for found in in_ranks(ranks, work):
            assert found["gauc"] == pytest.approx(expected, abs=1e-12)
            assert (found["gauc_groups"], found["gauc_skipped"]) == (6, 0)


def test_shards_count_and_group_everybodys_users(rare, write_dataset, tmp_path, in_ranks):
    directory = write_dataset(rare, tmp_path / "data")

    def work(world: Any) -> Any:
        part = Part(world.rank, world.size)
        source = windows(
            Histories.load(directory, part),
            part=part,
            counts=rare.item_counts(),
            gather=world.gather,
            full_catalogue=True,
        )
        names = ("test", "test_catalogue")
        told = [(source.eval_steps(name), source.left_out(name)) for name in names]
        groups = [source.groups("test", feed).numpy() for feed in source.eval_feeds("test")]
        return told, source.left_out("train"), np.concatenate(groups).tolist()

    alone = windows(rare)
    for ranks in (2, 4):
        found = in_ranks(ranks, work)
        assert sorted(user for *_, groups in found for user in groups) == [1, 2, 4, 5]
        for told, train, _ in found:
            assert train == alone.left_out("train")
            assert [left_out for _, left_out in told] == [LeftOut(unknown_targets=2)] * 2


# --- options that would do nothing, advice that would not help ---


@pytest.mark.parametrize(
    "more",
    [{"prefetch_train_size": 3}, {"prefetch_test_size": 3}, {"number_of_user_features": 2}],
)
def test_options_of_materialised_samples_are_refused_on_histories(plain, trainer, more):
    (name,) = more
    with pytest.raises(UserError, match=f"{name}: histories .* Leave --{name} out"):
        trainer(plain, "din", **more)


def test_users_of_two_events_need_more_not_a_smaller_batch(make_histories):
    """Case late_refusals c."""
    with pytest.raises(UserError, match="3 interactions or more") as error:
        windows(make_histories([2] * 15))
    assert "--min_interactions 3" in str(error.value)
    assert "global_batch_size" not in str(error.value)


# --- serving says which candidates it knows ---


def test_an_answer_says_which_candidates_are_known():
    items, users = VocabularyEncoder(pa.array(["a", "b"])), VocabularyEncoder(pa.array(["u"]))
    encoder = InteractionsRequestEncoder("user_id", "item_id", users, items, np.array([3, 4]))
    request = {"user_id": "u", "candidates": {"item_id": ["b", "new", None]}}
    batch = encoder.encode([request])
    layout = InteractionRequestLayout()
    scores = Scores(np.array([0.1, 0.9, 0.5], np.float32), np.full(3, 0.5, np.float32))
    chosen = layout.chosen(request, encoder, batch.items, scores)
    assert chosen.known == (True, False, False)
    manifest = InteractionsManifest(
        model_type="neumf",
        options={},
        ids="raw",
        inputs={},
        cardinalities={},
        vocabularies={},
        dataset={},
        versions={},
        user_features=("user_id",),
        item_features=("item_id",),
    )
    ranking = layout.answer(request, manifest, chosen)["candidates"]
    assert [(row["item_id"], row["known"]) for row in ranking] == [
        ("new", False),
        (None, False),
        ("b", True),
    ]
    table = layout.table(0, request, manifest, chosen).splitlines()
    assert [line.endswith("unknown") for line in table[2:5]] == [True, True, False]
    assert known(EncodedIds(9), np.array([1, 2, 5], np.int32)) is None

"""Pairs of user and item against brute force: positives, negatives, who is held out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.dataloading.evaluations import LeftOut
from lookback.dataloading.histories.splits import ByTime, ByUsers
from lookback.dataloading.interactions.source import CATALOGUE, InteractionSource
from lookback.dataloading.known_items import Catalogue, KnownItems
from lookback.dataloading.parts import Part
from lookback.formats.interaction_features import SAMPLE_KEY, InteractionFeatures

LENGTHS = (20, 7, 3, 3, 12, 15, 2)
SEED = 5


@pytest.fixture(scope="module")
def histories(make_histories):
    return make_histories(LENGTHS, items=60, repeats=False)


def source(histories, **options) -> InteractionSource:
    return InteractionSource(
        histories, **{"seed": SEED, "batch_size": 30, "test_negatives": 5, **options}
    )


def epoch_of(made, epoch=0):
    """All samples of an epoch: users ``[N]``, items ``[N, C]``, keys ``[N]``."""
    batches = [made.train_batch(feed) for feed in made.train_feeds(epoch, 0)]
    names = ("user_id", "item_id", SAMPLE_KEY)
    for features, labels in batches:
        expected = np.zeros(features["item_id"].shape, np.float32)
        expected[:, 0] = 1
        np.testing.assert_array_equal(labels, expected)
    return [np.concatenate([features[name] for features, _ in batches]) for name in names]


def events_of(histories, user, *, held_out):
    """Items of the user with this id, the last `held_out` left out."""
    place = int(np.flatnonzero(histories.user_features["user_id"] == user)[0])
    begin, end = histories.offsets[place : place + 2]
    return histories.item_features["item_id"][begin : end - held_out].tolist()


# --- training ---


@pytest.mark.parametrize("validation", [0, 1])
@pytest.mark.parametrize("exact", [False, True])
def test_an_epoch_has_every_positive_once(make_histories, validation, exact):
    histories = make_histories((20, 7, 3, 12), items=60, validation=validation)
    users, items, keys = epoch_of(source(histories, exact_negatives=exact))
    found = sorted(zip(users.tolist(), items[:, 0].tolist(), strict=True))
    expected = [
        (user, item)
        for user in histories.user_features["user_id"].tolist()
        for item in events_of(histories, user, held_out=1 + validation)
    ]
    assert found == sorted(expected)
    assert len(set(keys.tolist())) == len(keys)
    assert items.shape == (len(expected), 5)
    assert set(items[:, 1:].flat) <= set(histories.catalogue["item_id"].tolist())


def test_exact_negatives_are_never_met_in_training(histories):
    made = source(histories, exact_negatives=True, negative_samples=50, batch_size=510)
    users, items, _ = epoch_of(made)
    for user, negatives in zip(users, items[:, 1:], strict=True):
        assert not set(negatives.tolist()) & set(events_of(histories, user, held_out=1))
    # The held-out item is not known to training, so it may be drawn, as any other.
    last = {user: events_of(histories, user, held_out=0)[-1] for user in users.tolist()}
    drawn = sum(last[u] in n for u, n in zip(users.tolist(), items[:, 1:].tolist(), strict=True))
    assert drawn > 0


def test_approximate_negatives_meet_positives_as_often_as_chance(histories):
    made = source(histories, negative_samples=50, batch_size=510)
    users, items, _ = epoch_of(made)
    known = [set(events_of(histories, user, held_out=1)) for user in users]
    hits = sum(
        n in mine for mine, row in zip(known, items[:, 1:].tolist(), strict=True) for n in row
    )
    chance = sum(50 * len(mine) / len(histories.catalogue["item_id"]) for mine in known)
    assert abs(hits - chance) < 5 * np.sqrt(chance)


@pytest.mark.parametrize("exact", [False, True])
def test_negatives_are_uniform(histories, exact):
    made = source(histories, exact_negatives=exact, negative_samples=400, batch_size=4010)
    users, items, _ = epoch_of(made)
    chosen = items[users == 1][:, 1:].reshape(-1)
    pool = set(histories.catalogue["item_id"].tolist())
    pool -= set(events_of(histories, 1, held_out=1)) if exact else set()
    counts = [int((chosen == item).sum()) for item in sorted(pool)]
    assert sum(counts) == len(chosen)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_epochs_draw_anew_unless_told_not_to(histories):
    def negatives(made, epoch):
        users, items, keys = epoch_of(made, epoch)
        order = np.lexsort((*items.T[::-1], users))  # events may repeat: a total order
        return items[order][:, 1:], sorted(keys.tolist())

    fresh, repeated = source(histories), source(histories, repeatable=True)
    assert not np.array_equal(negatives(fresh, 0)[0], negatives(fresh, 1)[0])
    np.testing.assert_array_equal(negatives(fresh, 1)[0], negatives(source(histories), 1)[0])
    np.testing.assert_array_equal(negatives(repeated, 0)[0], negatives(repeated, 1)[0])
    assert negatives(repeated, 0)[1] != negatives(repeated, 1)[1]  # dropout is fresh even so


@pytest.mark.parametrize(("ranks", "cuts"), [(1, 2), (2, 2), (4, 1)])
def test_the_parts_of_a_batch_are_the_batch(histories, ranks, cuts):
    whole = source(histories, exact_negatives=True)
    for feed in whole.train_feeds(1, 0):
        features, labels = whole.train_batch(feed)
        parts = []
        for rank in range(ranks):
            mine = source(
                histories, exact_negatives=True, part=Part(rank, ranks), micro_batches=cuts
            )
            feeds = mine.parts_of(feed) if cuts > 1 else [feed]
            parts += [mine.train_batch(part) for part in feeds]
        assert len(parts) == ranks * cuts
        for name, value in features.items():
            joined = np.concatenate([part[0][name] for part in parts])
            np.testing.assert_array_equal(joined, value)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), labels)


def test_a_feed_says_what_it_holds(histories):
    made = source(histories)
    feed = next(made.train_feeds(0, 1))
    features, _ = made.train_batch(feed)
    told = made.describe(feed)
    assert told["user_id"] == features["user_id"].numpy().tolist()
    assert told["item_id"] == features["item_id"].numpy()[:, 0].tolist()


def test_batches_count_rows_and_may_drop_the_last(histories):
    positives = sum(LENGTHS) - len(LENGTHS)
    made = source(histories, batch_size=34)  # 6 positives with 4 negatives each, and 4 rows left
    assert made.train_steps() == -(-positives // 6)
    assert source(histories, batch_size=34, drop_remainder=True).train_steps() == positives // 6
    assert source(histories, batch_size=34, repeat_count=3).train_steps() == 3 * made.train_steps()


# --- free items ---


def test_free_items_are_those_a_user_has_not_met(histories):
    catalogue = Catalogue(histories)
    for held_out in (0, 1):
        known = KnownItems(histories, catalogue, training=bool(held_out))
        for place, user in enumerate(histories.user_features["user_id"]):
            mine = set(events_of(histories, user, held_out=held_out))
            expected = [i for i, item in enumerate(catalogue.ids) if item not in mine]
            assert known.free[place] == len(expected)
            numbers = tf.range(len(expected), dtype=tf.int64)[tf.newaxis]
            found = known.free_places(tf.constant([place], tf.int64), numbers)
            assert found.numpy()[0].tolist() == expected
            mask = known.mask(tf.constant([place], tf.int64), len(catalogue)).numpy()[0]
            assert np.flatnonzero(mask).tolist() == expected


# --- evaluation ---


@pytest.mark.parametrize("split", ["test", "validation"])
def test_every_users_held_out_item_competes_with_items_not_met(make_histories, split):
    histories = make_histories((20, 7, 3, 12), items=60, validation=1, repeats=False)
    made = source(histories, batch_size=13)  # two users with 6 candidates each
    batches = [made.eval_batch(split, feed) for feed in made.eval_feeds(split)]
    assert len(batches) == made.eval_steps(split) == 2
    users = np.concatenate([features["user_id"] for features, _ in batches])
    items = np.concatenate([features["item_id"] for features, _ in batches])
    np.testing.assert_array_equal(users, histories.user_features["user_id"])
    for user, (positive, *negatives) in zip(users, items.tolist(), strict=True):
        events = events_of(histories, user, held_out=0)
        assert positive == events[-1 if split == "test" else -2]
        assert len(set(negatives)) == 5
        assert not set(negatives) & set(events)
    other = source(histories, batch_size=600, seed=SEED + 1)
    assert other.eval_steps(split) == 1
    again = other.eval_batch(split, tf.constant(0, tf.int64))
    np.testing.assert_array_equal(again[0]["item_id"], items)  # whatever the run's seed


def test_test_negatives_are_a_uniform_sample_without_repetition(make_histories):
    histories = make_histories([4] * 4000, items=12, repeats=False)
    made = source(histories, test_negatives=3, batch_size=1 << 16)
    assert made.eval_steps("test") == 1
    features, _ = made.eval_batch("test", tf.constant(0, tf.int64))
    catalogue = histories.catalogue["item_id"].tolist()
    seen = np.zeros(len(catalogue))
    expected = np.zeros(len(catalogue))
    for user, row in zip(
        features["user_id"].numpy(), features["item_id"].numpy().tolist(), strict=True
    ):
        free = sorted(set(catalogue) - set(events_of(histories, user, held_out=0)))
        assert set(row[1:]) <= set(free)
        assert len(set(row[1:])) == 3
        expected[[catalogue.index(item) for item in free]] += 3 / len(free)
        seen[[catalogue.index(item) for item in row[1:]]] += 1
    assert np.abs(seen - expected).max() < 5 * np.sqrt(expected.max())


def test_the_whole_catalogue_competes_but_for_what_was_met(histories):
    made = source(histories, full_catalogue=True, batch_size=130)
    name = "test" + CATALOGUE
    passes = made.evaluations("test")
    assert [(found.name, found.kinds) for found in passes] == [
        ("test", ("ranking", "binary")),
        (name, ("ranking",)),
    ]
    users = 0
    for feed in made.eval_feeds(name):
        features, labels, weights = made.eval_batch(name, feed)
        (items,) = features["item_id"].numpy().tolist()
        assert sorted(items) == sorted(histories.catalogue["item_id"].tolist())
        for user, label, weight in zip(
            features["user_id"], labels.numpy(), weights.numpy(), strict=True
        ):
            events = events_of(histories, int(user), held_out=0)
            assert items[int(label.argmax())] == events[-1]
            assert label.sum() == 1
            met = {item for item, counts in zip(items, weight, strict=True) if not counts}
            assert met == set(events) - {events[-1]}
            users += 1
    assert users == histories.num_users


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_an_evaluation(histories, ranks):
    whole = source(histories)
    for feed in whole.eval_feeds("test"):
        expected = whole.eval_batch("test", feed)[0]["item_id"].numpy()
        parts = [source(histories, part=Part(rank, ranks)) for rank in range(ranks)]
        assert {part.eval_steps("test") for part in parts} == {whole.eval_steps("test")}
        found = [part.eval_batch("test", feed)[0]["item_id"].numpy() for part in parts]
        np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_by_time_a_users_first_event_of_the_part_is_ranked(histories, name):
    validation, test = np.quantile(histories.timestamps, [0.5, 0.75]).astype(int).tolist()
    histories = dataclasses.replace(histories, split=ByTime(validation, test))
    made = source(histories)
    low, high = {"validation": (validation, test), "test": (test, 10**10)}[name]
    item = histories.item_features["item_id"]
    training, expected, new = [], {}, 0
    for place, user in enumerate(histories.user_features["user_id"].tolist()):
        events = np.arange(*histories.offsets[place : place + 2])
        times = histories.timestamps[events]
        training += [(user, i) for i in item[events[times < validation]].tolist()]
        first = events[(times >= low) & (times < high)][:1]
        if len(first) and (times < validation).any():
            expected[user] = (int(item[first[0]]), set(item[events].tolist()))
        new += int(len(first) and not (times < validation).any())
    users, items, _ = epoch_of(made)
    assert sorted(zip(users.tolist(), items[:, 0].tolist(), strict=True)) == sorted(training)
    steps = made.eval_steps(name)
    assert steps and len(expected) < len(LENGTHS)  # some user has none
    found = {}
    for feed in made.eval_feeds(name):
        features, _ = made.eval_batch(name, feed)
        rows = zip(features["user_id"].numpy().tolist(), features["item_id"].numpy(), strict=True)
        for user, (positive, *negatives) in rows:
            assert not set(negatives) & expected[user][1] and len(set(negatives)) == 5
            found[user] = positive
    assert found == {user: positive for user, (positive, _) in expected.items()}
    assert made.left_out(name) == LeftOut(without_history=new)


# --- mistakes ---


def test_users_that_are_held_out_cannot_be_ranked(histories):
    split = ByUsers(np.arange(len(LENGTHS), dtype=np.int8) % 3)
    with pytest.raises(UserError, match="a split by users: those of the test are others"):
        source(dataclasses.replace(histories, split=split))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4}, "global_batch_size: expected at least 5 rows"),
        ({"batch_size": 10_000, "drop_remainder": True}, "fewer than one batch"),
    ],
)
def test_batches_that_cannot_be(histories, options, message):
    with pytest.raises(UserError, match=message):
        source(histories, **options)


def test_too_few_items_for_the_negatives(make_histories):
    histories = make_histories((7, 4), items=13, repeats=False)
    items = len(histories.catalogue["item_id"])
    text = rf"test_negatives: expected at most {items - 4}, .*\(of {items}\), received 9"
    with pytest.raises(UserError, match=text):
        source(histories, test_negatives=9).eval_steps("test")
    assert source(histories, test_negatives=items - 4).eval_steps("test") == 1


def test_who_has_met_everything_is_left_out_of_exact_negatives(make_histories):
    """User 0 has met all 5 items in training: 299 positives for which there is no negative."""
    histories = make_histories((300, 4), items=8)
    made = source(histories, exact_negatives=True)
    assert made.left_out("train") == LeftOut(without_negatives=299)
    users, items, _ = epoch_of(made)
    other = histories.user_features["user_id"].tolist()[1]
    met = events_of(histories, other, held_out=1)
    assert users.tolist() == [other] * 3
    assert sorted(items[:, 0].tolist()) == sorted(met)
    assert not set(items[:, 1:].flat) & set(met)
    assert source(histories).left_out("train") == LeftOut()
    with pytest.raises(UserError, match=r"no positives: 598 targets are of users who have met too"):
        source(make_histories((300, 300), items=8), exact_negatives=True)


def test_a_user_without_a_test_item(make_histories):
    with pytest.raises(UserError, match=r"has 1 interactions.*--min_interactions"):
        source(make_histories((5, 1)))


def test_splits_that_are_not_there(histories):
    with pytest.raises(UserError, match="no validation split"):
        source(histories).eval_steps("validation")
    with pytest.raises(UserError, match="--eval_train"):
        source(histories).eval_steps("train")


def test_items_that_no_catalogue_has(make_histories):
    histories = make_histories((5, 4))
    short = {name: ids[1:] for name, ids in histories.catalogue.items()}
    with pytest.raises(UserError, match=r"Item id \d+ occurs in a history but not in items"):
        source(dataclasses.replace(histories, catalogue=short), test_negatives=1)


def test_a_schema_without_user_ids_is_refused(histories):
    schema = histories.schema.excluding_by_name(["user_id"])
    with pytest.raises(UserError, match="exactly one categorical column tagged USER_ID"):
        InteractionFeatures.from_schema(schema)

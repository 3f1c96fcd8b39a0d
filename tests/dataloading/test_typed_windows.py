"""Windows over every kind of feature, split and label, against loops in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.dataloading.evaluations import LeftOut
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.splits import ByTime, ByUsers, LeaveLastOut
from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig
from lookback.dataloading.parts import Part
from lookback.formats.dataset_info import SPLITS
from lookback.formats.vocabulary import OUT_OF_VOCABULARY
from tests.dataloading.test_windows import bucket, draw
from tests.typed_data import typed_histories

SEED = 11
T, S = 5, 2
LENGTHS = (20, 7, 3, 3, 12, 1, 9)
ONE_MORE = 1 << 40
"""What a user's second target of an evaluation is numbered beyond the first."""

SPLIT_RULES = [
    LeaveLastOut(),
    LeaveLastOut(validation=1),
    ByTime(500, 800),
    ByTime(None, 600),
    ByUsers(np.array([0, 1, 2, 0, 0, 2, 0], np.int8)),
]


def config(**changes):
    return WindowConfig(**{"max_seq_length": T, "long_seq_length": T - S, **changes})


def histories_of(split, **options):
    lengths = [max(length, 3) for length in LENGTHS] if isinstance(split, LeaveLastOut) else LENGTHS
    return typed_histories(lengths, split=split, **options)


def part_of(histories, user, position):
    """The split that an event belongs to as a target, by the rule's own words."""
    split, length = histories.split, int(np.diff(histories.offsets)[user])
    if isinstance(split, LeaveLastOut):
        from_end = length - position
        if split.validation and from_end == 2:
            return "validation"
        return "test" if from_end == 1 else "train"
    if isinstance(split, ByUsers):
        part = SPLITS[split.parts[user]]
        return part if part == "train" or position == length - 1 else None
    time = histories.timestamps[histories.offsets[user] + position]
    if time >= split.test_from:
        return "test"
    held_out = split.validation_from is not None and time >= split.validation_from
    return "validation" if held_out else "train"


def events_of(histories, name):
    """(user, position) of all events of a split, in order."""
    return [
        (user, position)
        for user, length in enumerate(np.diff(histories.offsets))
        for position in range(length)
        if part_of(histories, user, position) == name
    ]


def plain(histories, name, codes):
    """What a batch holds of values: ids in place of bags' numbers."""
    return histories.bags[name][codes] if name in histories.bags else codes


def window(histories, user, position, now, features):
    """What precedes a target, each feature ``[T, ...]``."""
    begin = histories.offsets[user]
    past = range(max(begin, begin + position - T), begin + position)
    features_of = {**histories.item_features, **histories.event_features}
    for name, values in features_of.items():
        codes = np.zeros(T, values.dtype)
        codes[T - len(past) :] = values[list(past)]
        features.setdefault(f"{name}_history", []).append(plain(histories, name, codes))
    gaps = np.zeros(T, np.int32)
    gaps[T - len(past) :] = [bucket(int(now - histories.timestamps[event])) for event in past]
    features.setdefault("time_gap_history", []).append(gaps)


def auxiliary(histories, pool, key, number, features):
    """Negatives of the short slots of the sample that `features` got last."""
    valid = features["item_id_history"][-1][T - S :] > 0
    rows = [draw(*key[:1], f"{key[1]}/auxiliary", key[2], number, s, len(pool)) for s in range(S)]
    for name, values in histories.item_features.items():
        codes = np.where(valid, values[pool[rows]], np.zeros([], values.dtype))
        features.setdefault(f"{name}_negatives", []).append(plain(histories, name, codes))


def reference(histories, samples, key, negatives, pool, *, with_auxiliary):
    """The batch of samples [(number to draw by, user, position)], by loops."""
    features, begin = {}, histories.offsets
    for number, user, position in samples:
        event = begin[user] + position
        rows = [
            draw(key[0], f"{key[1]}/candidates", key[2], number, column, len(pool))
            for column in range(negatives)
        ]
        places = [event, *pool[rows]]
        for name, values in histories.item_features.items():
            features.setdefault(name, []).append(plain(histories, name, values[places]))
        for name in histories.features.of("context"):
            value = histories.event_features[name][event]
            features.setdefault(name, []).append(plain(histories, name, value))
        for name, values in histories.user_features.items():
            features.setdefault(name, []).append(plain(histories, name, values[user]))
        window(histories, user, position, histories.timestamps[event], features)
        if with_auxiliary:
            auxiliary(histories, pool, key, number, features)
    return features


def assert_features(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], np.stack(values), err_msg=name)
        assert found[name].dtype == (tf.float32 if values[0].dtype == np.float32 else tf.int32)


def training_pool(histories):
    return np.array([histories.offsets[u] + p for u, p in events_of(histories, "train")])


@pytest.mark.parametrize("split", SPLIT_RULES, ids=str)
def test_training_takes_events_of_training_alone(split):
    histories = histories_of(split)
    builder = WindowBuilder(histories, config(time_features=True))
    targets = [(u, p) for u, p in events_of(histories, "train") if p >= 1]
    assert builder.num_samples("train") == len(targets)
    numbers = builder.train_numbers(SEED, 1, 0, 2 * len(targets))
    assert sorted(numbers.numpy()) == list(range(len(targets)))
    features, labels = builder.train_batch(SEED, 1, 0, 2 * len(targets))
    expected = reference(
        histories,
        [(n, *targets[n]) for n in numbers.numpy()],
        (SEED, "train", 1),
        negatives=1,
        pool=training_pool(histories),
        with_auxiliary=True,
    )
    assert_features(features, expected)
    np.testing.assert_array_equal(labels, [[1, 0]] * len(targets))


@pytest.mark.parametrize("split", SPLIT_RULES, ids=str)
def test_evaluation_takes_what_is_held_out(split):
    histories = histories_of(split)
    builder = WindowBuilder(histories, config(time_features=True, auxiliary_negatives=False))
    held_out = ("validation", "test") if split.has_validation else ("test",)
    assert builder.held_out == held_out
    for name in held_out:
        events = events_of(histories, name)
        later, samples = {}, []
        for user, position in events:
            if position:  # who did nothing before is left out
                samples.append((user + ONE_MORE * later.get(user, 0), user, position))
            later[user] = later.get(user, 0) + 1
        early = len(events) - len(samples)
        assert builder.left_out(name) == LeftOut(without_history=early)
        assert builder.num_samples(name) == len(samples) > 0
        features, labels = builder.eval_batch(name, SEED, 0, 4 * len(samples), negatives=3)
        everything = np.arange(histories.num_events)
        key = (SEED, f"evaluate/{name}", 0)
        expected = reference(histories, samples, key, 3, everything, with_auxiliary=False)
        assert_features(features, expected)
        np.testing.assert_array_equal(labels, [[1, 0, 0, 0]] * len(samples))
        users = builder.users(name, tf.range(len(samples), dtype=tf.int64))
        assert users.numpy().tolist() == [user for _, user, _ in samples]


def test_unknown_targets_are_counted_once_where_histories_are_cut_by_time():
    """Each for the first reason: an unknown id without a history is an unknown id."""
    histories = histories_of(ByTime(500, 800))
    firsts = histories.offsets[:-1][np.diff(histories.offsets) > 0]
    histories.item_features["item_id"][[*firsts, 8, 15]] = OUT_OF_VOCABULARY
    builder = WindowBuilder(histories, config())
    for name in SPLITS:
        events = events_of(histories, name)
        ids = [histories.item_features["item_id"][histories.offsets[u] + p] for u, p in events]
        known = [
            position
            for (_, position), item in zip(events, ids, strict=True)
            if item != OUT_OF_VOCABULARY
        ]
        assert builder.num_samples(name) == sum(position > 0 for position in known)
        if name != "train":
            unknown = ids.count(OUT_OF_VOCABULARY)
            assert builder.left_out(name) == LeftOut(unknown, without_history=known.count(0))


@pytest.mark.parametrize("split", [LeaveLastOut(), ByTime(500, 800)], ids=str)
def test_evaluations_of_shards_are_those_of_the_whole(split, write_dataset, tmp_path):
    """Each target's candidates, whichever process has its user."""
    directory = write_dataset(histories_of(split), tmp_path / "data")
    whole = Histories.load(directory)
    counts = whole.item_counts()

    def candidates(histories):
        builder = WindowBuilder(histories, config(), counts)
        samples = builder.num_samples("test")
        features, _ = builder.eval_batch("test", SEED, 0, 3 * samples, negatives=2)
        users = builder.users("test", tf.range(samples, dtype=tf.int64)).numpy()
        found = zip(users, features["item_id"].numpy(), features["genres"].numpy(), strict=True)
        return [(u, i.tolist(), g.tolist()) for u, i, g in found]

    parts = [Histories.load(directory, Part(rank, 3)) for rank in range(3)]
    together = [row for part in parts for row in candidates(part)]
    assert sorted(together) == sorted(candidates(whole))


def test_a_split_by_time_needs_times_that_ascend():
    histories = histories_of(ByTime(500, 800))
    histories.timestamps[3] = 10_000
    with pytest.raises(UserError, match="must ascend in time"):
        WindowBuilder(histories, config())


def test_nothing_to_train_on_says_so():
    histories = histories_of(ByTime(None, 0))
    with pytest.raises(UserError, match="no user has an event that is not held out"):
        WindowBuilder(histories, config()).train_steps(2)


# --- explicit labels ---

EMPTY = (20, 7, 0, 3, 12, 1, 0)
SHOWN = (60, 9, 14)


def impressions_of(seed=0, **options):
    return typed_histories(EMPTY, split=ByTime(500, 800), impressions=SHOWN, seed=seed, **options)


def explicit_reference(histories, name, numbers, key):
    """The batch of impressions: of the past, only what is strictly before, by comparing times."""
    shown, features = histories.impressions[name], {}
    pool = training_pool(histories)
    for number in numbers:
        user, now = shown.users[number], shown.timestamps[number]
        begin, end = histories.offsets[user : user + 2]
        for item in histories.item_features:
            value = shown.features[item][[number]]
            features.setdefault(item, []).append(plain(histories, item, value))
        for context in histories.features.of("context"):
            value = shown.features[context][number]
            features.setdefault(context, []).append(plain(histories, context, value))
        for own, values in histories.user_features.items():
            features.setdefault(own, []).append(plain(histories, own, values[user]))
        position = int((histories.timestamps[begin:end] < now).sum())
        window(histories, user, position, now, features)
        if key is not None:
            auxiliary(histories, pool, key, number, features)
    return features, shown.labels[numbers][:, np.newaxis]


@pytest.mark.parametrize("seed", range(3))
def test_no_target_nor_anything_later_is_in_its_history(seed):
    histories = impressions_of(seed)
    builder = WindowBuilder(histories, config(time_features=True))
    assert builder.rows == 1 and builder.train_steps(SHOWN[0]) == 1
    for epoch in (0, 2):
        numbers = builder.train_numbers(SEED, epoch, 0, SHOWN[0]).numpy()
        assert sorted(numbers) == list(range(SHOWN[0])) != list(numbers)
        features, labels = builder.train_batch(SEED, epoch, 0, SHOWN[0])
        key = (SEED, "train", epoch)
        expected, expected_labels = explicit_reference(histories, "train", numbers, key)
        assert_features(features, expected)
        np.testing.assert_array_equal(labels, expected_labels)
        assert labels.dtype == tf.float32
    for name, size in zip(SPLITS, SHOWN, strict=True):
        features, labels = builder.eval_batch(name, SEED, 0, size)
        expected, expected_labels = explicit_reference(histories, name, range(size), None)
        assert_features(features, expected)
        np.testing.assert_array_equal(labels, expected_labels)
        users = builder.users(name, tf.range(size, dtype=tf.int64))
        np.testing.assert_array_equal(users, histories.impressions[name].users)


def test_some_impressions_are_at_the_time_of_the_users_own_event():
    """Or the test above would not tell "before" from "until"."""
    histories, same = impressions_of(), 0
    for user, time in zip(
        histories.impressions["train"].users, histories.impressions["train"].timestamps, strict=True
    ):
        begin, end = histories.offsets[user : user + 2]
        same += time in histories.timestamps[begin:end]
    assert same > 1


def test_impressions_of_unknown_items_are_targets():
    histories = impressions_of()
    histories.impressions["test"].features["item_id"][:] = OUT_OF_VOCABULARY
    builder = WindowBuilder(histories, config())
    assert builder.num_samples("test") == SHOWN[2] and builder.left_out("test") == LeftOut()


def test_without_events_to_draw_from_only_the_auxiliary_loss_is_refused():
    histories = typed_histories(EMPTY, split=ByTime(None, 0), impressions=SHOWN)
    with pytest.raises(UserError, match="auxiliary loss draws negatives"):
        WindowBuilder(histories, config()).train_steps(4)
    assert WindowBuilder(histories, config(auxiliary_negatives=False)).train_steps(4) == 15


def test_users_who_did_nothing_have_empty_histories():
    """All of them, as may be of a process's few."""
    histories = typed_histories((0, 0), split=ByTime(500, 800), impressions=(6, 0, 3))
    options = config(time_features=True, auxiliary_negatives=False)
    features, labels = WindowBuilder(histories, options).train_batch(SEED, 0, 0, 6)
    for name, values in features.items():
        if name.endswith("_history"):
            assert values.shape[:2] == (6, T) and not values.numpy().any(), name
    assert features["item_id"].numpy().all() and labels.shape == (6, 1)


@pytest.mark.parametrize("ranks", [1, 3])
def test_each_impression_is_with_its_users_process(write_dataset, tmp_path, ranks):
    whole = impressions_of()
    directory = write_dataset(whole, tmp_path / "data")
    found = []
    for rank in range(ranks):
        part = Histories.load(directory, Part(rank, ranks))
        builder = WindowBuilder(part, config(), whole.item_counts())
        size = builder.num_samples("test")
        features, labels = builder.eval_batch("test", SEED, 0, max(size, 1))
        users = builder.users("test", tf.range(size, dtype=tf.int64)).numpy()
        rows = (users, features["item_id"], features["item_id_history"], features["hour"], labels)
        found += zip(*(np.asarray(row).tolist() for row in rows), strict=True)
    features, labels = explicit_reference(whole, "test", range(SHOWN[2]), None)
    rows = (whole.impressions["test"].users, features["item_id"], features["item_id_history"])
    expected = zip(*(np.asarray(row).tolist() for row in (*rows, features["hour"], labels)),
                   strict=True)  # fmt: skip
    assert sorted(found) == sorted(expected)

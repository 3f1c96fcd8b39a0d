"""Windows against a brute-force reference in NumPy, one sample at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.splits import LeaveLastOut
from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig, time_gap_bucket
from lookback.dataloading.parts import Part
from lookback.formats.vocabulary import OUT_OF_VOCABULARY

SEED = 11
ITEM_FEATURES = ("item_id", "category_id")

# --- the NumPy reference ---


def splitmix64(state):
    """Output of SplitMix64 whose state is `state`; test_the_twin_is_splitmix64 checks it."""
    with np.errstate(over="ignore"):
        z = np.asarray(state, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def draw(seed, stream, epoch, number, column, rows):
    """One draw below `rows`: a function of all that identifies it, and of nothing else."""
    with np.errstate(over="ignore"):
        name = int.from_bytes(stream.encode(), "big") % 4294967291
        state = splitmix64(splitmix64(seed + name) + np.uint64(epoch))
        state = splitmix64(state + np.uint64(number))
        state = splitmix64(state + np.uint64(0x9E3779B97F4A7C15) * np.uint64(column))
    return int(state >> np.uint64(1)) % rows


def training_targets(histories: Histories, min_history: int = 1) -> list[tuple[int, int]]:
    """(user, position) of every training sample, in the order of their numbers."""
    targets = []
    for user in range(histories.num_users):
        length = histories.offsets[user + 1] - histories.offsets[user]
        targets += [(user, p) for p in range(min_history, length - histories.split.held_out)]
    return targets


def held_out_targets(histories: Histories, from_last: int) -> list[tuple[int, int]]:
    lengths = np.diff(histories.offsets)
    return [(user, length - from_last) for user, length in enumerate(lengths)]


def negative_pool(histories, distribution, *, training):
    """What negatives are drawn from: the catalogue, all events, or those that are not held out."""
    if distribution == "uniform":
        return histories.catalogue
    left_out = histories.split.held_out if training else 0
    kept = [
        event
        for user in range(histories.num_users)
        for event in range(histories.offsets[user], histories.offsets[user + 1] - left_out)
        if histories.item_features["item_id"][event] != OUT_OF_VOCABULARY
    ]
    return {name: values[kept] for name, values in histories.item_features.items()}


def reference(histories, config, samples, key, candidates, auxiliary, pool=None):
    """Features and labels of samples [(number, user, position)]."""
    seed, purpose, epoch = key
    T, S = config.max_seq_length, config.short_seq_length
    if pool is None:
        pool = negative_pool(histories, config.negatives, training=purpose == "train")
    rows = len(pool["item_id"])
    batch = len(samples)
    features = {
        name: np.array([values[user] for _, user, _ in samples], np.int32)
        for name, values in histories.user_features.items()
    }
    for name in ITEM_FEATURES:
        values = histories.item_features[name]
        targets = np.zeros((batch, candidates), np.int32)
        history = np.zeros((batch, T), np.int32)
        negatives = np.zeros((batch, S), np.int32)
        for b, (number, user, position) in enumerate(samples):
            events = values[histories.offsets[user] : histories.offsets[user + 1]]
            targets[b, 0] = events[position]
            for c in range(candidates - 1):
                index = draw(seed, f"{purpose}/candidates", epoch, number, c, rows)
                targets[b, 1 + c] = pool[name][index]
            window = events[max(0, position - T) : position]
            history[b, T - len(window) :] = window
            for s in range(S):
                if history[b, T - S + s]:
                    index = draw(seed, f"{purpose}/auxiliary", epoch, number, s, rows)
                    event = histories.offsets[user] + position - S + s
                    known = histories.item_features["item_id"][event] != OUT_OF_VOCABULARY
                    # Between an unknown event and itself there is nothing to learn.
                    negatives[b, s] = pool[name][index] if known else values[event]
        features |= {name: targets, f"{name}_history": history}
        if auxiliary:
            features[f"{name}_negatives"] = negatives
    if config.time_features:
        gaps = np.zeros((batch, T), np.int32)
        for b, (_, user, position) in enumerate(samples):
            times = histories.timestamps[histories.offsets[user] : histories.offsets[user + 1]]
            window = times[position] - times[max(0, position - T) : position]
            gaps[b, T - len(window) :] = [bucket(int(gap)) for gap in window]
        features["time_gap_history"] = gaps
    labels = np.zeros((batch, candidates), np.float32)
    labels[:, 0] = 1
    return features, labels


def bucket(gap: int) -> int:
    """1 + floor(log2(1 + gap)) in exact integers, at most 33."""
    return min((1 + max(gap, 0)).bit_length(), 33)


def assert_batches_equal(found, expected):
    assert set(found[0]) == set(expected[0])
    for name, values in expected[0].items():
        np.testing.assert_array_equal(found[0][name], values, err_msg=name)
        assert found[0][name].dtype == tf.int32, name
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[1].dtype == tf.float32


def small(**changes) -> WindowConfig:
    return dataclasses.replace(WindowConfig(max_seq_length=5, long_seq_length=3), **changes)


def epoch_of(builder, epoch, batch_size, seed=SEED):
    """All of an epoch: the sample numbers, and the features joined."""
    numbers, parts = [], []
    for step in range(builder.train_steps(batch_size)):
        numbers.append(builder.train_numbers(seed, epoch, step, batch_size).numpy())
        parts.append(builder.train_batch(seed, epoch, step, batch_size))
    features = {n: np.concatenate([p[0][n] for p in parts]) for n in parts[0][0]}
    return np.concatenate(numbers), (features, np.concatenate([p[1] for p in parts]))


# --- content ---


def test_the_twin_is_splitmix64():
    """Published outputs: seed 0 (Vigna's splitmix64.c) and 1234567 (Rosetta Code)."""
    assert int(splitmix64(0)) == 0xE220A8397B1DCDAF
    state, found = 1234567, []
    for _ in range(3):
        found.append(int(splitmix64(state)))
        state += 0x9E3779B97F4A7C15
        state %= 1 << 64
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def histories_of(make_histories, validation, unknown):
    """Histories; each user's first item, which is no target, may be in no vocabulary."""
    histories = make_histories(validation=validation)
    if unknown:
        histories.item_features["item_id"][histories.offsets[:-1]] = OUT_OF_VOCABULARY
    return histories


@pytest.mark.parametrize("negatives", ["popularity", "uniform"])
@pytest.mark.parametrize("validation", [0, 1])
@pytest.mark.parametrize(
    ("slots", "unknown"), [(1, False), (5, True), (30, False)], ids=["T=1", "T=5", "T=30"]
)
def test_every_training_sample_equals_the_reference(
    make_histories, negatives, validation, slots, unknown
):
    histories = histories_of(make_histories, validation, unknown)
    config = WindowConfig(
        max_seq_length=slots,
        long_seq_length=slots // 2,
        negatives=negatives,
        time_features=True,
    )
    builder = WindowBuilder(histories, config)
    targets = training_targets(histories)
    for epoch in (0, 3):
        numbers, found = epoch_of(builder, epoch, batch_size=14)
        samples = [(number, *targets[number]) for number in numbers]
        key = (SEED, "train", epoch)
        expected = reference(histories, config, samples, key, candidates=2, auxiliary=True)
        assert_batches_equal((tf.nest.map_structure(tf.constant, found[0]), found[1]), expected)


@pytest.mark.parametrize(("split", "validation"), [("test", 0), ("test", 1), ("validation", 1)])
@pytest.mark.parametrize(("negatives", "unknown"), [(1, False), (4, False), (4, True)])
def test_every_held_out_sample_equals_the_reference(
    make_histories, split, validation, negatives, unknown
):
    histories = histories_of(make_histories, validation, unknown)
    config = small(time_features=True)
    builder = WindowBuilder(histories, config)
    targets = held_out_targets(histories, from_last=1 if split == "test" else 2)
    batch_size = 2 * (1 + negatives)
    assert builder.eval_steps(split, batch_size, negatives) == 3
    key = (SEED, f"evaluate/{split}", 0)
    for step in range(3):
        users = range(2 * step, min(2 * step + 2, 5))
        samples = [(user, *targets[user]) for user in users]
        expected = reference(histories, config, samples, key, 1 + negatives, auxiliary=False)
        found = builder.eval_batch(split, SEED, step, batch_size, negatives)
        assert_batches_equal(found, expected)


def test_evaluation_on_train_goes_through_the_training_samples_in_order(make_histories):
    histories = make_histories()
    builder = WindowBuilder(histories, small())
    samples = [(n, *target) for n, target in enumerate(training_targets(histories))]
    key = (SEED, "evaluate/train", 0)
    assert builder.eval_steps("train", 20) == 4
    for step in range(4):
        part = samples[10 * step : 10 * step + 10]
        expected = reference(histories, small(), part, key, candidates=2, auxiliary=False)
        assert_batches_equal(builder.eval_batch("train", SEED, step, 20), expected)


def test_a_compiled_batch_equals_an_eager_one(make_histories):
    builder = WindowBuilder(make_histories(), small(time_features=True))
    compiled = tf.function(
        lambda epoch, step: builder.train_batch(SEED, epoch, step, 6), autograph=False
    )
    for epoch, step in [(0, 0), (1, 11)]:
        counters = tf.constant(epoch, tf.int64), tf.constant(step, tf.int64)
        assert_batches_equal(compiled(*counters), builder.train_batch(SEED, epoch, step, 6))
    assert compiled.experimental_get_tracing_count() == 1


# --- the split rule of NVIDIA's SIM ---


def test_a_user_of_20_has_18_training_samples(make_histories):
    histories = make_histories(lengths=[20])
    builder = WindowBuilder(histories, WindowConfig(max_seq_length=30, long_seq_length=20))
    assert builder.num_samples("train") == 18
    assert builder.num_samples("test") == 1
    _, (features, _) = epoch_of(builder, 0, batch_size=36)
    items = histories.item_features["item_id"]
    seen = sorted(np.count_nonzero(features["item_id_history"], axis=1))
    assert seen == list(range(1, 19))
    test, _ = builder.eval_batch("test", 0, 0, 2)
    assert test["item_id"][0, 0] == items[19]
    np.testing.assert_array_equal(test["item_id_history"][0], [0] * 11 + list(items[:19]))


def test_validation_takes_the_one_before_last(make_histories):
    histories = make_histories(lengths=[20], validation=1)
    builder = WindowBuilder(histories, WindowConfig(max_seq_length=30, long_seq_length=20))
    assert [builder.num_samples(s) for s in ("train", "validation", "test")] == [17, 1, 1]
    items = histories.item_features["item_id"]
    for split, last in (("validation", 18), ("test", 19)):
        features, _ = builder.eval_batch(split, 0, 0, 2)
        assert features["item_id"][0, 0] == items[last]
        np.testing.assert_array_equal(features["item_id_history"][0, -last:], items[:last])
    _, (features, _) = epoch_of(builder, 0, batch_size=34)
    assert sorted(features["item_id"][:, 0]) == sorted(items[1:18])


@pytest.mark.parametrize(("min_history", "expected"), [(1, 35), (3, 27), (6, 18), (18, 1)])
def test_min_history_leaves_out_short_prefixes(make_histories, min_history, expected):
    histories = make_histories()
    builder = WindowBuilder(histories, small(min_history=min_history))
    assert builder.num_samples("train") == expected == len(training_targets(histories, min_history))
    numbers, (features, _) = epoch_of(builder, 0, batch_size=4)
    targets = [training_targets(histories, min_history)[n] for n in numbers]
    np.testing.assert_array_equal(features["user_id"], [user + 1 for user, _ in targets])
    length = np.count_nonzero(features["item_id_history"], axis=1)
    np.testing.assert_array_equal(length, [min(position, 5) for _, position in targets])


# --- order ---


@pytest.mark.parametrize("batch_size", [2, 4, 10, 64, 70, 72, 1000])
def test_one_epoch_visits_each_sample_once(make_histories, batch_size):
    builder = WindowBuilder(make_histories(), small())
    samples = 35
    assert builder.num_samples("train") == samples
    steps = builder.train_steps(batch_size)
    assert steps == -(-2 * samples // batch_size)
    for epoch in range(2):
        numbers = [builder.train_numbers(SEED, epoch, s, batch_size) for s in range(steps)]
        assert all(len(n) == batch_size // 2 for n in numbers[:-1])
        assert sorted(np.concatenate(numbers)) == list(range(samples))


@pytest.mark.parametrize(("batch_size", "steps"), [(2, 35), (10, 7), (16, 4), (68, 1), (70, 1)])
def test_drop_remainder_leaves_out_a_part_of_a_batch(make_histories, batch_size, steps):
    builder = WindowBuilder(make_histories(), small())
    assert builder.train_steps(batch_size, drop_remainder=True) == steps
    for step in range(steps):
        _, labels = builder.train_batch(SEED, 0, step, batch_size)
        assert labels.shape == [batch_size // 2, 2]


def test_a_single_sample_is_an_epoch(make_histories):
    builder = WindowBuilder(make_histories(lengths=[3]), small())
    assert builder.train_steps(2) == 1
    assert [int(builder.train_numbers(SEED, e, 0, 2)) for e in range(3)] == [0, 0, 0]


def test_the_order_does_not_depend_on_the_batch_size(make_histories):
    builder = WindowBuilder(make_histories(), small())
    orders = [epoch_of(builder, 1, size)[0] for size in (2, 10, 70)]
    np.testing.assert_array_equal(orders[0], orders[1])
    np.testing.assert_array_equal(orders[0], orders[2])


def test_the_order_differs_by_epoch_and_by_seed(make_histories):
    builder = WindowBuilder(make_histories(), small())
    orders = {
        tuple(builder.train_numbers(seed, epoch, 0, 70).numpy())
        for seed in (1, 2)
        for epoch in range(3)
    }
    assert len(orders) == 6
    assert tuple(range(35)) not in orders
    again = tuple(builder.train_numbers(1, 0, 0, 70).numpy())
    assert again in orders


def test_shuffling_puts_every_sample_everywhere(make_histories):
    """Where sample 0 lands over 600 epochs is uniform (chi-square)."""
    builder = WindowBuilder(make_histories(lengths=[7]), small())  # 5 samples
    order = tf.function(lambda epoch: builder.train_numbers(SEED, epoch, 0, 10), autograph=False)
    places = [int(np.argmax(order(tf.constant(e, tf.int64)).numpy() == 0)) for e in range(600)]
    assert scipy.stats.chisquare(np.bincount(places, minlength=5)).pvalue > 1e-3


# --- negatives ---


def by_number(numbers, batch, name):
    return dict(zip(numbers.tolist(), batch[0][name].tolist(), strict=True))


NEGATIVES = ("item_id", "item_id_negatives")


def test_negatives_depend_on_seed_epoch_and_sample_only(make_histories):
    builder = WindowBuilder(make_histories(), small())
    first, large = epoch_of(builder, 2, 6), epoch_of(builder, 2, 70)
    later, other = epoch_of(builder, 3, 6), epoch_of(builder, 2, 6, seed=SEED + 1)
    for name in NEGATIVES:
        expected = by_number(*first, name)
        assert by_number(*large, name) == expected
        assert by_number(*later, name) != expected
        assert by_number(*other, name) != expected


def test_repeatable_negatives_are_those_of_the_first_epoch(make_histories):
    histories = make_histories()
    builder = WindowBuilder(histories, small(repeatable=True))
    first = epoch_of(WindowBuilder(histories, small()), 0, 6)
    again, large = epoch_of(builder, 4, 6), epoch_of(builder, 9, 70)
    for name in NEGATIVES:
        expected = by_number(*first, name)
        assert by_number(*again, name) == expected
        assert by_number(*large, name) == expected
    # The order is still the epoch's own.
    assert list(again[0]) != list(epoch_of(builder, 9, 6)[0])


def test_evaluation_negatives_depend_on_their_seed_alone(make_histories):
    builder = WindowBuilder(make_histories(), small())

    def joined(seed, batch_size):
        steps = builder.eval_steps("test", batch_size, 3)
        return np.concatenate(
            [builder.eval_batch("test", seed, s, batch_size, 3)[0]["item_id"] for s in range(steps)]
        )

    np.testing.assert_array_equal(joined(0, 4), joined(0, 100))
    assert (joined(0, 4)[:, 1:] != joined(1, 4)[:, 1:]).any()
    np.testing.assert_array_equal(joined(0, 4)[:, 0], joined(1, 4)[:, 0])


def test_more_test_negatives_keep_the_first_ones(make_histories):
    builder = WindowBuilder(make_histories(), small())
    few, _ = builder.eval_batch("test", 0, 0, 1000, 2)
    many, labels = builder.eval_batch("test", 0, 0, 1000, 50)
    np.testing.assert_array_equal(few["item_id"], many["item_id"][:, :3])
    np.testing.assert_array_equal(labels[:, 0], np.ones(5))
    assert labels.numpy().sum() == 5


def sampled_negatives(histories, distribution, name):
    """Negatives of a stream, each sample's, over one evaluation or several epochs."""
    config = WindowConfig(max_seq_length=10, long_seq_length=0, negatives=distribution)
    builder = WindowBuilder(histories, config)
    if name == "candidates":
        features, _ = builder.eval_batch("test", SEED, 0, 10**6, negatives=800)
        return {n: features[n][:, 1:].numpy().ravel() for n in ITEM_FEATURES}
    batch = tf.function(lambda epoch: builder.train_batch(SEED, epoch, 0, 70)[0], autograph=False)
    parts = [batch(tf.constant(epoch, tf.int64)) for epoch in range(20)]
    drawn = {n: np.concatenate([p[f"{n}_negatives"] for p in parts]).ravel() for n in ITEM_FEATURES}
    valid = drawn["item_id"] > 0
    return {n: v[valid] for n, v in drawn.items()}


@pytest.mark.parametrize("stream", ["candidates", "auxiliary"])
@pytest.mark.parametrize("distribution", ["popularity", "uniform"])
def test_negatives_follow_their_distribution(make_histories, distribution, stream):
    histories = make_histories(items=12)
    drawn = sampled_negatives(histories, distribution, stream)
    pool = negative_pool(histories, "popularity", training=stream == "auxiliary")
    items, counts = np.unique(pool["item_id"], return_counts=True)
    if distribution == "uniform":
        items = np.unique(histories.item_features["item_id"])
        counts = (histories.item_features["item_id"] == items[:, np.newaxis]).sum(1)
    weights = counts / counts.sum() if distribution == "popularity" else np.full(len(items), 1.0)
    weights = weights / weights.sum()
    observed = np.array([(drawn["item_id"] == item).sum() for item in items])
    assert observed.sum() == len(drawn["item_id"]) > 3000
    assert scipy.stats.chisquare(observed, weights * observed.sum()).pvalue > 1e-3
    # The other distribution does not fit, so the test can tell them apart.
    other = np.full(len(items), 1.0) if distribution == "popularity" else counts
    assert scipy.stats.chisquare(observed, other / other.sum() * observed.sum()).pvalue < 1e-6
    # Item and category of a negative belong together.
    category_of = dict(zip(*(histories.catalogue[n].tolist() for n in ITEM_FEATURES), strict=True))
    np.testing.assert_array_equal(
        drawn["category_id"], [category_of[item] for item in drawn["item_id"].tolist()]
    )


def test_a_held_out_item_is_no_popular_negative_of_training(make_histories):
    histories = make_histories(lengths=[20, 7, 3, 3, 12], items=40)
    unseen = histories.offsets[1:] - 1
    histories.item_features["item_id"][unseen] = 39 - np.arange(5, dtype=np.int32)
    builder = WindowBuilder(histories, small())
    features = [builder.train_batch(SEED, epoch, 0, 1000)[0] for epoch in range(20)]
    drawn = {int(i) for f in features for i in f["item_id"].numpy()[:, 1]}
    training = np.delete(histories.item_features["item_id"], unseen)
    assert drawn == set(training.tolist())


def test_candidate_and_auxiliary_streams_are_independent(make_histories):
    builder = WindowBuilder(make_histories(), WindowConfig(max_seq_length=1, long_seq_length=0))
    features, _ = builder.train_batch(SEED, 0, 0, 70)
    assert (features["item_id"][:, 1] != features["item_id_negatives"][:, 0]).numpy().any()


def test_auxiliary_negatives_are_zero_exactly_at_padding(make_histories):
    builder = WindowBuilder(make_histories(), WindowConfig(max_seq_length=12, long_seq_length=4))
    _, (features, _) = epoch_of(builder, 0, batch_size=10)
    for name in ITEM_FEATURES:
        padded = features[f"{name}_history"][:, 4:] == 0
        np.testing.assert_array_equal(features[f"{name}_negatives"] == 0, padded)
        assert padded.any()


def test_auxiliary_negatives_can_be_left_out(make_histories):
    builder = WindowBuilder(make_histories(), small(auxiliary_negatives=False))
    features, _ = builder.train_batch(SEED, 0, 0, 10)
    assert not [name for name in features if name.endswith("_negatives")]


def test_an_item_feature_more_and_no_user_features(make_histories, make_schema):
    plain = make_histories()
    brand = (plain.item_features["item_id"] * 7 % 5 + 1).astype(np.int32)
    histories = dataclasses.replace(
        plain,
        schema=make_schema({}, {"item_id": 40, "category_id": 6, "brand": 6}),
        user_features={},
        item_features={**plain.item_features, "brand": brand},
        catalogue={**plain.catalogue, "brand": (plain.catalogue["item_id"] * 7 % 5 + 1)},
    )
    features, _ = WindowBuilder(histories, small()).train_batch(SEED, 0, 0, 70)
    assert "user_id" not in features
    for suffix in ("", "_history", "_negatives"):
        item, brand = features[f"item_id{suffix}"].numpy(), features[f"brand{suffix}"].numpy()
        np.testing.assert_array_equal(brand, np.where(item > 0, item * 7 % 5 + 1, 0))


# --- histories of this process's users only ---


@pytest.fixture
def shards(make_histories, write_dataset, tmp_path):
    """The whole histories, a builder for each rank's users, and everybody's counts."""

    def make(ranks, config, change=lambda whole: whole, **options):
        whole = change(make_histories(**{"lengths": [20, 7, 3, 3, 12], **options}))
        directory = write_dataset(whole, tmp_path / f"data{ranks}{config.negatives}")
        parts = [Histories.load(directory, Part(rank, ranks)) for rank in range(ranks)]
        counts = whole.item_counts()
        return whole, [WindowBuilder(part, config, counts) for part in parts], counts

    return make


def targets_of(targets, rank, ranks):
    """The targets of a rank's users."""
    return [(user, position) for user, position in targets if user % ranks == rank]


@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("negatives", ["popularity", "uniform"])
def test_every_training_sample_of_every_rank_equals_the_reference(shards, ranks, negatives):
    """Of 7 ranks, two have no users; and their samples' negatives are drawn by global numbers."""
    config = small(negatives=negatives, time_features=True)
    whole, builders, counts = shards(ranks, config)
    pool = whole.catalogue
    if negatives == "popularity":  # an item as often as it occurs among everybody's training events
        pool = {name: np.repeat(values, counts.training) for name, values in pool.items()}
    seen = 0
    for rank, builder in enumerate(builders):
        targets = targets_of(training_targets(whole), rank, ranks)
        assert builder.num_samples("train") == len(targets)
        seen += len(targets)
        for step in range(-(-len(targets) // 7)):
            numbers = builder.train_numbers(SEED, 3, step, 14).numpy()
            samples = [(number * ranks + rank, *targets[number]) for number in numbers]
            key = (SEED, "train", 3)
            expected = reference(whole, config, samples, key, 2, auxiliary=True, pool=pool)
            assert_batches_equal(builder.train_batch(SEED, 3, step, 14), expected)
    assert seen == len(training_targets(whole))


@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("negatives", ["popularity", "uniform"])
def test_every_test_sample_of_every_rank_equals_the_reference(shards, ranks, negatives):
    config = small(negatives=negatives)
    whole, builders, counts = shards(ranks, config)
    pool = whole.catalogue
    if negatives == "popularity":
        pool = {name: np.repeat(values, counts.all) for name, values in pool.items()}
    for rank, builder in enumerate(builders):
        targets = targets_of(held_out_targets(whole, from_last=1), rank, ranks)
        samples = [(user, user, position) for user, position in targets]
        key = (SEED, "evaluate/test", 0)
        expected = reference(whole, config, samples, key, 4, auxiliary=False, pool=pool)
        assert_batches_equal(builder.eval_batch("test", SEED, 0, 1000, 3), expected)


def test_uniform_evaluation_negatives_do_not_depend_on_who_has_the_user(shards):
    config = small(negatives="uniform")
    whole, builders, _ = shards(3, config)
    expected, _ = WindowBuilder(whole, config).eval_batch("test", SEED, 0, 1000, 9)
    for rank, builder in enumerate(builders):
        found, _ = builder.eval_batch("test", SEED, 0, 1000, 9)
        np.testing.assert_array_equal(found["item_id"], expected["item_id"][rank::3])


def test_no_two_ranks_draw_alike(shards):
    """As they would if each numbered its own samples only."""
    _, builders, _ = shards(2, small(), lengths=[20, 20])
    drawn = [b.train_batch(SEED, 0, 0, 36)[0]["item_id_negatives"].numpy() for b in builders]
    assert (drawn[0] != drawn[1]).mean() > 0.5


def of_separate_tastes(histories):
    """Users of even number know items 3 to 8, the others 9 to 14; some items more than others."""
    user = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    liked = np.random.default_rng(3).random(histories.num_events) ** 2 * 6
    item = (3 + liked + 6 * (user % 2)).astype(np.int32)
    distinct = np.unique(item)
    assert len(distinct) == 12
    return dataclasses.replace(
        histories,
        item_features={"item_id": item, "category_id": item % 5 + 1},
        catalogue={"item_id": distinct, "category_id": distinct % 5 + 1},
    )


@pytest.mark.parametrize("stream", ["candidates", "auxiliary"])
def test_popular_negatives_follow_everybodys_events_not_the_ranks(shards, stream):
    config = WindowConfig(max_seq_length=10, long_seq_length=0)
    whole, builders, counts = shards(2, config, of_separate_tastes, lengths=[40, 9, 40, 30])
    expected = counts.all if stream == "candidates" else counts.training
    items = whole.item_features["item_id"]
    assert [np.unique(items[:40]).max(), np.unique(items[40:49]).min()] == [8, 9]
    for builder in builders:
        if stream == "candidates":
            drawn = builder.eval_batch("test", SEED, 0, 10**6, 2000)[0]["item_id"][:, 1:].numpy()
        else:
            batch = tf.function(
                lambda epoch, b=builder: b.train_batch(SEED, epoch, 0, 1000)[0], autograph=False
            )
            parts = [batch(tf.constant(e, tf.int64))["item_id_negatives"] for e in range(40)]
            drawn = np.concatenate(parts)
        observed = np.bincount(drawn[drawn > 0], minlength=15)[3:]
        assert len(observed) == 12
        assert observed.sum() > 3000
        share = expected / expected.sum() * observed.sum()
        assert scipy.stats.chisquare(observed, share).pvalue > 1e-3
        # The test can tell: items taken alike do not fit.
        assert scipy.stats.chisquare(observed).pvalue < 1e-6


def test_a_rank_without_users_has_empty_batches(shards):
    whole, builders, _ = shards(7, small(time_features=True))
    expected, _ = WindowBuilder(whole, small(time_features=True)).train_batch(SEED, 0, 0, 10)
    for builder in builders[5:]:
        assert builder.num_samples("train") == builder.num_samples("test") == 0
        with pytest.raises(UserError, match="has no samples"):
            builder.train_steps(10)
        assert builder.eval_steps("test", 10) == 0
        compiled = tf.function(
            lambda step, b=builder: b.train_batch(SEED, 0, step, 10), autograph=False
        )
        for step in (0, 4):
            features, labels = compiled(tf.constant(step, tf.int64))
            assert labels.shape == [0, 2]
            assert set(features) == set(expected)
            for name, values in expected.items():
                assert features[name].shape == [0, *values.shape[1:]], name
        assert builder.eval_batch("test", SEED, 0, 10)[1].shape == [0, 2]


# --- time ---


def test_time_gap_bucket_against_exact_integers():
    powers = [2**n + d for n in range(41) for d in (-2, -1, 0, 1)]
    gaps = [0, 1, 2, -1, -(10**12), 2**31, 2**31 + 1, 2**33, 2**62, 86_400, *powers]
    found = time_gap_bucket(tf.constant(gaps, tf.int64))
    assert found.dtype == tf.int32
    compiled = tf.function(time_gap_bucket, autograph=False)
    np.testing.assert_array_equal(compiled(tf.constant(gaps, tf.int64)), found)
    expected = [bucket(gap) for gap in gaps]
    wrong = [(g, f, e) for g, f, e in zip(gaps, found.numpy(), expected, strict=True) if f != e]
    assert not wrong
    assert found.numpy().min() == 1
    assert found.numpy().max() == 33


def test_time_gap_bucket_of_random_gaps():
    gaps = np.random.default_rng(0).integers(0, 2**34, 5000)
    expected = np.minimum(1 + np.floor(np.log2(1 + gaps.astype(np.float64))), 33)
    np.testing.assert_array_equal(time_gap_bucket(tf.constant(gaps)), expected)


# --- errors ---


@pytest.mark.parametrize("batch_size", [0, 1, 3, -2])
def test_an_odd_batch_is_refused(make_histories, batch_size):
    builder = WindowBuilder(make_histories(), small())
    with pytest.raises(UserError, match=f"must be even and at least 2 .*received {batch_size}"):
        builder.train_steps(batch_size)


def test_a_batch_larger_than_the_dataset_is_refused_with_drop_remainder(make_histories):
    builder = WindowBuilder(make_histories(), small())
    assert builder.train_steps(1000) == 1
    with pytest.raises(UserError, match=r"has 70 rows, fewer than one batch of 72 \(--drop_rem"):
        builder.train_steps(72, drop_remainder=True)


def test_no_training_samples_is_refused(make_histories):
    builder = WindowBuilder(make_histories(lengths=[2, 2]), small())
    with pytest.raises(UserError, match=r"with 3 interactions or more .* --min_interactions 3"):
        builder.train_steps(2)
    assert builder.num_samples("test") == 2


def test_no_validation_split_is_refused(make_histories):
    builder = WindowBuilder(make_histories(), small())
    with pytest.raises(UserError, match=r"no validation split\. Run the workflow again, without"):
        builder.num_samples("validation")
    with pytest.raises(UserError, match=r"split must be one of .*received 'tset'"):
        builder.eval_steps("tset", 2)


@pytest.mark.parametrize("held_out", [1, 2])
def test_users_too_short_are_refused(make_histories, held_out):
    histories = make_histories(lengths=[20, held_out, 9], validation=held_out - 1)
    with pytest.raises(UserError, match=f"has {held_out} interactions; .*at least {held_out + 1}"):
        WindowBuilder(histories, small())
    just_enough = make_histories(lengths=[20, held_out + 1, 9], validation=held_out - 1)
    assert WindowBuilder(just_enough, small()).num_samples("test") == 3


def test_time_features_need_timestamps(make_histories):
    histories = make_histories(times=False)
    with pytest.raises(UserError, match="needs timestamps, and the dataset has no column tagged"):
        WindowBuilder(histories, small(time_features=True))
    assert "time_gap_history" not in WindowBuilder(histories, small()).train_batch(0, 0, 0, 2)[0]


@pytest.mark.parametrize("negatives", [0, -1])
def test_evaluation_needs_a_negative(make_histories, negatives):
    builder = WindowBuilder(make_histories(), small())
    with pytest.raises(UserError, match=f"test_negatives .* received {negatives}"):
        builder.eval_batch("test", 0, 0, 10, negatives)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_seq_length": 5, "long_seq_length": 5}, "less than max_seq_length, received 5 and 5"),
        ({"long_seq_length": -1}, "at least 0"),
        ({"negatives": "random"}, r"one of \('popularity', 'uniform'\), received 'random'"),
        ({"min_history": 0}, "min_history must be at least 1, received 0"),
    ],
)
def test_config_errors(options, text):
    with pytest.raises(UserError, match=text):
        WindowConfig(**options)


def test_describe_names_user_and_position(make_histories):
    histories = make_histories()
    builder = WindowBuilder(histories, small())
    number = 20  # user 0 has numbers 0 to 17, user 1 those from 18 on
    assert training_targets(histories)[number] == (1, 3)
    described = builder.describe(tf.constant([number], tf.int64))
    country = int(histories.user_features["country"][1])
    assert described == {"sample": [20], "user_id": [2], "country": [country], "position": [3]}


def test_split_counts():
    assert LeaveLastOut().held_out == 1
    assert LeaveLastOut(validation=1).held_out == 2


def test_batches_on_a_gpu_hold_the_same_numbers(make_histories, monkeypatch):
    """There they are int64 (`core.devices.whole_numbers`), and else nothing differs."""
    from lookback.core import devices

    histories = make_histories([20, 7, 3, 12, 9])
    config = WindowConfig(max_seq_length=6, long_seq_length=4, time_features=True)

    def batches():
        windows = WindowBuilder(histories, config)
        train = windows.train_batch(SEED, 1, 0, 8)
        return train, windows.eval_batch("test", SEED, 0, 6, negatives=2)

    here = batches()
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    for (ours, labels), (theirs, same) in zip(here, batches(), strict=True):
        np.testing.assert_array_equal(labels, same)
        assert list(ours) == list(theirs)
        for name, values in ours.items():
            assert theirs[name].dtype == (tf.int64 if values.dtype.is_integer else values.dtype)
            np.testing.assert_array_equal(values, theirs[name], err_msg=name)

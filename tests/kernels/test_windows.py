"""Windows and draws by our kernels and by TensorFlow's operations: against NumPy, to the bit."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from lookback.dataloading.draws import draw_below, sample_keys
from lookback.kernels import loader
from lookback.kernels.windows import occupied, windows

needs_kernels = pytest.mark.skipif(
    loader.cpu_kernels() is None, reason="a GPU, or an environment that setup.sh did not make"
)
WAYS = [
    pytest.param(loader.portable, id="tensorflow"),
    pytest.param(contextlib.nullcontext, id="kernel", marks=needs_kernels),
]
LENGTHS = np.array([3, 0, 7, 40, 1])  # of histories
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("length", [0, 1, 5, 50])
@pytest.mark.parametrize("way", WAYS)
def test_a_window_ends_before_its_position(way, length, compiled):
    random = np.random.default_rng(length)
    events = int(OFFSETS[-1])
    columns = {
        "item": random.integers(1, 1 << 30, events).astype(np.int32),
        "price": random.normal(size=events).astype(np.float32),
        "time": random.integers(1, 1 << 60, events),
    }
    pairs = [(user, position) for user in range(5) for position in range(LENGTHS[user] + 1)]
    users, positions = np.array(pairs).T
    function = tf.function(windows, autograph=False) if compiled else windows
    with way():
        found = function(
            tf.constant(OFFSETS[users]),
            tf.constant(positions),
            {name: tf.constant(values) for name, values in columns.items()},
            length,
        )
    for name, values in columns.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == (len(pairs), length)
        for row, (user, position) in enumerate(pairs):
            before = values[OFFSETS[user] : OFFSETS[user] + position][-length:] if length else []
            expected = np.concatenate([np.zeros(length - len(before), values.dtype), before])
            np.testing.assert_array_equal(found[name][row], expected)
    there = occupied(tf.constant(positions), length)
    np.testing.assert_array_equal(there, found["item"].numpy() > 0)


@pytest.mark.parametrize("way", WAYS)
def test_of_no_window_there_is_nothing(way):
    none = tf.zeros([0], tf.int64)
    with way():
        assert windows(none, none, {"item": tf.constant([1, 2])}, 4)["item"].shape == [0, 4]
        assert windows(none, none, {}, 4) == {}


@needs_kernels
def test_windows_beyond_the_events_are_refused():
    columns = {"item": tf.range(10), "time": tf.range(10)}
    for begin, position, said in ((-1, 3, "negative"), (3, -1, "negative"), (8, 3, "at least 11")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=said):
            windows(
                tf.constant([0, begin], tf.int64), tf.constant([2, position], tf.int64), columns, 4
            )
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"begins \[B\] and positions"):
        windows(tf.constant([0, 1], tf.int64), tf.constant([2], tf.int64), columns, 4)
    zero = tf.constant([0], tf.int64)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Expected numbers"):
        windows(zero, zero, {"name": tf.constant(["a"])}, 4)


def by_numpy(keys, width, bound):
    """SplitMix64 (Steele, Lea & Flood 2014) in its own unsigned numbers, and the remainder."""
    with np.errstate(over="ignore"):
        weyl = np.uint64(0x9E3779B97F4A7C15)
        z = keys.astype(np.uint64)[:, np.newaxis] + weyl * np.arange(width, dtype=np.uint64) + weyl
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(1)).astype(np.int64) % bound


@pytest.mark.parametrize(
    "bound",
    [1, 7, 192_403, (1 << 62) + 1, "a row's own", "one in a matrix", "each its own"],
    ids=str,
)
@pytest.mark.parametrize("way", WAYS)
def test_draws_are_splitmix(way, bound):
    rows, width = 300, 11
    random = np.random.default_rng(1)
    numbers = random.integers(0, 1 << 40, rows)
    bounds = {
        "a row's own": random.integers(1, 1000, (rows, 1)),
        "one in a matrix": np.full((1, 1), 12),
        "each its own": random.integers(1, 1000, (rows, width)),
    }.get(bound, bound)
    key = (3, "train", tf.constant(2, tf.int64))
    with way():
        found = draw_below(key, "test", tf.constant(numbers), width, tf.constant(bounds, tf.int64))
    keys = sample_keys(key, "test", tf.constant(numbers)).numpy()
    np.testing.assert_array_equal(found, by_numpy(keys, width, bounds))


@needs_kernels
def test_a_draw_below_nothing_is_refused():
    key = (3, "train", tf.constant(2, tf.int64))
    for bound in (0, -4):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"above 0, received {bound}"):
            draw_below(key, "test", tf.constant([1], tf.int64), 2, tf.constant(bound, tf.int64))
    operations = loader.cpu_kernels()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"one bound or bounds \[B, 1\]"):
        operations.lookback_draw_below(
            keys=tf.range(2, dtype=tf.int64), bound=tf.ones([3, 1], tf.int64), width=2
        )

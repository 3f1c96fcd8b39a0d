"""What the ranks take of a batch, joined, is the batch: whatever their number."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig
from lookback.dataloading.parts import WHOLE, Part

SEED = 11
WORLDS = pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
CONFIG = WindowConfig(max_seq_length=5, long_seq_length=3, time_features=True)


def parts_of(ranks):
    return [Part(rank, ranks) for rank in range(ranks)]


# --- arithmetic ---


@WORLDS
@pytest.mark.parametrize("size", [0, 1, 2, 6, 7, 100])
def test_bounds_cut_evenly_and_leave_nothing_out(ranks, size):
    bounds = [part.bounds(size) for part in parts_of(ranks)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert [end for _, end in bounds[:-1]] == [begin for begin, _ in bounds[1:]]
    lengths = [end - begin for begin, end in bounds]
    assert max(lengths) - min(lengths) <= 1
    tensors = [part.bounds(tf.constant(size, tf.int64)) for part in parts_of(ranks)]
    assert [(int(begin), int(end)) for begin, end in tensors] == bounds


@WORLDS
@pytest.mark.parametrize(("batch", "total"), [(4, 10), (5, 10), (1, 3), (100, 7), (3, 0)])
def test_indices_of_a_batch(ranks, batch, total):
    for step in range(total // batch + 3):  # two batches beyond the last sample are empty
        indices = [part.of_batch(step, batch, total) for part in parts_of(ranks)]
        assert {index.dtype for index in indices} == {tf.int64}
        expected = range(min(step * batch, total), min((step + 1) * batch, total))
        np.testing.assert_array_equal(np.concatenate(indices), list(expected))
        lengths = [len(index) for index in indices]
        assert max(lengths) - min(lengths) <= 1


def test_indices_of_a_batch_in_a_graph():
    part = Part(1, 3)
    compiled = tf.function(lambda step: part.of_batch(step, 4, 10), autograph=False)
    for step in range(4):
        expected = part.of_batch(step, 4, 10)
        np.testing.assert_array_equal(compiled(tf.constant(step, tf.int64)), expected)
    assert compiled.experimental_get_tracing_count() == 1


@WORLDS
@pytest.mark.parametrize("things", [0, 3, 20])
def test_every_thing_has_one_rank_and_keeps_its_number(ranks, things):
    numbers = np.arange(things)
    seen = []
    for part in parts_of(ranks):
        own = numbers[part.every]
        np.testing.assert_array_equal(part.global_numbers(np.arange(len(own))), own)
        seen += own.tolist()
    assert sorted(seen) == numbers.tolist()


@WORLDS
@pytest.mark.parametrize("size", [0, 5, 100])
def test_parts_can_be_cut_and_the_pieces_do_not_depend_on_who_has_them(ranks, size):
    cuts = 3
    pieces = [part.cut(n, cuts) for part in parts_of(ranks) for n in range(cuts)]
    assert [piece.bounds(size) for piece in pieces] == [
        piece.bounds(size) for piece in parts_of(ranks * cuts)
    ]
    for part in parts_of(ranks):
        begin, end = part.bounds(size)
        assert part.cut(0, cuts).bounds(size)[0] == begin
        assert part.cut(cuts - 1, cuts).bounds(size)[1] == end
    tensor = Part(1, 2).cut(tf.constant(2, tf.int64), cuts)
    bounds = [int(b) for b in tensor.bounds(tf.constant(size, tf.int64))]
    assert bounds == list(Part(5, 6).bounds(size))


def test_the_whole_is_one_rank_of_one():
    assert Part(0, 1) == WHOLE
    assert WHOLE.bounds(9) == (0, 9)


# --- windows ---


def assert_joined(parts, whole):
    assert {name for features, _ in parts for name in features} == set(whole[0])
    for name, values in whole[0].items():
        joined = np.concatenate([features[name] for features, _ in parts])
        np.testing.assert_array_equal(joined, values, err_msg=name)
        assert {features[name].dtype for features, _ in parts} == {values.dtype}
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in parts]), whole[1])


@pytest.mark.parametrize("ranks", [2, 7])
@pytest.mark.parametrize(
    ("negatives", "batch_size"), [("popularity", 4), ("uniform", 16), ("popularity", 1000)]
)
def test_the_parts_of_a_training_batch_are_the_batch(make_histories, ranks, negatives, batch_size):
    config = WindowConfig(max_seq_length=5, long_seq_length=3, negatives=negatives)
    builder = WindowBuilder(make_histories(), config)
    steps = builder.train_steps(batch_size)
    epoch = 2
    for step in {0, steps - 1}:  # the last batch is smaller: 35 samples
        whole = builder.train_batch(SEED, epoch, step, batch_size)
        parts = [
            builder.train_batch(SEED, epoch, step, batch_size, part) for part in parts_of(ranks)
        ]
        assert_joined(parts, whole)
        numbers = [
            builder.train_numbers(SEED, epoch, step, batch_size, part) for part in parts_of(ranks)
        ]
        expected = builder.train_numbers(SEED, epoch, step, batch_size)
        np.testing.assert_array_equal(np.concatenate(numbers), expected)


@pytest.mark.parametrize("ranks", [2, 7])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_parts_of_an_evaluation_batch_are_the_batch(make_histories, ranks, split):
    builder = WindowBuilder(make_histories(lengths=[20, 7, 4, 4, 12], validation=1), CONFIG)
    for batch_size, negatives in ((6, 2), (40, 4)):
        for step in range(builder.eval_steps(split, batch_size, negatives)):
            whole = builder.eval_batch(split, SEED, step, batch_size, negatives)
            parts = [
                builder.eval_batch(split, SEED, step, batch_size, negatives, part)
                for part in parts_of(ranks)
            ]
            assert_joined(parts, whole)


def test_more_ranks_than_rows_leave_empty_batches_of_the_same_features(make_histories):
    builder = WindowBuilder(make_histories(), CONFIG)
    whole = builder.train_batch(SEED, 0, 0, 4)
    parts = [builder.train_batch(SEED, 0, 0, 4, part) for part in parts_of(7)]
    assert sorted(len(labels) for _, labels in parts) == [0] * 5 + [1] * 2
    for features, labels in parts:
        assert labels.shape[1:] == whole[1].shape[1:]
        for name, values in whole[0].items():
            assert features[name].shape[1:] == values.shape[1:], name


def test_a_batch_beyond_the_last_is_empty(make_histories):
    """What a rank trains on whose users are fewer than another's."""
    builder = WindowBuilder(make_histories(), CONFIG)
    steps = builder.train_steps(16)
    for step in (steps, steps + 5):
        features, labels = builder.train_batch(SEED, 0, step, 16)
        assert labels.shape == [0, 2]
        assert features["item_id_history"].shape == [0, 5]
    features, labels = builder.eval_batch("test", SEED, 9, 16)
    assert labels.shape == [0, 2]

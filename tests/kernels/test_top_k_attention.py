"""SIM's search and the sums of what it finds, by our kernel: against NumPy and SIM's own graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from lookback.kernels import loader

Array = npt.NDArray[Any]

pytestmark = pytest.mark.skipif(
    loader.cpu_kernels() is None, reason="a GPU, or an environment that setup.sh did not make"
)


def kernel(target: Array, events: Array, mask: Array, bias: Array, k: int) -> Any:
    operations = loader.cpu_kernels()
    assert operations is not None
    floats = [tf.constant(values, tf.float32) for values in (target, events)]
    bias = tf.constant(bias, tf.float32)
    return operations.lookback_top_k_attention(*floats, tf.constant(mask), bias, k=k)


def by_sorting(
    target: Array, events: Array, mask: Array, bias: Array, k: int
) -> tuple[Array, Array]:
    """The same, row by row: a stable sort puts the earlier of equal scores first."""
    shape = (*target.shape[:2], events.shape[2])
    attended, mean = np.zeros(shape), np.zeros(shape)
    for b, c in np.ndindex(*shape[:2]):
        scores = events[b, :, : target.shape[2]] @ target[b, c]
        allowed = np.flatnonzero(mask[b])
        best = allowed[np.argsort(-scores[allowed], kind="stable")][:k]
        if len(best):
            exact = scores[best] + bias[b, best]
            weights = np.exp(exact - exact.max())
            attended[b, c] = weights @ events[b, best] / weights.sum()
            mean[b, c] = events[b, best].mean(0)
    return attended, mean


@pytest.mark.parametrize(
    ("users", "candidates", "length", "items", "width", "k"),
    [
        (1, 1, 1, 1, 1, 1),
        (2, 3, 17, 5, 5, 4),  # nothing a multiple of the lanes
        (3, 7, 40, 16, 21, 50),  # fewer events than are sought
        (1, 9, 990, 32, 32, 50),
        (2, 5, 130, 20, 36, 129),
        (2, 0, 20, 4, 4, 3),
        (2, 3, 0, 4, 4, 3),
    ],
)
def test_it_equals_sorting(users, candidates, length, items, width, k):
    random = np.random.default_rng(length)
    target = random.normal(size=(users, candidates, items))
    events = random.normal(size=(users, length, width))
    mask, bias = random.random((users, length)) < 0.8, random.normal(size=(users, length))
    given = (target, events, mask, bias, k)
    for found, expected in zip(kernel(*given), by_sorting(*given), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_whole_numbers_have_ties_and_the_earlier_events_win():
    random = np.random.default_rng(3)
    shape, k = (2, 6, 60), 11
    target = random.integers(-1, 2, (2, 6, 3)).astype(float)  # rows of zeros, too: all are equal
    target[0, 0], target[1, 1] = 0, [-0.0, 0, 0]
    events = np.concatenate(
        [random.integers(-1, 2, (2, 60, 3)), np.tile(np.eye(60), (2, 1, 1))], axis=2
    )
    mask = random.random((2, 60)) < 0.7
    mask[1, 7:] = False
    given = (target, events, mask, np.zeros((2, 60)), k)
    _, mean = kernel(*given)
    chosen = mean.numpy()[..., 3:] > 0  # the events' own numbers
    assert chosen.shape == shape
    np.testing.assert_array_equal(chosen, by_sorting(*given)[1][..., 3:] > 0)
    scores = np.where(mask[:, np.newaxis], target @ events[..., :3].transpose(0, 2, 1), -np.inf)
    _, places = tf.math.top_k(tf.constant(scores), k)
    of_tensorflow = tf.reduce_any(tf.one_hot(places, 60, True, False, dtype=tf.bool), 2)
    np.testing.assert_array_equal(chosen, of_tensorflow.numpy() & mask[:, np.newaxis])


def test_of_no_event_there_is_nothing_and_large_scores_do_not_overflow():
    events = np.full((2, 5, 2), 1e18)
    mask = np.array([[False] * 5, [True] * 5])
    attended, mean = kernel(np.full((2, 1, 2), 1e18), events, mask, np.zeros((2, 5)), 3)
    assert not np.any(attended[0]) and not np.any(mean[0])
    np.testing.assert_allclose(attended[1], np.full((1, 2), 1e18), rtol=1e-6)
    np.testing.assert_allclose(mean[1], np.full((1, 2), 1e18), rtol=1e-6)


def test_a_candidate_s_bits_do_not_depend_on_its_batch():
    random = np.random.default_rng(5)
    target, events = random.normal(size=(2, 300, 8)), random.normal(size=(2, 400, 11))
    mask, bias = random.random((2, 400)) < 0.9, random.normal(size=(2, 400))
    whole = kernel(target, events, mask, bias, 20)  # enough work to be shared among threads
    for user, candidate in ((0, 0), (0, 141), (1, 2), (1, 299)):
        rows, column = slice(user, user + 1), slice(candidate, candidate + 1)
        alone = kernel(target[rows, column], events[rows], mask[rows], bias[rows], 20)
        for found, expected in zip(whole, alone, strict=True):
            np.testing.assert_array_equal(found[user, candidate], expected[0, 0])


def test_what_does_not_fit_is_refused():
    target, events, mask = np.ones((2, 3, 4)), np.ones((2, 5, 6)), np.ones((2, 5), bool)
    bias = np.zeros((2, 5))
    for wrong, said in (
        ((target[0], events, mask, bias), "rank|Shape must be|Expected a target"),
        ((target, events[:1], mask, bias), "the target's B"),
        ((target, events[..., :3], mask, bias), "at least its E"),
        ((target, events, mask[:, 1:], bias), "Expected a mask and a bias"),
        ((target, events, mask, bias[:1]), "Expected a mask and a bias"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=said):
            kernel(*wrong, 2)

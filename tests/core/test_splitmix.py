"""SplitMix64 against its definition in Python integers, and against its published outputs."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.core import splitmix

MASK = (1 << 64) - 1


def next_number(state):
    """One step in Python integers, as in the paper's listing: the new state and its output."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return state, z ^ (z >> 31)


def unsigned(tensor):
    return tensor.numpy().view(np.uint64).tolist()


def test_outputs_of_seed_1234567_are_the_published_ones():
    # The test vector that implementations of SplitMix64 share (Rosetta Code, xoshiro's authors).
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    numbers = tf.constant(1234567, tf.int64) + splitmix.WEYL * tf.range(5, dtype=tf.int64)
    assert unsigned(splitmix.mix(numbers)) == published


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 987654321])
def test_mix_equals_the_definition(seed, compiled):
    mix = tf.function(splitmix.mix) if compiled else splitmix.mix
    found = mix(tf.constant(seed, tf.int64) + splitmix.WEYL * tf.range(9, dtype=tf.int64))
    state, expected = seed & MASK, []
    for _ in range(9):
        state, number = next_number(state)
        expected.append(number)
    assert unsigned(found) == expected


@pytest.mark.parametrize("bits", [1, 27, 31, 63])
def test_shift_right_brings_zeros(bits):
    values = [0, 1, -1, 2**63 - 1, -(2**63), -12345678901234567]
    found = splitmix.shift_right(tf.constant(values, tf.int64), bits)
    assert found.numpy().tolist() == [(value & MASK) >> bits for value in values]


def test_streams_differ_by_name_and_keep_their_numbers():
    names = ["", "item", "item_id", "category", "item_id/long/enough/to/be/reduced"]
    numbers = [splitmix.stream(name) for name in names]
    assert len(set(numbers)) == len(names)
    assert all(0 <= number < 2**32 for number in numbers)
    assert splitmix.stream("item") == 0x6974656D  # its bytes: datasets of old runs are drawn by it

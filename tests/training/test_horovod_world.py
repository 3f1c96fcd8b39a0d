"""`HorovodWorld` without processes: what its messages look like to TensorFlow's optimiser."""

from __future__ import annotations

import types

import pytest
import tensorflow as tf

from lookback.training.parallel.horovod_world import HorovodWorld


class Hvd:
    """The part of `horovod.tensorflow` that sums, in a world of one."""

    Sum = "sum"

    def __init__(self):
        self.operations = []
        self.rank = self.local_rank = lambda: 0
        self.size = self.local_size = lambda: 1

    def allreduce(self, tensor, op):
        assert op == self.Sum
        self.operations.append(getattr(tensor, "op", None))
        return tf.identity(tensor)


@pytest.fixture
def hvd():
    return Hvd()


@pytest.fixture
def world(hvd):
    return HorovodWorld(hvd, types.SimpleNamespace())


def ancestors(operation):
    """The types of all operations that one depends on."""
    found, waiting = set(), [operation]
    while waiting:
        for tensor in waiting.pop().inputs:
            found.add(tensor.op.type)
            waiting.append(tensor.op)
    return found


def test_a_sum_of_constants_is_no_constant(hvd, world):
    """Or constant folding would reduce it while the graph is optimised: others wait forever."""

    @tf.function(autograph=False)
    def step():
        return world.sum([tf.constant(3.0), tf.constant([[1.0, 2.0]])])

    first, second = step()
    assert (float(first), second.numpy().tolist()) == (3.0, [[1.0, 2.0]])
    (operation,) = hvd.operations
    assert "Timestamp" in ancestors(operation)  # stateful


def test_sums_keep_their_shapes_outside_of_graphs(world):
    assert [float(value) for value in world.sum([tf.constant(3.0), tf.constant(4.0)])] == [3.0, 4.0]
    assert world.sum([tf.constant([5, 6], tf.int64)])[0].numpy().tolist() == [5, 6]
    assert world.sum([]) == []

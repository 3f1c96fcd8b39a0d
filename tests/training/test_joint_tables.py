"""--embedding_type: tables that share a variable train as tables that do not, to the bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from lookback.checkpoints.store import CheckpointStore, open_checkpoint
from lookback.core.errors import UserError
from lookback.embeddings.types import OPTIMIZER_STATE
from lookback.formats.tabular_schema import tabular_schema
from lookback.models import MODELS
from lookback.models.click_model import contract_of
from lookback.models.tabular_config import JOINT, DLRMConfig
from lookback.training.data import model_identity
from lookback.training.optimizers import Optimizer
from lookback.training.state import model_states

ROWS = {"cat_0": 7, "cat_1": 5, "cat_2": 9}
SMALL = DLRMConfig(embedding_dim=4, bottom_mlp_sizes=(6, 4), top_mlp_sizes=(8, 5, 1))


class Run:
    """A model and its optimizer."""

    def __init__(self, embedding_type, optimizer="adagrad"):
        tf.keras.utils.set_random_seed(4)
        config = dataclasses.replace(SMALL, embedding_type=embedding_type)
        self.model = MODELS["dlrm"](tabular_schema(3, ROWS), config)
        self.model(batch(0)[0])
        self.optimizer = Optimizer(optimizer, 0.1, 0.01, self.model)
        self.states = model_states(self.model) | self.optimizer.states()

    @property
    def tables(self):
        return self.model.body.embeddings.table_variables

    def train(self, steps):
        for step in steps:
            features, labels = batch(step)
            with tf.GradientTape() as tape:
                loss = contract_of(self.model).head_loss(
                    labels, self.model(features, training=True)
                )
            self.optimizer.apply(tape.gradient(loss, self.optimizer.variables_to_differentiate))

    def tensors(self):
        return {
            name: np.concatenate([np.atleast_1d(b) for part in state.parts for b in part.blocks()])
            for name, state in self.states.items()
        }


def batch(seed):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, rows, 13) for rows in ROWS.values()], 1)
    features = {
        "numerical": tf.constant(rng.normal(size=(13, 3)), tf.float32),
        "categorical": tf.constant(ids, tf.int32),
    }
    return features, tf.constant(rng.integers(0, 2, (13, 1)), tf.float32)


def assert_equal(one, other):
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZER_STATE)
def test_joint_tables_train_as_separate_ones(optimizer):
    separate, joint = Run("separate", optimizer), Run("joint_fused", optimizer)
    assert list(separate.tables) == list(ROWS)
    assert {n: tuple(v.shape) for n, v in joint.tables.items()} == {"tables_4": (21, 4)}
    for run in (separate, joint):
        run.train(range(2))
    assert_equal(joint.tensors(), separate.tensors())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"), [("separate", "joint_fused"), ("joint_fused", "separate")]
)
def test_a_checkpoint_crosses_over(first, second, tmp_path):
    before, after, whole = Run(first), Run(second), Run(first)
    before.train(range(2))
    pieces = {name: state.pieces() for name, state in before.states.items()}
    checkpoint = open_checkpoint(CheckpointStore(tmp_path).save(2, pieces, {}))
    checkpoint.require_tensors({name: state.spec for name, state in after.states.items()})
    for name, state in after.states.items():
        state.restore(name, checkpoint)
    after.train(range(2, 5))
    whole.train(range(5))
    assert_equal(after.tensors(), whole.tensors())


def test_a_checkpoint_does_not_know_how_tables_were_stored():
    @dataclasses.dataclass
    class Run:
        model_type: str = "dlrm"

    @dataclasses.dataclass
    class Source:
        schema: object

    source = Source(tabular_schema(3, ROWS))
    identities = [
        model_identity(Run(), dataclasses.asdict(DLRMConfig(embedding_type=name)), source)
        for name in (None, *JOINT)
    ]
    assert all(identity == identities[0] for identity in identities)
    assert identities[0]["embedding_dim"] == 128


@pytest.mark.parametrize(("spelling", "joint"), JOINT.items())
def test_every_spelling_means_one_of_the_two(spelling, joint):
    assert len(Run(spelling).tables) == (1 if joint else 3)
    assert len(Run(None).tables) == 3


def test_an_id_beyond_its_table_is_not_a_row_of_the_next():
    features, _ = batch(0)
    features["categorical"] = tf.constant([[7, 0, 0]] * 13, tf.int32)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"'cat_0'.*ids in \[0, 7\)"):
        Run("joint_fused").model(features)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("custom_cuda", "CUDA kernels.*Use joint_fused"),
        ("fused", "one of joint_fused, .*multi_table, dynamic, or none, received 'fused'"),
    ],
)
def test_other_names_are_refused(name, says):
    with pytest.raises(UserError, match=says):
        DLRMConfig(embedding_type=name)


@pytest.mark.parametrize(("capacity", "expected"), [(None, (7, 5, 40)), (6, (6, 5, 6))])
def test_tables_that_grow_have_a_capacity(capacity, expected):
    schema = tabular_schema(2, {"a": 7, "b": 5, "c": 40})
    config = DLRMConfig(embedding_type="dynamic", embedding_capacity=capacity)
    tables = MODELS["dlrm"].tables(schema, config)
    assert tuple(table.capacity for table in tables) == expected
    assert [table.rows for table in tables] == [7, 5, 40]
    assert all(t.capacity is None for t in MODELS["dlrm"].tables(schema, DLRMConfig()))


def test_a_capacity_wants_tables_that_grow():
    with pytest.raises(UserError, match="embedding_capacity"):
        DLRMConfig(embedding_capacity=6)

"""Plain Merlin models over our tables: the same numbers as over Merlin's own."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from merlin.models.utils.schema_utils import create_categorical_column, create_continuous_column
from merlin.schema import ColumnSchema, Schema, Tags

from lookback.embeddings.config import Sharding
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec

mm = pytest.importorskip("merlin.models.tf")

from lookback.embeddings.merlin import SchemaEmbeddings, ShardedTable  # noqa: E402

D, B = 8, 6
NAMES = ("kernel:0", "bias:0")
ITEMS, USERS = 21, 10


def column(name, rows, domain=None, *, length=None):
    bounds = {} if length is None else {"min_value_count": length[0], "max_value_count": length[1]}
    return create_categorical_column(
        name, rows - 1, domain_name=domain, tags=[Tags.CATEGORICAL], **bounds
    )


SCHEMA = Schema(
    [
        column("item", ITEMS),
        column("history", ITEMS, "item", length=(0, 5)),  # ragged
        column("basket", ITEMS, "item", length=(4, 4)),  # dense
        column("user", USERS),
        create_continuous_column("age"),
        ColumnSchema("click", tags=[Tags.BINARY_CLASSIFICATION, Tags.TARGET], dtype=np.int32),
    ]
)
CATEGORICAL = SCHEMA.select_by_tag(Tags.CATEGORICAL)


@pytest.fixture(scope="module")
def batch():
    """A batch as Merlin's loader gives it, and labels."""
    rng = np.random.default_rng(0)
    features = {
        "item": rng.integers(0, ITEMS, (B, 1)),
        "history__values": np.array([1, 2, 3, 0, 4, 4, 5, 19]),
        "history__offsets": np.array([0, 3, 3, 4, 6, 7, 8], np.int32),  # the second is empty
        "basket": rng.integers(1, ITEMS, (B, 4)),
        "user": rng.integers(0, USERS, (B, 1)),
        "age": rng.normal(size=(B, 1)).astype(np.float32),
    }
    return {n: tf.constant(v) for n, v in features.items()}, tf.constant(rng.integers(0, 2, (B, 1)))


@pytest.fixture
def ids(batch):
    """The same as blocks see it behind Merlin's `PrepareFeatures`."""
    return {n: v for n, v in mm.PrepareFeatures(SCHEMA)(dict(batch[0])).items() if n != "age"}


def fused(combiner, **options):
    return SchemaEmbeddings(SCHEMA, D, sequence_combiner=combiner, seed=1, **options)


def one_by_one(combiner, **options):
    options = {"sequence_combiner": combiner, "seed": 1, **options}
    return mm.Embeddings(CATEGORICAL, dim=D, table_cls=ShardedTable, **options)


def variables_of(block):
    """Our variables by table name."""
    found = {}
    for module in block.submodules:
        found |= dict(getattr(module, "table_variables", {}))
    return found


def copy_weights(theirs, ours):
    for name, variable in variables_of(ours).items():
        theirs[name].table.embeddings.assign(variable)


def dense_variables(model):
    kernels = [v for v in model.trainable_variables if v.name.split("/")[-1] in NAMES]
    assert len(kernels) >= 4
    return kernels


def to_dense(tensor):
    return tensor.to_tensor() if isinstance(tensor, tf.RaggedTensor) else tensor


BLOCKS = pytest.mark.parametrize("make", [fused, one_by_one])


@BLOCKS
@pytest.mark.parametrize("combiner", ["mean", "sum", None])
def test_a_block_gives_what_merlin_s_own_tables_give(make, combiner, ids):
    ours = make(combiner)
    theirs = mm.Embeddings(CATEGORICAL, dim=D, sequence_combiner=combiner)
    found, expected = ours(ids), theirs(ids)
    copy_weights(theirs, ours)
    expected = theirs(ids)
    assert set(found) == set(expected) == {"item", "history", "basket", "user"}
    for name, vectors in expected.items():
        assert isinstance(found[name], tf.RaggedTensor) == isinstance(vectors, tf.RaggedTensor)
        np.testing.assert_allclose(
            to_dense(found[name]), to_dense(vectors), rtol=1e-6, atol=1e-7, err_msg=name
        )
    if combiner:
        np.testing.assert_array_equal(found["history"][1], np.zeros(D))


@BLOCKS
def test_sqrtn_is_merlin_s_of_ragged_bags(make, ids):
    ids = {name: ids[name] for name in ("history", "user")}  # Merlin's dense bags know no sqrtn
    ours, theirs = make("sqrtn"), mm.Embeddings(CATEGORICAL, dim=D, sequence_combiner="sqrtn")
    found, _ = ours(ids), theirs(ids)
    copy_weights(theirs, ours)
    np.testing.assert_allclose(found["history"], theirs(ids)["history"], rtol=1e-6, atol=1e-7)


@BLOCKS
def test_padding_of_dense_bags_does_not_count(make):
    block = make("mean")
    bags = tf.constant([[3, 5, 0, 0], [0, 0, 0, 0]])
    user = tf.constant([[1], [1]])
    found = block({"basket": tf.expand_dims(bags, 2), "item": user * [[3], [5]], "user": user})
    np.testing.assert_allclose(found["basket"][0], tf.reduce_mean(found["item"], 0), rtol=1e-6)
    np.testing.assert_array_equal(found["basket"][1], np.zeros(D))


@BLOCKS
@pytest.mark.parametrize("combiner", ["mean", None])
def test_shapes_are_known_before_the_call(make, combiner, ids):
    block = make(combiner)
    shapes = block.compute_output_shape({n: v.shape for n, v in ids.items()})
    found = block(ids)
    assert {n: s.as_list() for n, s in shapes.items()} == {
        n: v.shape.as_list() for n, v in found.items()
    }


@BLOCKS
def test_a_list_of_one_is_a_list_and_batch_1_is_a_batch(make):
    block = make(None)
    one = tf.constant([[3]])
    for basket in (one, tf.expand_dims(one, 2)):
        found = block({"item": one, "basket": basket, "user": one})
        assert found["item"].shape == [1, D]
        assert found["basket"].shape == [1, 1, D]


def test_a_table_takes_one_tensor_too():
    table = ShardedTable(D, SCHEMA["user"], seed=1)
    found = table(tf.constant([[3], [4], [3]]))
    assert found.shape == [3, D]
    np.testing.assert_array_equal(found[0], table({"user": tf.constant([[3]])})["user"][0])
    assert table.compute_output_shape(tf.TensorShape([None, 1])) == [None, D]


@BLOCKS
def test_half_precision_gives_half_and_keeps_rows_float32(make, ids):
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        block = make("mean")
        assert {v.dtype for v in block(ids).values()} == {tf.float16}
        assert {v.dtype for v in variables_of(block).values()} == {tf.float32}
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


@BLOCKS
def test_initial_rows_are_those_of_the_seed_whatever_the_block(make, ids):
    blocks = [fused("mean"), make("mean")]
    values = []
    for block in blocks:
        block(ids)
        values.append({n: v.numpy() for n, v in variables_of(block).items()})
    assert set(values[0]) == {"item", "user"}
    for name, rows in values[0].items():
        np.testing.assert_array_equal(values[1][name], rows)


def dlrm(embeddings):
    return mm.DLRMModel(
        SCHEMA,
        embeddings=embeddings,
        bottom_block=mm.MLPBlock([D]),
        top_block=mm.MLPBlock([4]),
        prediction_tasks=mm.BinaryOutput("click"),
    )


def mlp(embeddings):
    return mm.Model(
        mm.InputBlockV2(SCHEMA, categorical=embeddings),
        mm.MLPBlock([4]),
        mm.BinaryOutput("click"),
    )


@pytest.mark.slow
@BLOCKS
@pytest.mark.parametrize("model", [dlrm, mlp])
def test_a_plain_merlin_model_trains_as_over_merlin_s_tables(model, make, batch):
    features, labels = batch
    blocks = [make("mean"), mm.Embeddings(CATEGORICAL, dim=D, sequence_combiner="mean")]
    models = [model(block) for block in blocks]
    for found in models:
        found.compile(optimizer=tf.keras.optimizers.SGD(0.5), run_eagerly=True)
        found(dict(features))
    copy_weights(blocks[1], blocks[0])
    for a, b in zip(*(dense_variables(m) for m in models), strict=True):
        b.assign(a)
    losses = [
        found.fit(
            tf.data.Dataset.from_tensors((features, labels)).repeat(5), epochs=1, verbose=0
        ).history["loss"]
        for found in models
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    outputs = [found(dict(features)) for found in models]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
    for name, variable in variables_of(blocks[0]).items():
        np.testing.assert_allclose(variable, blocks[1][name].table.embeddings, rtol=1e-4, atol=1e-6)


def test_one_gradient_a_table_however_many_features(ids):
    block = fused("mean")
    block(ids)
    with tf.GradientTape() as tape:
        total = tf.add_n([tf.reduce_sum(v) for v in block(ids).values()])
    variables = block.collection.table_variables
    gradients = dict(zip(variables, tape.gradient(total, list(variables.values())), strict=True))
    assert all(isinstance(g, tf.IndexedSlices) for g in gradients.values())
    sizes = {"item": B + 8 + 4 * B, "user": B}
    assert {n: int(tf.size(g.indices)) for n, g in gradients.items()} == sizes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@BLOCKS
def test_a_saved_model_comes_back(make, batch, without_autograph, tmp_path):
    features, labels = batch
    model = mlp(make("mean"))
    model.compile(optimizer="sgd", run_eagerly=True)
    with without_autograph():
        model.fit(tf.data.Dataset.from_tensors((features, labels)), verbose=0)
        model.save(str(tmp_path))
    loaded = mm.Model.load(str(tmp_path))
    np.testing.assert_array_equal(loaded(dict(features)), model(dict(features)))


PLAN = ShardingPlan(
    2,
    (TableSpec("item", ITEMS, D), TableSpec("user", USERS, D)),
    (Placement("item", "row_wise"), Placement("user", "table_wise", (1,))),
)


def test_config_round_trip_of_the_block():
    block = fused("sum", sharding=Sharding(plan=PLAN, wire_dtype="bfloat16"), name="all")
    again = SchemaEmbeddings.from_config(block.get_config())
    assert again.get_config() == block.get_config()
    assert again.collection.get_config() == block.collection.get_config()
    assert again.name == "all"


def test_config_round_trip_of_the_table():
    table = ShardedTable(
        D,
        SCHEMA["item"],
        SCHEMA["history"],
        sequence_combiner="sqrtn",
        sharding=Sharding(plan=PLAN),
        seed=4,
        init_scale=0.5,
        name="items",
    )
    again = ShardedTable.from_config(table.get_config())
    assert again.get_config() == table.get_config()
    assert list(again.features) == ["item", "history"]
    ids = {"history": tf.ragged.constant([[1, 2], []], dtype=tf.int32)}
    np.testing.assert_array_equal(again(ids)["history"], table(ids)["history"])
    assert np.abs(variables_of(table)["item"]).max() > 0.4


def test_a_table_takes_its_part_of_the_plan():
    table = ShardedTable(D, SCHEMA["user"], sharding=Sharding(plan=PLAN), seed=1)
    table(tf.constant([[1]]))
    plan = table.collection.get_config()["sharding"]["plan"]
    assert [spec["name"] for spec in plan["tables"]] == ["user"]
    assert [placement["strategy"] for placement in plan["placements"]] == ["table_wise"]
    stranger = ShardedTable(D, column("colour", 3), sharding=Sharding(plan=PLAN))
    with pytest.raises(ValueError, match="no table 'colour'"):
        stranger(tf.constant([[1]]))


def test_mistakes_are_named(ids):
    with pytest.raises(ValueError, match="sequence_combiner must be"):
        fused(tf.keras.layers.Lambda(lambda x: x))
    with pytest.raises(ValueError, match="tagged CATEGORICAL"):
        SchemaEmbeddings(SCHEMA.select_by_name("age"), D)
    with pytest.raises(ValueError, match="'max'"):
        fused("max")
    with pytest.raises(ValueError, match="from_sparse"):
        fused("mean")({"history": ids["history"].to_sparse()})

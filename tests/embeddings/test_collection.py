"""Lookups against NumPy indexing, and one sparse gradient for each variable, on every backend."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from merlin.schema import ColumnSchema, Schema, Tags

from lookback.embeddings.backends import BACKENDS
from lookback.embeddings.collection import EmbeddingCollection, tables_from_schema
from lookback.embeddings.config import Sharding
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec

TABLES = [TableSpec("item", rows=11, dim=3), TableSpec("user", rows=5, dim=2)]
FEATURES = {"item_id": "item", "item_history": "item", "similar": "item", "user_id": "user"}
B, C, T = 4, 2, 6
RNG = np.random.default_rng(0)


def make_ids(dtype=np.int32):
    shapes = {"user_id": (B,), "item_id": (B, C), "item_history": (B, T), "similar": (B, C, 3)}
    return {
        name: RNG.integers(0, 5 if name == "user_id" else 11, shape).astype(dtype)
        for name, shape in shapes.items()
    }


def tensors(ids):
    return {name: tf.constant(values) for name, values in ids.items()}


def make(sharding_of=None, **more):
    if sharding_of is not None:
        more["sharding"] = sharding_of(TABLES)
    collection = EmbeddingCollection(TABLES, FEATURES, **more)
    collection(tensors(make_ids()))
    return collection


def joined(collection, by_variable):
    """Tables as NumPy arrays, from arrays of the shapes of the backend's variables."""
    tables = {table.name: np.full([table.rows, table.dim], np.nan) for table in collection.tables}
    for part in collection.backend.held:
        rows, columns = np.array(part.shard.rows), np.array(part.shard.columns)
        values = by_variable[part.variable][part.start : part.stop]
        tables[part.shard.table][np.ix_(rows, columns)] = values
    return tables


def values(collection):
    return joined(collection, {n: v.numpy() for n, v in collection.table_variables.items()})


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_lookups_equal_indexing_whatever_the_shape(sharding_of, dtype):
    collection = make(sharding_of)
    ids = make_ids(dtype)
    found = collection(tensors(ids))
    assert list(found) == list(ids)
    for name, vectors in found.items():
        expected = values(collection)[FEATURES[name]][ids[name]]
        np.testing.assert_array_equal(vectors, expected)
        assert vectors.dtype == tf.float32


def test_a_part_of_the_features_and_empty_ones(sharding_of):
    collection = make(sharding_of)
    found = collection({"similar": tf.zeros([0, 3], tf.int32), "user_id": tf.constant([4])})
    assert found["similar"].shape == [0, 3, 3]
    np.testing.assert_array_equal(found["user_id"], values(collection)["user"][[4]])


def test_features_of_one_table_may_have_different_types(sharding_of):
    collection = make(sharding_of)
    ids = make_ids()
    ids["item_id"], ids["user_id"] = (ids[name].astype(np.int64) for name in ("item_id", "user_id"))
    for name, vectors in collection(tensors(ids)).items():
        np.testing.assert_array_equal(vectors, values(collection)[FEATURES[name]][ids[name]])


def test_one_sparse_gradient_a_variable_that_sums_to_the_dense_one(sharding_of):
    collection = make(sharding_of)
    ids = make_ids()
    weights = {
        name: RNG.normal(size=(*v.shape, 3 if name != "user_id" else 2)) for name, v in ids.items()
    }
    variables = dict(collection.table_variables)
    with tf.GradientTape() as tape:
        found = collection(tensors(ids))
        loss = tf.add_n(
            [tf.reduce_sum(found[n] * tf.constant(w, tf.float32)) for n, w in weights.items()]
        )
    gradients = tape.gradient(loss, variables)
    assert all(isinstance(gradient, tf.IndexedSlices) for gradient in gradients.values())
    reduced = collection.backend.reduce_gradients(gradients)
    dense = {name: tf.convert_to_tensor(g).numpy() for name, g in reduced.items()}
    found_gradients = joined(collection, dense)
    lengths = dict.fromkeys(variables, 0)
    for table in collection.tables:
        features = [name for name in ids if FEATURES[name] == table.name]
        expected = np.zeros([table.rows, table.dim])
        for name in features:
            np.add.at(expected, ids[name], weights[name])
        np.testing.assert_allclose(found_gradients[table.name], expected, rtol=1e-5, atol=1e-6)
        flat = np.concatenate([ids[name].ravel() for name in features])
        (variable,) = {p.variable for p in collection.backend.held if p.shard.table == table.name}
        # Locally a slice for each id; what has travelled was summed for each row before.
        lengths[variable] += len(flat if sharding_of.backend == "local" else np.unique(flat))
    assert {name: len(gradient.indices) for name, gradient in reduced.items()} == lengths


def test_unknown_shapes_in_a_graph(sharding_of):
    collection = make(sharding_of)
    signature = {
        "user_id": tf.TensorSpec([None], tf.int32),
        "item_history": tf.TensorSpec([None, T], tf.int32),
        "similar": tf.TensorSpec([None, None, 3], tf.int32),
    }

    @tf.function(input_signature=[signature], autograph=False)
    def look_up(ids):
        found = collection(ids)
        assert found["item_history"].shape.as_list() == [None, T, 3]
        assert found["similar"].shape.as_list() == [None, None, 3, 3]
        return found

    for batch in (1, 3):
        ids = {name: v[:batch] for name, v in make_ids().items() if name in signature}
        for name, vectors in look_up(ids).items():
            expected = values(collection)[FEATURES[name]][ids[name]]
            np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize("ids", [{"user_id": [5]}, {"item_id": [[3, 11]]}, {"user_id": [2, -1]}])
def test_ids_beyond_the_table_are_an_error_on_cpu(sharding_of, ids):
    collection = make(sharding_of)
    with pytest.raises(tf.errors.InvalidArgumentError):
        collection(tensors(ids))


def test_a_lookup_may_be_routed_ahead(sharding_of):
    collection = make(sharding_of)
    ids = make_ids()
    route = collection.route(tensors(ids))
    with collection.ahead(route):
        found = collection(tensors(ids))
    for name, vectors in found.items():
        np.testing.assert_array_equal(vectors, values(collection)[FEATURES[name]][ids[name]])
    # It is the route that says what is looked up, and only within the block.
    others = {name: (v + 1) % (5 if name == "user_id" else 11) for name, v in ids.items()}
    with collection.ahead(route):
        for name, vectors in collection(tensors(others)).items():
            np.testing.assert_array_equal(vectors, found[name])
    np.testing.assert_array_equal(
        collection(tensors(others))["user_id"], values(collection)["user"][others["user_id"]]
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_tables_stay_float32(sharding_of, precision, policy):
    precision(policy)
    collection = make(sharding_of)
    assert {t.dtype for t in collection.table_variables.values()} == {tf.float32}
    assert collection({"user_id": tf.constant([1])})["user_id"].dtype == tf.float32


def test_tables_appear_with_the_first_call_and_once():
    collection = EmbeddingCollection(TABLES, FEATURES)
    assert dict(collection.table_variables) == {}
    collection({"user_id": tf.constant([1])})
    before = {name: id(table) for name, table in collection.table_variables.items()}
    assert list(before) == ["item", "user"]
    collection(tensors(make_ids()))
    assert {name: id(table) for name, table in collection.table_variables.items()} == before
    assert len(collection.trainable_weights) == 2


def test_variables_are_tracked_whatever_the_sharding(sharding_of):
    collection = make(sharding_of)
    variables = {id(v) for v in collection.table_variables.values()}
    assert {id(v) for v in collection.trainable_weights} == variables
    held = sum(part.shard.weights for part in collection.backend.held)
    assert held == sum(table.parameters for table in TABLES)  # one process has all
    assert held == sum(v.shape.num_elements() for v in collection.table_variables.values())


def test_rows_start_uniform_within_the_specs_scale():
    tables = [TableSpec("large", 10_000, 4), TableSpec("fixed", 2_000, 4, init_scale=0.5)]
    collection = EmbeddingCollection(tables, {"a": "large", "b": "fixed"})
    collection({"a": tf.constant([1])})
    for name, scale in (("large", 0.01), ("fixed", 0.5)):
        rows = collection.table_variables[name].numpy()
        assert np.abs(rows).max() <= scale
        assert rows.std() == pytest.approx(scale / np.sqrt(3), rel=0.03)
        assert rows.mean() == pytest.approx(0, abs=0.03 * scale)


def test_rows_start_alike_under_every_sharding(sharding_of):
    found, expected = values(make(sharding_of, seed=3)), values(make(seed=3))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert (values(make(sharding_of, seed=4))["item"] != expected["item"]).any()


def test_without_a_seed_rows_follow_kerass_random_seed():
    def rows():
        return values(make())["item"]

    tf.keras.utils.set_random_seed(7)
    first, second = rows(), rows()
    assert (first != second).any()
    tf.keras.utils.set_random_seed(7)
    np.testing.assert_array_equal(rows(), first)


def test_config_round_trip(sharding_of):
    collection = make(sharding_of, combiners={"item_history": "mean"})
    config = json.loads(json.dumps(collection.get_config()))  # as a saved model has it
    copy = EmbeddingCollection.from_config(config)
    assert copy.tables == collection.tables
    assert copy.sharding == collection.sharding
    assert copy.get_config() == collection.get_config()
    ids = tensors(make_ids())
    copy(ids)
    copy.set_weights(collection.get_weights())
    for name, vectors in copy(ids).items():
        np.testing.assert_array_equal(vectors, collection(ids)[name])
    assert copy(ids)["item_history"].shape == [B, 3]


def test_two_collections_share_nothing():
    one, two = make(), make()
    one.table_variables["item"].assign(tf.zeros([11, 3]))
    assert np.abs(values(two)["item"]).max() > 0


def test_duplicate_table_names_are_refused():
    with pytest.raises(ValueError, match=r"must be unique, received \['item', 'item'\]"):
        EmbeddingCollection([TABLES[0], TABLES[0]], {})


def test_a_feature_of_no_table_is_refused():
    with pytest.raises(ValueError, match=r"'shop' wants table 'shops'; the tables are \['item', "):
        EmbeddingCollection(TABLES, {"shop": "shops"})


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"Unknown backend 'gpu'; choose one of \[.*'local'"):
        EmbeddingCollection(TABLES, FEATURES, sharding=Sharding("gpu"))


def test_no_backend_is_left_out_of_these_tests(all_shardings):
    names = {name.partition("/")[0] for name in all_shardings}
    assert names == set(BACKENDS)


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (None, r"needs a plan for its tables \['item', 'user'\], received one for None"),
        (
            ShardingPlan(1, (TABLES[1],), (Placement("user", "row_wise"),)),
            r"needs a plan for its tables \['item', 'user'\], received one for \['user'\]",
        ),
        (
            ShardingPlan(3, tuple(TABLES), tuple(Placement(t.name, "row_wise") for t in TABLES)),
            "The plan is for 3 processes; 1 are running",
        ),
    ],
)
def test_a_plan_for_other_tables_or_processes_is_refused(plan, text):
    pytest.importorskip("horovod.tensorflow")
    with pytest.raises(ValueError, match=text):
        EmbeddingCollection(TABLES, FEATURES, sharding=Sharding("horovod", plan))


def test_an_unknown_feature_is_refused():
    with pytest.raises(ValueError, match=r"'brand' has no table; known: \['item_history', 'item_"):
        make()({"brand": tf.constant([1])})


# --- tables from a schema ---


def test_tables_from_schema_share_domains(make_schema):
    schema = make_schema(
        {"user_id": 7},
        {"item_id": 40, "last_item": 40, "brand": 6},
        domains={"last_item": "item_id"},
    )
    tables, feature_tables = tables_from_schema(schema, dim=8)
    assert tables == [
        TableSpec("user_id", 7, 8),
        TableSpec("item_id", 40, 8),
        TableSpec("brand", 6, 8),
    ]
    assert feature_tables == {
        "user_id": "user_id",
        "item_id": "item_id",
        "last_item": "item_id",
        "brand": "brand",
    }


def test_columns_that_disagree_about_their_domain_are_refused(make_schema):
    schema = make_schema(items={"item_id": 40, "brand": 6}, domains={"brand": "item_id"})
    with pytest.raises(ValueError, match=r"'brand' gives domain 'item_id' 6 rows, another .* 40;"):
        tables_from_schema(schema, 4)


def test_a_column_without_domain_is_refused():
    schema = Schema([ColumnSchema("brand", tags=[Tags.CATEGORICAL])])
    with pytest.raises(ValueError, match="'brand' has no int domain"):
        tables_from_schema(schema, 4)

"""Lookups against NumPy indexing, and one sparse gradient a table."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from merlin.schema import ColumnSchema, Schema, Tags

from embeddings.backends import BACKENDS
from embeddings.collection import EmbeddingCollection, tables_from_schema
from embeddings.types import TableSpec

TABLES = [TableSpec("item", rows=11, dim=3), TableSpec("user", rows=5, dim=2)]
FEATURES = {"item_id": "item", "item_history": "item", "similar": "item", "user_id": "user"}
B, C, T = 4, 2, 6
RNG = np.random.default_rng(0)
EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


def make_ids(dtype=np.int32):
    shapes = {"user_id": (B,), "item_id": (B, C), "item_history": (B, T), "similar": (B, C, 3)}
    return {
        name: RNG.integers(0, 5 if name == "user_id" else 11, shape).astype(dtype)
        for name, shape in shapes.items()
    }


def make(backend="local"):
    collection = EmbeddingCollection(TABLES, FEATURES, backend)
    collection({name: tf.constant(ids) for name, ids in make_ids().items()})
    return collection


def values(collection):
    return {name: table.numpy() for name, table in collection.table_variables.items()}


@EACH_BACKEND
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_lookups_equal_indexing_whatever_the_shape(backend, dtype):
    collection = make(backend)
    ids = make_ids(dtype)
    found = collection({name: tf.constant(v) for name, v in ids.items()})
    assert list(found) == list(ids)
    for name, vectors in found.items():
        expected = values(collection)[FEATURES[name]][ids[name]]
        np.testing.assert_array_equal(vectors, expected)
        assert vectors.dtype == tf.float32


@EACH_BACKEND
def test_a_part_of_the_features_and_empty_ones(backend):
    collection = make(backend)
    found = collection({"similar": tf.zeros([0, 3], tf.int32), "user_id": tf.constant([4])})
    assert found["similar"].shape == [0, 3, 3]
    np.testing.assert_array_equal(found["user_id"], values(collection)["user"][[4]])


@EACH_BACKEND
def test_one_sparse_gradient_a_table_that_sums_to_the_dense_one(backend):
    collection = make(backend)
    ids = make_ids()
    weights = {
        name: RNG.normal(size=(*v.shape, 3 if name != "user_id" else 2)) for name, v in ids.items()
    }
    tables = collection.table_variables
    with tf.GradientTape() as tape:
        found = collection({name: tf.constant(v) for name, v in ids.items()})
        loss = tf.add_n(
            [tf.reduce_sum(found[n] * tf.constant(w, tf.float32)) for n, w in weights.items()]
        )
    gradients = tape.gradient(loss, dict(tables))
    for table, gradient in gradients.items():
        assert isinstance(gradient, tf.IndexedSlices)
        features = [name for name in ids if FEATURES[name] == table]
        assert len(gradient.indices) == sum(ids[name].size for name in features)
        expected = np.zeros(tables[table].shape)
        for name in features:
            np.add.at(expected, ids[name], weights[name])
        np.testing.assert_allclose(tf.convert_to_tensor(gradient), expected, rtol=1e-5, atol=1e-6)


@EACH_BACKEND
def test_unknown_shapes_in_a_graph(backend):
    collection = make(backend)
    signature = {
        "user_id": tf.TensorSpec([None], tf.int32),
        "item_history": tf.TensorSpec([None, T], tf.int32),
        "similar": tf.TensorSpec([None, None, 3], tf.int32),
    }

    @tf.function(input_signature=[signature])
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


@EACH_BACKEND
def test_ids_beyond_the_table_are_an_error_on_cpu(backend):
    collection = make(backend)
    with pytest.raises(tf.errors.InvalidArgumentError):
        collection({"user_id": tf.constant([5])})


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_tables_stay_float32(precision, policy):
    precision(policy)
    collection = make()
    assert {t.dtype for t in collection.table_variables.values()} == {tf.float32}
    assert collection({"user_id": tf.constant([1])})["user_id"].dtype == tf.float32


def test_tables_appear_with_the_first_call_and_once():
    collection = EmbeddingCollection(TABLES, FEATURES)
    assert dict(collection.table_variables) == {}
    collection({"user_id": tf.constant([1])})
    before = {name: id(table) for name, table in collection.table_variables.items()}
    assert list(before) == ["item", "user"]
    collection({name: tf.constant(v) for name, v in make_ids().items()})
    assert {name: id(table) for name, table in collection.table_variables.items()} == before
    assert len(collection.trainable_weights) == 2


def test_rows_start_uniform_within_the_specs_scale():
    tables = [TableSpec("large", 10_000, 4), TableSpec("fixed", 2_000, 4, init_scale=0.5)]
    collection = EmbeddingCollection(tables, {"a": "large", "b": "fixed"})
    collection({"a": tf.constant([1])})
    for name, scale in (("large", 0.01), ("fixed", 0.5)):
        rows = collection.table_variables[name].numpy()
        assert np.abs(rows).max() <= scale
        assert rows.std() == pytest.approx(scale / np.sqrt(3), rel=0.03)
        assert rows.mean() == pytest.approx(0, abs=0.03 * scale)


def test_config_round_trip():
    collection = make()
    copy = EmbeddingCollection.from_config(collection.get_config())
    assert copy.tables == collection.tables
    assert copy.get_config() == collection.get_config()
    ids = {name: tf.constant(v) for name, v in make_ids().items()}
    copy(ids)
    copy.set_weights(collection.get_weights())
    for name, vectors in copy(ids).items():
        np.testing.assert_array_equal(vectors, collection(ids)[name])


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
        EmbeddingCollection(TABLES, FEATURES, "gpu")


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

"""Bags of ids become one vector each, and ragged lists stay ragged: against loops in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.embeddings.collection import COMBINERS, EmbeddingCollection
from lookback.embeddings.types import TableSpec

TABLES = (TableSpec("word", rows=13, dim=3), TableSpec("site", rows=5, dim=3))
FEATURES = {"title": "word", "body": "word", "site": "site"}
BAGS = [[4, 4, 9], [], [0], [2], [12, 0, 1, 2, 12], []]  # repeated ids, row 0, empty bags
LONGER = [[1], [2, 3], [], [4] * 6, [], [5]]
DENSE = np.array([[0, 0, 0], [0, 7, 0], [3, 3, 8], [0, 0, 1]], np.int32)  # 0 pads
EACH = pytest.mark.parametrize("combiner", COMBINERS)


def ragged(bags, dtype=tf.int32):
    flat = tf.constant([i for bag in bags for i in bag], dtype)
    return tf.RaggedTensor.from_row_lengths(flat, tf.constant([len(bag) for bag in bags], tf.int64))


def combine(vectors, combiner):
    """One bag: vectors [n, D]."""
    total = vectors.sum(0)
    if combiner == "sum" or not len(vectors):
        return total
    return total / (len(vectors) if combiner == "mean" else np.sqrt(len(vectors)))


def weight_of(count, combiner):
    """What one id of a bag of `count` counts in its vector, and so in the gradient."""
    return {"sum": 1.0, "mean": 1 / count, "sqrtn": count**-0.5}[combiner]


def make(sharding_of, **combiners):
    collection = EmbeddingCollection(
        TABLES, FEATURES, combiners=combiners, sharding=sharding_of(TABLES), seed=3
    )
    collection({"site": tf.constant([1])})
    return collection


def rows(collection, name="word"):
    """The table's rows, found where the backend holds them; one process has them all."""
    (part,) = (p for p in collection.backend.held if p.shard.table == name)
    return collection.table_variables[part.variable][part.start : part.stop].numpy()


@EACH
@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_ragged_bags(sharding_of, combiner, dtype):
    collection = make(sharding_of, title=combiner)
    found = collection({"title": ragged(BAGS, dtype)})["title"]
    table = rows(collection)
    expected = [combine(table[bag], combiner) for bag in BAGS]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert found.shape == [len(BAGS), 3]
    np.testing.assert_array_equal(found.numpy()[[1, 5]], np.zeros([2, 3]))


@EACH
def test_dense_bags_are_padded_with_0_which_does_not_count(sharding_of, combiner):
    collection = make(sharding_of, title=combiner)
    found = collection({"title": tf.constant(DENSE)})["title"]
    table = rows(collection)
    expected = [combine(table[bag[bag > 0]], combiner) for bag in DENSE]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found[0], np.zeros(3))
    assert found.shape == [len(DENSE), 3]


@EACH
def test_the_ids_of_dense_bags_are_the_last_axis_of_any_shape(sharding_of, combiner):
    collection = make(sharding_of, title=combiner, body=combiner)
    many = DENSE.reshape(2, 2, 3)
    found = collection({"title": tf.constant(many), "body": tf.constant(many[:, :, None])})
    table = rows(collection)
    expected = np.array([combine(table[bag[bag > 0]], combiner) for bag in DENSE])
    np.testing.assert_allclose(found["title"], expected.reshape(2, 2, 3), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found["body"][:, :, 0], found["title"])


@EACH
def test_gradients_of_bags(sharding_of, combiner):
    collection = make(sharding_of, title=combiner, body=combiner)
    upstream = np.random.default_rng(5).normal(size=(2, len(BAGS), 3)).astype(np.float32)
    dense = np.random.default_rng(6).integers(0, 13, (len(BAGS), 4)).astype(np.int32)
    variables = dict(collection.table_variables)
    with tf.GradientTape() as tape:
        found = collection({"title": ragged(BAGS), "body": tf.constant(dense)})
        loss = tf.reduce_sum(found["title"] * upstream[0] + found["body"] * upstream[1])
    gradients = collection.backend.reduce_gradients(
        {n: g for n, g in tape.gradient(loss, variables).items() if g is not None}
    )
    expected = np.zeros([13, 3])
    for b, bag in enumerate(BAGS):
        for index in bag:
            expected[index] += weight_of(len(bag), combiner) * upstream[0, b]
        counted = [index for index in dense[b] if index > 0]
        for index in counted:
            expected[index] += weight_of(len(counted), combiner) * upstream[1, b]
    (part,) = (p for p in collection.backend.held if p.shard.table == "word")
    gradient = gradients[part.variable]
    assert isinstance(gradient, tf.IndexedSlices)
    found = tf.convert_to_tensor(gradient).numpy()[part.start : part.stop]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_bags_of_several_features_and_single_ids_share_a_lookup(sharding_of):
    collection = make(sharding_of, title="mean", body="sum")
    ids = {"title": ragged(BAGS), "site": tf.constant([3, 0, 1, 4, 2, 3]), "body": ragged(LONGER)}
    found = collection(ids)
    assert list(found) == ["title", "site", "body"]
    word = rows(collection)
    for feature, bags, combiner in (("title", BAGS, "mean"), ("body", LONGER, "sum")):
        expected = [combine(word[bag], combiner) for bag in bags]
        np.testing.assert_allclose(found[feature], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found["site"], rows(collection, "site")[[3, 0, 1, 4, 2, 3]])


def test_ragged_lists_without_a_combiner_stay_ragged(sharding_of):
    collection = make(sharding_of)
    found = collection({"title": ragged(BAGS)})["title"]
    assert isinstance(found, tf.RaggedTensor)
    assert found.shape.as_list() == [len(BAGS), None, 3]
    table = rows(collection)
    for bag, vectors in zip(BAGS, found, strict=True):
        np.testing.assert_array_equal(vectors, table[bag])


@pytest.mark.parametrize("bags", [[[], [], []], []], ids=["empty", "none"])
@EACH
def test_nothing_but_empty_bags(sharding_of, combiner, bags):
    collection = make(sharding_of, title=combiner)
    with tf.GradientTape() as tape:
        found = collection({"title": ragged(bags)})["title"]
        loss = tf.reduce_sum(found)
    np.testing.assert_array_equal(found, np.zeros([len(bags), 3]))
    for gradient in tape.gradient(loss, dict(collection.table_variables)).values():
        assert gradient is None or np.isfinite(tf.convert_to_tensor(gradient)).all()


def test_batches_of_unknown_size_in_a_graph(sharding_of):
    """With the combiners that count; eagerly, all of them are tested above."""
    collection = make(sharding_of, title="mean", body="sqrtn")
    signature = {
        "title": tf.RaggedTensorSpec([None, None], tf.int32),
        "body": tf.TensorSpec([None, None], tf.int32),
    }

    @tf.function(input_signature=[signature], autograph=False)
    def look_up(ids):
        found = collection(ids)
        assert [v.shape.as_list() for v in found.values()] == [[None, 3], [None, 3]]
        return found

    table = rows(collection)
    for size in (4, 1, 0):
        found = look_up({"title": ragged(BAGS[:size]), "body": tf.constant(DENSE[:size])})
        title = np.array([combine(table[bag], "mean") for bag in BAGS[:size]]).reshape(-1, 3)
        body = np.array([combine(table[b[b > 0]], "sqrtn") for b in DENSE[:size]]).reshape(-1, 3)
        np.testing.assert_allclose(found["title"], title, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found["body"], body, rtol=1e-6, atol=1e-7)


def test_a_dense_bag_has_an_axis_for_its_ids():
    collection = EmbeddingCollection(TABLES, FEATURES, combiners={"title": "sum"})
    text = r"'title' is a bag: expected \[\.\.\., M\] or ragged ids, received shape \(4,\)"
    with pytest.raises(ValueError, match=text):
        collection({"title": tf.ones([4], tf.int32)})


@pytest.mark.parametrize("combiners", [{"title": "max"}, {"brand": "sum"}])
def test_unknown_combiners_and_features_are_refused(combiners):
    (feature, combiner), *_ = combiners.items()
    text = r"expected one of \('sum', 'mean', 'sqrtn'\) for each of \['body', 'site', 'title'\], "
    with pytest.raises(ValueError, match=text + f"received '{combiner}' for '{feature}'"):
        EmbeddingCollection(TABLES, FEATURES, combiners=combiners)

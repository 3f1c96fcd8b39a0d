"""What every model over histories must bear: a new one is tested by being registered."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any

import merlin.models.tf as mm
import numpy as np
import pytest
import tensorflow as tf
from merlin.models.io import save_merlin_metadata
from merlin.schema import Schema

from lookback import models
from lookback.core.errors import UserError
from lookback.formats.features import negatives_name
from lookback.models import MODELS
from lookback.models.click_model import ClickModel
from lookback.models.config import HistoryModelConfig
from lookback.models.history_body import HistoryBody
from lookback.models.history_inputs import history

T, L = 9, 5
SMALL: dict[str, Any] = {"embedding_dim": 3, "max_seq_length": T, "long_seq_length": L, "k": 3}
LENGTHS = [T, 0, 3, 7, 1]
EACH = pytest.mark.parametrize(
    "name", [name for name, entry in MODELS.items() if entry.config_class.layout == "histories"]
)


def option_names(name):
    return {field.name for field in dataclasses.fields(MODELS[name].config_class)}


def config_of(name, **changes):
    """A small configuration: of SMALL's options those that the model has, narrow MLPs."""
    names = option_names(name)
    options = {n: v for n, v in SMALL.items() if n in names}
    options |= {n: (6, 5) for n in names if n.endswith("_mlp_dims")}
    return MODELS[name].config_class(**{**options, **changes})


def tensors(batch):
    return {name: tf.constant(value) for name, value in batch.items()}


def serving(batch):
    return {n: v for n, v in tensors(batch).items() if not n.endswith("_negatives")}


@pytest.fixture(scope="module")
def make_model(make_schema, make_batch):
    """Builds a model, with random weights of visible size."""

    def make(name, **changes):
        model = MODELS[name](make_schema(), config_of(name, **changes))
        batch, _ = make_batch(LENGTHS, time=changes.get("time_features", False))
        model(serving(batch))
        rng = np.random.default_rng(1)
        for weight in model.trainable_weights:
            weight.assign(rng.normal(0, 0.3, weight.shape))
        return model

    return make


@pytest.fixture(scope="module")
def built(make_model):
    """One model of each name, for tests that leave it as it is."""
    made: dict[str, ClickModel] = {}

    def get(name):
        if name not in made:
            made[name] = make_model(name)
        return made[name]

    return get


def training_loss(model, batch, labels):
    logits = model(tensors(batch), targets=tf.constant(labels), training=True)
    (output,) = model.model_outputs
    head = output.default_loss(tf.constant(labels), logits)
    return tf.add_n([head, *[tf.cast(loss, tf.float32) for loss in model.losses]])


# --- what it is ---


@EACH
def test_is_a_merlin_model_of_the_documented_options(built, name):
    model = built(name)
    assert isinstance(model, mm.Model)
    assert isinstance(model.body, HistoryBody)
    assert len(model.model_outputs) == 1
    config_class = MODELS[name].config_class
    assert issubclass(config_class, HistoryModelConfig)
    assert dataclasses.is_dataclass(config_class)
    config_class()  # every option has a default
    assert all("help" in field.metadata for field in dataclasses.fields(config_class))


@EACH
def test_default_options_are_the_seeds(name):
    """The table of NVIDIA's README; k is 50 in its code. What it has not is off."""
    expected = {
        "embedding_dim": 16,
        "max_seq_length": 100,
        "long_seq_length": 90,
        "stage_two_mlp_dims": (200, 80),
        "dropout_rate": None,
        "time_features": False,
        "features": None,
    }
    of_some = {
        "sim": {
            "stage_one_mlp_dims": (200,),
            "aux_mlp_dims": (100, 50),
            "k": 50,
            "gsu": "soft",
            "category_feature": None,
        },
        "din": {"interaction": "dot"},
        "dien": {"aux_mlp_dims": (100, 50)},
    }
    assert dataclasses.asdict(MODELS[name].config_class()) == expected | of_some[name]


@EACH
@pytest.mark.parametrize("candidates", [1, 2, 5])
def test_float32_logits_for_every_candidate(built, make_batch, name, candidates):
    batch, _ = make_batch(LENGTHS, candidates=candidates)
    logits = built(name)(serving(batch))
    assert logits.shape == [len(LENGTHS), candidates]
    assert logits.dtype == tf.float32
    assert np.abs(np.diff(logits.numpy().ravel())).min() > 0 or candidates == 1


@EACH
def test_a_candidate_s_score_depends_on_no_other_row_or_candidate(built, make_batch, name):
    batch, _ = make_batch(LENGTHS, candidates=3)
    model = built(name)
    together = model(serving(batch)).numpy()
    for b in range(len(LENGTHS)):
        for c in range(3):
            one = {
                n: v[b : b + 1, c : c + 1] if n in ("item_id", "category_id") else v[b : b + 1]
                for n, v in serving(batch).items()
            }
            np.testing.assert_allclose(
                model(one).numpy().item(), together[b, c], rtol=1e-5, atol=1e-6
            )


@EACH
def test_items_may_come_without_a_candidate_axis(built, make_batch, name):
    """As Merlin's loader gives materialised samples: one label a row."""
    batch, _ = make_batch(LENGTHS, candidates=1)
    flat = {n: v[:, 0] if n in ("item_id", "category_id") else v for n, v in batch.items()}
    model = built(name)
    np.testing.assert_array_equal(model(serving(flat)), model(serving(batch)))


@EACH
def test_history_matters_and_what_lies_in_padded_slots_does_not(built, make_batch, name):
    model = built(name)
    batch, _ = make_batch(LENGTHS)
    before = model(serving(batch)).numpy()
    padded = batch["item_id_history"] == 0
    garbage = np.where(padded, 5, batch["category_id_history"]).astype(np.int32)
    after = model(serving({**batch, "category_id_history": garbage})).numpy()
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)
    other = np.where(padded, 0, batch["item_id_history"] % 39 + 1).astype(np.int32)
    moved = np.abs(model(serving({**batch, "item_id_history": other})).numpy() - before).max(1)
    np.testing.assert_array_equal(moved > 1e-6, np.array(LENGTHS) > 0)


@EACH
def test_no_weights_are_left_to_appear_in_training(make_schema, make_batch, name):
    batch, labels = make_batch(LENGTHS)
    model = MODELS[name](make_schema(), config_of(name, dropout_rate=0.5))
    model(serving(batch))
    before = [id(w) for w in model.weights]
    training_loss(model, batch, labels)
    assert [id(w) for w in model.weights] == before


# --- gradients ---


@EACH
@pytest.mark.parametrize("time", [False, True])
def test_every_weight_learns_and_each_table_has_one_sparse_gradient(
    make_model, make_batch, name, time
):
    model = make_model(name, time_features=time)
    batch, labels = make_batch([T] * 6, time=time)
    with tf.GradientTape() as tape:
        loss = training_loss(model, batch, labels)
    variables = model.trainable_variables
    tables = {id(v) for v in model.body.embeddings.table_variables.values()}
    assert len(tables) == 4 + time
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        assert gradient is not None, variable.name
        sparse = isinstance(gradient, tf.IndexedSlices)
        assert sparse == (id(variable) in tables), variable.name
        values = gradient.values if sparse else gradient
        assert np.isfinite(values).all()
        assert np.abs(values).max() > 0, f"{variable.name} does not learn"


@EACH
@pytest.mark.parametrize("lengths", [[0], [0, 0], [1]], ids=str)
def test_empty_histories_give_finite_losses_and_gradients(built, make_batch, name, lengths):
    model = built(name)
    batch, labels = make_batch(lengths)
    with tf.GradientTape() as tape:
        loss = training_loss(model, batch, labels)
    assert np.isfinite(loss)
    for gradient in tape.gradient(loss, model.trainable_variables):
        if gradient is not None:
            assert np.isfinite(tf.convert_to_tensor(gradient)).all()


@EACH
@pytest.mark.parametrize("time", [False, True])
def test_a_batch_of_no_rows_has_losses_of_0_and_finite_gradients(
    make_model, make_batch, name, time
):
    """What a rank trains on that has no share of a batch, while the others do have one."""
    model = make_model(name, time_features=time)
    batch, labels = make_batch([], time=time)
    with tf.GradientTape() as tape:
        logits = model(tensors(batch), targets=tf.constant(labels), training=True)
        (output,) = model.model_outputs
        losses = [output.default_loss(tf.constant(labels), logits), *model.losses]
        total = tf.add_n([tf.cast(loss, tf.float32) for loss in losses])
    assert logits.shape == [0, 2]
    assert len(losses) == 1 + len(model.body.added_losses)
    np.testing.assert_array_equal(losses, np.zeros(len(losses)))
    gradients = tape.gradient(total, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        if gradient is not None:
            np.testing.assert_array_equal(
                tf.convert_to_tensor(gradient), np.zeros(variable.shape), err_msg=variable.name
            )


@EACH
@pytest.mark.parametrize("time", [False, True])
def test_the_ids_of_a_batch_are_those_that_a_call_looks_up(make_model, make_batch, name, time):
    """`lookups` lets ids travel a step ahead; the call must then find what it needs."""
    model = make_model(name, time_features=time)
    batch, labels = make_batch(LENGTHS, time=time)
    plain = training_loss(model, batch, labels)
    embeddings = model.body.embeddings
    with embeddings.ahead(embeddings.route(model.body.lookups(tensors(batch)))):
        np.testing.assert_array_equal(training_loss(model, batch, labels), plain)
    own = {n: v for n, v in model.body.lookups(tensors(batch)).items() if "/" not in n}
    assert set(own) == {"user_id", "country", "item_id", "category_id"}
    for feature, ids in own.items():
        np.testing.assert_array_equal(np.ravel(ids), np.ravel(batch[feature]))


@EACH
def test_every_added_loss_says_of_how_many_terms_it_is_the_mean(built, make_batch, name):
    model = built(name)
    batch, labels = make_batch(LENGTHS)
    counts = model.body.loss_counts(tensors(batch), tf.constant(labels))
    assert set(counts) == set(model.body.added_losses)
    valid = batch["item_id_history"][:, L:] > 0  # [B, S]
    expected = {"gsu_loss": labels.size, "aux_loss": (valid[:, 1:] & valid[:, :-1]).sum()}
    assert {n: float(c) for n, c in counts.items()} == {n: expected[n] for n in counts}


@EACH
def test_tables_are_known_before_the_model_is_built(built, make_schema, name):
    for time in (False, True):
        config = config_of(name, time_features=time)
        tables = MODELS[name].tables(make_schema(), config)
        assert tuple(tables) == MODELS[name](make_schema(), config).body.embeddings.tables
    with pytest.raises(TypeError, match="received a HistoryModelConfig"):
        MODELS[name].tables(make_schema(), HistoryModelConfig())


# --- graphs and precision ---


@EACH
def test_unknown_batch_and_number_of_candidates(built, make_batch, name):
    model = built(name)
    batch, _ = make_batch([T])
    signature = {
        n: tf.TensorSpec([None, None if n in ("item_id", "category_id") else v.shape[1]], tf.int32)
        if v.ndim == 2
        else tf.TensorSpec([None], tf.int32)
        for n, v in serving_arrays(batch).items()
    }
    compiled = tf.function(
        lambda features: model(features), input_signature=[signature], autograph=False
    )
    for lengths, candidates in (([T], 2), (LENGTHS, 1), (LENGTHS[:2], 5)):
        batch, _ = make_batch(lengths, candidates=candidates)
        features = serving(batch)
        np.testing.assert_allclose(compiled(features), model(features), rtol=1e-5, atol=1e-6)
    assert compiled.experimental_get_tracing_count() == 1


def serving_arrays(batch):
    return {n: v for n, v in batch.items() if not n.endswith("_negatives")}


@EACH
@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_bfloat16", 0.06), ("mixed_float16", 0.01)]
)
def test_half_precision(built, make_schema, make_batch, precision, name, policy, tolerance):
    model = built(name)
    batch, labels = make_batch(LENGTHS)
    expected, expected_loss = model(serving(batch)).numpy(), training_loss(model, batch, labels)
    precision(policy)
    half = MODELS[name](make_schema(), config_of(name))
    half(serving(batch))
    half.set_weights(model.get_weights())
    assert all(weight.dtype == tf.float32 for weight in half.trainable_weights)
    logits = half(serving(batch))
    assert logits.dtype == tf.float32
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(logits, expected, atol=tolerance * scale)
    with tf.GradientTape() as tape:
        loss = training_loss(half, batch, labels)
    assert loss.dtype == tf.float32
    assert loss.numpy() == pytest.approx(float(expected_loss), rel=2 * tolerance)
    for gradient in tape.gradient(loss, half.trainable_variables):
        if gradient is not None:
            assert np.isfinite(tf.convert_to_tensor(gradient)).all()


@EACH
def test_histories_of_2000_slots(make_schema, make_batch, name):
    config = config_of(name, max_seq_length=2000, long_seq_length=1990)
    model = MODELS[name](make_schema(), config)
    batch, labels = make_batch([2000, 1500, 0], slots=2000, long=1990)
    with tf.GradientTape() as tape:
        loss = training_loss(model, batch, labels)
    assert np.isfinite(loss)
    for gradient in tape.gradient(loss, model.trainable_variables):
        if gradient is not None:
            assert np.isfinite(tf.convert_to_tensor(gradient)).all()


@EACH
def test_dropout_acts_in_training_only(make_model, make_batch, name):
    model = make_model(name, dropout_rate=0.5)
    batch, labels = make_batch(LENGTHS)
    plain = model(serving(batch)).numpy()
    np.testing.assert_array_equal(model(serving(batch)), plain)
    first, second = (
        model(tensors(batch), targets=tf.constant(labels), training=True).numpy() for _ in range(2)
    )
    assert np.abs(first - second).max() > 0
    assert np.abs(first - plain).max() > 0


# --- plain Keras ---


@pytest.fixture(scope="module")
def fitted(make_schema, make_batch, without_autograph, tmp_path_factory):
    """Each model trained with nothing but Keras' fit, saved, and loaded again; made once.

    One without added losses in a graph, which takes the others longer than all their steps. Saved
    with the traces of its layers, but for SIM: of its layers DIEN has all that are traced, and it
    takes 20 s.
    """
    made = {}

    def get(name):
        if name not in made:
            # Few short slots and layers: Keras traces each layer several times to save it.
            narrow = {n: (6,) for n in option_names(name) if n.endswith("_mlp_dims")}
            config = config_of(name, long_seq_length=T - 2, **narrow)
            model = MODELS[name](make_schema(), config)
            plain = not model.body.added_losses
            model.compile(tf.keras.optimizers.legacy.Adam(0.02), run_eagerly=not plain)
            batch, labels = make_batch([T, 4, 6, 9, 0, 3, 8, 5], long=T - 2)
            data = tf.data.Dataset.from_tensor_slices((batch, labels)).batch(4)
            path = tmp_path_factory.mktemp(name) / "model"
            with without_autograph():
                losses = model.fit(data, epochs=8, verbose=0).history["loss"]
                model.run_eagerly = False  # to predict
                if name == "sim":
                    save_without_traces(model, batch, path)
                else:
                    model.save(str(path))
            made[name] = model, batch, labels, losses, mm.Model.load(str(path))
        return made[name]

    return get


def save_without_traces(model, batch, path):
    """As serving/export.py saves."""
    specs = {n: tf.TensorSpec([None, *v.shape[1:]], v.dtype, n) for n, v in serving(batch).items()}
    serve = tf.function(lambda features: {"logit": model(features)}, [specs], autograph=False)
    signatures = {"serving_default": serve.get_concrete_function()}
    tf.keras.models.save_model(model, path, save_traces=False, signatures=signatures)
    save_merlin_metadata(path, model.schema, Schema([]))


def predictions(model, batch, batch_size):
    data = tf.data.Dataset.from_tensor_slices(serving_arrays(batch)).batch(batch_size)
    return model.predict(data, verbose=0)


@pytest.mark.slow
@EACH
def test_keras_fit_learns_and_predict_equals_a_call(fitted, without_autograph, name):
    model, batch, _, losses, _ = fitted(name)
    assert losses[-1] < losses[0] - 0.05
    with without_autograph():
        found, in_threes = (predictions(model, batch, size) for size in (4, 3))
    assert found.shape == (8, 2)
    np.testing.assert_allclose(found, model(serving(batch)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(in_threes, found, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@EACH
def test_a_loaded_model_predicts_the_same(fitted, name):
    model, batch, _, _, loaded = fitted(name)
    assert type(loaded) is type(model)
    assert type(loaded.body) is type(model.body)
    np.testing.assert_array_equal(loaded(serving(batch)), model(serving(batch)))
    assert loaded.schema.column_names == model.schema.column_names
    # Not only the traced call: other numbers of candidates work as well.
    one = {n: v[:, :1] if n in ("item_id", "category_id") else v for n, v in batch.items()}
    np.testing.assert_allclose(loaded(serving(one)), model(serving(one)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@EACH
def test_a_loaded_model_trains_on(fitted, name):
    _, batch, labels, _, loaded = fitted(name)
    with tf.GradientTape() as tape:
        loss = training_loss(loaded, batch, labels)
    gradients = tape.gradient(loss, loaded.trainable_variables)
    assert all(gradient is not None for gradient in gradients)


@EACH
def test_config_round_trip(built, make_batch, name):
    model = built(name)
    copy = type(model).from_config(model.get_config())
    batch, labels = make_batch(LENGTHS)
    copy(serving(batch))
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy(serving(batch)), model(serving(batch)))
    np.testing.assert_array_equal(
        training_loss(copy, batch, labels), training_loss(model, batch, labels)
    )
    assert copy.schema == model.schema


# --- independence ---


@EACH
def test_two_models_share_nothing(make_schema, make_batch, name):
    schema, config = make_schema(), config_of(name)
    one, two = (MODELS[name](schema, config) for _ in range(2))
    batch, _ = make_batch(LENGTHS)
    one(serving(batch))
    two(serving(batch))
    assert not {id(w) for w in one.weights} & {id(w) for w in two.weights}
    assert not {id(part) for part in one.submodules} & {id(part) for part in two.submodules}
    before = two(serving(batch)).numpy()
    for weight in one.trainable_weights:
        weight.assign_add(tf.ones_like(weight))
    np.testing.assert_array_equal(two(serving(batch)), before)


def test_no_default_is_a_layer_or_mutable():
    modules = pkgutil.walk_packages(models.__path__, "lookback.models.")
    for module in [importlib.import_module(m.name) for m in modules]:
        functions = [f for _, f in inspect.getmembers(module, inspect.isfunction)]
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__:
                functions += [f for _, f in inspect.getmembers(cls, inspect.isfunction)]
        for function in functions:
            for parameter in inspect.signature(function).parameters.values():
                wrong = isinstance(parameter.default, tf.Module | list | dict | set)
                assert not wrong, f"{function.__qualname__}({parameter})"


# --- errors ---


@EACH
def test_missing_and_unknown_features_are_named(make_schema, make_batch, name):
    batch, _ = make_batch(LENGTHS)
    features = serving(batch)
    missing = {n: v for n, v in features.items() if n not in ("country", "item_id_history")}
    with pytest.raises(ValueError, match=r"Missing: \['country', 'item_id_history'\]"):
        MODELS[name](make_schema(), config_of(name))(missing)
    unknown = {**features, "brand": features["country"], "time_gap_history": features["country"]}
    with pytest.raises(ValueError, match=r"unknown: \['brand', 'time_gap_history'\]"):
        MODELS[name](make_schema(), config_of(name))(unknown)


@EACH
def test_auxiliary_negatives_are_missed_by_name(built, make_batch, name):
    model = built(name)
    if "aux_loss" not in model.body.added_losses:
        pytest.skip(f"{name} has no auxiliary loss")
    batch, labels = make_batch(LENGTHS, negatives=False)
    with pytest.raises(ValueError, match=r"needs the auxiliary negatives \['item_id_negatives'"):
        training_loss(model, batch, labels)
    assert negatives_name("item_id") == "item_id_negatives"


@EACH
def test_another_models_options_are_refused(make_schema, name):
    with pytest.raises(TypeError, match=f"takes a {MODELS[name].config_class.__name__}, received"):
        MODELS[name](make_schema(), HistoryModelConfig())


@EACH
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"long_seq_length": T}, rf"less than max_seq_length \({T}\), received {T}"),
        ({"embedding_dim": 0}, "embedding_dim: expected an integer, 1 or more, received 0"),
        ({"dropout_rate": 1.0}, "dropout_rate: .* above 0 and below 1, or none, received 1.0"),
        ({"stage_two_mlp_dims": ()}, "stage_two_mlp_dims: expected .* 1 or more, received nothing"),
        ({"stage_two_mlp_dims": (8, 0)}, "1 or more, received 0"),
    ],
)
def test_impossible_options_are_refused(name, options, text):
    with pytest.raises(UserError, match=text):
        config_of(name, **options)


@EACH
def test_a_schema_without_an_item_id_is_refused(make_schema, name):
    with pytest.raises(UserError, match="exactly one categorical column tagged ITEM_ID"):
        MODELS[name](make_schema(items={}), config_of(name))


def test_a_history_of_the_wrong_rank_is_named():
    with pytest.raises(ValueError, match=r"'item_id_history' must be \[B, T\], received shape"):
        history({"item_id_history": tf.zeros([3], tf.int32)}, "item_id")


@EACH
@pytest.mark.parametrize("users", [{}, {"user_id": 7}, {"user_id": 7, "country": 4, "age": 5}])
@pytest.mark.parametrize("items", [{"item_id": 40}, {"item_id": 40, "brand": 6, "shop": 5}])
def test_any_number_of_features(make_schema, make_batch, name, users, items):
    model = MODELS[name](make_schema(users, items), config_of(name))
    batch, labels = make_batch(LENGTHS)
    features = dict.fromkeys(users, batch["country"])
    for item in items:
        for suffix in ("", "_history", "_negatives"):
            column = batch[f"item_id{suffix}"]
            features[item + suffix] = column if item == "item_id" else np.minimum(column, 4)
    assert np.isfinite(training_loss(model, features, labels))
    assert set(model.body.embeddings.table_variables) == {*users, *items}

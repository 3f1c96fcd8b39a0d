"""What every model over histories makes of bags, numbers, and features of contexts and events.

Their formulas: tests/models/test_models_formulas.py. Here is what no formula tells.
"""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from lookback.checkpoints.store import CheckpointStore, open_checkpoint
from lookback.core.errors import UserError
from lookback.formats.features import HistoryFeatures
from lookback.models import MODELS
from lookback.training.data import model_identity
from lookback.training.state import model_states

T, L = 9, 5
LENGTHS = [T, 0, 3, 7, 1]
NAMES = [name for name, entry in MODELS.items() if entry.config_class.layout == "histories"]
EACH = pytest.mark.parametrize("name", NAMES)


def config_of(name: str, **changes: Any) -> Any:
    """A small configuration, with a hard search where there is one."""
    options: dict[str, Any] = {
        **{"embedding_dim": 3, "max_seq_length": T, "long_seq_length": L, "time_features": True},
        "stage_two_mlp_dims": (6, 5),
    }
    if name == "sim":
        options |= {"k": 3, "gsu": "hard", "stage_one_mlp_dims": (6,)}
    if name != "din":
        options |= {"aux_mlp_dims": (6, 5)}
    return MODELS[name].config_class(**{**options, **changes})


def tensors(batch: dict[str, Any]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in batch.items()}


def serving(batch: dict[str, Any]) -> dict[str, tf.Tensor]:
    return {n: v for n, v in tensors(batch).items() if not n.endswith("_negatives")}


def visible(model: Any, batch: dict[str, Any]) -> Any:
    """The model, built, with weights of visible size."""
    model(serving(batch))
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


def training_loss(model: Any, batch: dict[str, Any], labels: np.ndarray) -> tf.Tensor:
    logits = model(tensors(batch), targets=tf.constant(labels), training=True)
    (output,) = model.model_outputs
    head = output.default_loss(tf.constant(labels), logits)
    return tf.add_n([head, *[tf.cast(loss, tf.float32) for loss in model.losses]])


@pytest.fixture(scope="module")
def built(typed_schema, make_typed_batch):
    """One model of each name, for tests that leave it as it is."""
    made: dict[str, Any] = {}

    def get(name):
        if name not in made:
            batch, _ = make_typed_batch(LENGTHS, time=True)
            made[name] = visible(MODELS[name](typed_schema, config_of(name)), batch)
        return made[name]

    return get


@pytest.fixture(scope="module")
def features(typed_schema) -> HistoryFeatures:
    return HistoryFeatures.from_schema(typed_schema)


@EACH
def test_a_score_depends_on_no_other_row_or_candidate_and_on_no_padding(
    built, features, make_typed_batch, name
):
    model, (batch, _) = built(name), make_typed_batch(LENGTHS, candidates=3, time=True)
    together = model(serving(batch)).numpy()
    for b, c in [(0, 0), (0, 2), (3, 1), (1, 1)]:
        one = {
            n: v[b : b + 1, c : c + 1] if n in features.of("item") else v[b : b + 1]
            for n, v in serving(batch).items()
        }
        np.testing.assert_allclose(model(one).numpy().item(), together[b, c], rtol=1e-5, atol=1e-6)
    padded = batch["item_id_history"] == 0
    garbage = dict(batch)
    for column in features.of("item", "context", "event"):
        if column != "item_id":
            values = garbage[f"{column}_history"].copy()
            values[padded] = 1
            garbage[f"{column}_history"] = values
    np.testing.assert_allclose(model(serving(garbage)), together, rtol=1e-6, atol=1e-6)


@EACH
def test_every_weight_learns_and_each_table_has_one_sparse_gradient(built, make_typed_batch, name):
    model, (batch, labels) = built(name), make_typed_batch([T] * 6, time=True)
    with tf.GradientTape() as tape:
        loss = training_loss(model, batch, labels)
    variables = model.trainable_variables
    tables = {id(v) for v in model.body.embeddings.table_variables.values()}
    assert len(tables) == 11
    numbers = [v.name for v in variables if "_numbers/" in v.name]
    assert len(numbers) == 8  # kernel and bias of users, items, contexts, events
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        sparse = isinstance(gradient, tf.IndexedSlices)
        assert sparse == (id(variable) in tables), variable.name
        values = (gradient.values if sparse else gradient).numpy()
        assert np.isfinite(values).all()
        # The same number added to all scores moves no softmax.
        learns = np.abs(values).max() > 0 or variable.name.endswith("attention/score/bias:0")
        assert learns, f"{variable.name} does not learn"


@EACH
@pytest.mark.parametrize("lengths", [[], [0], [1, 0]], ids=str)
def test_empty_batches_and_histories_give_finite_losses_and_gradients(
    built, make_typed_batch, name, lengths
):
    model, (batch, labels) = built(name), make_typed_batch(lengths, time=True)
    with tf.GradientTape() as tape:
        loss = training_loss(model, batch, labels)
    assert np.isfinite(loss) and (lengths or loss.numpy() == 0)
    for gradient in tape.gradient(loss, model.trainable_variables):
        if gradient is not None:
            assert np.isfinite(tf.convert_to_tensor(gradient)).all()


@EACH
def test_the_ids_of_a_batch_are_those_that_a_call_looks_up(built, make_typed_batch, name):
    model, (batch, labels) = built(name), make_typed_batch(LENGTHS, time=True)
    plain = training_loss(model, batch, labels)
    embeddings = model.body.embeddings
    with embeddings.ahead(embeddings.route(model.body.lookups(tensors(batch)))):
        np.testing.assert_array_equal(training_loss(model, batch, labels), plain)


@EACH
def test_half_precision(built, typed_schema, make_typed_batch, precision, name):
    model, (batch, labels) = built(name), make_typed_batch(LENGTHS, time=True)
    expected, loss = model(serving(batch)).numpy(), training_loss(model, batch, labels)
    precision("mixed_bfloat16")
    half = MODELS[name](typed_schema, config_of(name))
    half(serving(batch))
    half.set_weights(model.get_weights())
    assert all(weight.dtype == tf.float32 for weight in half.trainable_weights)
    logits = half(serving(batch))
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, expected, atol=0.06 * max(1.0, np.abs(expected).max()))
    assert training_loss(half, batch, labels).numpy() == pytest.approx(float(loss), rel=0.1)


@EACH
def test_config_and_checkpoint_round_trips(built, make_typed_batch, name, tmp_path):
    model, (batch, labels) = built(name), make_typed_batch(LENGTHS, time=True)
    stored = json.loads(json.dumps(model.body.get_config()))
    body = type(model.body).from_config(stored)
    assert body.get_config() == model.body.get_config()
    copy = type(model).from_config(model.get_config())
    copy(serving(batch))
    pieces = {n: s.pieces() for n, s in model_states(model).items()}
    checkpoint = open_checkpoint(CheckpointStore(tmp_path).save(1, pieces, {}))
    states = model_states(copy)
    checkpoint.require_tensors({state: of.spec for state, of in states.items()})
    for state, of in states.items():
        of.restore(state, checkpoint)
    np.testing.assert_array_equal(
        training_loss(copy, batch, labels), training_loss(model, batch, labels)
    )


@EACH
def test_only_chosen_features_have_tables_and_projections(typed_schema, make_typed_batch, name):
    batch, labels = make_typed_batch(LENGTHS)
    chosen = ("category_id", "genres", "dwell")
    config = config_of(name, features=chosen, time_features=False)
    model = MODELS[name](typed_schema, config)
    kept = {"user_id", "item_id", *chosen}
    columns = (*model.body.serving_inputs, *model.body.training_inputs)
    assert {c.removesuffix("_history").removesuffix("_negatives") for c in columns} == kept
    visible(model, {n: v for n, v in batch.items() if n in columns})
    found = training_loss(model, {n: v for n, v in batch.items() if n in columns}, labels)
    assert np.isfinite(found)
    assert set(model.body.embeddings.table_variables) == {"user_id", "item_id", *chosen[:2]}
    assert tuple(MODELS[name].tables(typed_schema, config)) == model.body.embeddings.tables
    assert [w.name for w in model.weights if "numbers" in w.name and "event" not in w.name] == []
    soft = {"gsu": "soft"} if name == "sim" else {}
    ids = MODELS[name](typed_schema, config_of(name, features=(), time_features=False, **soft))
    assert ids.body.serving_inputs == {"user_id", "item_id", "item_id_history"}


@EACH
def test_unknown_features_are_refused_with_those_that_there_are(typed_schema, name):
    others = "country, interests, age, category_id, genres, price, device, sensors, hour, "
    text = f"features: expected some of {others}rating, actions, dwell, received colour"
    with pytest.raises(UserError, match=text):
        MODELS[name](typed_schema, config_of(name, features=("genres", "colour")))


@EACH
def test_a_planner_hears_of_all_ids_of_a_bag(typed_schema, name):
    config = config_of(name)
    hotness = {table.name: table.hotness for table in MODELS[name].tables(typed_schema, config)}
    slots = T + config.auxiliary_negatives * (T - L)
    assert hotness == {
        **{"user_id": (0.5,), "country": (0.5,), "interests": (1.5,)},
        **dict.fromkeys(("item_id", "category_id"), (1 + slots / 2,)),
        "genres": (2 * (1 + slots / 2),),
        **{"device": (0.5 + T / 2,), "sensors": (2 * (0.5 + T / 2),)},
        **{"rating": (T / 2,), "actions": (3 * T / 2,), "time_gap": (T / 2,)},
    }


def test_hard_search_needs_one_category_an_item(typed_schema):
    MODELS["sim"](typed_schema, config_of("sim"))  # category_id is one
    for options, asked in (
        ({"category_feature": "genres"}, "'genres'"),
        ({"category_feature": "price"}, "'price'"),
        ({"features": ("genres",)}, "'the first one'"),
    ):
        with pytest.raises(UserError, match=f"feature to match that is one .* asked for {asked}"):
            MODELS["sim"](typed_schema, config_of("sim", **options))


@pytest.mark.parametrize(
    ("column", "shape", "text"),
    [
        ("genres", [5, 2], r"'genres' must be \[B, C, M\]"),
        ("interests", [5], r"'interests' must be \[B, M\]"),
        ("sensors_history", [5, T], r"'sensors_history' must be \[B, T, M\]"),
    ],
)
def test_bags_of_the_wrong_rank_are_named(built, make_typed_batch, column, shape, text):
    batch, _ = make_typed_batch(LENGTHS, time=True)
    with pytest.raises(ValueError, match=text):
        built("din").body.lookups({**tensors(batch), column: tf.ones(shape, tf.int32)})


def test_checkpoints_of_before_there_was_a_choice_are_those_of_all_features(typed_schema):
    run, source = SimpleNamespace(model_type="din"), SimpleNamespace(schema=typed_schema)
    options = dataclasses.asdict(config_of("din"))
    all_of_them = model_identity(run, options, source)
    assert "features" not in all_of_them and all_of_them["embedding_dim"] == 3
    some = model_identity(run, {**options, "features": ["price"]}, source)
    assert some == {**all_of_them, "features": ["price"]}

"""What every model declares to those who train, store and serve it, whatever it reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from merlin.schema import Schema

from lookback.core.options import options_of
from lookback.core.options.needs import unmet
from lookback.embeddings.collection import EmbeddingCollection
from lookback.formats.interaction_features import SAMPLE_KEY
from lookback.formats.tabular_schema import tabular_schema
from lookback.models import MODELS
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.click_body import ClickBody
from lookback.models.click_model import ClickModel, click_model, contract_of
from lookback.training.state import model_states

EACH = pytest.mark.parametrize("name", MODELS)

# Of every option a value that is no model's default, and that go together.
OTHER_OPTIONS: Mapping[str, Any] = {
    "embedding_dim": 6,
    "max_seq_length": 12,
    "long_seq_length": 7,
    "stage_one_mlp_dims": (7,),
    "stage_two_mlp_dims": (9, 4),
    "aux_mlp_dims": (8, 3),
    "dropout_rate": 0.25,
    "time_features": True,
    "features": ("category_id",),
    "k": 4,
    "gsu": "hard",
    "category_feature": "category_id",
    "interaction": "activation_unit",
    "embedding_type": "dynamic",
    "embedding_capacity": 5,
    "bottom_mlp_sizes": (7, 6),
    "top_mlp_sizes": (5, 1),
    "hash_indices": True,
    "max_table_size": 11,
    "interaction_op": "cat",
    "num_cross_layers": 2,
    "cross_layer_projection_dim": 4,
    "structure": "parallel",
    "factors": 5,
    "layers": (8, 6),
    "dropout": 0.25,
    "branches": "mf",
}

# The first parts of the names of dense tensors in checkpoints, and the class in saved models, as
# they were before the classes had their names.
STORED = {
    "sim": ("history_model", "sim_block", "HistoryModel", "SIMBlock"),
    "din": ("history_model", "din_block", "HistoryModel", "DINBlock"),
    "dien": ("history_model", "dien_block", "HistoryModel", "DIENBlock"),
    "dlrm": ("tabular_model", "dlrm_block", "TabularModel", "DLRMBlock"),
    "dcnv2": ("tabular_model", "dc_nv2_block", "TabularModel", "DCNv2Block"),
    "neumf": ("neu_mf_model", "neu_mf_block", "NeuMFModel", "NeuMFBlock"),
}


class Sample(NamedTuple):
    """A dataset of a layout, and a batch to train on with default lengths of sequences."""

    schema: Schema
    features: Mapping[str, tf.Tensor]
    labels: tf.Tensor


@pytest.fixture(scope="module")
def samples(make_schema, make_batch):
    """By layout."""
    rng = np.random.default_rng(0)
    batch, labels = make_batch([100, 0, 3], slots=100, long=90)
    rows = {
        "numerical": tf.constant(rng.normal(size=(3, 4)), tf.float32),
        "categorical": tf.constant(rng.integers(0, 3, (3, 2)), tf.int32),
    }
    pairs = {
        "user_id": tf.constant([3, 4, 3]),
        "item_id": tf.constant(rng.integers(3, 40, (3, 2)), tf.int32),
        SAMPLE_KEY: tf.constant([5, 6, 7], tf.int64),
    }
    histories = {name: tf.constant(value) for name, value in batch.items()}
    return {
        "histories": Sample(make_schema(), histories, tf.constant(labels)),
        "tabular": Sample(
            tabular_schema(4, {"a": 40, "b": 3}), rows, tf.constant([[1.0], [0], [1]])
        ),
        "interactions": Sample(make_schema(), pairs, tf.constant([[1.0, 0]] * 3)),
    }


@pytest.fixture(scope="module")
def built(samples):
    """Each model with its default options, called once, and a sample of what it reads."""
    made: dict[str, tuple[ClickModel, Sample]] = {}

    def get(name):
        if name not in made:
            config_class = MODELS[name].config_class
            sample = samples[config_class.layout]
            model = MODELS[name](sample.schema, config_class())
            model(serving(model, sample.features))
            made[name] = model, sample
        return made[name]

    return get


def serving(model, features):
    return {name: value for name, value in features.items() if name in model.body.serving_inputs}


@EACH
def test_is_one_body_with_tables_and_heads_by_task(built, name):
    model, _ = built(name)
    assert type(model) is ClickModel
    assert isinstance(model.body, ClickBody)
    assert type(model.body).config_class is MODELS[name].config_class
    contract = model.contract
    assert set(contract.tasks) == {"click"}
    assert list(contract.tasks.values()) == model.model_outputs
    assert contract.lookups.embeddings is model.body.embeddings
    assert contract.loss_names == ("head_loss", *model.body.added_losses)


@EACH
def test_a_training_call_adds_the_losses_that_are_declared_and_counts_them_all(built, name):
    model, sample = built(name)
    model(sample.features, targets=sample.labels, training=True)
    assert len(model.losses) == len(model.contract.added_losses)
    counts = model.contract.counts(sample.features, sample.labels)
    assert tuple(counts) == model.contract.loss_names
    assert all(count.shape == [] and count.dtype == tf.float32 for count in counts.values())
    assert counts["head_loss"] == tf.size(sample.labels).numpy()


@EACH
def test_a_call_takes_what_serving_needs_and_beside_it_what_training_may_bring(built, name):
    model, sample = built(name)
    assert set(sample.features) - model.body.serving_inputs == (
        model.body.training_inputs & set(sample.features)
    )
    needed = serving(model, sample.features)
    assert set(needed) == model.body.serving_inputs
    unbuilt = type(model).from_config(model.get_config())  # Merlin looks at the first call alone
    for left_out in needed:
        with pytest.raises(ValueError, match=rf"Missing: \['{left_out}'\]; unknown: \[\]"):
            unbuilt({n: v for n, v in needed.items() if n != left_out})
    with pytest.raises(ValueError, match=r"Missing: \[\]; unknown: \['shoe_size'\]"):
        unbuilt({**sample.features, "shoe_size": sample.labels})


@EACH
def test_every_option_survives_a_round_trip_through_json(samples, name):
    config_class = MODELS[name].config_class
    names = [field.name for field in dataclasses.fields(config_class)]
    defaults = dataclasses.asdict(config_class())
    assert all(OTHER_OPTIONS[option] != defaults[option] for option in names)
    # But those that would have no effect beside the others, and are refused.
    options = {option: OTHER_OPTIONS[option] for option in names}
    for option, found in options_of(config_class).items():
        if unmet(found.needs, options):
            options[option] = defaults[option]
    body = MODELS[name](samples[config_class.layout].schema, config_class(**options)).body
    stored = json.loads(json.dumps(body.get_config()))
    again = type(body).from_config(stored).get_config()
    assert again == body.get_config()
    assert again["config"] == options


@pytest.mark.parametrize("name", STORED)
def test_what_is_stored_keeps_its_names(built, name):
    model, _ = built(name)
    model_scope, body_scope, model_class, body_class = STORED[name]
    dense = [state for state in model_states(model) if state.startswith(f"model/{model_scope}/")]
    assert any(state.startswith(f"model/{model_scope}/{body_scope}/") for state in dense)
    others = {state for state in model_states(model) if not state.startswith("table/")} - {*dense}
    assert others == {"model/should_compute_train_metrics_for_batch"}  # Merlin's
    find = tf.keras.utils.get_registered_object
    assert find(f"lookback>{model_class}") is ClickModel
    assert find(f"lookback>{body_class}") is type(model.body)
    assert find(tf.keras.utils.get_registered_name(type(model.body))) is type(model.body)


def test_tables_that_the_body_does_not_declare_are_refused(built):
    model, _ = built("din")
    body = type(model.body).from_config(model.body.get_config())
    body.more = EmbeddingCollection(body.embeddings.tables[:0], {}, name="more")
    with pytest.raises(ValueError, match=r"DINBody: expected `embeddings` to be .* 'more'"):
        contract_of(click_model(body, model.schema, LogitHead()))

"""What every layer of ours must bear: rule 15 of STYLE.md, over all layers there are.

A layer without a case here fails `test_every_layer_has_a_case`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

import lookback.models.blocks
from lookback.models.blocks.attention import ActivationUnit
from lookback.models.blocks.auxiliary import AuxiliaryNet
from lookback.models.blocks.click_loss import ClickLoss
from lookback.models.blocks.dropout import ResumableDropout
from lookback.models.blocks.evolution import InterestEvolution
from lookback.models.blocks.interaction import DotInteraction
from lookback.models.blocks.linear import Dense
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.blocks.mlp_relu import ReluMLP
from lookback.models.blocks.recurrent import AUGRU, InterestGRU

C, S, D, H = 2, 4, 3, 4


class Case(NamedTuple):
    """How to make a layer and call it.

    Attributes:
      options: of the constructor.
      shapes: of the inputs; "B" is the batch, a name that ends with "mask" is bool and one that
        ends with "weights" is zero where padded.
      call: the layer and its inputs to one float tensor (or several).
      batch_axis: of the output; None if it has none.
    """

    options: dict[str, Any]
    shapes: dict[str, tuple[Any, ...]]
    call: Callable[..., Any]
    batch_axis: int | None


def joined(layer, *inputs):
    return layer(inputs)


CASES = {
    ActivationUnit: Case({}, {"items": (C, "B", H), "steps": (S, "B", H)}, joined, 2),
    InterestGRU: Case({"units": H}, {"steps": (S, "B", D), "mask": (S, "B")}, joined, 1),
    AUGRU: Case({"units": H}, {"steps": (S, "B", D), "weights": (S, C, "B")}, joined, 1),
    AuxiliaryNet: Case(
        {"dims": (6, 5)},
        {
            "states": (S, "B", H),
            "clicks": (S, "B", D),
            "negatives": (S, "B", D),
            "mask": (S, "B"),
        },
        joined,
        None,
    ),
    InterestEvolution: Case(
        {"units": H, "aux_mlp_dims": (6, 5)},
        {
            "target": ("B", C, D),
            "steps": (S, "B", D),
            "mask": (S, "B"),
            "negatives": (S, "B", D),
        },
        lambda layer, *inputs: layer(*inputs)[0],
        0,
    ),
    ResumableDropout: Case(
        {"rate": 0.5, "seed": 3}, {"inputs": ("B", D)}, lambda layer, x: layer(x), 0
    ),
    DotInteraction: Case({}, {"a": ("B", D), "b": ("B", D)}, joined, 0),
    ReluMLP: Case({"sizes": (6, 5)}, {"inputs": ("B", D)}, lambda layer, x: layer(x), 0),
    Dense: Case({"units": 6}, {"inputs": ("B", C, D)}, lambda layer, x: layer(x), 0),
    LogitHead: Case({}, {"inputs": ("B", C, D)}, lambda layer, x: layer(x), 0),
}
# The loss and weights among these layers' outputs are float32 under every policy.
ALWAYS_FLOAT32 = {LogitHead, AuxiliaryNet}
EACH = pytest.mark.parametrize("layer_class", CASES, ids=lambda c: c.__name__)


def shape_of(spec, batch):
    return [batch if size == "B" else size for size in spec]


def inputs_of(case, batch, *, padded=False, dtype=tf.float32, seed=0):
    rng = np.random.default_rng(seed)
    inputs = []
    for name, spec in case.shapes.items():
        shape = shape_of(spec, batch)
        if name.endswith("mask"):
            inputs.append(
                tf.zeros(shape, tf.bool) if padded else tf.constant(rng.random(shape) < 0.7)
            )
        elif name.endswith("weights"):
            values = np.zeros(shape) if padded else rng.random(shape)
            inputs.append(tf.constant(values, tf.float32))
        else:
            inputs.append(tf.cast(rng.normal(size=shape), dtype))
    return inputs


def make(layer_class, batch=3):
    """A built layer with random weights."""
    case = CASES[layer_class]
    layer = layer_class(**case.options)
    case.call(layer, *inputs_of(case, batch))
    rng = np.random.default_rng(5)
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    return layer


def is_public_layer(value):
    return (
        isinstance(value, type)
        and issubclass(value, tf.keras.layers.Layer)
        and value.__module__.startswith("lookback.models.")
        and not value.__name__.startswith("_")
    )


def test_every_layer_has_a_case():
    modules = [m.name for m in pkgutil.iter_modules(lookback.models.blocks.__path__)]
    found = {
        value
        for name in modules
        for value in vars(importlib.import_module(f"lookback.models.blocks.{name}")).values()
        if is_public_layer(value)
    }
    assert found
    assert found <= set(CASES)


@EACH
def test_batch_1_equals_the_first_row_of_a_batch(layer_class):
    case, layer = CASES[layer_class], make(layer_class)
    batch_axes = [list(spec).index("B") for spec in case.shapes.values()]
    inputs = inputs_of(case, 3)
    first = [tf.gather(x, [0], axis=axis) for x, axis in zip(inputs, batch_axes, strict=True)]
    one, all_rows = case.call(layer, *first), case.call(layer, *inputs)
    if case.batch_axis is None:
        assert one.shape == all_rows.shape == []
        assert np.isfinite(one)
    else:
        expected = tf.gather(all_rows, [0], axis=case.batch_axis)
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)


@EACH
def test_unknown_batch(layer_class):
    case, layer = CASES[layer_class], make(layer_class)
    specs = [
        tf.TensorSpec(shape_of(spec, None), tf.bool if name.endswith("mask") else tf.float32)
        for name, spec in case.shapes.items()
    ]
    # With AutoGraph, which Keras uses and our steps do not.
    compiled = tf.function(lambda *inputs: case.call(layer, *inputs), input_signature=specs)
    for batch in (1, 5):
        inputs = inputs_of(case, batch, seed=batch)
        np.testing.assert_allclose(
            compiled(*inputs), case.call(layer, *inputs), rtol=1e-5, atol=1e-6
        )
    assert compiled.experimental_get_tracing_count() == 1


@EACH
def test_full_padding_gives_finite_outputs_and_gradients(layer_class):
    case, layer = CASES[layer_class], make(layer_class)
    inputs = inputs_of(case, 3, padded=True)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = case.call(layer, *inputs)
        total = tf.reduce_sum(outputs)
    assert np.isfinite(outputs).all()
    for gradient in tape.gradient(total, [*inputs, *layer.trainable_weights]):
        assert gradient is None or np.isfinite(gradient).all()


@EACH
@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_bfloat16", 0.04), ("mixed_float16", 0.005)]
)
def test_half_precision_is_close_to_single(layer_class, policy, tolerance, precision):
    case, layer = CASES[layer_class], make(layer_class)
    expected = case.call(layer, *inputs_of(case, 3)).numpy()
    precision(policy)
    half = layer_class(**case.options)
    compute = tf.keras.mixed_precision.Policy(policy).compute_dtype
    inputs = inputs_of(case, 3, dtype=compute)
    case.call(half, *inputs)
    half.set_weights(layer.get_weights())
    assert all(w.dtype in (tf.float32, tf.int64) for w in half.weights)
    with tf.GradientTape() as tape:
        found = case.call(half, *inputs)
        total = tf.reduce_sum(tf.cast(found, tf.float32))
    assert found.dtype == (tf.float32 if layer_class in ALWAYS_FLOAT32 else compute)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(tf.cast(found, tf.float32), expected, atol=tolerance * scale)
    for gradient in tape.gradient(total, half.trainable_weights):
        assert gradient is None or np.isfinite(gradient).all()


@EACH
def test_config_round_trip(layer_class):
    case, layer = CASES[layer_class], make(layer_class)
    config = layer.get_config()
    for name, value in case.options.items():
        assert config[name] == value
    copy = layer_class.from_config(config)
    inputs = inputs_of(case, 3)
    case.call(copy, *inputs)
    copy.set_weights(layer.get_weights())
    assert copy.name == layer.name
    np.testing.assert_array_equal(case.call(copy, *inputs), case.call(layer, *inputs))


def test_saved_and_loaded(tmp_path):
    """All layers in one functional model; no custom_objects, so each class must be registered."""
    symbolic, outputs, inputs = [], [], []
    for layer_class, case in CASES.items():
        part = [
            tf.keras.Input(
                batch_shape=shape_of(spec, None),
                dtype=tf.bool if name.endswith("mask") else tf.float32,
            )
            for name, spec in case.shapes.items()
        ]
        outputs.append(case.call(make(layer_class), *part))
        symbolic += part
        inputs += inputs_of(case, 3)
    model = tf.keras.Model(symbolic, outputs)
    # As serving/export.py saves; with traces: tests/conformance/test_models.py.
    model.save(tmp_path / "model", save_traces=False)
    loaded = tf.keras.models.load_model(tmp_path / "model")
    assert set(CASES) <= {type(part) for part in loaded.layers}
    for found, expected in zip(loaded(inputs), model(inputs), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_click_loss_round_trip():
    loss = ClickLoss(0.5)
    copy = ClickLoss.from_config(loss.get_config())
    labels, logits = tf.constant([[1.0, 0.0]]), tf.constant([[0.3, -2.0]])
    assert copy(labels, logits) == loss(labels, logits)
    assert copy.name == loss.name


def test_a_head_of_rows_gives_a_column_of_logits():
    """``x W + b``, as of candidates, with the initial weights that it is told."""
    head = LogitHead("ones", tf.keras.initializers.Constant(0.5))
    rows = np.random.default_rng(3).normal(size=(4, D)).astype(np.float32)
    expected = rows.sum(1, keepdims=True) + 0.5
    np.testing.assert_allclose(head(tf.constant(rows)), expected, rtol=1e-6)
    assert head.compute_output_shape([None, D]).as_list() == [None, 1]
    copy = LogitHead.from_config(head.get_config())
    np.testing.assert_allclose(
        copy(tf.constant(rows[:, np.newaxis]))[:, 0], expected[:, 0], rtol=1e-6
    )

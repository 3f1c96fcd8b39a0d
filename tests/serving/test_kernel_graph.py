"""A bundle's graph with our operations: used where it does the same, and the choice is said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig
from lookback.kernels import loader
from lookback.kernels.dot_interaction import dot_interaction
from lookback.models import MODELS
from lookback.serving.bundle import Bundle
from lookback.serving.export import export_bundle
from lookback.serving.kernel_graph import KERNEL_GRAPH, scoring_of, write_kernel_graph
from lookback.serving.layouts.registry import LAYOUTS
from lookback.serving.manifest import SIGNATURE
from tests.serving import tabular_data

pytestmark = pytest.mark.skipif(
    loader.cpu_kernels() is None, reason="a GPU, or an environment that setup.sh did not make"
)

X = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
OURS = "scored by the graph with our operations"
PORTABLE = "scored by TensorFlow's operations"


@pytest.fixture(scope="module")
def weights() -> tf.Module:
    """Three variables of one shape: in another's place, each would give other scores."""
    module = tf.Module()
    module.all = [tf.Variable(n + np.arange(16, dtype=np.float32) / 9) for n in (1, 2, 3)]
    return module


def function_of(weights: tf.Module, order: tuple[int, ...]) -> Any:
    """``x + w_0``, ``x * w_1`` and ``w_2``, and their products; reads the variables in `order`."""

    @tf.function(
        input_signature=[{name: tf.TensorSpec([None, 16], name=name) for name in ("x", "b")}],
        autograph=False,
    )
    def score(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        x = inputs["x"]
        read = {n: tf.identity(weights.all[n]) for n in order}
        parts = [x + read[0], x * read[1] + inputs["b"], tf.zeros_like(x) + read[2]]
        logit = tf.reduce_sum(dot_interaction(parts, "float32"), 1)
        return {"logit": logit, "probability": tf.sigmoid(logit)}

    return score.get_concrete_function()


def products(x: np.ndarray, b: np.ndarray, weights: tf.Module) -> np.ndarray:
    w = [variable.numpy().astype(np.float64) for variable in weights.all]
    parts = [x + w[0], x * w[1] + b, np.tile(w[2], (len(x), 1))]
    pairs = [(parts[i] * parts[j]).sum(1) for i in range(3) for j in range(i)]
    return parts[0].sum(1) + sum(pairs)


@pytest.fixture(scope="module")
def saved(weights: tf.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    with loader.portable() as without:
        portable = function_of(weights, (0, 1, 2))
        tf.saved_model.save(weights, str(directory / "model"), signatures={SIGNATURE: portable})
    assert without.asked
    write_kernel_graph(directory / KERNEL_GRAPH, portable, function_of(weights, (2, 0, 1)))
    return directory


def drawn() -> dict[str, tf.Tensor]:
    return {"x": tf.constant(X), "b": tf.constant(X[::-1])}


def scores_of(path: Path, saved: Path) -> tuple[np.ndarray, Any]:
    model = tf.saved_model.load(str(saved / "model"))
    scoring = scoring_of(path, model.signatures[SIGNATURE], drawn)
    return scoring(drawn())["logit"].numpy(), scoring


def operations(scoring: Any) -> set[str]:
    return {operation.type for operation in scoring.graph.get_operations()}


def written(export: Path) -> set[str]:
    """Operations of a bundle's graph with ours."""
    graph = MetaGraphDef.FromString((export / KERNEL_GRAPH).read_bytes()).graph_def
    return {node.op for node in graph.node}


def test_it_reads_the_saved_model_s_variables_whatever_their_order(
    saved: Path, weights: tf.Module, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found, scoring = scores_of(saved / KERNEL_GRAPH, saved)
    assert OURS in caplog.text
    assert "LookbackDotInteraction" in operations(scoring)
    np.testing.assert_allclose(found, products(X, X[::-1], weights), rtol=1e-5)


def test_without_the_operations_or_the_file_the_portable_graph_serves(
    saved: Path, weights: tf.Module, caplog: pytest.LogCaptureFixture
) -> None:
    expected = products(X, X[::-1], weights)
    with loader.portable():
        np.testing.assert_allclose(scores_of(saved / KERNEL_GRAPH, saved)[0], expected, rtol=1e-5)
    with caplog.at_level(logging.INFO):
        np.testing.assert_allclose(scores_of(saved / "none.pb", saved)[0], expected, rtol=1e-5)
    assert PORTABLE in caplog.text
    assert OURS not in caplog.text


def change_captures(graph: MetaGraphDef) -> None:
    captures = graph.signature_def["captures"].inputs
    captures["0"].name, captures["1"].name = captures["1"].name, captures["0"].name


def forget_an_operation(graph: MetaGraphDef) -> None:
    for node in graph.graph_def.node:
        if node.op == "LookbackDotInteraction":
            node.op = "LookbackUnheardOf"


def forget_a_capture(graph: MetaGraphDef) -> None:
    graph.signature_def["captures"].inputs["7"].CopyFrom(
        graph.signature_def["captures"].inputs["0"]
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_captures, "gives logits that differ by up to"),
        (forget_an_operation, "cannot be used by this version"),
        (forget_a_capture, "cannot be used by this version"),
    ],
)
def test_what_does_not_the_same_is_not_used_and_the_log_says_so(
    saved: Path,
    weights: tf.Module,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[MetaGraphDef], None],
    said: str,
) -> None:
    graph = MetaGraphDef.FromString((saved / KERNEL_GRAPH).read_bytes())
    change(graph)
    (tmp_path / KERNEL_GRAPH).write_bytes(graph.SerializeToString())
    with caplog.at_level(logging.WARNING):
        found, _ = scores_of(tmp_path / KERNEL_GRAPH, saved)
    assert said in caplog.text
    assert PORTABLE in caplog.text
    np.testing.assert_allclose(found, products(X, X[::-1], weights), rtol=1e-5)


def test_a_graph_without_operations_of_ours_is_not_written(
    weights: tf.Module, tmp_path: Path
) -> None:
    with loader.portable():
        portable = function_of(weights, (0, 1, 2))
    write_kernel_graph(tmp_path / KERNEL_GRAPH, portable, portable)
    assert not (tmp_path / KERNEL_GRAPH).exists()


def test_a_bundle_of_sim_searches_with_our_operation(
    sim_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        bundle = Bundle.load(sim_bundle)
    assert OURS in caplog.text
    assert "LookbackTopKAttention" in written(sim_bundle)
    draw = LAYOUTS[bundle.manifest.layout].draw
    inputs = draw(bundle.manifest, 20, np.random.default_rng(4))
    found = bundle.predict(inputs)
    with loader.portable():
        portable = Bundle.load(sim_bundle)
    for ours, theirs in zip(found, portable.predict(inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_bundle_scores_with_the_graph_that_was_chosen(
    sim_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"logit": tf.constant([[3.0]]), "probability": tf.constant([[0.5]])}
    monkeypatch.setattr("lookback.serving.bundle.scoring_of", lambda *_: lambda inputs: chosen)
    bundle = Bundle.load(sim_bundle)
    inputs = LAYOUTS[bundle.manifest.layout].draw(bundle.manifest, 1, np.random.default_rng(4))
    assert [found.tolist() for found in bundle.predict(inputs)] == [[[3.0]], [[0.5]]]


@pytest.mark.skipif(loader.history_level("float32") is None, reason="a CPU without AVX2")
@pytest.mark.parametrize("table_dtype", [None, "fp32"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("sim", {"k": 3, "gsu": "hard"}), ("din", {"time_features": True}), ("dien", {})],
)
def test_a_bundle_of_histories_scores_with_one_operation(
    dataset_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    options: dict[str, Any],
    table_dtype: str | None,
) -> None:
    """Tables are read by their handles, or their rows come from files."""
    histories = Histories.load(dataset_dir)
    sizes = {"max_seq_length": 12, "long_seq_length": 8, "embedding_dim": 16}
    config = MODELS[name].config_class(**sizes, **options)
    model = MODELS[name](histories.schema, config)
    windows = WindowConfig(12, 8, time_features=config.time_features)
    batch, _ = WindowBuilder(histories, windows).eval_batch("test", 0, 0, 60, 4)
    with loader.portable():
        expected = model(batch)
    export_bundle(model, dataset_dir, tmp_path / "export", table_dtype=table_dtype)
    with caplog.at_level(logging.INFO):
        bundle = Bundle.load(tmp_path / "export")
    assert OURS in caplog.text
    assert f"Lookback{name.capitalize()}Score" in written(tmp_path / "export")
    inputs = {feature: values.numpy() for feature, values in batch.items()}
    np.testing.assert_allclose(bundle.predict(inputs)[0], expected, rtol=1e-5, atol=1e-5)
    portable = tf.saved_model.load(str(tmp_path / "export" / "model"))
    assert not any(o.startswith("Lookback") for o in operations(portable.signatures[SIGNATURE]))


@pytest.mark.parametrize(
    ("table_dtype", "operation"),
    [(None, "LookbackLookupInteraction"), ("fp32", "LookbackDotInteraction")],
)
def test_a_bundle_of_dlrm_multiplies_with_our_operation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, table_dtype: str | None, operation: str
) -> None:
    dataset = tabular_data.write_dataset(tmp_path / "dataset")
    model = tabular_data.small_model(dataset, embedding_dim=16, bottom_mlp_sizes=(6, 16))
    export_bundle(model, dataset, tmp_path / "export", table_dtype=table_dtype)
    with caplog.at_level(logging.INFO):
        bundle = Bundle.load(tmp_path / "export")
    assert OURS in caplog.text
    assert operation in written(tmp_path / "export")
    inputs = tabular_data.rows_to_test(dataset)
    expected = model({name: tf.constant(values) for name, values in inputs.items()})
    np.testing.assert_allclose(bundle.predict(inputs)[0], expected, rtol=1e-5, atol=1e-6)

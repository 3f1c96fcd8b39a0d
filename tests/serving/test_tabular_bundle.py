"""Bundles of tabular models: served scores against the models' own, and requests that are wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import merlin.models.tf as mm
import numpy as np
import pytest
import tensorflow as tf

import lookback.serving.bundle
from lookback.core.errors import UserError
from lookback.models import MODELS
from lookback.serving.bundle import Bundle
from lookback.serving.commands import PROGRAM
from lookback.serving.export import check_export_target, export_bundle
from lookback.serving.layouts.tabular.encoding import ShiftedLogEncoder
from lookback.serving.manifest import Manifest, TabularManifest
from lookback.serving.requests import RequestError
from tests.serving.tabular_data import (
    ROWS,
    raw_rows,
    requests_of,
    rows_to_test,
    small_model,
    write_dataset,
)
from tests.serving.test_round_trip import run

OPTIONS: dict[str, dict[str, Any]] = {"dcnv2": {"cross_layer_projection_dim": 4}}
TABULAR = [name for name, entry in MODELS.items() if entry.config_class.layout == "tabular"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("tabular"))


@pytest.fixture(scope="module")
def exported(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    model = small_model(dataset)
    return export_bundle(model, dataset, tmp_path_factory.mktemp("bundle") / "export"), model


@pytest.fixture(scope="module")
def bundle(exported: tuple[Path, Any]) -> Bundle:
    return Bundle.load(exported[0])


@pytest.fixture(scope="module")
def encoded_dataset(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows without the workflow, as `generate` writes them."""
    directory = tmp_path_factory.mktemp("encoded") / "dataset"
    shutil.copytree(dataset, directory, ignore=shutil.ignore_patterns("workflow"))
    return directory


def tensors(inputs: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in inputs.items()}


def logits(bundle: Bundle, requests: list[Any]) -> np.ndarray:
    scores = bundle.score(requests)
    assert all(s.logit.shape == s.probability.shape == (1,) for s in scores)
    return np.array([s.logit[0] for s in scores])


@pytest.mark.parametrize("model_type", TABULAR)
def test_raw_requests_score_as_the_model_scores_the_datasets_rows(
    model_type: str, dataset: Path, tmp_path: Path
) -> None:
    model = small_model(dataset, model_type, **OPTIONS.get(model_type, {}))
    inputs = rows_to_test(dataset)
    expected = model(tensors(inputs), training=False).numpy()
    loaded = Bundle.load(export_bundle(model, dataset, tmp_path / "export"))
    assert loaded.manifest.model_type == model_type
    logit, probability = loaded.predict(inputs)
    assert logit.dtype == np.float32
    # A graph adds in another order; DCNv2's logits here are as large as 100.
    np.testing.assert_allclose(logit, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-expected)), atol=1e-6)
    # The second half of the last seventh of train.txt, in its order.
    rows = raw_rows(text=False)[-len(expected) :]
    assert len(expected) == ROWS // 14
    found = logits(loaded, requests_of(rows))
    np.testing.assert_allclose(found, expected[:, 0], rtol=1e-5, atol=1e-6)


def test_tables_in_files_score_as_those_in_the_graph(
    exported: tuple[Path, Any], bundle: Bundle, dataset: Path, tmp_path: Path
) -> None:
    beside = export_bundle(exported[1], dataset, tmp_path / "export", table_dtype="fp32")
    inputs = rows_to_test(dataset)
    for found, expected in zip(
        Bundle.load(beside).predict(inputs), bundle.predict(inputs), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_bundle_describes_itself(exported: tuple[Path, Any], dataset: Path) -> None:
    directory, model = exported
    manifest = Manifest.read(directory)
    info = json.loads((dataset / "dataset.json").read_text())
    assert isinstance(manifest, TabularManifest) and manifest.ids == "raw"
    assert manifest.numerical == ("num_0", "num_1", "num_2")
    assert manifest.categorical == ("cat_0", "cat_1", "cat_2")
    assert manifest.inputs == {"numerical": (None, 3), "categorical": (None, 3)}
    assert manifest.cardinalities == info["cardinalities"]
    assert manifest.dataset["content_hash"] == info["content_hash"]
    assert manifest.dataset["test"] == info["counts"]["test"]
    content = json.loads((directory / "bundle.json").read_text())
    assert (content["layout"], content["format_version"]) == ("tabular", 2)
    files = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}
    assert set(content["files"]) == files - {"bundle.json"}
    for path in (dataset / "workflow").rglob("*.*"):
        assert (directory / path.relative_to(dataset)).read_bytes() == path.read_bytes()
    again = mm.Model.load(str(directory / "model"))
    assert again.optimizer is None
    inputs = tensors(rows_to_test(dataset))
    np.testing.assert_allclose(
        again(inputs, training=False).numpy(), model(inputs, training=False).numpy(), atol=1e-6
    )


def test_values_that_mean_the_same_score_alike(bundle: Bundle) -> None:
    candidates = [row for row in raw_rows(text=False) if None not in (*row[1], *row[2])]
    ids = bundle.encoder.encode(requests_of(candidates)).inputs["categorical"]
    known = candidates[int(ids.min(axis=1).argmax())]

    def scored(**changes: Any) -> float:
        (request,) = requests_of([known])
        for name, value in changes.items():
            part, number = name.split("_")
            kind = {"num": "numerical", "cat": "categorical"}[part]
            request[kind] = [*request[kind]]
            request[kind][int(number)] = value
        return float(logits(bundle, [request])[0])

    assert scored(num_0=None) == scored(num_0=0) == scored(num_0=0.0)
    assert scored(num_0=-1) == scored(num_0=-2) == scored(num_0=-1000)
    assert abs(scored(num_0=0) - scored(num_0=1000)) > 1e-6
    unknown = scored(cat_0="00000000")
    assert unknown == scored(cat_0=None) == scored(cat_0="") == scored(cat_0="68FD1E64")
    assert abs(unknown - scored()) > 1e-6
    assert bundle.encoder.encode([requests_of([known])[0]]).inputs["categorical"].min() > 0


def test_batches_of_any_size_score_as_each_row_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_of(raw_rows(text=False)[:20])
    together = logits(bundle, requests)
    alone = np.concatenate([logits(bundle, [request]) for request in requests])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    monkeypatch.setattr(lookback.serving.bundle, "ROWS_A_BATCH", 7)
    np.testing.assert_allclose(logits(bundle, requests), together, atol=1e-6)
    requests[16] = {**requests[16], "categorical": ["a", 5, "b"]}
    with pytest.raises(RequestError, match=r"requests\[16\]: categorical\[1\] \(cat_1\): expected"):
        bundle.score(requests)
    assert bundle.score([]) == []


def test_arrays_are_as_good_as_lists(bundle: Bundle) -> None:
    request = {"numerical": [1, 2, 3], "categorical": ["00000001", None, "x"]}
    arrays = {"numerical": np.arange(1, 4), "categorical": np.array(["00000001", "", "x"])}
    scalars = {f"num_{i}": np.int64(i + 1) for i in range(3)}
    scalars |= {"cat_0": "00000001", "cat_1": None, "cat_2": "x"}
    expected, *found = logits(bundle, [request, arrays, scalars])
    np.testing.assert_allclose(found, [expected] * 2, atol=1e-6)


LISTS = {"numerical": [1, None, 2.5], "categorical": ["a", None, "b"]}
NAMES: dict[str, Any] = {"num_0": 1, "num_1": None, "num_2": 2.5}
NAMES |= {"cat_0": "a", "cat_1": None, "cat_2": "b"}


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ([1, 2], "the request: expected an object, received"),
        ({}, "the request: 'num_0' is missing, .*Expected num_0, num_1, .*, cat_2"),
        ({"numerical": [1, 2, 3]}, "'categorical' is missing. Expected numerical, categorical"),
        ({**LISTS, "label": 1}, "the request: 'label' is unknown"),
        ({**LISTS, "num_0": 1}, "the request: 'num_0' is unknown"),
        ({**LISTS, "numerical": 3}, "numerical: expected a list, received 3"),
        ({**LISTS, "numerical": [1, 2]}, "numerical has 2 entries; expected 3, num_0 to num_2"),
        ({**LISTS, "categorical": ["a"] * 4}, "categorical has 4 entries; expected 3, cat_0 to"),
        ({**LISTS, "numerical": [1, "2", 3]}, r"numerical\[1\] \(num_1\): expected a finite numb"),
        ({**LISTS, "numerical": [1, True, 3]}, r"numerical\[1\] \(num_1\): .*received \[True\]"),
        ({**LISTS, "categorical": [17, "a", "b"]}, r"categorical\[0\] \(cat_0\): expected a strin"),
        ({**NAMES, "num_2": [1]}, r"num_2: expected a finite number or null, received \[\[1\]\]"),
        ({**NAMES, "num_2": float("nan")}, r"num_2: expected a finite number.*received \[nan\]"),
        ({**NAMES, "cat_1": 0.5}, r"cat_1: expected a string or null, received \[0.5\]"),
        ({**NAMES, "cat_3": "a"}, "the request: 'cat_3' is unknown"),
        ({n: v for n, v in NAMES.items() if n != "cat_1"}, "the request: 'cat_1' is missing"),
    ],
)
def test_a_faulty_request_is_refused_by_number_and_field(
    bundle: Bundle, request_: Any, text: str
) -> None:
    with pytest.raises(RequestError, match=text) as caught:
        bundle.score([LISTS, request_, NAMES])
    assert caught.value.index == 1
    assert len(bundle.score([LISTS, NAMES])) == 2


def test_without_a_workflow_encoded_rows_are_scored(encoded_dataset: Path, tmp_path: Path) -> None:
    check_export_target(tmp_path / "export", encoded_dataset)
    model = small_model(encoded_dataset, hash_indices=True, max_table_size=5)
    bundle = Bundle.load(export_bundle(model, encoded_dataset, tmp_path / "export"))
    assert bundle.manifest.ids == "encoded" and not bundle.manifest.vocabularies
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert names == {"bundle.json", "dataset.json", "model", "schema.pbtxt"}
    inputs = rows_to_test(encoded_dataset)
    expected = model(tensors(inputs), training=False).numpy()[:, 0]
    requests: list[dict[str, Any]] = [
        {name: inputs[name][row].tolist() for name in inputs} for row in range(len(expected))
    ]
    np.testing.assert_allclose(logits(bundle, requests), expected, atol=1e-6)
    rows = bundle.manifest.cardinalities["cat_1"]
    for ids, text in (
        ([0, rows, 0], rf"categorical\[1\] \(cat_1\): .* from 0 to {rows - 1} .*\[{rows}\]"),
        ([0, -1, 0], "expected encoded ids, integers from 0"),
        ([0, None, 0], r"without a workflow\), received \[None\]"),
        ([0, True, 0], r"received \[True\]"),
        ([0, "68fd1e64", 0], "expected encoded ids"),
    ):
        wrong = {**requests[0], "categorical": ids}
        with pytest.raises(RequestError, match=text):
            bundle.score([requests[0], wrong])
    with pytest.raises(RequestError, match=r"numerical\[2\] \(num_2\): expected a finite float32"):
        bundle.score([{**requests[0], "numerical": [0, 1, None]}])


def test_split_binary_files_make_a_bundle(dataset: Path, tmp_path: Path) -> None:
    from lookback.workflows.tabular.export import export_split_binary

    binary = tmp_path / "binary"
    export_split_binary(dataset, binary)
    check_export_target(tmp_path / "export", binary)
    model = small_model(binary)
    bundle = Bundle.load(export_bundle(model, binary, tmp_path / "export"))
    assert bundle.manifest.ids == "encoded"
    assert (tmp_path / "export" / "feature_spec.yaml").is_file()
    inputs = rows_to_test(binary)
    expected = model(tensors(inputs), training=False).numpy()
    np.testing.assert_allclose(bundle.predict(inputs)[0], expected, atol=1e-6)


def test_a_target_is_checked_without_tensorflow(
    dataset: Path, encoded_dataset: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from lookback.serving.export import check_export_target\n"
        "for dataset in sys.argv[2:]: check_export_target(Path(sys.argv[1]), Path(dataset))\n"
        "assert not {'tensorflow', 'merlin', 'nvtabular'} & set(sys.modules)"
    )
    run("-c", code, str(tmp_path / "export"), str(dataset), str(encoded_dataset))


def test_what_does_not_belong_together_is_refused(
    exported: tuple[Path, Any],
    dataset: Path,
    tmp_path: Path,
    without_digests: Callable[[Path], Path],
) -> None:
    _, model = exported
    other = write_dataset(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="it was not made for this dataset"):
        export_bundle(model, other, tmp_path / "export")
    mixed = without_digests(shutil.copytree(dataset, tmp_path / "mixed"))
    vocabulary = mixed / "workflow" / "vocabulary"
    shutil.copyfile(vocabulary / "cat_0.arrow", vocabulary / "cat_1.arrow")
    rows = [json.loads((dataset / "dataset.json").read_text())["cardinalities"]]
    assert rows[0]["cat_0"] != rows[0]["cat_1"]
    with pytest.raises(UserError, match=r"cat_1.arrow knows \d+ ids, and the schema has \d+ rows"):
        export_bundle(model, mixed, tmp_path / "export")
    (vocabulary / "cat_1.arrow").unlink()
    with pytest.raises(UserError, match=r"cat_1.arrow does not hold the known values"):
        export_bundle(model, mixed, tmp_path / "export")
    shutil.rmtree(vocabulary)
    with pytest.raises(UserError, match="has no workflow/vocabulary, which a bundle needs"):
        check_export_target(tmp_path / "export", mixed)
    assert not (tmp_path / "export").exists()


def test_a_model_of_the_other_layout_is_refused(
    exported: tuple[Path, Any], dataset_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"reads data of layout 'tabular'; .* layout 'histories'"):
        export_bundle(exported[1], dataset_dir, tmp_path / "export")


@pytest.mark.parametrize("name", ["workflow/vocabulary/cat_1.arrow", "model/saved_model.pb"])
def test_a_damaged_file_is_refused_by_name(
    exported: tuple[Path, Any], tmp_path: Path, name: str
) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(exported[0], damaged)
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / name).write_bytes(content)
    with pytest.raises(UserError, match=f"damaged: the content of {name} is not what was written"):
        Bundle.load(damaged)


def test_trained_in_bf16_it_still_gives_float32(
    dataset: Path, tmp_path: Path, reset_policy: Any
) -> None:
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = small_model(dataset)
    inputs = rows_to_test(dataset)
    # As a graph: it rounds to bfloat16 in fewer places than single operations do.
    expected = tf.function(model, autograph=False)(tensors(inputs), training=False).numpy()
    reset_policy()
    logit, _ = Bundle.load(export_bundle(model, dataset, tmp_path / "export")).predict(inputs)
    assert logit.dtype == np.float32
    np.testing.assert_allclose(logit, expected, atol=1e-6)


def test_verify_compares_it_with_training(
    exported: tuple[Path, Any], dataset: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["verify", str(exported[0]), "--dataset_dir", str(dataset), "--samples", "300"]
    assert PROGRAM.main(words) == 0
    assert "compared 300 scores and their features, in 300 requests" in capsys.readouterr().out
    encode = ShiftedLogEncoder.encode
    monkeypatch.setattr(ShiftedLogEncoder, "encode", lambda *a: encode(*a) * np.float32(1.001))
    assert PROGRAM.main(words) == 1
    out = capsys.readouterr().out
    assert re.search(r"  test row \d+ +- +numerical\[\d\] ", out)
    assert "logit (of numerical)" in out

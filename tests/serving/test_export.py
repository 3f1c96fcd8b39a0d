from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import merlin.models.tf as mm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.core.faults import sentence
from lookback.dataloading.histories.materialised import MaterialisedDataset
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig
from lookback.models import MODELS
from lookback.models.config import DIENConfig, DINConfig, SIMConfig
from lookback.serving.bundle import Bundle
from lookback.serving.commands import PROGRAM
from lookback.serving.export import check_export_target, export_bundle
from lookback.serving.layouts.histories.requests import HistoryRequestEncoder
from lookback.serving.manifest import Manifest
from lookback.serving.requests import RequestError

SIZES: dict[str, Any] = {"max_seq_length": 12, "long_seq_length": 8, "embedding_dim": 4}
CONFIGS = {
    "sim": SIMConfig(**SIZES, k=3, gsu="hard"),
    "din": DINConfig(**SIZES, interaction="activation_unit", time_features=True),
    "dien": DIENConfig(**SIZES),
}


@pytest.fixture(scope="module")
def histories(dataset_dir: Path) -> Histories:
    return Histories.load(dataset_dir)


def small_din(histories: Histories) -> tuple[mm.Model, dict[str, tf.Tensor]]:
    config = DINConfig(**SIZES, stage_two_mlp_dims=(4,))
    model = MODELS["din"](histories.schema, config)
    batch, _ = WindowBuilder(histories, WindowConfig(12, 8)).eval_batch("test", 0, 0, 10, 4)
    model(batch)
    return model, batch


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type", [n for n, entry in MODELS.items() if entry.config_class.layout == "histories"]
)
def test_every_model_scores_alike_from_a_bundle(
    model_type: str, histories: Histories, dataset_dir: Path, tmp_path: Path
) -> None:
    config = CONFIGS[model_type]
    model = MODELS[model_type](histories.schema, config)
    windows = WindowConfig(12, 8, time_features=config.time_features)
    batch, _ = WindowBuilder(histories, windows).eval_batch("test", 0, 0, 60, 4)
    expected = model(batch, training=False).numpy()
    export_bundle(model, dataset_dir, tmp_path / "export")
    bundle = Bundle.load(tmp_path / "export")
    assert bundle.manifest.model_type == model_type
    inputs = {name: value.numpy() for name, value in batch.items()}
    logit, probability = bundle.predict(inputs)
    np.testing.assert_allclose(logit, expected, atol=1e-6)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-expected)), atol=1e-6)
    # Any B and any C.
    one = {
        name: value[:1, :1] if name in histories.features.item else value[:1]
        for name, value in inputs.items()
    }
    np.testing.assert_allclose(bundle.predict(one)[0], expected[:1, :1], atol=1e-6)


def test_the_saved_model_is_a_merlin_model_without_optimizer(sim_bundle: Path) -> None:
    model = mm.Model.load(str(sim_bundle / "model"))
    assert type(model).__name__ == "ClickModel"
    assert model.optimizer is None
    batch = {
        name: tf.fill([2, *([12 if name.endswith("_history") else 2] * (len(shape) - 1))], 3)
        for name, shape in Manifest.read(sim_bundle).inputs.items()
    }
    logit, _ = Bundle.load(sim_bundle).predict({n: v.numpy() for n, v in batch.items()})
    np.testing.assert_allclose(model(batch, training=False).numpy(), logit, atol=1e-6)
    stored = tf.train.list_variables(str(sim_bundle / "model" / "variables" / "variables"))
    weights = [shape for name, shape in stored if name.endswith("VARIABLE_VALUE")]
    assert len(weights) == len(model.variables)
    tables = [shape for shape in weights if len(shape) == 2 and shape[1] == 4 and shape[0] > 20]
    assert len(tables) == 2  # users and items, without moments


def test_a_bundle_describes_itself_and_names_no_path(
    sim_bundle: Path, dataset_dir: Path, histories: Histories
) -> None:
    manifest = Manifest.read(sim_bundle)
    assert manifest.model_type == "sim"
    assert manifest.options["k"] == 3
    assert manifest.ids == "raw"
    assert manifest.inputs == {
        "user_id": (None,),
        "item_id": (None, None),
        "category_id": (None, None),
        "item_id_history": (None, None),
        "category_id_history": (None, None),
    }
    info = json.loads((dataset_dir / "dataset.json").read_text())
    assert manifest.cardinalities == info["cardinalities"]
    assert manifest.dataset["content_hash"] == info["content_hash"]
    listed = json.loads((sim_bundle / "bundle.json").read_text())["files"]
    files = {p.relative_to(sim_bundle).as_posix() for p in sim_bundle.rglob("*") if p.is_file()}
    assert set(listed) == files - {"bundle.json"}
    for name in ("dataset.json", "items.parquet", "workflow/workflow.pkl"):
        assert (sim_bundle / name).read_bytes() == (dataset_dir / name).read_bytes()
    for path in sim_bundle.rglob("*"):
        if path.is_file() and path.suffix != ".pkl":  # NVTabular's own; it resets them on loading
            content = path.read_bytes()
            assert str(dataset_dir.parent).encode() not in content
            assert str(sim_bundle.parent).encode() not in content
            assert str(Path.cwd()).encode() not in content


@pytest.mark.slow
def test_a_failed_export_leaves_nothing_and_keeps_what_was_there(
    histories: Histories, dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = small_din(histories)
    export = tmp_path / "exports" / "model"

    def fail() -> None:
        def full_disk(source: Path, target: Path) -> None:
            if target.name == "workflow.pkl":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            copyfile(source, target)

        copyfile = shutil.copyfile
        with monkeypatch.context() as patch, pytest.raises(OSError) as failed:
            patch.setattr(shutil, "copyfile", full_disk)
            export_bundle(model, dataset_dir, export)
        assert "No space left on device. Free some" in (sentence(failed.value) or "")

    fail()
    assert list(tmp_path.iterdir()) == []
    export_bundle(model, dataset_dir, export)
    before = (export / "bundle.json").read_bytes()
    fail()
    assert [path.name for path in export.parent.iterdir()] == ["model"]
    assert (export / "bundle.json").read_bytes() == before
    # An earlier bundle is replaced.
    model.body.embeddings.table_variables["item_id"].assign_add(
        tf.ones_like(model.body.embeddings.table_variables["item_id"])
    )
    expected = model(batch).numpy()
    export_bundle(model, dataset_dir, export)
    inputs = {name: value.numpy() for name, value in batch.items()}
    np.testing.assert_allclose(Bundle.load(export).predict(inputs)[0], expected, atol=1e-6)


def test_a_killed_export_leaves_no_bundle(
    histories: Histories, dataset_dir: Path, tmp_path: Path
) -> None:
    model, _ = small_din(histories)
    child = os.fork()
    if not child:
        try:
            export_bundle(model, dataset_dir, tmp_path / "export")
        finally:
            os._exit(0)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".export.lookback/new/schema.pbtxt")):  # the model comes after it
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    for directory in (left / "new", tmp_path / "export"):
        with pytest.raises(UserError, match="is not an exported bundle"):
            Bundle.load(directory)
    export_bundle(model, dataset_dir, tmp_path / "export")
    Bundle.load(tmp_path / "export")


def test_a_target_in_the_way_is_refused(
    sim_bundle: Path, dataset_dir: Path, tmp_path: Path
) -> None:
    for allowed in (tmp_path / "a" / "b", tmp_path, sim_bundle):
        check_export_target(allowed, dataset_dir)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"exists and holds no bundle\.json that says"):
        check_export_target(tmp_path)
    with pytest.raises(UserError, match="file is not a directory"):
        check_export_target(tmp_path / "file")
    with pytest.raises(UserError, match="file is not a directory"):
        check_export_target(tmp_path / "file" / "export")
    with pytest.raises(UserError, match="cannot be created"):
        check_export_target(Path("/proc/export"))
    (tmp_path / "link").symlink_to(sim_bundle)
    with pytest.raises(UserError, match="link is a symbolic link"):
        check_export_target(tmp_path / "link")
    for inside in (dataset_dir, dataset_dir / "export"):
        with pytest.raises(UserError, match=r"is the input itself|lies in the input"):
            check_export_target(inside, dataset_dir)
    with pytest.raises(UserError, match="lies in the input"):
        check_export_target(tmp_path / "run" / "export", inputs=[tmp_path / "run"])
    bundle = tmp_path / "bundle"
    shutil.copytree(sim_bundle, bundle)
    check_export_target(bundle)
    (bundle / "model" / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"bundle of ours, but we did not write model/notes\.txt"):
        check_export_target(bundle)


def test_what_does_not_belong_together_is_refused(
    histories: Histories,
    dataset_dir: Path,
    without_digests: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    model, _ = small_din(histories)
    other = without_digests(shutil.copytree(dataset_dir, tmp_path / "other"))
    schema = (other / "schema.pbtxt").read_text()
    rows = histories.schema["item_id"].int_domain.max
    (other / "schema.pbtxt").write_text(schema.replace(f"max: {rows}\n", f"max: {rows + 1}\n"))
    with pytest.raises(UserError, match="it was not made for this dataset"):
        export_bundle(model, other, tmp_path / "export")
    (other / "schema.pbtxt").write_text(schema)
    categories = other / "workflow" / "encoder" / "categories"
    shutil.copyfile(dataset_dir / "items.parquet", categories / "unique.item_id.parquet")
    with pytest.raises(UserError, match=r"item_id.parquet"):
        export_bundle(model, other, tmp_path / "export")
    shutil.rmtree(other / "workflow" / "encoder")
    with pytest.raises(UserError, match="has no workflow/encoder/categories"):
        check_export_target(tmp_path / "export", other)
    assert not (tmp_path / "export").exists()


@pytest.fixture
def materialised_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "materialised"
    random = np.random.default_rng(0)
    cardinalities = {"uid": 9, "item": 20, "cat": 4}
    for split in ("train", "test"):
        (directory / split).mkdir(parents=True)
        columns: dict[str, Any] = {"label": [1.0, 0.0] * 4}
        for name, size in cardinalities.items():
            columns[name] = random.integers(1, size + 1, 8)
        for kind in ("history", "negative"):
            for name in ("item", "cat"):
                ids = random.integers(1, cardinalities[name] + 1, (8, 12)).astype(np.int32)
                columns[f"{name}_{kind}"] = list(ids)
        pq.write_table(pa.table(columns), directory / split / "part.0.parquet")
    metadata = {"cardinalities": [{"name": n, "value": v} for n, v in cardinalities.items()]}
    (directory / "metadata.json").write_text(json.dumps(metadata))
    return directory


def test_materialised_samples_make_a_bundle_of_encoded_ids(
    materialised_dir: Path, tmp_path: Path
) -> None:
    dataset = MaterialisedDataset(materialised_dir, max_seq_length=12, long_seq_length=8)
    model = MODELS["din"](dataset.schema, DINConfig(**SIZES))
    batch, _ = next(iter(dataset.batches("test", 8, negatives=False)))
    expected = model({name: tf.constant(value) for name, value in batch.items()}).numpy()
    check_export_target(tmp_path / "export", materialised_dir)
    export_bundle(model, materialised_dir, tmp_path / "export")
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert names == {"bundle.json", "metadata.json", "model", "schema.pbtxt"}
    bundle = Bundle.load(tmp_path / "export")
    assert bundle.manifest.ids == "encoded"
    requests: list[dict[str, Any]] = [
        {
            "uid": int(batch["uid"][row]),
            "history": {n: batch[f"{n}_history"][row].tolist() for n in ("item", "cat")},
            "candidates": {n: batch[n][row].tolist() for n in ("item", "cat")},
        }
        for row in range(8)
    ]
    found = np.stack([scores.logit for scores in bundle.score(requests)])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    requests[2]["uid"] = "U001"
    with pytest.raises(RequestError, match=r"requests\[2\]: uid: expected encoded ids, integers"):
        bundle.score(requests)
    requests[2]["uid"] = 10
    with pytest.raises(RequestError, match=r"from 1 to 9 .*without a workflow"):
        bundle.score(requests)
    del requests[2]["candidates"]["cat"]
    with pytest.raises(RequestError, match=r"candidates: 'cat' is missing. Expected item, cat\."):
        bundle.score(requests)


def test_arrays_are_as_good_as_lists(sim_bundle: Path, raw: Any) -> None:
    bundle = Bundle.load(sim_bundle)
    request = raw.request("U002", ["B001", "B002"])
    arrays = {
        **request,
        "history": {name: np.array(v) for name, v in request["history"].items()},
        "candidates": {name: np.array(v) for name, v in request["candidates"].items()},
    }
    np.testing.assert_array_equal(bundle.score([request])[0].logit, bundle.score([arrays])[0].logit)


def test_trained_in_bf16_it_still_gives_float32(
    histories: Histories, dataset_dir: Path, tmp_path: Path, reset_policy: Callable
) -> None:
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model, batch = small_din(histories)
    expected = model(batch).numpy()
    reset_policy()
    export_bundle(model, dataset_dir, tmp_path / "export")
    logit, _ = Bundle.load(tmp_path / "export").predict({n: v.numpy() for n, v in batch.items()})
    assert logit.dtype == np.float32
    np.testing.assert_allclose(logit, expected, atol=1e-6)


def test_verify_compares_a_bundle_of_encoded_ids(
    materialised_dir: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = MaterialisedDataset(materialised_dir, max_seq_length=12, long_seq_length=8)
    model = MODELS["din"](dataset.schema, DINConfig(**SIZES))
    batch, _ = next(iter(dataset.batches("test", 8, negatives=False)))
    model({name: tf.constant(value) for name, value in batch.items()})
    export_bundle(model, materialised_dir, tmp_path / "export")
    words = ["verify", str(tmp_path / "export"), "--dataset_dir", str(materialised_dir)]
    assert PROGRAM.main([*words, "--samples", "13"]) == 0
    assert "compared 13 scores and their features, in 13 requests" in capsys.readouterr().out
    # The newest event is lost on the way.
    encode = HistoryRequestEncoder.encode_users

    def shifted(self: Any, columns: Any) -> Any:
        inputs = encode(self, columns)
        return {n: np.roll(v, n.endswith("_history"), -1) for n, v in inputs.items()}

    monkeypatch.setattr(HistoryRequestEncoder, "encode_users", shifted)
    assert PROGRAM.main([*words, "--samples", "13"]) == 1
    assert re.search(r"test uid \d +- +(item|cat)_history\[\d+\] ", capsys.readouterr().out)
    metadata = json.loads((materialised_dir / "metadata.json").read_text())
    metadata["cardinalities"][1]["value"] = 21
    (materialised_dir / "metadata.json").write_text(json.dumps(metadata))
    assert PROGRAM.main(words) == 2
    assert "'item': 22" in capsys.readouterr().err

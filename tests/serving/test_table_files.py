"""Bundles whose tables lie in files of their own."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import lookback.serving.bundle
from lookback import cli
from lookback.core.errors import UserError
from lookback.formats.schema import read_schema
from lookback.models import MODELS, DINConfig
from lookback.models.click_model import ClickModel
from lookback.serving import export
from lookback.serving.bundle import Bundle
from lookback.serving.export import export_bundle, take_tables
from lookback.serving.manifest import Manifest
from lookback.serving.tables import TableFile, quantized, tensors_of, write_tables
from lookback.training import run
from lookback.training.parallel import gathering
from lookback.training.state import State, TensorShard

D = 4
USERS = 8


@pytest.fixture(scope="module")
def model(dataset_dir: Path) -> ClickModel:
    """Of rows that are far from each other, so that a wrong one would show."""
    tf.keras.utils.set_random_seed(3)
    config = DINConfig(max_seq_length=6, long_seq_length=3, embedding_dim=D)
    made = MODELS["din"](read_schema(dataset_dir), config)
    inputs = {
        name: tf.ones([2, 6] if name.endswith("_history") else [2, 1], tf.int32)
        for name in made.body.serving_inputs
    }
    made(inputs)
    for variable in made.body.embeddings.table_variables.values():
        variable.assign(tf.random.stateless_normal(variable.shape, [1, 2]))
    return made


@pytest.fixture(scope="module")
def bundle_of(
    model: ClickModel, dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str | None], Path]:
    made: dict[str | None, Path] = {}

    def get(table_dtype: str | None) -> Path:
        if table_dtype not in made:
            target = tmp_path_factory.mktemp("tables") / "bundle"
            made[table_dtype] = export_bundle(model, dataset_dir, target, table_dtype=table_dtype)
        return made[table_dtype]

    return get


def inputs_of(bundle: Bundle, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = bundle.manifest.cardinalities
    inputs = {}
    for name in bundle.manifest.inputs:
        size = {"user_id": (USERS,)}.get(name, (USERS, 6 if name.endswith("_history") else 3))
        most = rows[name.removesuffix("_history")]
        inputs[name] = random.integers(1, most, size, np.int32)
    return inputs


def table_of(model: ClickModel, name: str) -> np.ndarray:
    return model.body.embeddings.table_variables[name].numpy()


def test_scores_are_those_of_tables_in_the_graph(bundle_of: Callable[..., Path]) -> None:
    whole, beside = Bundle.load(bundle_of(None)), Bundle.load(bundle_of("fp32"))
    for seed in range(3):
        inputs = inputs_of(whole, seed)
        for expected, found in zip(whole.predict(inputs), beside.predict(inputs), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_files_hold_the_rows_one_after_another(
    model: ClickModel, bundle_of: Callable[..., Path]
) -> None:
    directory = bundle_of("fp32")
    content = json.loads((directory / "bundle.json").read_text())
    assert content["format_version"] == 4
    assert set(content["tables"]) == {"user_id", "item_id", "category_id"}
    for name, said in content["tables"].items():
        stored = np.fromfile(directory / said["file"], np.float32).reshape(said["shape"])
        np.testing.assert_array_equal(stored, table_of(model, name))
        assert said["file"] in content["files"]
    # The tables are there once.
    variables = tf.train.list_variables(str(directory / "model" / "variables" / "variables"))
    rows = {tuple(said["shape"]) for said in content["tables"].values()}
    assert not rows & {tuple(shape) for _, shape in variables}


@pytest.mark.parametrize(("dtype", "levels"), [("fp16", 2**11), ("int8", 254)])
def test_rounded_tables_score_as_a_model_of_the_rounded_rows(
    model: ClickModel, bundle_of: Callable[..., Path], dtype: str, levels: int
) -> None:
    rounded = Bundle.load(bundle_of(dtype))
    inputs = inputs_of(rounded)
    variables = model.body.embeddings.table_variables
    exact = {name: variable.numpy() for name, variable in variables.items()}
    before = model({name: tf.constant(values) for name, values in inputs.items()}).numpy()
    try:
        for name, rows in exact.items():
            if dtype == "fp16":
                stored = rows.astype(np.float16).astype(np.float32)
            else:
                scale = np.abs(rows).max(1, keepdims=True) / 127
                stored = np.rint(rows / scale) * scale
            assert 0 < np.abs(stored - rows).max() <= np.abs(rows).max() / levels * 1.01
            variables[name].assign(stored)
        expected = model({name: tf.constant(values) for name, values in inputs.items()}).numpy()
    finally:
        for name, rows in exact.items():
            variables[name].assign(rows)
    found, _ = rounded.predict(inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - before).max() > 1e-5


def test_int8_keeps_rows_of_zeros_and_the_largest_of_each() -> None:
    rows = np.array([[0, 0, 0], [1, -2, 0.5], [1e-30, 0, -1e-30]], np.float32)
    values, scales = quantized(rows)
    np.testing.assert_allclose(values * scales[:, np.newaxis], rows, atol=2 / 254, rtol=1e-2)
    assert values[1, 1] == -127 and not values[0].any()


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_numbers_that_do_not_fit_are_refused(tmp_path: Path, dtype: str) -> None:
    rows = np.array([[1.0, np.inf if dtype == "int8" else 1e6]], np.float32)
    with pytest.raises(UserError, match=f"table 'a' whose numbers {dtype} holds"):
        write_tables(tmp_path, {"a": (1, 2)}, {"a": lambda: [rows]}, dtype)


def test_damage_in_a_table_is_found_or_said_not_to_be_looked_for(
    bundle_of: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory = shutil.copytree(bundle_of("fp32"), tmp_path / "bundle")
    file = directory / "tables" / "1.bin"
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged: the content of tables/1\.bin is not what was"):
        Bundle.load(directory)
    monkeypatch.setattr(lookback.serving.bundle, "VERIFIED_TABLES", 100)
    with caplog.at_level(logging.WARNING):
        Bundle.load(directory)
    assert "were not compared with their digests" in caplog.text
    with pytest.raises(UserError, match=r"tables/1\.bin"):
        Manifest.read(directory)  # as `inspect` does
    digest = lookback.core.digests.digest_of(directory / "bundle.json")
    with pytest.raises(UserError, match=r"tables/1\.bin"):
        Bundle.load(directory, digest)
    file.write_bytes(content[:-4])
    with pytest.raises(UserError, match=r"tables/1\.bin has \d+ bytes instead of"):
        Bundle.load(directory)


def test_tables_are_mapped_and_not_read(tmp_path: Path) -> None:
    """A sparse file of 4 GB, of which a process must have next to nothing in memory."""
    rows, dim = 1 << 24, 64
    table = write_tables(tmp_path, {"a": (1, dim)}, {"a": lambda: [np.ones((1, dim))]}, "fp32")["a"]
    with (tmp_path / table.file).open("r+b") as file:
        file.truncate(rows * dim * 4)
    table = type(table)(**{**vars(table), "shape": (rows, dim)})
    before = _resident()
    (tensor,) = tensors_of(tmp_path, [table]).values()
    found = tf.gather(tensor, [0, rows - 1]).numpy()
    np.testing.assert_array_equal(found, [[1] * dim, [0] * dim])
    assert _resident() - before < 64 << 20


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def test_what_is_looked_up_on_the_host_is_what_the_graph_looks_up(
    model: ClickModel, bundle_of: Callable[..., Path]
) -> None:
    for dtype, bound in (("fp32", 0.0), ("int8", 4 / 254)):
        table: Any = Manifest.read(bundle_of(dtype)).table_files["item_id"]
        ids = np.array([5, 0, 5, 40])
        exact = table_of(model, "item_id")[ids][:, 1:3]
        found = table.take(bundle_of(dtype), ids, range(1, 3))
        np.testing.assert_allclose(found, exact, atol=bound)


def test_a_model_starts_from_it_as_from_a_checkpoint(
    model: ClickModel, bundle_of: Callable[..., Path]
) -> None:
    from lookback.serving.export import load_origin
    from lookback.training.state import model_states

    origin, whole = load_origin(bundle_of("fp32")), load_origin(bundle_of(None))
    assert origin.specs == {name: state.spec for name, state in model_states(model).items()}
    assert list(origin.columns or ()) == list(whole.columns or ())
    assert (origin.model, origin.ids.vocabularies) == (whole.model, whole.ids.vocabularies)
    ids = np.array([7, 3, 3])
    for name, state in model_states(model).items():
        exact = state.parts[0].variable.numpy()
        if name.startswith("table/"):
            np.testing.assert_array_equal(origin.take(name, ids, range(2)), exact[ids, :2])
        else:
            np.testing.assert_array_equal(origin.whole(name), exact)


def test_a_model_takes_what_was_exported(model: ClickModel, bundle_of: Callable[..., Path]) -> None:
    variables = model.body.embeddings.table_variables
    exact = {name: variable.numpy() for name, variable in variables.items()}
    try:
        take_tables(model, bundle_of("fp16"))
        for name, rows in exact.items():
            np.testing.assert_array_equal(variables[name], rows.astype(np.float16))
    finally:
        for name, rows in exact.items():
            variables[name].assign(rows)


def memory_of(file: Path) -> dict[str, int]:
    """Bytes of this process's map of a file, as the kernel counts them."""
    found, inside = dict.fromkeys(("Rss", "Pss", "Private_Dirty"), 0), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found and inside:
            found[name] += 1024 * int(value.split()[0])
        elif "-" in name.partition(" ")[0]:  # a map's addresses
            inside = line.endswith(str(file))
    return found


def test_processes_share_the_rows_that_they_read(tmp_path: Path) -> None:
    table = TableFile("rows.bin", (1 << 16, 64), "float32", "rows")
    file = tmp_path / table.file
    with file.open("wb") as written:
        written.write(np.zeros(table.shape, np.float32).data)
        os.fsync(written.fileno())  # or the pages are dirty, though not by the map
    tensors = tensors_of(tmp_path, [table])
    ids = np.arange(0, table.shape[0], 8)
    gathered = tf.gather(tensors["rows"], ids)
    assert gathered.shape == (len(ids), 64)
    alone = memory_of(file)
    # Nothing is a copy of this process's own.
    assert alone["Private_Dirty"] == 0 and alone["Rss"] == file.stat().st_size
    program = (
        "import sys, numpy as np\n"
        "rows = np.memmap(sys.argv[1], np.float32, 'r')\n"
        "print(rows[:: 64].sum(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == b"0.0\n"
        both = memory_of(file)
    finally:
        other.communicate()
    assert both["Rss"] == alone["Rss"]
    assert both["Pss"] <= 0.51 * alone["Pss"]


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_shards_of_ranks_stream_to_the_bytes_of_one_process(
    in_ranks: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: str
) -> None:
    """Rows dealt out, columns cut, and a table on one rank; with the memory of blocks."""
    rows, ranks = 1 << 17, 3
    random = np.random.default_rng(4)
    tables = {n: random.random((rows, 48), np.float32) for n in ("rows", "columns", "one")}
    shapes: Any = {name: values.shape for name, values in tables.items()}
    regions = {
        "rows": [(range(rank, rows, ranks), range(48)) for rank in range(ranks)],
        "columns": [(range(rows), range(16 * rank, 16 * rank + 16)) for rank in range(ranks)],
        "one": [(range(0), range(48)), (range(rows), range(48)), (range(0), range(48))],
    }
    for place in ("local", "sharded"):
        (tmp_path / place).mkdir()
    write_tables(tmp_path / "local", shapes, {n: lambda v=v: [v] for n, v in tables.items()}, dtype)

    def states(rank: int) -> dict[str, State]:
        found = {}
        for name, values in tables.items():
            own, columns = regions[name][rank]
            held = values[own.start : own.stop : own.step, columns.start : columns.stop]
            parts = (TensorShard(tf.Variable(held), own, columns),) if own else ()
            found[f"table/{name}"] = State(values.shape, values.dtype, parts, replicated=False)
        return found

    monkeypatch.setattr(gathering, "model_states", states)
    peaks = []

    def write(checkpoint: Any) -> None:
        blocks = {name: functools.partial(checkpoint.blocks, f"table/{name}") for name in tables}
        tracemalloc.start()
        write_tables(tmp_path / "sharded", shapes, blocks, dtype)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    in_ranks(ranks, lambda world: gathering.gathered(world.rank, tmp_path, world, write))
    for file in (tmp_path / "local" / "tables").iterdir():
        assert file.read_bytes() == (tmp_path / "sharded" / "tables" / file.name).read_bytes()
    assert len(peaks) == 1 and peaks[0] < tables["rows"].nbytes
    assert not list(tmp_path.glob(".gather-*"))


def test_a_run_says_what_rounding_costs(
    dataset_dir: Path,
    tmp_path: Path,
    running_eagerly: Callable[[], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        *("--dataset_dir", dataset_dir, "--model_type", "din", "--max_steps", 1, "--seed", 1),
        *("--max_seq_length", 6, "--long_seq_length", 3, "--embedding_dim", D),
        *("--export_dir", tmp_path / "bundle", "--results_dir", tmp_path / "results"),
        *("--table_dtype", "int8"),
    ]
    with running_eagerly():
        finished = run.main([str(word) for word in words], export)
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if line.startswith("tables exported as int8: "))
    found = re.findall(r"(\w+_auc) (\S+) -> (\S+) \((\S+)\)", line)
    assert "test_auc" in [name for name, *_ in found]
    for name, before, after, change in found:
        assert float(before) == pytest.approx(finished.metrics[name], abs=1e-6)
        assert float(after) - float(before) == pytest.approx(float(change), abs=2e-6)
    assert {t.dtype for t in Manifest.read(tmp_path / "bundle").table_files.values()} == {"int8"}


def test_rounded_tables_have_no_place_in_the_graph(dataset_dir: Path, tmp_path: Path) -> None:
    words = ["--dataset_dir", dataset_dir, "--table_files", "none", "--table_dtype", "fp16"]
    with pytest.raises(UserError, match="table_dtype"):
        cli.train([str(word) for word in (*words, "--export_dir", tmp_path / "bundle")])

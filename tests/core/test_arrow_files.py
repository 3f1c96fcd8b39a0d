"""No door runs the program that a Parquet or Arrow file carries (CVE-2023-47248).

The files here are honest datasets in which one column has been given the extension type that
pyarrow before 14.0.1 unpickles; the pickle makes a directory, whose absence is the test.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.core import arrow_files
from lookback.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class Program:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def with_program(table: pa.Table, column: str, marker: Path) -> pa.Table:
    place = table.schema.get_field_index(column)
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Program(marker)),
    }
    field = table.schema.field(place).with_metadata(metadata)
    return table.cast(table.schema.set(place, field))


def poison(file: Path, column: str, marker: Path) -> None:
    pq.write_table(with_program(pq.read_table(file), column, marker), file)


def interactions(directory: Path) -> Path:
    directory.mkdir()
    numbers = np.arange(60)
    events = {
        "user_id": numbers % 3,
        "item_id": numbers % 7,
        "timestamp": numbers + 10**9,
        "note": numbers,
    }
    pq.write_table(pa.table(events), directory / "a.parquet")
    return directory


def materialised(directory: Path) -> Path:
    ids = pa.array([[1, 2]] * 4, pa.list_(pa.int32()))
    columns = {"label": pa.array([0, 1] * 2, pa.int8()), "uid": pa.array([1] * 4, pa.int32())}
    columns |= {"item": pa.array([3] * 4, pa.int32()), "past": ids, "negatives": ids}
    for split in ("train", "test"):
        (directory / split).mkdir(parents=True)
        pq.write_table(pa.table(columns), directory / split / "part.0.parquet")
    sizes = [{"name": name, "value": 9} for name in ("uid", "item")]
    (directory / "metadata.json").write_text(json.dumps({"cardinalities": sizes}))
    return directory


def tabular(directory: Path) -> Path:
    from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

    from lookback.formats.tabular_schema import tabular_schema

    (directory / "train").mkdir(parents=True)
    columns = {name: np.ones(4, np.float32) for name in ("label", "num_0")}
    columns["cat_0"] = np.ones(4, np.int32)
    pq.write_table(pa.table(columns), directory / "train" / "part-00000.parquet")
    schema = tabular_schema(1, {"cat_0": 5})
    TensorflowMetadata.from_merlin_schema(schema).to_proto_text_file(str(directory))
    description = {"format": "lookback-tabular", "format_version": 1, "dataset": "test"}
    description |= {"counts": {"train": 4}, "cardinalities": {"cat_0": 5}}
    (directory / "dataset.json").write_text(json.dumps(description))
    return directory


def test_the_program_runs_where_it_is_unpickled(tmp_path: Path) -> None:
    table = with_program(pa.table({"id": [1]}), "id", tmp_path / "ran")
    pickle.loads(table.schema.field("id").metadata[b"ARROW:extension:metadata"])
    assert (tmp_path / "ran").exists()


def test_workflow_over_interactions(tmp_path: Path) -> None:
    file = interactions(tmp_path / "raw") / "a.parquet"
    poison(file, "note", tmp_path / "ran")
    command = [sys.executable, "-m", "workflows", "run", "--dataset", "interactions"]
    command += ["--input", str(file.parent), "--output", str(tmp_path / "out"), "--workers", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not (tmp_path / "ran").exists()
    assert done.returncode == 2
    assert "a.parquet carries a pickled Arrow type" in done.stderr
    assert "Traceback" not in done.stderr


def test_materialised_samples(tmp_path: Path) -> None:
    from lookback.dataloading.histories.materialised import MaterialisedDataset

    path = materialised(tmp_path / "data")
    assert MaterialisedDataset(path, max_seq_length=4, long_seq_length=2).num_rows("train") == 4
    poison(path / "train" / "part.0.parquet", "uid", tmp_path / "ran")
    with pytest.raises(UserError, match="carries a pickled Arrow type"):
        MaterialisedDataset(path, max_seq_length=4, long_seq_length=2)
    assert not (tmp_path / "ran").exists()


def test_tabular_rows(tmp_path: Path) -> None:
    from lookback.dataloading.tabular.source import open_tabular

    path = tabular(tmp_path / "data")
    assert open_tabular(path).num_rows("train") == 4
    poison(path / "train" / "part-00000.parquet", "cat_0", tmp_path / "ran")
    with pytest.raises(UserError, match="carries a pickled Arrow type"):
        open_tabular(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["histories/part-00000.parquet", "items.parquet"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_histories(
    tmp_path: Path,
    make_histories: Callable[..., Any],
    write_dataset: Callable[..., Path],
    without_digests: Callable[[Path], Path],
    place: str,
    ranks: int,
) -> None:
    from lookback.dataloading.histories.resident import Histories
    from lookback.dataloading.parts import Part

    path = without_digests(write_dataset(make_histories(), tmp_path / "data"))
    poison(path / place, "item_id", tmp_path / "ran")
    with pytest.raises(UserError, match="carries a pickled Arrow type"):
        Histories.load(path, Part(0, ranks))
    assert not (tmp_path / "ran").exists()


def test_requests_out_of_a_dataset(
    tmp_path: Path, make_histories: Callable[..., Any], write_dataset: Callable[..., Path]
) -> None:
    from lookback.serving.layouts.histories.sample import random_users

    path = write_dataset(make_histories(), tmp_path / "data")
    poison(path / "histories" / "part-00000.parquet", "item_id", tmp_path / "ran")
    with pytest.raises(UserError, match="carries a pickled Arrow type"):
        list(random_users(path, 2, np.random.default_rng(0)))
    assert not (tmp_path / "ran").exists()


def test_tables_of_a_bundle(tmp_path: Path) -> None:
    from lookback.serving.encoding import ItemFeatures, VocabularyEncoder
    from lookback.serving.layouts.tabular.encoding import KeyVocabulary

    ids = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [4, 5]}), ids)
    poison(ids, "item_id", tmp_path / "ran")
    keys = {"key": np.arange(2), "id": np.arange(2, dtype=np.int32)}
    table = with_program(pa.table(keys), "key", tmp_path / "ran")
    mapped = tmp_path / "keys.arrow"
    with pa.OSFile(str(mapped), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    for read in (
        lambda: VocabularyEncoder.read(ids, "item_id"),
        lambda: ItemFeatures.read(tmp_path, ["item_id"], 9),
        lambda: KeyVocabulary.read(mapped),
    ):
        with pytest.raises(UserError, match="carries a pickled Arrow type"):
            read()
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def old_pyarrow(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(pa, "__version__", "14.0.0")
    return monkeypatch


@pytest.fixture
def first_files() -> ModuleType:
    """The module as a process has it that has opened nothing yet: pyarrow is looked at once."""
    spec = importlib.util.find_spec(arrow_files.__name__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_old_pyarrow_opens_nothing_without_the_hotfix(
    tmp_path: Path, old_pyarrow: pytest.MonkeyPatch, first_files: ModuleType
) -> None:
    old_pyarrow.setitem(sys.modules, "pyarrow_hotfix", None)
    for function in (first_files.open_parquet, first_files.read_parquet, first_files.map_arrow):
        with pytest.raises(UserError, match=r"14\.0\.0 .*14\.0\.1 or newer.*pyarrow_hotfix"):
            function(tmp_path / "is not there")


def test_hotfix_comes_first(
    tmp_path: Path, old_pyarrow: pytest.MonkeyPatch, first_files: ModuleType
) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    done: list[str] = []
    hotfix = SimpleNamespace(install=lambda: done.append("hotfix"))
    old_pyarrow.setitem(sys.modules, "pyarrow_hotfix", hotfix)
    old_pyarrow.setattr(pq, "read_table", lambda *_, **__: done.append("read"))
    first_files.read_parquet(tmp_path / "a.parquet")
    assert done == ["hotfix", "read"]


def test_new_pyarrow_needs_no_hotfix(
    tmp_path: Path, old_pyarrow: pytest.MonkeyPatch, first_files: ModuleType
) -> None:
    old_pyarrow.setattr(pa, "__version__", "14.0.1")
    old_pyarrow.setitem(sys.modules, "pyarrow_hotfix", None)
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    assert first_files.read_parquet(tmp_path / "a.parquet").to_pydict() == {"id": [1]}

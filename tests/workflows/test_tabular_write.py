"""The writer of tabular datasets, and the export to NVIDIA's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from lookback.core.errors import UserError
from lookback.formats.dataset_info import is_tabular, read_tabular_info
from lookback.formats.feature_spec import id_type
from lookback.formats.tabular_files import (
    ROW_GROUP,
    TabularWriter,
    parts,
    write_description,
)
from lookback.workflows.tabular.export import export_split_binary

SIZES = {"cat_0": 5, "cat_1": 126, "cat_2": 127, "cat_3": 40_000}


def make_rows(rows: int, seed: int) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    ids = [random.integers(0, size, rows) for size in SIZES.values()]
    return (
        random.integers(0, 2, rows).astype(np.float32),
        random.random((rows, 2), np.float32),
        np.stack(ids, axis=1).astype(np.int32),
    )


def write_dataset(
    directory: Path, splits: dict[str, Any], pieces: int = 1, rows_a_file: int = 2**22
) -> dict[str, Any]:
    directory.mkdir()
    counts = {}
    for split, (label, numbers, ids) in splits.items():
        writer = TabularWriter(directory, split, 2, len(SIZES), rows_a_file)
        for part in np.array_split(np.arange(len(label)), pieces):
            writer.write(label[part], numbers[part], ids[part])
        counts[split] = writer.close()
    return write_description(
        directory, dataset="test", options={}, counts=counts, cardinalities=SIZES, numerical=2
    )


def test_rows_are_what_was_written_in_files_of_a_size(tmp_path: Path) -> None:
    label, numbers, ids = make_rows(1_000, 0)
    metadata = write_dataset(
        tmp_path / "a", {"train": (label, numbers, ids)}, pieces=7, rows_a_file=300
    )
    files = parts(tmp_path / "a", "train")
    assert [pq.read_metadata(file).num_rows for file in files] == [300, 300, 300, 100]
    frame = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    expected = pd.DataFrame(
        np.column_stack([label, numbers]), columns=["label", "num_0", "num_1"], dtype="float32"
    ).join(pd.DataFrame(ids, columns=list(SIZES)))
    pd.testing.assert_frame_equal(frame, expected)
    assert is_tabular(tmp_path / "a") and not is_tabular(tmp_path)
    assert read_tabular_info(tmp_path / "a") == metadata


def test_the_hash_is_of_the_values_not_of_how_they_came(tmp_path: Path) -> None:
    splits = {"train": make_rows(500, 0), "test": make_rows(50, 1)}
    first = write_dataset(tmp_path / "a", splits)["content_hash"]
    assert write_dataset(tmp_path / "b", splits, pieces=9)["content_hash"] == first
    splits["test"][1][7, 1] += 1
    assert write_dataset(tmp_path / "c", splits)["content_hash"] != first


def test_row_groups_are_of_65536_rows(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", {"train": make_rows(2 * ROW_GROUP + 9, 0)})
    metadata = pq.read_metadata(parts(tmp_path / "a", "train")[0])
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert rows == [ROW_GROUP, ROW_GROUP, 9]


def test_wrong_shapes_and_no_rows(tmp_path: Path) -> None:
    label, _, ids = make_rows(10, 0)
    writer = TabularWriter(tmp_path, "train", 2, len(SIZES))
    with pytest.raises(ValueError, match=r"numerical \[n, 2\]"):
        writer.write(label, ids, ids)
    assert writer.close() == 0
    assert not (tmp_path / "train").exists()


def test_metadata_of_something_else_is_refused(tmp_path: Path) -> None:
    for text, said in (
        ("[]", "a JSON object, found a list"),
        ("{}", "version 1, found None"),
        ('{"format": "lookback-histories", "format_version": 1}', "found 'lookback-histories'"),
    ):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(UserError, match=said):
            read_tabular_info(tmp_path)
        assert not is_tabular(tmp_path)


def test_split_binary_holds_the_same_rows(tmp_path: Path) -> None:
    splits = {name: make_rows(rows, rows) for name, rows in
              (("train", 700), ("validation", 30), ("test", 40))}  # fmt: skip
    write_dataset(tmp_path / "in", splits, rows_a_file=300)
    assert export_split_binary(tmp_path / "in", tmp_path / "out") == 770
    types = {"cat_0": "int8", "cat_1": "int8", "cat_2": "int16", "cat_3": "int32"}
    for split, (label, numbers, ids) in splits.items():
        directory = tmp_path / "out" / split
        np.testing.assert_array_equal(np.fromfile(directory / "label.bin", bool), label == 1)
        found = np.fromfile(directory / "numerical.bin", np.float16).reshape(-1, 2)
        np.testing.assert_array_equal(found, numbers.astype(np.float16))
        for column, (name, kind) in enumerate(types.items()):
            np.testing.assert_array_equal(
                np.fromfile(directory / f"{name}.bin", kind), ids[:, column]
            )


def test_feature_spec_passes_the_checks_of_nvidia_s_reader(tmp_path: Path) -> None:
    """Those of feature_spec.py, written anew: which keys, which order, which files."""
    write_dataset(tmp_path / "in", {"train": make_rows(9, 0), "test": make_rows(9, 1)})
    export_split_binary(tmp_path / "in", tmp_path / "out")
    spec = yaml.safe_load((tmp_path / "out" / "feature_spec.yaml").read_text())
    assert set(spec) == {"feature_spec", "source_spec", "channel_spec", "metadata"}
    channels, features = spec["channel_spec"], spec["feature_spec"]
    assert channels == {
        "categorical": list(SIZES), "numerical": ["num_0", "num_1"], "label": ["label"]
    }  # fmt: skip
    assert {name: features[name]["cardinality"] for name in SIZES} == SIZES
    assert features["label"] == {"dtype": "bool"} and features["num_1"] == {"dtype": "float16"}
    assert set(features) == {*SIZES, "num_0", "num_1", "label"}
    assert set(spec["source_spec"]) == {"train", "test"}
    for split, chunks in spec["source_spec"].items():
        assert all(chunk["type"] == "split_binary" for chunk in chunks)
        assert all(set(chunk) == {"type", "features", "files"} for chunk in chunks)
        named = [name for chunk in chunks for name in chunk["features"]]
        assert sorted(named) == sorted(features)
        assert ["num_0", "num_1"] in [chunk["features"] for chunk in chunks]
        for chunk in chunks:
            (file,) = chunk["files"]
            assert file.startswith(f"{split}/") and (tmp_path / "out" / file).exists()


@pytest.mark.parametrize(
    ("cardinality", "kind"), [(126, "int8"), (127, "int16"), (32_766, "int16"), (32_767, "int32")]
)
def test_types_follow_nvidia_s_rule(cardinality: int, kind: str) -> None:
    """The smallest of which the largest value is above the cardinality."""
    assert id_type(cardinality) == kind
    smaller = {"int16": np.int8, "int32": np.int16}.get(kind)
    assert cardinality < np.iinfo(kind).max
    assert smaller is None or cardinality >= np.iinfo(smaller).max
    with pytest.raises(UserError, match="no type for 2,147,483,647 ids"):
        id_type(2**31 - 1)

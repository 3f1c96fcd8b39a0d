"""The specifications of NVIDIA's READMEs, and ones that are wrong; their rows beside pandas."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from lookback.core.errors import UserError
from lookback.formats.feature_channels import channels_of, slots_of
from lookback.formats.feature_chunks import read_mapping
from lookback.formats.feature_spec import FeatureSpecification, read_feature_spec
from lookback.formats.materialised import Columns
from lookback.formats.tabular_schema import TabularFeatures

ABSTRACT = """
feature_spec:
  user_gender:
    dtype: torch.int8
    cardinality: 3 #M,F,Other
  user_age: #treated as numeric value
    dtype: torch.int8
  user_id:
    dtype: torch.int32
    cardinality: 2655
  item_id:
    dtype: torch.int32
    cardinality: 856
  label:
    dtype: torch.float32

source_spec:
  train:
    - type: csv
      features:
        - user_gender
        - user_age
      files:
        - train_data_0_0.csv
        - train_data_0_1.csv
    - type: csv
      features:
        - user_id
        - item_id
        - label
      files:
        - train_data_1.csv
  test:
    - type: csv
      features:
        - user_id
        - item_id
        - label
        - user_gender
        - user_age
        
      files:
        - test_data.csv

channel_spec:
  numeric_inputs: 
    - user_age
  categorical_user_inputs: 
    - user_gender
    - user_id
  categorical_item_inputs: 
    - item_id
  label_ch: 
    - label
"""  # noqa: W291, W293
"""NVIDIA's SIM: the data set of an abstract model."""

AMAZON = """
channel_spec:
  label:
  - label
  negative_history:
  - item_id_neg
  - cat_id_neg
  positive_history:
  - item_id_pos
  - cat_id_pos
  target_item_features:
  - item_id_trgt
  - cat_id_trgt
  user_features:
  - user_id
feature_spec:
  item_id_neg:
    cardinality: 1209081
    dimensions:
    - 100
    dtype: int64
  item_id_pos:
    cardinality: 1209081
    dimensions:
    - 100
    dtype: int64
  item_id_trgt:
    cardinality: 1209081
    dtype: int64
  cat_id_neg:
    cardinality: 2330
    dimensions:
    - 100
    dtype: int64
  cat_id_pos:
    cardinality: 2330
    dimensions:
    - 100
    dtype: int64
  cat_id_trgt:
    cardinality: 2330
    dtype: int64
  label:
    dtype: bool
  user_id:
    cardinality: 105925
    dtype: int64
metadata: {}
source_spec:
  test:
  - features: &id001
    - label
    - user_id
    - item_id_trgt
    - cat_id_trgt
    - item_id_pos
    - cat_id_pos
    - item_id_neg
    - cat_id_neg
    files:
    - test.tfrecord
    type: tfrecord
  train:
  - features: *id001
    files:
    - train.tfrecord
    type: tfrecord
"""
"""NVIDIA's SIM: the original Amazon data set."""

FRAME = pd.DataFrame(
    {
        "user_gender": [0, 2, 1, 1, 0, 2, 0],
        "user_age": [17, 80, 33, 45, 21, 9, 64],
        "user_id": [0, 2654, 7, 8, 9, 1000, 3],
        "item_id": [855, 0, 1, 2, 3, 4, 5],
        "label": [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0],
    }
)
CHANNELS = {
    "numerical": ["user_age"],
    "categorical": ["user_gender", "user_id", "item_id"],
    "label": ["label"],
}


def write_spec(directory: Path, text: str | Mapping[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    file = directory / "feature_spec.yaml"
    file.write_text(text if isinstance(text, str) else yaml.safe_dump(dict(text)))
    return file


def write_abstract(directory: Path, spec: str | Mapping[str, Any] = ABSTRACT, **csv: Any) -> Path:
    """The abstract data set's files, with `FRAME`'s rows in both mappings."""
    file = write_spec(directory, spec)
    options: dict[str, Any] = {"index": False, "header": False, **csv}
    first = FRAME[["user_gender", "user_age"]]
    first[:2].to_csv(directory / "train_data_0_0.csv", **options)
    first[2:].to_csv(directory / "train_data_0_1.csv", **options)
    FRAME[["user_id", "item_id", "label"]].to_csv(directory / "train_data_1.csv", **options)
    test = FRAME[["user_id", "item_id", "label", "user_gender", "user_age"]]
    test.to_csv(directory / "test_data.csv", **options)
    return file


def frame_of(spec: FeatureSpecification, mapping: str) -> pd.DataFrame:
    blocks = read_mapping(spec, mapping, list(spec.features))
    return pd.concat(
        [pd.DataFrame({name: v.values for name, v in block.items()}) for block in blocks],
        ignore_index=True,
    )


@pytest.mark.parametrize("header", [False, True])
def test_the_abstract_example_of_the_seeds(tmp_path: Path, header: bool) -> None:
    """Two chunks, one of two files; another order of columns in the test's."""
    write_abstract(tmp_path, header=header)
    spec = read_feature_spec(tmp_path)
    assert {name: f.cardinality for name, f in spec.features.items()} == {
        "user_gender": 3, "user_age": None, "user_id": 2655, "item_id": 856, "label": None
    }  # fmt: skip
    assert [c.files for c in spec.mappings["train"]] == [
        (tmp_path / "train_data_0_0.csv", tmp_path / "train_data_0_1.csv"),
        (tmp_path / "train_data_1.csv",),
    ]
    for mapping in ("train", "test"):
        pd.testing.assert_frame_equal(
            frame_of(spec, mapping)[list(FRAME)], FRAME, check_dtype=False
        )
    with pytest.raises(UserError, match=r"Expected SIM's \(user_features, .* or DLRM's \("):
        channels_of(spec)


def test_the_amazon_example_of_the_seeds(tmp_path: Path) -> None:
    spec = read_feature_spec(write_spec(tmp_path, AMAZON))
    columns = channels_of(spec)
    assert columns == Columns(
        "label", ("user_id",), ("item_id_trgt", "cat_id_trgt"),
        ("item_id_pos", "cat_id_pos"), ("item_id_neg", "cat_id_neg"),
    )  # fmt: skip
    assert isinstance(columns, Columns) and slots_of(spec, columns) == 100
    assert spec.mappings["test"][0].features == columns.every() and spec.unread == ()


def test_dlrm_s_channels_are_rows(tmp_path: Path) -> None:
    spec = read_feature_spec(
        write_spec(tmp_path, {**yaml.safe_load(ABSTRACT), "channel_spec": CHANNELS})
    )
    assert channels_of(spec) == TabularFeatures(
        "label", ("user_age",), ("user_gender", "user_id", "item_id")
    )


def test_names_of_rows_are_those_of_files(tmp_path: Path) -> None:
    text = ABSTRACT.replace("user_id", "../user_id")
    channels = {**CHANNELS, "categorical": ["user_gender", "../user_id", "item_id"]}
    spec = read_feature_spec(
        write_spec(tmp_path, {**yaml.safe_load(text), "channel_spec": channels})
    )
    with pytest.raises(UserError, match=r"'?\.\./user_id.*expected a name that a file may have"):
        channels_of(spec)


def test_all_that_is_wrong_is_named_at_once_by_place_and_line(tmp_path: Path) -> None:
    text = ABSTRACT.replace("dtype: torch.int8\n    cardinality: 3", "dtype: text")
    text = text.replace("cardinality: 856", "cardinality: -1").replace("- label\n  test", "  test")
    text = text.replace("test_data.csv", "/etc/passwd").replace("    - item_id\n", "    - item\n")
    text = text.replace("type: csv", "type: xls", 1)
    file = write_spec(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_feature_spec(file)
    said = str(caught.value)
    lines = text.splitlines()
    for place, word in {
        "feature_spec.user_gender.dtype": "dtype: text",
        "feature_spec.item_id.cardinality": "cardinality: -1",
        "source_spec.train[0].type": "type: xls",
        "source_spec.test[0].files": "files:",
        "channel_spec.categorical_item_inputs": "categorical_item_inputs:",
    }.items():
        found = re.search(rf"{re.escape(place)} \(line (\d+)\)", said)
        assert found and word in lines[int(found[1]) - 1], (place, said)
    assert "'/etc/passwd'" in said and "['item'] is unknown to feature_spec" in said


def changed(*keys_and_value: Any) -> dict[str, Any]:
    """The Amazon example with one value in another's place; None: without it."""
    *keys, last, value = keys_and_value
    spec = inner = yaml.safe_load(AMAZON)
    for key in keys:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return dict(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (changed("channel_spec", "positive_history", ["item_id_pos"]), "has 2 features, positive_"),
        (changed("channel_spec", "label", ["label", "user_id"]), "stand in two channels"),
        (changed("channel_spec", "user_features", None), "Expected SIM's"),
        (changed("feature_spec", "item_id_pos", "cardinality", 5), "they share a table"),
        (changed("feature_spec", "item_id_pos", "dimensions", [50]), "have the dimensions"),
        (changed("feature_spec", "item_id_pos", "dimensions", None), "expected the length of its"),
        (changed("feature_spec", "user_id", "dimensions", [3]), "expected none: it is no history"),
        (changed("feature_spec", "user_id", "dtype", "float32"), "float32 holds no ids"),
        (changed("feature_spec", "user_id", "cardinality", None), "missing. Expected how many"),
    ],
)
def test_channels_that_sim_cannot_read(tmp_path: Path, spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        channels_of(read_feature_spec(write_spec(tmp_path, spec)))


def test_features_that_nothing_reads_are_named(tmp_path: Path) -> None:
    spec = yaml.safe_load(AMAZON)
    spec["feature_spec"]["extra"] = {"dtype": "int64", "hotness": 3}
    spec["metadata"] = {"author": "me"}
    found = read_feature_spec(write_spec(tmp_path, spec))
    assert found.unread == ("metadata", "feature_spec.extra.hotness", "feature_spec.extra")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,x,0", r"train_data_1.csv, after row 0: .*invalid value 'x'"),
        ("1,2", r"train_data_1.csv, after row 0: .*Expected 3 columns, got 2"),
        ("1,,0", r"train_data_1.csv, row 3: column 'item_id' holds nulls"),
    ],
)
def test_lines_that_are_wrong(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "train_data_1.csv"
    spec = read_feature_spec(write_abstract(tmp_path))
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], line, *lines[4:]]) + "\n")
    with pytest.raises(UserError, match=message):
        frame_of(spec, "train")


def test_chunks_of_different_lengths_and_files_that_are_missing(tmp_path: Path) -> None:
    spec = read_feature_spec(write_abstract(tmp_path))
    file = tmp_path / "train_data_0_1.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match=r"train_data_0_1.csv ends after row 5 of the mapping 'tra"):
        frame_of(spec, "train")
    file.unlink()
    with pytest.raises(UserError, match=r"train_data_0_1.csv is missing"):
        frame_of(spec, "train")


def test_all_types_of_chunks_hold_the_same_rows(tmp_path: Path) -> None:
    """One mapping of a csv, a parquet and a split_binary chunk, with values of several types."""
    spec = yaml.safe_load(ABSTRACT)
    spec["channel_spec"] = CHANNELS
    spec["source_spec"]["test"] = [
        {"type": "csv", "features": ["label"], "files": ["label.csv"]},
        {"type": "parquet", "features": ["item_id"], "files": ["a.parquet", "b.parquet"]},
        {
            "type": "split_binary",
            "features": ["user_id", "user_age", "user_gender"],
            "files": ["rest.bin"],
        },
    ]
    file = write_abstract(tmp_path, spec)
    FRAME[["label"]].to_csv(tmp_path / "label.csv", index=False, header=False)
    FRAME[["label", "item_id"]][:4].to_parquet(tmp_path / "a.parquet")
    FRAME[["label", "item_id"]][4:].to_parquet(tmp_path / "b.parquet")
    row = np.dtype([("user_id", "<i4"), ("user_age", "i1"), ("user_gender", "i1")])
    rows = np.empty(len(FRAME), row)
    for name in row.names or ():
        rows[name] = FRAME[name]
    rows.tofile(tmp_path / "rest.bin")
    pd.testing.assert_frame_equal(
        frame_of(read_feature_spec(file), "test")[list(FRAME)], FRAME, check_dtype=False
    )

"""Datasets of NVIDIA's recipes: imported, compared with what was written, trained, exported."""

from __future__ import annotations

import contextlib
import copy
import gzip
import os
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from lookback.core.errors import UserError
from lookback.formats.dataset_info import read_tabular_info
from lookback.formats.split_binary import SplitBinaryDataset
from lookback.workflows.cluster import recall_tensorflow
from lookback.workflows.commands import PROGRAM
from lookback.workflows.feature_spec_export import export_feature_spec
from lookback.workflows.feature_spec_import import Import, import_feature_spec
from tests.formats.test_feature_spec import ABSTRACT, CHANNELS, FRAME, write_abstract

T = 5
ROWS = {"train": 23, "test": 7}
CARDINALITIES = {"user_id": 30, "item_id": 40, "cat_id": 6}
NAMES = (
    *("label", "user_id", "item_id_trgt", "cat_id_trgt"),
    *("item_id_pos", "cat_id_pos", "item_id_neg", "cat_id_neg"),
)
"""In the order of NVIDIA's preprocessing."""


def owner(name: str) -> str:
    return "_".join(name.split("_")[:2])


def make_samples(split: str) -> dict[str, np.ndarray]:
    """Samples with histories of 0 to T events, padded on the left."""
    rng = np.random.default_rng(len(split))
    rows = ROWS[split]
    events = np.arange(rows) % (T + 1)
    is_event = np.arange(T) >= T - events[:, None]
    found: dict[str, np.ndarray] = {"label": np.arange(rows) % 2}
    for name in NAMES[1:]:
        shape = (rows, T) if name.endswith(("_pos", "_neg")) else (rows,)
        ids = rng.integers(1, CARDINALITIES[owner(name)] + 1, shape)
        found[name] = ids * is_event if len(shape) == 2 else ids
    return found


def make_spec(files: Mapping[str, list[str]]) -> dict[str, Any]:
    features: dict[str, Any] = {"label": {"dtype": "bool"}}
    for name in NAMES[1:]:
        features[name] = {"dtype": "int64", "cardinality": CARDINALITIES[owner(name)]}
        if name.endswith(("_pos", "_neg")):
            features[name]["dimensions"] = [T]
    return {
        "feature_spec": features,
        "channel_spec": {
            "label": ["label"],
            "user_features": ["user_id"],
            "target_item_features": ["item_id_trgt", "cat_id_trgt"],
            "positive_history": ["item_id_pos", "cat_id_pos"],
            "negative_history": ["item_id_neg", "cat_id_neg"],
        },
        "source_spec": {
            split: [{"type": "tfrecord", "features": list(NAMES), "files": names}]
            for split, names in files.items()
        },
        "metadata": {},
    }


def write_records(file: Path, samples: Mapping[str, np.ndarray], batch: int, ragged: bool) -> None:
    """As parquet_to_tfrecord.py does it: a value or a list a feature, flat where prebatched."""
    import tensorflow as tf

    rows = len(samples["label"])
    with tf.io.TFRecordWriter(str(file)) as writer:
        for begin in range(0, rows, batch):
            feature = {}
            for name, values in samples.items():
                flat = values[begin : begin + batch].reshape(-1)
                if ragged and values.ndim == 2:
                    flat = flat[flat > 0]
                feature[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=flat.tolist()))
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def write_sim(directory: Path, batch: int = 1, *, ragged: bool = False, **change: Any) -> Path:
    """SIM's files, two a split; with `batch`, whole records and a remainder, as NVIDIA's are."""
    files: dict[str, list[str]] = {}
    for split, rows in ROWS.items():
        (directory / split).mkdir(parents=True)
        samples = {**make_samples(split), **(change if split == "train" else {})}
        cut = rows // batch * batch if batch > 1 else 10
        names = {f"{split}/part_0.tfrecord": (0, cut)}
        names[f"{split}/{'remainder' if batch > 1 else 'part_1'}.tfrecord"] = (cut, rows)
        for name, (begin, end) in names.items():
            part = {feature: values[begin:end] for feature, values in samples.items()}
            write_records(directory / name, part, batch, ragged)
        files[split] = list(names)
    (directory / "feature_spec.yaml").write_text(yaml.safe_dump(make_spec(files)))
    return directory


def read_samples(directory: Path, split: str) -> pd.DataFrame:
    return pq.read_table(directory / split).to_pandas()


def assert_samples(directory: Path) -> None:
    for split in ROWS:
        found = read_samples(directory, split)
        assert tuple(found) == NAMES  # their order gives them their meaning
        for name, values in make_samples(split).items():
            column = np.stack(found[name]) if values.ndim == 2 else found[name]
            np.testing.assert_array_equal(column, values, err_msg=name)


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Import]:
    """SIM's files, and what was imported of them."""
    directory = tmp_path_factory.mktemp("sim")
    write_sim(directory / "raw")
    return (
        directory / "raw",
        directory / "data",
        import_feature_spec(directory / "raw", directory / "data"),
    )


def test_samples_are_as_they_were_written(sim: tuple[Path, Path, Import]) -> None:
    _, data, report = sim
    assert_samples(data)
    assert report.rows == ROWS and report.notes[0].endswith("histories of 5")
    assert yaml.safe_load((data / "metadata.json").read_text()) == {
        "cardinalities": [{"name": name, "value": rows} for name, rows in CARDINALITIES.items()]
    }


@pytest.mark.parametrize(("batch", "ragged"), [(1, True), (4, False), (100, False)])
def test_records_tell_how_they_were_batched(tmp_path: Path, batch: int, ragged: bool) -> None:
    write_sim(tmp_path / "raw", batch, ragged=ragged)
    import_feature_spec(tmp_path / "raw" / "feature_spec.yaml", tmp_path / "data")
    assert_samples(tmp_path / "data")


def test_import_of_an_export_gives_the_same(tmp_path: Path, sim: tuple[Path, Path, Import]) -> None:
    raw, data, _ = sim
    assert export_feature_spec(data, tmp_path / "one") == sum(ROWS.values())
    prebatch = {"train": 4, "test": None}
    assert export_feature_spec(data, tmp_path / "four", prebatch=prebatch) == 30
    given = yaml.safe_load((raw / "feature_spec.yaml").read_text())
    for name, files in (("one", ["part_0"]), ("four", ["part_0", "remainder"])):
        spec = yaml.safe_load((tmp_path / name / "feature_spec.yaml").read_text())
        for section in ("feature_spec", "channel_spec"):
            assert spec[section] == given[section]
        (chunk,) = spec["source_spec"]["train"]
        assert chunk["features"] == list(NAMES)
        assert chunk["files"] == [f"train/{file}.tfrecord" for file in files]
        import_feature_spec(tmp_path / name, tmp_path / f"{name}-data")
        for split in ROWS:
            pd.testing.assert_frame_equal(
                read_samples(tmp_path / f"{name}-data", split), read_samples(data, split)
            )
    # As NVIDIA's reader parses them: of a fixed length, 4 samples a record.
    import tensorflow as tf

    fixed = {name: tf.io.FixedLenFeature([4 * T], tf.int64) for name in NAMES[4:]}
    fixed |= {name: tf.io.FixedLenFeature([4], tf.int64) for name in NAMES[:4]}
    records = [
        record.numpy()
        for record in tf.data.TFRecordDataset(str(tmp_path / "four/train/part_0.tfrecord"))
    ]
    parsed = tf.io.parse_example(records, fixed)
    for name, values in make_samples("train").items():
        np.testing.assert_array_equal(parsed[name].numpy().ravel(), values[:20].ravel())


def at(name: str, row: int, value: int, slot: int = -1) -> dict[str, np.ndarray]:
    """The training samples' feature with one other value."""
    values = make_samples("train")[name].copy()
    values[(row, slot) if values.ndim == 2 else row] = value
    return {name: values}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            at("item_id_pos", 17, 41),
            r"part_1.tfrecord, row 7 \(train\): id 41 in feature 'item",
        ),
        (
            at("cat_id_neg", 11, 7),
            r"part_1.tfrecord, row 1 \(train\): id 7 in feature 'cat_id",
        ),
        (
            at("user_id", 3, 0),
            r"part_0.tfrecord, row 3 \(train\): id 0 in feature .* 1 to",
        ),
        (at("label", 12, 2), r"part_1.tfrecord, row 2 \(train\): label 2"),
        (at("item_id_pos", 5, 0), r"row 5 \(train\): column 'item_id_pos' has a 0 after an id"),
        (at("cat_id_pos", 17, 0, 0), r"row 7 \(train\): .*padding \(0\) in different places"),
        (at("item_id_neg", 17, 0), r"row 7 \(train\): column 'item_id_neg' has a 0 where"),
    ],
)
def test_samples_that_are_wrong_are_named_and_nothing_is_left(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    write_sim(tmp_path / "raw", **change)
    with pytest.raises(UserError, match=message):
        import_feature_spec(tmp_path / "raw", tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_records_that_are_no_such_samples(tmp_path: Path) -> None:
    raw = write_sim(tmp_path / "raw")
    file = raw / "train/part_1.tfrecord"
    whole = file.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            import_feature_spec(raw, tmp_path / "data")
        assert not (tmp_path / "data").exists()

    file.write_bytes(whole[:-3])
    refused(r"part_1.tfrecord, record 12 or after it: .*whole")
    size = len(whole) // 13  # records, all of one size
    assert whole[:8] == struct.pack("<Q", size - 16)
    file.write_bytes(whole[: 4 * size + 3])  # a length that is cut off: to TensorFlow, the end
    refused(r"part_1.tfrecord, record 4 or after it: .*0 are left")
    # A length that no memory has, with the checksum that it should have: TensorFlow dies of it.
    huge = bytes.fromhex("0000000000000040") + bytes.fromhex("7f85f000")
    file.write_bytes(whole[:size] + huge + whole[size + 12 :])
    refused(r"record 1 or after it: '4,611,686,018,427,387,904 bytes of data, and")
    file.write_bytes(gzip.compress(whole))
    refused(r"record 0 or after it: .*not compressed")
    file.write_bytes(whole[:100] + b"\xff" + whole[101:])
    refused(r"part_1.tfrecord, record 0 or after")
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(b"no example")
    refused(r"part_1.tfrecord, record 0 or after")
    samples = {name: values[10:] for name, values in make_samples("train").items()}
    write_records(file, {n: v for n, v in samples.items() if n != "user_id"}, 1, False)
    refused(r"part_1.tfrecord, record 0: 0 values of 'user_id', 1 of 'label'")
    lists = {n: v[:, :-1] if v.ndim == 2 else v for n, v in samples.items()}
    write_records(file, lists, 2, False)
    refused(r"record 0: 8 values of 'item_id_pos' for 2 sample\(s\). Expected 5 each")
    lists = {n: np.tile(v, 2) if v.ndim == 2 else v for n, v in samples.items()}
    write_records(file, lists, 1, False)
    refused(r"record 0: 10 values of 'item_id_pos' for 1 sample\(s\)")
    lists = {n: v for n, v in samples.items() if not n.endswith("_pos")}
    write_records(file, lists, 1, False)
    refused(r"part_1.tfrecord: no record has the feature\(s\) \['item_id_pos', 'cat_id_pos'\]")


def test_dlrm_does_not_read_samples(sim: tuple[Path, Path, Import]) -> None:
    with pytest.raises(UserError, match=r"describes samples of histories, no rows.*import-feature"):
        SplitBinaryDataset(sim[0])


# --- rows ---


def abstract_rows() -> dict[str, Any]:
    return {**yaml.safe_load(ABSTRACT), "channel_spec": CHANNELS}


def read_rows(directory: Path, split: str) -> pd.DataFrame:
    return pq.read_table(directory / split).to_pandas()


def test_the_seeds_abstract_example_with_dlrm_s_channels(tmp_path: Path) -> None:
    spec = abstract_rows()
    spec["source_spec"]["other"] = copy.deepcopy(spec["source_spec"]["test"])
    write_abstract(tmp_path / "raw", spec)
    report = import_feature_spec(tmp_path / "raw", tmp_path / "data")
    for split in ("train", "test"):
        found = read_rows(tmp_path / "data", split)
        assert list(found) == ["label", "user_age", "user_gender", "user_id", "item_id"]
        pd.testing.assert_frame_equal(found[list(FRAME)], FRAME, check_dtype=False)
    info = read_tabular_info(tmp_path / "data")
    assert info["cardinalities"] == {"user_gender": 3, "user_id": 2655, "item_id": 856}
    assert info["counts"] == report.rows == {"train": 7, "test": 7}
    assert "not read of feature_spec.yaml: source_spec.other" in report.notes
    assert PROGRAM.main(["describe", str(tmp_path / "data")]) == 0


@pytest.mark.parametrize("named", [True, False])
def test_both_mappings_must_have_rows(tmp_path: Path, named: bool) -> None:
    spec = abstract_rows()
    if not named:
        spec["source_spec"]["later"] = spec["source_spec"].pop("test")
    write_abstract(tmp_path / "raw", spec)
    (tmp_path / "raw" / "test_data.csv").write_text("")
    message = r"'test' hold no rows" if named else r"has no mapping 'test'.*it has later, train"
    with pytest.raises(UserError, match=message):
        import_feature_spec(tmp_path / "raw", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "item_id",
            856,
            r"train_data_1.csv, row 4 \(train\): id 856 in feature .* 0 to 855",
        ),
        ("user_id", -1, r"train_data_1.csv, row 4 \(train\): id -1"),
        ("user_gender", 3, r"train_data_0_1.csv, row 2 \(train\): id 3"),
        ("label", 0.5, r"train_data_1.csv, row 4 \(train\): label 0.5"),
    ],
)
def test_rows_that_are_wrong_are_named(
    tmp_path: Path, column: str, value: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = FRAME.copy()
    frame.loc[4, column] = value
    monkeypatch.setattr("tests.formats.test_feature_spec.FRAME", frame)
    write_abstract(tmp_path / "raw", abstract_rows())
    with pytest.raises(UserError, match=message):
        import_feature_spec(tmp_path / "raw", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_split_binary_comes_back_with_its_validation_rows(tmp_path: Path) -> None:
    """Which the specification does not name, as NVIDIA's tools refuse one that does."""
    spec = abstract_rows()
    spec["source_spec"]["validation"] = copy.deepcopy(spec["source_spec"]["test"])
    write_abstract(tmp_path / "raw", spec)
    import_feature_spec(tmp_path / "raw", tmp_path / "data")
    assert export_feature_spec(tmp_path / "data", tmp_path / "out") == 21
    report = import_feature_spec(tmp_path / "out", tmp_path / "again")
    assert report.rows == {"train": 7, "validation": 7, "test": 7}
    first, second = (read_tabular_info(tmp_path / name) for name in ("data", "again"))
    assert first["content_hash"] == second["content_hash"]
    for split in report.rows:
        pd.testing.assert_frame_equal(
            read_rows(tmp_path / "data", split), read_rows(tmp_path / "again", split)
        )
    (tmp_path / "out" / "train" / "label.bin").write_bytes(b"\1" * 7)
    with pytest.raises(UserError, match=r"the content of train/label.bin is not what was written"):
        import_feature_spec(tmp_path / "out", tmp_path / "third")


def test_numbers_that_float16_does_not_hold_are_not_exported(tmp_path: Path) -> None:
    spec = abstract_rows()
    spec["feature_spec"]["user_age"]["dtype"] = "float32"
    write_abstract(tmp_path / "raw", spec)
    file = tmp_path / "raw" / "train_data_0_1.csv"
    file.write_text(file.read_text().replace("80", "70000").replace("33", "-1e6"))
    import_feature_spec(tmp_path / "raw", tmp_path / "data")
    with pytest.raises(UserError, match=r"A number is -1e\+06. Expected 65,504 at most"):
        export_feature_spec(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- commands ---


def test_commands(
    tmp_path: Path, sim: tuple[Path, Path, Import], capsys: pytest.CaptureFixture[str]
) -> None:
    raw, _, _ = sim
    data, out = tmp_path / "data", tmp_path / "out"
    assert PROGRAM.main(["import-feature-spec", str(raw), "--output", str(data)]) == 0
    said = capsys.readouterr().out
    assert (
        "train 23, test 7 rows" in said
        and f"train.py --dataset_dir {data} --model_type sim" in said
    )
    assert PROGRAM.main(["import-feature-spec", str(raw), "--output", str(data)]) == 2
    assert "already exists" in capsys.readouterr().err
    export = ["export-feature-spec", str(data), "--output", str(out)]
    assert PROGRAM.main([*export, "--prebatch_train_size", "4"]) == 0
    assert "30 rows" in capsys.readouterr().out
    assert PROGRAM.main(["export-feature-spec", str(raw), "--output", str(tmp_path / "no")]) == 2
    assert "neither materialised samples" in capsys.readouterr().err


def test_tensorflow_is_there_again_where_the_door_went_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    recall_tensorflow()
    assert "tensorflow" not in sys.modules and os.environ["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    recall_tensorflow()  # nothing to undo
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.slow
def test_what_is_imported_trains(
    tmp_path: Path,
    sim: tuple[Path, Path, Import],
    running_eagerly: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """One step of SIM and one of DLRM, in this process."""
    from lookback import cli

    write_abstract(tmp_path / "raw", abstract_rows())
    import_feature_spec(tmp_path / "raw", tmp_path / "rows")
    sizes = {
        "sim": ["--max_seq_length", "5", "--long_seq_length", "3", "--embedding_dim", "4"],
        "dlrm": ["--embedding_dim", "4", "--bottom_mlp_sizes", "4", "--top_mlp_sizes", "4,1"],
    }
    for model, data in (("sim", sim[1]), ("dlrm", tmp_path / "rows")):
        results = tmp_path / model
        words = ["--model_type", model, "--dataset_dir", str(data), "--global_batch_size", "7"]
        words += ["--results_dir", str(results), "--epochs", "1", *sizes[model]]
        with running_eagerly():
            cli.train(words)

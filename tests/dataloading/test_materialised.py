"""The reader of materialised samples against rows kept as plain Python lists."""

from __future__ import annotations

import ast
import json
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from merlin.schema import Tags

from lookback.core.errors import UserError
from lookback.dataloading.histories import materialised
from lookback.dataloading.histories.materialised import MaterialisedDataset
from lookback.formats.features import HistoryFeatures, sample_schema
from lookback.formats.materialised import MaterialisedWriter

CARDINALITIES = {"uid": 50, "item": 40, "cat": 9}
COLUMNS = (
    "label",
    "uid",
    "item",
    "cat",
    "item_sequence",
    "cat_sequence",
    "neg_item_sequence",
    "neg_cat_sequence",
)
T, L = 6, 4
S = T - L


def make_rows(count, *, width=None, seed=0):
    """Samples with ragged lists of 0 to 9 events, or lists padded on the left to `width`."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        events = int(rng.integers(0, (width or 9) + 1))
        row = {"label": number % 2, "uid": number % 50 + 1}
        row["item"], row["cat"] = int(rng.integers(1, 41)), int(rng.integers(1, 10))
        for name in COLUMNS[4:]:
            largest = CARDINALITIES["cat" if "cat" in name else "item"]
            ids = rng.integers(1, largest + 1, events).tolist()
            row[name] = [0] * ((width or events) - events) + ids
        rows.append(row)
    return rows


def to_table(rows, columns=COLUMNS, id_type=None, list_type=None):
    id_type, list_type = id_type or pa.int32(), list_type or pa.list_(pa.int32())
    arrays = {"label": pa.array([row["label"] for row in rows], pa.int8())}
    for name in COLUMNS[1:]:
        kind = id_type if name in CARDINALITIES else list_type
        arrays[name] = pa.array([row[name] for row in rows], kind)
    return pa.table({name: arrays[name] for name in columns})


def write_dataset(path, train, test=None, *, groups=7, files=1, metadata=CARDINALITIES, **table):
    """Writes rows as a dataset of `files` files a split, with row groups of `groups` rows."""
    for split, rows in (("train", train), ("test", test or train[:3])):
        (path / split).mkdir(parents=True)
        size = -(-len(rows) // files)
        for part in range(files):
            content = to_table(rows[part * size : (part + 1) * size], **table)
            pq.write_table(content, path / split / f"part.{part}.parquet", row_group_size=groups)
    entries = [{"name": name, "value": value} for name, value in metadata.items()]
    (path / "metadata.json").write_text(json.dumps({"cardinalities": entries}))
    return path


def open_dataset(path, **options):
    return MaterialisedDataset(path, **{"max_seq_length": T, "long_seq_length": L, **options})


def pad(values, slots):
    newest = values[-slots:]
    return [0] * (slots - len(newest)) + newest


def expected_features(rows):
    """What a batch of `rows` must be."""
    features = {"uid": [row["uid"] for row in rows]}
    for name in ("item", "cat"):
        features[name] = [[row[name]] for row in rows]
        features[f"{name}_history"] = [pad(row[f"{name}_sequence"], T) for row in rows]
        features[f"{name}_negatives"] = [pad(row[f"neg_{name}_sequence"], S) for row in rows]
    return features, [[float(row["label"])] for row in rows]


def assert_batch(batch, rows):
    features, labels = batch
    expected, expected_labels = expected_features(rows)
    assert set(features) == set(expected)
    for name, values in features.items():
        assert values.dtype == np.int32
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, expected_labels)


def row_key(features, index):
    return tuple(tuple(np.ravel(features[name][index])) for name in sorted(features))


@pytest.mark.parametrize("width", [None, T, 4, 9], ids=["ragged", "exact", "narrow", "wide"])
@pytest.mark.parametrize("batch_size", [1, 5, 8, 100])
def test_batches_equal_the_rows_across_row_groups_and_files(tmp_path, width, batch_size):
    rows = make_rows(40, width=width)
    dataset = open_dataset(write_dataset(tmp_path / "d", rows, files=3))
    assert dataset.num_rows("train") == 40
    batches = list(dataset.batches("train", batch_size))
    assert len(batches) == -(-40 // batch_size)
    for step, batch in enumerate(batches):
        assert_batch(batch, rows[step * batch_size : (step + 1) * batch_size])


@pytest.mark.parametrize(
    ("id_type", "list_type"),
    [
        (pa.int64(), pa.list_(pa.int64())),
        (pa.uint8(), pa.large_list(pa.int16())),
        (pa.int64(), pa.list_(pa.int32(), 6)),
    ],
    ids=str,
)
def test_every_integer_and_list_type(tmp_path, id_type, list_type):
    rows = make_rows(20, width=6)
    path = write_dataset(tmp_path / "d", rows, id_type=id_type, list_type=list_type)
    batches = list(open_dataset(path).batches("train", 6, start_step=1))
    for step, batch in enumerate(batches):
        assert_batch(batch, rows[6 + step * 6 : 12 + step * 6])


def test_test_split_and_without_negatives(tmp_path):
    rows = make_rows(10)
    dataset = open_dataset(write_dataset(tmp_path / "d", rows, make_rows(5, seed=9)))
    (batch,) = dataset.batches("test", 8)
    assert_batch(batch, make_rows(5, seed=9))
    ((features, _),) = dataset.batches("test", 8, negatives=False)
    assert set(features) == {"uid", "item", "cat", "item_history", "cat_history"}
    with pytest.raises(UserError, match=r"split must be one of .*received 'valid'"):
        dataset.num_rows("valid")


def test_parts_are_read_in_numerical_order(tmp_path):
    rows = make_rows(24)
    dataset = open_dataset(write_dataset(tmp_path / "d", rows, files=12))
    (batch,) = dataset.batches("train", 24)
    assert_batch(batch, rows)


@pytest.mark.parametrize("buffer", [1, 10, 16, 1000])
def test_shuffling_yields_every_row_once_in_an_order_of_its_epoch(tmp_path, buffer):
    rows = make_rows(60)
    dataset = open_dataset(write_dataset(tmp_path / "d", rows, files=2))

    def order(epoch, seed=3):
        batches = dataset.batches(
            "train", 8, shuffle=True, seed=seed, epoch=epoch, shuffle_buffer=buffer
        )
        return [row_key(f, i) for f, labels in batches for i in range(len(labels))]

    ((everything, _),) = dataset.batches("train", 60)
    file_order = [row_key(everything, i) for i in range(60)]
    assert order(0) == order(0)
    assert sorted(order(0)) == sorted(order(1)) == sorted(file_order)
    assert len({tuple(file_order), tuple(order(0)), tuple(order(1)), tuple(order(0, seed=4))}) == 4


def test_shuffling_keeps_rows_and_labels_together(tmp_path):
    rows = make_rows(60)
    dataset = open_dataset(write_dataset(tmp_path / "d", rows))
    label_of = {}
    for features, labels in dataset.batches("train", 60):
        label_of = {row_key(features, i): labels[i, 0] for i in range(60)}
    for features, labels in dataset.batches("train", 7, shuffle=True, shuffle_buffer=25):
        assert [label_of[row_key(features, i)] for i in range(len(labels))] == list(labels[:, 0])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_remainder", [False, True])
def test_resuming_at_any_step_continues_the_same_batches(tmp_path, shuffle, drop_remainder):
    dataset = open_dataset(write_dataset(tmp_path / "d", make_rows(45), files=2))
    options = {"shuffle": shuffle, "drop_remainder": drop_remainder, "seed": 1, "epoch": 2}
    options["shuffle_buffer"] = 13
    batches = list(dataset.batches("train", 8, **options))
    assert len(batches) == (5 if drop_remainder else 6)
    for start in range(len(batches) + 2):
        resumed = list(dataset.batches("train", 8, start_step=start, **options))
        assert len(resumed) == max(len(batches) - start, 0)
        for (features, labels), (expected, expected_labels) in zip(
            resumed, batches[start:], strict=True
        ):
            np.testing.assert_array_equal(labels, expected_labels)
            for name, values in features.items():
                np.testing.assert_array_equal(values, expected[name])


def test_closing_early_ends_the_threads(tmp_path):
    dataset = open_dataset(write_dataset(tmp_path / "d", make_rows(500)))
    before = threading.active_count()
    batches = dataset.batches("train", 2, shuffle=True, shuffle_buffer=10, prefetch=1)
    next(batches)
    assert threading.active_count() == before + 2
    batches.close()
    assert threading.active_count() == before


def test_schema_has_the_tags_and_domains_of_histories(tmp_path):
    schema = open_dataset(write_dataset(tmp_path / "d", make_rows(5))).schema
    assert schema.column_names == ["uid", "item", "cat"]
    assert HistoryFeatures.from_schema(schema) == HistoryFeatures(("uid",), ("item", "cat"), None)
    for name, cardinality in CARDINALITIES.items():
        domain = schema[name].int_domain
        assert (domain.min, domain.max, domain.name) == (0, cardinality, name)
    assert schema.select_by_tag(Tags.USER_ID).column_names == ["uid"]
    samples = sample_schema(
        schema, max_seq_length=T, short_seq_length=S, negatives=True, time_features=False
    )
    assert set(samples.column_names) == set(expected_features([])[0])


def test_two_user_features(tmp_path):
    rows = make_rows(9)
    path = write_dataset(
        tmp_path / "d", rows, columns=("label", "uid", "cat", "item", "item_sequence",
        "neg_item_sequence"), metadata={"uid": 50, "cat": 9, "item": 40},
    )  # fmt: skip
    (batch,) = open_dataset(path, user_features=2).batches("train", 9)
    assert set(batch[0]) == {"uid", "cat", "item", "item_history", "item_negatives"}
    np.testing.assert_array_equal(batch[0]["cat"], [row["cat"] for row in rows])


def test_names_of_columns_are_free_where_they_contradict_nothing(tmp_path):
    path = write_dataset(tmp_path / "d", make_rows(9))
    for file in path.glob("*/*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.rename_columns([f"c{i}" for i in range(8)]), file)
    assert open_dataset(path).num_rows("train") == 9


# --- errors ---


def test_missing_parts(tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        open_dataset(tmp_path / "none")
    path = write_dataset(tmp_path / "d", make_rows(5))
    (path / "test" / "part.0.parquet").unlink()
    with pytest.raises(UserError, match=r"test holds no \*.parquet file"):
        open_dataset(path)
    (path / "test").rmdir()
    with pytest.raises(UserError, match=r"test is missing. Expected a directory"):
        open_dataset(path)
    (path / "metadata.json").unlink()
    with pytest.raises(UserError, match=r"metadata.json is missing. Expected .*cardinalities"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "expected a JSON object, found a list"),
        ('{"cardinalities": [{"name": "uid"}]}', "is malformed"),
        ('{"cardinalities": [{"name": "uid", "value": "7"}]}', "'uid' has the value '7'"),
        ('{"cardinalities": [{"name": "uid", "value": 0}]}', "positive 32-bit integer"),
        ('{"cardinalities": [{"name": "a", "value": 1}, {"name": "a", "value": 1}]}', "twice"),
        ('{"cardinalities": [{"name": "uid", "value": 7}]}', "leaves no item feature"),
    ],
)
def test_malformed_metadata(tmp_path, text, message):
    path = write_dataset(tmp_path / "d", make_rows(5))
    (path / "metadata.json").write_text(text)
    with pytest.raises(UserError, match=message):
        open_dataset(path)


def test_wrong_number_of_columns(tmp_path):
    path = write_dataset(tmp_path / "d", make_rows(5))
    with pytest.raises(UserError, match=r"expected 6 columns \(label, 2 user features .*found 8"):
        open_dataset(path, user_features=2)
    for file in path.glob("*/*.parquet"):
        table = pq.read_table(file)
        table = table.append_column("__index_level_0__", pa.array(range(len(table))))
        pq.write_table(table, file)
    with pytest.raises(UserError, match="pandas index: write with index=False"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ((0, 2, 1, 3, 4, 5, 6, 7), "'item' stands where uid should"),
        ((0, 1, 3, 2, 4, 5, 6, 7), "'cat' stands where item should"),
        ((0, 1, 2, 3, 5, 4, 6, 7), "'cat_sequence' stands where the lists of item should"),
        ((0, 1, 2, 3, 4, 5, 7, 6), "'neg_cat_sequence' stands where the lists of item should"),
        ((0, 1, 2, 3, 6, 7, 4, 5), "'neg_item_sequence' stands where the positive history should"),
    ],
)
def test_columns_out_of_order(tmp_path, columns, found):
    path = write_dataset(tmp_path / "d", make_rows(5), columns=[COLUMNS[i] for i in columns])
    with pytest.raises(UserError, match=found):
        open_dataset(path)


def test_files_that_differ(tmp_path):
    path = write_dataset(tmp_path / "d", make_rows(10), files=2)
    table = to_table(make_rows(5), id_type=pa.int64())
    pq.write_table(table, path / "train" / "part.1.parquet")
    with pytest.raises(UserError, match=r"part.1.parquet has other columns or types than part.0"):
        open_dataset(path)
    (path / "train" / "part.1.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"part.1.parquet cannot be read as parquet"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        ("item", pa.float32(), "column 'item' is float. Expected an integer"),
        ("cat_sequence", pa.list_(pa.float32()), "'cat_sequence' is list.* a list of integers"),
        ("item_sequence", pa.int32(), "'item_sequence' is int32. Expected a list of integers"),
        ("label", pa.string(), "label column 'label' is string. Expected 0 and 1"),
    ],
)
def test_column_types(tmp_path, column, kind, message):
    path = write_dataset(tmp_path / "d", make_rows(5))
    for file in path.glob("*/*.parquet"):
        table = pq.read_table(file)
        place = table.column_names.index(column)
        values = pa.array([[] if pa.types.is_list(kind) else None] * len(table), kind)
        pq.write_table(table.set_column(place, column, values), file)
    with pytest.raises(UserError, match=message):
        open_dataset(path)


def read_broken(tmp_path, change, width=None, shuffle=False):
    """Reads a dataset of two files whose row 17 (row 2 of part.1) is changed."""
    rows = make_rows(30, width=width)
    rows[17] = {"label": 1, "uid": 1, "item": 1, "cat": 1}
    rows[17] |= {name: [1, 2, 3, 4, 5, 6] for name in COLUMNS[4:]}
    change(rows[17])
    dataset = open_dataset(write_dataset(tmp_path / "d", rows, files=2))
    return list(dataset.batches("train", 8, shuffle=shuffle))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("uid", 51, "id 51 in column 'uid' is out of range: expected 1 to 50"),
        ("item", 0, "id 0 in column 'item' is out of range: expected 1 to 40"),
        ("cat_sequence", [1, 2, 10, 4, 5, 6], "id 10 in column 'cat_sequence'.*expected 0 to 9"),
        ("neg_item_sequence", [1, 2, 3, 4, 5, -2], "id -2 in column 'neg_item_sequence'"),
        ("cat_sequence", [1, 2], "'item_sequence' has 6 entries and that of 'cat_sequence' 2"),
        ("item_sequence", [1, 2, 0, 4, 5, 6], "column 'item_sequence' has a 0 after an id"),
        ("cat_sequence", [0, 2, 3, 4, 5, 6], "have their padding .0. in different places"),
        ("neg_cat_sequence", [1, 2, 3, 4, 5, 0], "'neg_cat_sequence' has a 0 where the positive"),
        ("label", 2, "label 2 in column 'label'. Expected 0 or 1"),
    ],
)
def test_bad_rows_are_named(tmp_path, column, value, message, shuffle):
    with pytest.raises(UserError, match=rf"part\.1\.parquet, row 2: .*{message}"):
        read_broken(tmp_path, lambda row: row.update({column: value}), shuffle=shuffle)


@pytest.mark.parametrize("column", ["uid", "item_sequence", "label"])
def test_nulls(tmp_path, column):
    with pytest.raises(UserError, match=rf"part\.1\.parquet: column '{column}' holds nulls"):
        read_broken(tmp_path, lambda row: row.update({column: None}))


def test_ids_beyond_32_bits_do_not_wrap(tmp_path):
    rows = make_rows(5)
    rows[3]["item"] = 2**32 + 1
    path = write_dataset(tmp_path / "d", rows, id_type=pa.int64())
    with pytest.raises(UserError, match=r"row 3: id 4294967297 in column 'item' is out of range"):
        list(open_dataset(path).batches("train", 8))


def test_arguments(tmp_path):
    path = write_dataset(tmp_path / "d", make_rows(5))
    with pytest.raises(UserError, match="batch_size must be at least 1, received 0"):
        open_dataset(path).batches("train", 0)
    with pytest.raises(UserError, match="long_seq_length must be at least 0 and less than"):
        open_dataset(path, long_seq_length=T)
    with pytest.raises(UserError, match="user_features must be at least 0"):
        open_dataset(path, user_features=-1)


def test_module_imports_neither_pandas_nor_tensorflow():
    tree = ast.parse(Path(materialised.__file__).read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & {"pandas", "tensorflow", "dask"}


def test_what_we_write_has_no_levels_for_nulls(tmp_path):
    """A third of decoding went into levels of entries that cannot be null."""
    writer = MaterialisedWriter(tmp_path, "train")
    written = {"uid": np.arange(3), "item_sequence": np.arange(12).reshape(3, 4)}
    writer.write(written)
    assert writer.close() == 3
    with pq.ParquetFile(tmp_path / "train" / "part.0.parquet") as file:
        levels = [file.schema.column(place).max_definition_level for place in range(2)]
        assert levels == [0, 1]  # 1: a list may be empty
        assert file.read().to_pydict() == {n: v.tolist() for n, v in written.items()}

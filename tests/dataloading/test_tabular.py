"""Tabular sources against pandas reading the same files."""

from __future__ import annotations

import json
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

from lookback.core.errors import UserError
from lookback.dataloading import LAYOUTS
from lookback.dataloading.parts import WHOLE, Part
from lookback.dataloading.tabular.source import TabularSource, open_tabular
from lookback.formats.tabular_parquet import TabularDataset
from lookback.formats.tabular_schema import tabular_schema

NUMBERS = 3
TABLES = {"cat_0": 50, "cat_1": 7, "cat_2": 2**31 - 1, "cat_3": 1}
COUNTS = {"train": 1003, "validation": 40, "test": 61}


def make_frame(rows, seed=0):
    """Rows of which the first number is unique."""
    rng = np.random.default_rng(seed)
    columns = {"label": rng.integers(0, 2, rows).astype(np.float32)}
    columns["num_0"] = np.arange(rows, dtype=np.float32)
    columns |= {f"num_{n}": rng.normal(size=rows).astype(np.float32) for n in range(1, NUMBERS)}
    for name, size in TABLES.items():
        columns[name] = rng.integers(0, size, rows, dtype=np.int32)
    return pd.DataFrame(columns)


def write_dataset(path, counts=COUNTS, *, group=50, rows_a_file=400):
    """The format by hand, so that the reader is held against the format and not our writer."""
    path.mkdir()
    for number, (split, rows) in enumerate(counts.items()):
        frame = make_frame(rows, number)
        for part, begin in enumerate(range(0, rows, rows_a_file)):
            (path / split).mkdir(exist_ok=True)
            table = pa.Table.from_pandas(
                frame.iloc[begin : begin + rows_a_file], preserve_index=False
            )
            file = path / split / f"part-{part:05}.parquet"
            pq.write_table(table, file, row_group_size=group, use_dictionary=False)
    schema = tabular_schema(NUMBERS, TABLES)
    TensorflowMetadata.from_merlin_schema(schema).to_proto_text_file(str(path))
    description = {"format": "lookback-tabular", "format_version": 1, "dataset": "test"}
    description |= {"counts": {**counts, "days": [1, 2]}, "cardinalities": TABLES}
    (path / "dataset.json").write_text(json.dumps(description))
    return path


def read_frame(path, split):
    return pd.concat(map(pd.read_parquet, sorted((path / split).glob("*.parquet"))))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("tabular") / "d")


@pytest.fixture(scope="module")
def dataset(path):
    return TabularDataset(path)


def make_source(dataset, **options):
    # A buffer of 8 lanes of 100 rows, for row groups of 50.
    return TabularSource(dataset, **{"seed": 3, "batch_size": 64, "shuffle_buffer": 800, **options})


def matrix(feeds):
    """All rows of some feeds ``[B, 1 + N + M]`` float64, labels first."""
    return np.concatenate(
        [np.hstack([labels, f["numerical"], f["categorical"]]) for f, labels in feeds]
    )


def sorted_rows(rows):
    return rows[np.argsort(rows[:, 1], kind="stable")]


def expected(path, split="train"):
    return read_frame(path, split).to_numpy(np.float64)


@pytest.mark.parametrize("batch_size", [1, 64, 400, 2000])
def test_file_order_equals_pandas(dataset, path, batch_size):
    source = make_source(dataset, batch_size=batch_size, shuffle=False)
    feeds = list(source.train_feeds(0, 0))
    assert len(feeds) == source.train_steps() == -(-1003 // batch_size)
    assert [len(labels) for _, labels in feeds[:-1]] == [batch_size] * (len(feeds) - 1)
    np.testing.assert_array_equal(matrix(feeds), expected(path))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_covers_a_split_in_file_order(dataset, path, split, ranks):
    sources = [
        make_source(dataset, eval_batch_size=16, part=Part(rank, ranks)) for rank in range(ranks)
    ]
    feeds = [list(source.eval_feeds(split)) for source in sources]
    steps = -(-COUNTS[split] // 16)
    assert {len(parts) for parts in feeds} == {sources[0].eval_steps(split)} == {steps}
    found = matrix([parts[step] for step in range(steps) for parts in feeds])
    np.testing.assert_array_equal(found, expected(path, split))


def test_feeds_have_the_types_of_the_contract(dataset):
    source = make_source(dataset)
    features, labels = source.train_batch(next(source.train_feeds(0, 0)))
    assert (features["numerical"].dtype, features["numerical"].shape) == (np.float32, (64, 3))
    assert (features["categorical"].dtype, features["categorical"].shape) == (np.int32, (64, 4))
    assert (labels.dtype, labels.shape) == (np.float32, (64, 1))
    assert not source.grouped
    assert source.schema.column_names == list(make_frame(1).columns)


def test_shuffled_epochs_hold_the_rows_of_the_files(dataset, path):
    source, rows = make_source(dataset), expected(path)
    epochs = [matrix(source.train_feeds(epoch, 0)) for epoch in (0, 1)]
    for epoch in epochs:
        np.testing.assert_array_equal(sorted_rows(epoch), rows)
    assert not np.array_equal(epochs[0], rows) and not np.array_equal(*epochs)
    np.testing.assert_array_equal(matrix(make_source(dataset).train_feeds(1, 0)), epochs[1])
    assert not np.array_equal(matrix(make_source(dataset, seed=4).train_feeds(1, 0)), epochs[1])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_processes_share_each_batch(dataset, shuffle, ranks):
    options = {"shuffle": shuffle, "drop_remainder": True}
    whole = list(make_source(dataset, **options).train_feeds(2, 0))
    sources = [make_source(dataset, part=Part(rank, ranks), **options) for rank in range(ranks)]
    parts = [list(source.train_feeds(2, 0)) for source in sources]
    assert len(whole) == 1003 // 64 == sources[0].train_steps()
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(matrix([part[step] for part in parts]), matrix([batch]))


def test_a_share_may_be_empty(dataset):
    feeds = list(make_source(dataset, batch_size=2, part=Part(0, 3)).train_feeds(0, 0))
    assert len(feeds) == 502 and {len(labels) for _, labels in feeds} == {0}
    features, _ = feeds[0]
    assert features["numerical"].shape == (0, 3)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("part", [WHOLE, Part(1, 2)])
def test_resuming_continues_the_epoch(dataset, shuffle, part):
    source = make_source(dataset, shuffle=shuffle, part=part, repeat_count=2)
    assert source.train_steps() == 32
    feeds = list(source.train_feeds(1, 0))
    assert len(feeds) == 32
    for first in (1, 7, 15, 16, 20, 31):
        np.testing.assert_array_equal(matrix(source.train_feeds(1, first)), matrix(feeds[first:]))
    assert list(source.train_feeds(1, 32)) == []


def test_resuming_reads_only_what_comes_after(dataset):
    class Counting:
        def __init__(self):
            self.schema, self.features = dataset.schema, dataset.features
            self.num_rows, self.blocks = dataset.num_rows, dataset.blocks
            self.read_blocks = []

        def read(self, split, block, begin, rows):
            self.read_blocks.append(block)
            dataset.read(split, block, begin, rows)

    counting = Counting()
    source = make_source(counting, shuffle=False)
    list(source.train_feeds(0, 14))  # rows 896 to 1003
    assert set(counting.read_blocks) == {17, 18, 19, 20}


def test_passes_have_orders_of_their_own(dataset, path):
    feeds = list(make_source(dataset, repeat_count=2).train_feeds(0, 0))
    passes = [matrix(feeds[:16]), matrix(feeds[16:])]
    for found in passes:
        np.testing.assert_array_equal(sorted_rows(found), expected(path))
    assert not np.array_equal(*passes)


@pytest.mark.parametrize("ranks", [1, 2])
def test_micro_batches_make_up_the_batch(dataset, ranks):
    whole = list(make_source(dataset).train_feeds(0, 0))
    cuts = 4 // ranks
    sources = [
        make_source(dataset, part=Part(rank, ranks), micro_batches=cuts) for rank in range(ranks)
    ]
    feeds = [list(source.train_feeds(0, 0)) for source in sources]
    for step, batch in enumerate(whole):
        parts = [
            part
            for source, own in zip(sources, feeds, strict=True)
            for part in source.parts_of(own[step])
        ]
        sizes = [Part(n, 4).bounds(len(batch[1])) for n in range(4)]
        assert [len(labels) for _, labels in parts] == [end - begin for begin, end in sizes]
        np.testing.assert_array_equal(matrix(parts), matrix([batch]))
    features, labels = sources[0].train_batch(feeds[0][0])
    assert len(features["numerical"]) == len(labels) == 16


def test_a_single_part_is_the_feed(dataset):
    source = make_source(dataset)
    feed = next(source.train_feeds(0, 0))
    assert source.parts_of(feed) == [feed]


def test_subset_is_the_first_rows(dataset, path):
    source = make_source(dataset, subset=0.25)
    assert source.train_steps() == 4
    found = sorted_rows(matrix(source.train_feeds(0, 0)))
    np.testing.assert_array_equal(found, expected(path)[:250])


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_describe_gives_the_rows(dataset, path, micro_batches):
    source = make_source(dataset, shuffle=False, micro_batches=micro_batches)
    described = source.describe(next(source.train_feeds(0, 0)))
    frame = read_frame(path, "train")[:64]
    assert described == {name: frame[name].tolist() for name in frame}


def test_batches_pass_through_a_graph(dataset):
    source = make_source(dataset)
    step = tf.function(
        lambda feed: source.train_batch(feed), reduce_retracing=True, autograph=False
    )
    feeds = list(source.train_feeds(0, 0))
    np.testing.assert_array_equal(matrix([step(feeds[0])]), matrix(feeds[:1]))


@pytest.mark.parametrize("shuffle", [False, True])
def test_closing_early_ends_the_threads(dataset, shuffle):
    before = threading.active_count()
    feeds = make_source(dataset, batch_size=2, shuffle=shuffle, threads=3).train_feeds(0, 0)
    next(feeds)
    assert threading.active_count() > before
    feeds.close()
    assert threading.active_count() == before
    next(make_source(dataset).train_feeds(0, 0))  # let go of
    assert threading.active_count() == before
    list(make_source(dataset).train_feeds(0, 0))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "options", [{"prefetch_train": 0}, {"prefetch_train": None}, {"threads": 1}]
)
def test_reading_ahead_changes_no_batch(dataset, options):
    found = matrix(make_source(dataset, **options).train_feeds(0, 0))
    np.testing.assert_array_equal(found, matrix(make_source(dataset).train_feeds(0, 0)))


def test_opening_by_content(path, tmp_path):
    assert isinstance(open_tabular(path), TabularDataset)
    layout = LAYOUTS["tabular"]
    assert layout.found_in(path) and not layout.found_in(tmp_path)


# --- errors ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "global_batch_size must be at least 1, received 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, received 0"),
        ({"prefetch_train": -1}, "prefetch_train_size must be at least 0, received -1"),
        ({"subset": 0.0}, r"dataset_subset must be in \(0, 1\], received 0.0"),
        ({"subset": 1.5}, r"dataset_subset must be in \(0, 1\], received 1.5"),
        ({"subset": 0.01, "drop_remainder": True}, "has 10 rows, fewer than one batch of 64"),
        ({"subset": 0.0001}, "has 0 rows, fewer than one batch of 64"),
        ({"shuffle_buffer": 1}, "shuffle_buffer must be at least 8, received 1"),
    ],
)
def test_arguments(dataset, options, message):
    with pytest.raises(UserError, match=message):
        make_source(dataset, **options)


def test_splits_that_are_not_there(tmp_path):
    dataset = TabularDataset(write_dataset(tmp_path / "d", {"train": 70, "validation": 0}))
    source = make_source(dataset)
    for split in ("validation", "test", "other"):
        message = rf"no rows in a split '{split}'\. It has: train\."
        with pytest.raises(UserError, match=message):
            source.eval_steps(split)
        with pytest.raises(UserError, match=message):
            next(source.eval_feeds(split))


def edit_json(path, **entries):
    file = path / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def rewrite(file, change):
    """Writes a file again as `change` says, a function of its pandas frame."""
    frame = pd.read_parquet(file)
    changed = change(frame)
    table = pa.Table.from_pandas(frame if changed is None else changed, preserve_index=False)
    pq.write_table(table, file, row_group_size=50)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: (p / "dataset.json").unlink(), "is not a dataset: there is no dataset.json"),
        (lambda p: (p / "dataset.json").write_text("{"), "dataset.json is not valid JSON"),
        (lambda p: (p / "dataset.json").write_text("[]"), "expected a JSON object, found a list"),
        (lambda p: edit_json(p, format_version=2), "version 1, found 'lookback-tabular' version 2"),
        (lambda p: edit_json(p, counts=None), "'counts' must hold whole numbers by name"),
        (lambda p: edit_json(p, counts={"train": "7"}), "'counts' must hold whole numbers"),
        (lambda p: edit_json(p, cardinalities={"cat_0": 2.5}), "'cardinalities' must hold whole"),
        (
            lambda p: edit_json(p, cardinalities={**TABLES, "cat_1": 8}),
            "gives the tables other sizes than schema.pbtxt: cat_1: 8 and 7",
        ),
        (lambda p: (p / "schema.pbtxt").unlink(), "There is no schema.pbtxt in"),
        (lambda p: (p / "schema.pbtxt").write_text("x{"), "schema.pbtxt cannot be read"),
        (
            lambda p: (p / "train" / "part-00002.parquet").unlink(),
            "train holds 800 rows in 2 files, dataset.json says 1003",
        ),
        (
            lambda p: (p / "train" / "part-00001.parquet").unlink(),
            "Files are missing, or not of this dataset",
        ),
        (
            lambda p: (p / "train" / "part-00000.parquet").rename(p / "train" / "a.parquet"),
            "a.parquet is not named part-00000.parquet",
        ),
        (
            lambda p: cut_off(p / "train" / "part-00001.parquet"),
            "part-00001.parquet cannot be read as parquet",
        ),
        (
            lambda p: rewrite(p / "test" / "part-00000.parquet", lambda f: f.drop(columns="cat_1")),
            r"part-00000.parquet lacks the columns \['cat_1'\]",
        ),
        (
            lambda p: rewrite(
                p / "test" / "part-00000.parquet", lambda f: f.astype({"cat_1": "int64"})
            ),
            "column 'cat_1' is int64, expected int32",
        ),
        (
            lambda p: rewrite(
                p / "test" / "part-00000.parquet", lambda f: f.astype({"num_1": "float64"})
            ),
            "column 'num_1' is double, expected float",
        ),
        (
            lambda p: rewrite(p / "validation" / "part-00000.parquet", lambda f: f[:-1]),
            "validation holds 39 rows in 1 files, dataset.json says 40",
        ),
    ],
)
def test_damaged_datasets_are_refused(tmp_path, break_it, message):
    path = write_dataset(tmp_path / "d")
    break_it(path)
    with pytest.raises(UserError, match=message):
        TabularDataset(path)


def broken_value(tmp_path, column, value):
    """A dataset whose row 123 of the second training file has another value in a column."""
    path = write_dataset(tmp_path / "d")
    rewrite(
        path / "train" / "part-00001.parquet",
        lambda frame: frame.__setitem__(
            column, frame[column].where(np.arange(len(frame)) != 123, value)
        ),
    )
    return TabularDataset(path)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("cat_1", np.int32(7), "id 7 in column 'cat_1' is out of range: expected 0 to 6"),
        ("cat_2", np.int32(-1), "id -1 in column 'cat_2' is out of range"),
        ("num_1", np.float32("inf"), "inf in the numerical column 'num_1'. Expected a finite"),
        ("label", np.float32(2), "label 2 in column 'label'. Expected 0 or 1"),
    ],
)
def test_bad_values_are_named_when_they_are_reached(tmp_path, column, value, message, shuffle):
    source = make_source(broken_value(tmp_path, column, value), shuffle=shuffle)
    before = threading.active_count()
    with pytest.raises(UserError, match=rf"part-00001.parquet, row 123 \(train\): {message}"):
        list(source.train_feeds(0, 0))
    assert threading.active_count() == before


def test_nan_is_named(tmp_path):
    path = write_dataset(tmp_path / "d")
    file = path / "train" / "part-00001.parquet"
    table = pq.read_table(file)
    values = table["num_2"].to_numpy().copy()
    values[123] = np.nan
    place = table.column_names.index("num_2")
    pq.write_table(table.set_column(place, "num_2", pa.array(values)), file, row_group_size=50)
    with pytest.raises(UserError, match=r"row 123 \(train\): nan in the numerical column 'num_2'"):
        list(make_source(TabularDataset(path)).train_feeds(0, 0))


def test_nulls_are_named(tmp_path):
    path = write_dataset(tmp_path / "d")
    file = path / "train" / "part-00001.parquet"
    table = pq.read_table(file)
    values = pa.array([None, *table["cat_0"].to_pylist()[1:]], pa.int32())
    place = table.column_names.index("cat_0")
    pq.write_table(table.set_column(place, "cat_0", values), file, row_group_size=50)
    with pytest.raises(UserError, match=r"\(train\): column 'cat_0' holds 1 nulls"):
        list(make_source(TabularDataset(path)).train_feeds(0, 0))


def test_files_that_change_while_they_are_read(tmp_path):
    path = write_dataset(tmp_path / "d")
    source = make_source(TabularDataset(path), shuffle=False)
    (path / "train" / "part-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"part-00002.parquet cannot be read"):
        list(source.train_feeds(0, 0))

"""NVIDIA's split-binary files against the arrays they were written from."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import yaml

from lookback.core.errors import UserError
from lookback.dataloading import LAYOUTS
from lookback.dataloading.parts import Part
from lookback.dataloading.tabular.source import TabularSource, open_tabular
from lookback.formats.description import is_split_binary
from lookback.formats.split_binary import SplitBinaryDataset
from lookback.formats.tabular_files import ROW_GROUP
from lookback.formats.tabular_schema import TabularFeatures

TABLES = {"cat_0.bin": (100, "int8"), "cat_1.bin": (30_000, "int16"), "cat_2.bin": (10**6, "int32")}
ROWS = {"train": ROW_GROUP + 1234, "test": 77}
NUMBERS = 4


def make_arrays(split):
    rng = np.random.default_rng(len(split))
    rows = ROWS[split]
    arrays = {"label": rng.integers(0, 2, rows).astype(bool)}
    arrays["numerical"] = rng.normal(size=(rows, NUMBERS)).astype(np.float16)
    return arrays | {
        name: rng.integers(0, size, rows).astype(dtype) for name, (size, dtype) in TABLES.items()
    }


def make_spec():
    """As NVIDIA's `get_default_feature_spec` makes it, features named after their files."""
    numbers = [f"num_{n}" for n in range(NUMBERS)]
    features = {n: {"dtype": d, "cardinality": size} for n, (size, d) in TABLES.items()}
    features |= {name: {"dtype": "float16"} for name in numbers}
    features["label"] = {"dtype": "bool"}

    def chunk(names, file):
        return {"type": "split_binary", "features": names, "files": [file]}

    sources = {
        split: [
            chunk(list(numbers), f"{split}/numerical.bin"),
            chunk(["label"], f"{split}/label.bin"),
            *(chunk([name], f"{split}/{name}") for name in TABLES),
        ]
        for split in ROWS
    }
    channels = {"categorical": list(TABLES), "numerical": numbers, "label": ["label"]}
    return {
        "feature_spec": features,
        "source_spec": sources,
        "channel_spec": channels,
        "metadata": {},
    }


def write_spec(path, spec):
    (path / "feature_spec.yaml").write_text(yaml.dump(spec))


def write_dataset(path):
    path.mkdir()
    write_spec(path, make_spec())
    for split in ROWS:
        (path / split).mkdir()
        for name, values in make_arrays(split).items():
            values.tofile(path / split / f"{name.removesuffix('.bin')}.bin")
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("split") / "d")


@pytest.fixture
def broken(tmp_path):
    return write_dataset(tmp_path / "d")


def matrices(feeds):
    """Numbers, ids and labels of some feeds."""
    feeds = list(feeds)
    return (
        np.concatenate([features["numerical"] for features, _ in feeds]),
        np.concatenate([features["categorical"] for features, _ in feeds]),
        np.concatenate([labels for _, labels in feeds]),
    )


def expected(split):
    arrays = make_arrays(split)
    return (
        arrays["numerical"].astype(np.float32),
        np.stack([arrays[name].astype(np.int32) for name in TABLES], 1),
        arrays["label"].astype(np.float32)[:, np.newaxis],
    )


def test_rows_equal_the_arrays(path):
    source = TabularSource(open_tabular(path), seed=0, batch_size=5000, shuffle=False)
    for split, feeds in (
        ("train", source.train_feeds(0, 0)),
        ("train", source.eval_feeds("train")),
        ("test", source.eval_feeds("test")),
    ):
        for found, wanted in zip(matrices(feeds), expected(split), strict=True):
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)


def test_shuffled_shares_make_up_an_epoch(path):
    def rows(part):
        source = TabularSource(open_tabular(path), seed=0, batch_size=5000, part=part)
        return list(source.train_feeds(1, 0))

    whole, *shares = (rows(part) for part in (Part(), Part(0, 2), Part(1, 2)))
    for step, batch in enumerate(whole):
        parts = matrices([share[step] for share in shares])
        for found, wanted in zip(parts, matrices([batch]), strict=True):
            np.testing.assert_array_equal(found, wanted)

    def key(numbers, ids, labels):
        every = np.hstack([numbers, ids, labels])
        return every[np.lexsort(every.T)]

    np.testing.assert_array_equal(key(*matrices(whole)), key(*expected("train")))


def test_schema_is_that_of_the_specification(path):
    dataset = open_tabular(path)
    assert isinstance(dataset, SplitBinaryDataset)
    # Without the files' ending, which NVIDIA's converter leaves in the features' names.
    assert dataset.cardinalities == {"cat_0": 100, "cat_1": 30_000, "cat_2": 10**6}
    names = tuple(f"num_{n}" for n in range(NUMBERS))
    assert dataset.features == TabularFeatures("label", names, ("cat_0", "cat_1", "cat_2"))
    assert [dataset.num_rows(split) for split in ROWS] == list(ROWS.values())
    assert dataset.blocks("train") == [ROW_GROUP, 1234]
    with pytest.raises(UserError, match=r"no rows in a split 'validation'. It has: test, train"):
        dataset.num_rows("validation")


def test_a_validation_split_beside_those_of_the_specification(broken):
    (broken / "validation").mkdir()
    arrays = make_arrays("test")
    for name, values in arrays.items():
        values[:50].tofile(broken / "validation" / f"{name.removesuffix('.bin')}.bin")
    source = TabularSource(open_tabular(broken), seed=0, batch_size=20)
    assert source.eval_steps("validation") == 3
    found = matrices(source.eval_feeds("validation"))
    for values, wanted in zip(found, expected("test"), strict=True):
        np.testing.assert_array_equal(values, wanted[:50])
    (broken / "validation" / "cat_0.bin").unlink()
    with pytest.raises(UserError, match=r"validation/cat_0.bin cannot be read"):
        open_tabular(broken)


def test_which_directories_are_split_binary(path, tmp_path):
    assert is_split_binary(path) and LAYOUTS["tabular"].found_in(path)
    assert not is_split_binary(tmp_path)


# --- errors ---


def without(spec, *keys):
    """The specification without an entry."""
    inner = spec
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]


def put(spec, *keys_and_value):
    *keys, last, value = keys_and_value
    inner = spec
    for key in keys:
        inner = inner[key]
    inner[last] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "source_spec"), "source_spec .*: None is no mapping of names"),
        (lambda s: put(s, "channel_spec", []), r"channel_spec \(line 1\): \[\] is no mapping"),
        (lambda s: put(s, "source_spec", {}), r"source_spec \(line \d+\): names no mapping"),
        (lambda s: put(s, "channel_spec", "label", ["label", "num_0"]), "Expected one feature"),
        (lambda s: put(s, "channel_spec", "label", "label"), "label .*: expected a list of names"),
        (
            lambda s: without(s, "feature_spec", "num_1"),
            r"numerical \(line .*\['num_1'\] is unknown to feature_spec",
        ),
        (
            lambda s: put(s, "feature_spec", "num_1", {"dtype": "float32"}),
            r"feature_spec.num_1.dtype \(line \d+\): float32. Expected float16",
        ),
        (
            lambda s: put(s, "feature_spec", "cat_0.bin", "dtype", "int64"),
            r"cat_0.bin.dtype .*: int64. Expected int8 or int16 or int32",
        ),
        (
            lambda s: without(s, "feature_spec", "cat_0.bin", "cardinality"),
            "cardinality .*: missing. Expected how many ids",
        ),
        (
            lambda s: put(s, "feature_spec", "cat_0.bin", 7),
            "feature_spec.cat_0.bin .*: expected its dtype, received 7",
        ),
        (
            lambda s: put(s, "source_spec", "test", 0, "type", "csv"),
            r"test\[0\].type .*: csv. Expected split_binary",
        ),
        (
            lambda s: put(s, "source_spec", "test", {}),
            r"source_spec.test .*: expected a list of chunks, received \{\}",
        ),
        (
            lambda s: without(s, "source_spec", "test", 0, "files"),
            "expected type, features, files, received",
        ),
        (lambda s: put(s, "source_spec", "test", 0, "files", ["a", "b"]), "Expected one file"),
        (
            lambda s: without(s, "source_spec", "test", 1),
            r"source_spec.test .*: no chunk has \['label'\], which channel_spec names",
        ),
        (
            lambda s: s["source_spec"]["test"][0]["features"].reverse(),
            r"names no file for \['num_0', .*all numerical features in the channel's order",
        ),
        (
            lambda s: s["source_spec"]["test"].append(copy.deepcopy(s["source_spec"]["test"][1])),
            r"test\[5\].features .*: has \['label'\], as chunk 1 has",
        ),
        (
            lambda s: put(s, "source_spec", "test", 1, "files", ["test/none.bin"]),
            "none.bin cannot be read",
        ),
        (
            lambda s: put(s, "feature_spec", "cat_1.bin", "dtype", "int8"),
            rf"cat_1.bin holds {2 * ROWS['test']} rows, .*label.bin {ROWS['test']}",
        ),
    ],
)
def test_specifications_that_are_wrong(broken, change, message):
    spec = copy.deepcopy(make_spec())
    change(spec)
    write_spec(broken, spec)
    with pytest.raises(UserError, match=message):
        SplitBinaryDataset(broken)


def test_no_yaml(broken):
    (broken / "feature_spec.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"feature_spec.yaml is not valid YAML"):
        SplitBinaryDataset(broken)


def test_files_that_are_cut_off(broken):
    file = broken / "train" / "numerical.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"numerical.bin has \d+ bytes, which is not a whole"):
        SplitBinaryDataset(broken)
    file.write_bytes(file.read_bytes()[: -2 * NUMBERS + 1])
    with pytest.raises(UserError, match=r"numerical.bin holds \d+ rows, .*label.bin \d+"):
        SplitBinaryDataset(broken)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cat_0.bin", 100, r"cat_0.bin, row 66000 \(train\): id 100 in column 'cat_0' is out of"),
        ("cat_1.bin", -1, r"cat_1.bin, row 66000 \(train\): id -1 in column 'cat_1'"),
        ("cat_2.bin", 10**6, r"cat_2.bin, row 66000 \(train\): id 1000000 in column 'cat_2'"),
        ("label.bin", 2, r"label.bin, row 66000 \(train\): label 2 in column 'label'"),
    ],
)
def test_bad_values_are_named(broken, name, value, message):
    dtype = TABLES[name][1] if name in TABLES else "uint8"
    np.memmap(broken / "train" / name, dtype, "r+")[66_000] = value
    source = TabularSource(SplitBinaryDataset(broken), seed=0, batch_size=5000)
    with pytest.raises(UserError, match=message):
        list(source.train_feeds(0, 0))


def test_nan_is_named(broken):
    numbers = np.memmap(broken / "train" / "numerical.bin", np.float16, "r+")
    numbers.reshape(-1, NUMBERS)[66_000, 2] = np.nan
    source = TabularSource(SplitBinaryDataset(broken), seed=0, batch_size=5000)
    message = r"numerical.bin, row 66000 \(train\): nan in the numerical column 'num_2'"
    with pytest.raises(UserError, match=message):
        list(source.train_feeds(0, 0))


def test_files_that_shrink_while_they_are_read(broken):
    source = TabularSource(SplitBinaryDataset(broken), seed=0, batch_size=5000)
    (broken / "train" / "cat_2.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"cat_2.bin cannot be read"):
        list(source.train_feeds(0, 0))


def test_a_list_that_nvidia_s_tools_dump_as_an_alias_is_read(broken):
    spec = make_spec()
    names = spec["channel_spec"]["numerical"]
    for split in ROWS:
        spec["source_spec"][split][0]["features"] = names
    write_spec(broken, spec)
    assert "*id001" in (broken / "feature_spec.yaml").read_text()
    assert SplitBinaryDataset(broken).num_rows("test") == ROWS["test"]


BOMB = "\n".join(
    ["b: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [(BOMB, r"aliases \(\*a1\) are not read"), ("[" * 5000, "nested too deeply")],
)
def test_specifications_that_would_grow_are_refused(broken, text, message):
    (broken / "feature_spec.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        SplitBinaryDataset(broken)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "keys",
    [
        ("channel_spec", "label"),
        ("channel_spec", "numerical"),
        ("feature_spec", "num_1", "dtype"),
        ("feature_spec", "cat_0.bin", "cardinality"),
        ("source_spec", "test", 0, "type"),
        ("source_spec", "test", 0, "features"),
        ("source_spec", "test", 0, "files"),
    ],
)
def test_errors_stay_short(broken, keys):
    for value in ("x" * 10_000, ["x" * 1000] * 10, [[["x"] * 9] * 9] * 9):
        spec = make_spec()
        put(spec, *keys, copy.deepcopy(value))
        # Each list a copy of its own, so that no alias is written.
        (broken / "feature_spec.yaml").write_text(json.dumps(spec))
        with pytest.raises(UserError) as caught:
            SplitBinaryDataset(broken)
        assert len(str(caught.value)) < 2000

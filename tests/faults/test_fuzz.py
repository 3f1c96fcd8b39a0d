"""Every reader of text: whatever bytes come, it gives a value or a `UserError`, and soon.

Three kinds of bytes go to each reader: any; a valid sample with pieces cut out, doubled and put in;
and, of JSON and YAML, a valid sample in which a value is replaced by another.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merlin.schema import ColumnSchema, Schema, Tags

from lookback.checkpoints.format import Checkpoint
from lookback.checkpoints.store import CheckpointStore
from lookback.core.errors import UserError
from lookback.core.json_files import load_json
from lookback.core.options import parse
from lookback.core.outputs import OutputKind, write_record
from lookback.embeddings.plans import load_plan, load_tables
from lookback.formats.dataset_info import is_histories, is_tabular, read_info
from lookback.formats.materialised import read_cardinalities
from lookback.formats.schema import SCHEMA_FILE, read_schema, write_schema
from lookback.formats.split_binary import SplitBinaryDataset
from lookback.formats.tabular_rows import TabularRows
from lookback.serving.encoding import EncodedIds, ItemFeatures, VocabularyEncoder
from lookback.serving.layouts.histories.requests import HistoryRequestEncoder
from lookback.serving.layouts.interactions.requests import InteractionsRequestEncoder
from lookback.serving.layouts.tabular.encoding import KeyVocabulary, ShiftedLogEncoder
from lookback.serving.layouts.tabular.requests import RowEncoder
from lookback.serving.manifest import InteractionsManifest, Manifest
from lookback.training.output.logging import read_log
from lookback.training.output.results import identity_of
from lookback.training.run import command_line
from lookback.workflows.datasets.amazon import AmazonReader
from lookback.workflows.datasets.interactions import InteractionsReader
from lookback.workflows.datasets.movielens import MovieLensReader
from lookback.workflows.pipeline import kind_of
from lookback.workflows.saved import OPTIONS_FILE, read_saved_options
from lookback.workflows.tabular.text import parse_rows

MOST_SECONDS = 2.0
"""For one input of some hundred bytes; the slowest take some milliseconds."""

FEW = settings(
    max_examples=40,  # more of them, by hand, find what is rare
    deadline=None,  # in place of it: `MOST_SECONDS`
    derandomize=True,  # a fault that is found here is found by everybody
    database=None,
    suppress_health_check=list(HealthCheck),
)
STRANGE = (
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"\r", b"\n", b"\t", b'"', b"'"),
    *(b"{", b"}", b"[", b"]", b":", b",", b"::", b"|", b"-", b"#", b"&a ", b"*a", b"<<: ", b"? "),
    *(
        b"null",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"1" * 400,
        b"-1",
        b"0x1F",
        b"1_0",
        b"~",
        b"!!int x",
    ),
    *(b"[" * 300, b'{"a":' * 300, b"\xc3\xa9", b"\\ud800", b"2001-99-99", b"1:30", b"\xe2\x80\xa8"),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.sampled_from([0, -1, 1 << 31, 1 << 63, 10**30, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
    st.just("x" * 5000),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def changed_bytes(sample: bytes) -> st.SearchStrategy[bytes]:
    """The sample after some cuts, repetitions and insertions."""
    places = st.integers(0, len(sample))
    edits = st.lists(
        st.tuples(places, places, st.one_of(st.sampled_from(STRANGE), st.just(b""), st.none())),
        min_size=1,
        max_size=4,
    )

    def edit(edits: list[tuple[int, int, bytes | None]]) -> bytes:
        text = sample
        for first, second, new in edits:
            begin, end = sorted((first, second))
            end = min(end, begin + 40)
            text = text[:begin] + (text[begin:end] * 2 if new is None else new) + text[end:]
        return text

    return edits.map(edit)


def changed_value(sample: Any) -> st.SearchStrategy[Any]:
    """The sample with a value in it replaced, taken out, or under another key."""
    paths = [path for path, _ in walk(sample)]

    def change(drawn: tuple[tuple[Any, ...], int, Any]) -> Any:
        path, how, value = drawn
        if not path:
            return value
        result = copy.deepcopy(sample)
        holder = result
        for step in path[:-1]:
            holder = holder[step]
        if how == 0:
            del holder[path[-1]]
        elif how == 1 and isinstance(holder, dict):
            holder[str(value)[:50]] = holder.pop(path[-1])
        else:
            holder[path[-1]] = value
        return result

    return st.tuples(st.sampled_from(paths), st.integers(0, 4), VALUES).map(change)


def walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield path, value
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from walk(inner, (*path, key))


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()


@dataclasses.dataclass(frozen=True)
class Case:
    """A reader: what it reads from bytes, and what of valid ones.

    Attributes:
      sample: bytes that it takes.
      read: the reader; takes bytes.
      dump: of JSON and YAML, a value to bytes.
      load: likewise, the other way.
    """

    sample: bytes
    read: Callable[[bytes], object]
    dump: Callable[[Any], bytes] | None = None
    load: Callable[[bytes], Any] | None = None

    @classmethod
    def json(cls, sample: bytes, read: Callable[[bytes], object]) -> Case:
        return cls(sample, read, as_json, json.loads)

    @classmethod
    def yaml(cls, sample: bytes, read: Callable[[bytes], object]) -> Case:
        return cls(sample, read, as_yaml, yaml.safe_load)


def in_file(file: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    """A reader of a file, as one of its bytes."""

    def from_bytes(content: bytes) -> object:
        file.write_bytes(content)
        return read()

    return from_bytes


HISTORIES_INFO = {
    "format": "lookback-histories",
    "format_version": 1,
    "dataset": "movielens",
    "content_hash": "sha256:00",
    "split": {"rule": "leave_last_out", "test": 1, "validation": 0},
    "counts": {"users": 3, "events": 12, "bad_lines": {"a": 1}},
    "cardinalities": {"item_id": 5},
    "history_length": {"min": 3, "max": 5, "mean": 4.0},
    "negative_sampling": {"distributions": ["popularity", "uniform"]},
    "options": {"frequency_threshold": 0, "category": None},
    "created_by": {"python": "3.11"},
}
TABULAR_INFO = {
    "format": "lookback-tabular",
    "format_version": 1,
    "dataset": "criteo",
    "content_hash": "sha256:00",
    "counts": {"train": 5, "validation": 1, "test": 1, "bad_lines": {}},
    "cardinalities": {"cat_0": 5},
    "options": {"numerical": 13},
}
PLAN = """format: lookback-plan
version: 1
ranks: 2
tables:
  item: {strategy: table_wise, ranks: [1], rows: 30, dim: 4, hotness: [1.0, 50.0], distinct: 0.5}
  user: {strategy: row_wise, rows: 9, dim: 4, optimizer: adam, init_scale: 0.1}
"""
CONFIG = """model_type: dlrm
global_batch_size: 512
lr: 0.01
top_mlp_sizes: [16, 1]
optimizer: sgd
dataset_dir: somewhere
results_dir: results
amp: false
"""
SPECIFICATION = """feature_spec:
  label.bin: {dtype: bool}
  num_0: {dtype: float16}
  cat_0.bin: {cardinality: 5, dtype: int8}
source_spec:
  train: &files
  - {features: [label.bin], files: [train/label.bin], type: split_binary}
  - {features: [num_0], files: [train/numerical.bin], type: split_binary}
  - {features: [cat_0.bin], files: [train/cat_0.bin], type: split_binary}
  test:
  - {features: [label.bin], files: [train/label.bin], type: split_binary}
  - {features: [num_0], files: [train/numerical.bin], type: split_binary}
  - {features: [cat_0.bin], files: [train/cat_0.bin], type: split_binary}
channel_spec:
  numerical: [num_0]
  categorical: [cat_0.bin]
  label: [label.bin]
""".replace(" &files", "")


LINES = {
    "csv": (
        InteractionsReader(),
        "x.csv",
        b'user_id,item_id,timestamp\n1,"a,b",881250949\n2,c,9e8\n',
    ),
    "u.data": (
        MovieLensReader(),
        "u.data",
        b"196\t242\t3\t881250949\n186\t302\t3\t891717742\n",
    ),
    "ratings.dat": (
        MovieLensReader(),
        "ratings.dat",
        b"1::1193::5::978300760\n1::661::3::978302109\n",
    ),
    "ratings.csv": (
        MovieLensReader(),
        "ratings.csv",
        b"userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n",
    ),
    "amazon": (
        AmazonReader(),
        "reviews_X.json",
        b'{"reviewerID": "A", "asin": "B", "unixReviewTime": 1365465600}\n'
        b"{'reviewerID': 'A', 'asin': 'C', 'unixReviewTime': 1365465601}\n",
    ),
}
"""Readers of raw lines, the file they look for, and what may be in it."""


def plan_cases(place: Path) -> dict[str, Case]:
    file = place / "plan.yaml"
    tables = b"item: {rows: 30, dim: 4, hotness: [1.0, 2]}\nuser: {rows: 9, optimizer: sgd}\n"
    line = command_line()
    return {
        "plan": Case.yaml(PLAN.encode(), in_file(file, lambda: load_plan(file))),
        "tables": Case.yaml(tables, in_file(file, lambda: load_tables(file, 16))),
        "config": Case.yaml(
            CONFIG.encode(),
            in_file(file, lambda: parse(["--config", str(file)], line, prog="p", description="d")),
        ),
    }


def json_cases(place: Path) -> dict[str, Case]:
    directory = place / "json"
    directory.mkdir()

    def info() -> object:
        is_histories(directory), is_tabular(directory)
        return read_info(directory)

    dataset = directory / "dataset.json"
    cardinalities = (
        b'{"cardinalities": [{"name": "uid", "value": 9}, {"name": "item", "value": 7}]}'
    )
    metadata = in_file(directory / "metadata.json", lambda: read_cardinalities(directory, 1))
    options = {"dataset": "movielens", "options": {"min_interactions": 2, "duplicates": "keep"}}

    def saved() -> object:
        read = read_saved_options(directory)
        kind = kind_of(read["dataset"])
        return kind.saved(read["dataset"], read["options"], directory / OPTIONS_FILE)

    kind = OutputKind("thing")
    (directory / "own.txt").write_text("own")
    write_record(directory, kind)
    record = directory / ".lookback.json"
    return {
        "dataset.json of histories": Case.json(as_json(HISTORIES_INFO), in_file(dataset, info)),
        "dataset.json of rows": Case.json(as_json(TABULAR_INFO), in_file(dataset, info)),
        "metadata.json": Case.json(cardinalities, metadata),
        "options.json": Case.json(as_json(options), in_file(directory / OPTIONS_FILE, saved)),
        "record": Case.json(record.read_bytes(), in_file(record, lambda: kind.foreign(directory))),
    }


def manifest_cases(place: Path) -> dict[str, Case]:
    saved = CheckpointStore(place / "saved").save(
        3, {"table/item": np.ones((4, 2), np.float32), "model/k": np.zeros(3)}, {"model": {}}
    )
    bundle = place / "bundle"
    (bundle / "model").mkdir(parents=True)
    (bundle / "model" / "saved_model.pb").write_bytes(b"x")
    InteractionsManifest(
        model_type="neumf",
        options={"k": 1},
        ids="raw",
        inputs={"user_id": (None,)},
        cardinalities={"user_id": 3},
        vocabularies={},
        dataset={"name": "x"},
        versions={},
        user_features=("user_id",),
        item_features=("item_id",),
    ).write(bundle)
    manifest, content = saved / "manifest.json", bundle / "bundle.json"
    return {
        "manifest.json": Case.json(
            manifest.read_bytes(), in_file(manifest, lambda: Checkpoint(saved))
        ),
        "bundle.json": Case.json(
            content.read_bytes(), in_file(content, lambda: Manifest.read(bundle))
        ),
    }


def request_cases(place: Path) -> dict[str, Case]:
    names = VocabularyEncoder(pa.array(["a", "b", "c"]))
    numbers = VocabularyEncoder(pa.array([5, 7, 9]))
    items = ItemFeatures(
        {"item_id": np.array([3, 4], np.int32), "category_id": np.array([3, 3], np.int32)}, 6
    )
    histories = HistoryRequestEncoder(
        ("user_id",),
        ("item_id", "category_id"),
        (),
        (),
        4,
        4,
        lambda gaps: np.minimum(gaps, 9),
        {"user_id": names, "item_id": numbers, "category_id": EncodedIds(9)},
        items,
    )
    rows = RowEncoder(
        ("num_0",),
        ("cat_0",),
        {
            "num_0": ShiftedLogEncoder(),
            "cat_0": KeyVocabulary(np.array([1, 2]), np.array([1, 2], np.int32)),
        },
    )
    pairs = InteractionsRequestEncoder(
        "user_id", "item_id", names, numbers, np.array([3, 4], np.int32)
    )
    of_histories = {
        "user_id": "a",
        "history": {"item_id": [5, 7], "category_id": [3, 4], "timestamp": [10, 20]},
        "candidates": {"item_id": [7, 9], "category_id": [3, 4]},
        "timestamp": 30,
    }
    of_pairs = {"user_id": "b", "k": 2, "exclude": [5]}
    asked = {"user_id": "b", "candidates": {"item_id": [5, 9]}}
    of_rows = {"numerical": [3], "categorical": ["0000000a"]}
    named = {"num_0": None, "cat_0": "ff"}

    def reader(encoder: Any) -> Callable[[bytes], object]:
        return lambda content: encoder.encode([load_json(content, "line 1")])

    return {
        "request of histories": Case.json(as_json(of_histories), reader(histories)),
        "request of pairs": Case.json(as_json(of_pairs), reader(pairs)),
        "request with candidates": Case.json(as_json(asked), reader(pairs)),
        "request of rows": Case.json(as_json(of_rows), reader(rows)),
        "request of named fields": Case.json(as_json(named), reader(rows)),
    }


def schema_cases(place: Path) -> dict[str, Case]:
    columns = [
        ColumnSchema(
            "user_id",
            tags=[Tags.USER, Tags.USER_ID, Tags.CATEGORICAL],
            dtype="int32",
            properties={"domain": {"min": 0, "max": 9, "name": "user_id"}},
        ),
        ColumnSchema(
            "item_id", tags=[Tags.ITEM], dtype="int32", dims=(None, (0, None)), is_list=True
        ),
    ]
    write_schema(Schema(columns), place)
    file = place / SCHEMA_FILE
    return {"schema.pbtxt": Case(file.read_bytes(), in_file(file, lambda: read_schema(place)))}


def dataset_cases(place: Path) -> dict[str, Case]:
    directory = place / "split"
    (directory / "train").mkdir(parents=True)
    for name, values in (
        ("label", np.array([0, 1], bool)),
        ("numerical", np.array([1, 2], "<f2")),
        ("cat_0", np.array([1, 4], np.int8)),
    ):
        values.tofile(directory / "train" / f"{name}.bin")

    def split_binary() -> object:
        dataset = SplitBinaryDataset(directory)
        rows = dataset.num_rows("train")
        read = TabularRows.empty(rows, dataset.features)
        for block, _ in enumerate(dataset.blocks("train")):
            dataset.read("train", block, 0, read)
        return read

    specification = directory / "feature_spec.yaml"
    return {"feature_spec": Case.yaml(SPECIFICATION.encode(), in_file(specification, split_binary))}


def line_cases(place: Path) -> dict[str, Case]:
    found = {}
    for name, (reader, file, sample) in LINES.items():
        directory = place / f"raw-{name}"
        directory.mkdir()

        def events(reader: Any = reader, directory: Path = directory) -> object:
            return [
                reader.parse_block(block)
                for path in reader.event_files(directory)
                for block in reader.blocks(path)
            ]

        found[name] = Case(sample, in_file(directory / file, events))
    log = place / "log.json"

    def logged() -> object:
        return read_log(log), identity_of(log)

    line = b'DLLL {"type": "LOG", "step": [0, 1], "data": {"loss": 0.5}, "elapsedtime": 1.5}\n'
    found["log.json"] = Case(2 * line, in_file(log, logged))
    parse_rows(b"", 3, 2)  # compiles
    found["criteo"] = Case(
        b"1\t5\t\t7\t68fd1e64\t\n0\t-1\t2\t3\tzz\tff\n", lambda data: parse_rows(data, 3, 2)
    )
    return found


NAMES = (
    *("plan", "tables", "config", "dataset.json of histories", "dataset.json of rows"),
    *("metadata.json", "options.json", "record", "manifest.json", "bundle.json"),
    *("request of histories", "request of pairs", "request with candidates", "request of rows"),
    *(
        "request of named fields",
        "schema.pbtxt",
        "feature_spec",
        "csv",
        "u.data",
        "ratings.dat",
        "ratings.csv",
    ),
    *("amazon", "criteo", "log.json"),
)


FLAT = {*LINES, "criteo", "log.json", "schema.pbtxt"}
"""Those without values in each other that JSON or YAML could hold."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    place = tmp_path_factory.mktemp("fuzz")
    found = {}
    for make in (
        *(plan_cases, json_cases, manifest_cases, request_cases),
        *(schema_cases, dataset_cases, line_cases),
    ):
        found |= make(place)
    return found


def attempt(read: Callable[[bytes], object], content: bytes) -> bool:
    """Reads; whether there was something to read. Anything but a `UserError` is a fault."""
    began = time.process_time()  # not the clock: others may use the machine
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            read(content)
        except UserError as error:
            assert str(error).strip() and len(str(error)) < 20_000
            accepted = False
        else:
            accepted = True
    assert time.process_time() - began < MOST_SECONDS
    return accepted


def test_all_readers_are_named(cases: dict[str, Case]) -> None:
    assert set(cases) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_sample_is_read(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    assert attempt(case.read, case.sample)
    if case.dump is not None and case.load is not None:
        assert attempt(case.read, case.dump(case.load(case.sample)))


@pytest.mark.parametrize("name", NAMES)
def test_whatever_bytes_come(cases: dict[str, Case], name: str) -> None:
    case = cases[name]

    @FEW
    @given(
        st.one_of(st.binary(max_size=60), changed_bytes(case.sample), changed_bytes(case.sample))
    )
    def run(content: bytes) -> None:
        attempt(case.read, content)

    run()
    attempt(case.read, case.sample)  # as it was


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FLAT])
def test_whatever_values_come(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    assert case.dump is not None and case.load is not None
    dump = case.dump

    @FEW
    @given(changed_value(case.load(case.sample)))
    def run(value: Any) -> None:
        attempt(case.read, dump(value))

    run()
    attempt(case.read, case.sample)

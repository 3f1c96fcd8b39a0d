from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nvtabular as nvt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from merlin.schema import Tags
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

import lookback.formats.histories
import lookback.workflows.histories.pipeline
import lookback.workflows.histories.write
import lookback.workflows.text
from lookback.core.errors import UserError
from lookback.formats.dataset_info import read_histories_info
from lookback.workflows.pipeline import fit_dataset, run_dataset, transform_dataset
from tests.metadata import of_data

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., pd.DataFrame]
Write = Callable[..., Path]
CATEGORIES = {f"B{number * 7919 % 1000:03d}": f"category {number % 5}" for number in range(33)}


def _codes(values: pd.Series, minimum: int = 0) -> dict[object, int]:
    """Ids as documented: by falling count, then by value, from 3 on."""
    counts = values.value_counts()
    counts = counts[counts >= minimum]
    order = sorted(counts.index, key=lambda value: (-counts[value], value))
    return {value: number for number, value in enumerate(order, start=3)}


def _distinct(events: pd.DataFrame) -> pd.DataFrame:
    """Exact repeats are one event."""
    return events.drop_duplicates(["user", "item", "time"])


def _oracle(events: pd.DataFrame, minimum: int, threshold: int = 0) -> dict[str, pd.DataFrame]:
    """The dataset by plain pandas."""
    events = _distinct(events)
    events = events.assign(category=events["item"].map(CATEGORIES).fillna("no_category"))
    events = events[events.groupby("user")["item"].transform("size") >= minimum]
    events = events.sort_values(["user", "time"], kind="stable")
    encoded = pd.DataFrame(
        {
            "user_id": events["user"].map(_codes(events["user"])),
            "item_id": events["item"].map(_codes(events["item"], threshold)).fillna(2),
            "category_id": events["category"].map(_codes(events["category"], threshold)).fillna(2),
            "timestamp": events["time"],
        }
    ).astype(int)
    histories = encoded.groupby("user_id").agg(list).reset_index()
    items = encoded.groupby("item_id")["category_id"].agg(["first", "size"]).reset_index()
    items.columns = ["item_id", "category_id", "count"]
    items.loc[items["item_id"] == 2, "category_id"] = 2
    return {"histories": histories, "items": items}


def _histories(directory: Path) -> pd.DataFrame:
    files = sorted((directory / "histories").iterdir())
    assert [file.name for file in files] == [f"part-{n:05d}.parquet" for n in range(len(files))]
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pandas()


def _assert_equal(directory: Path, oracle: dict[str, pd.DataFrame]) -> None:
    found = _histories(directory)
    expected = oracle["histories"]
    assert found["user_id"].tolist() == expected["user_id"].tolist()
    for name in ("item_id", "category_id", "timestamp"):
        assert [list(row) for row in found[name]] == expected[name].tolist(), name
    items = pq.read_table(directory / "items.parquet").to_pandas()
    assert items.astype(int).values.tolist() == oracle["items"].values.tolist()


@pytest.mark.parametrize("minimum", [1, 20])
@pytest.mark.parametrize("partition_events", [None, 100])
def test_equals_plain_pandas(
    tmp_path: Path,
    make_events: Make,
    write_reviews: Write,
    minimum: int,
    partition_events: int | None,
) -> None:
    events = make_events()
    raw = write_reviews(events, CATEGORIES)
    output = tmp_path / "out"
    report = run_dataset(
        "amazon",
        raw,
        output,
        min_interactions=minimum,
        partition_events=partition_events,
    )
    oracle = _oracle(events, minimum)
    _assert_equal(output, oracle)
    lengths = oracle["histories"]["item_id"].map(len)
    counts = report.metadata["counts"]
    assert counts["users"] == len(lengths)
    assert counts["events"] == lengths.sum()
    assert counts["items"] == len(oracle["items"])
    assert counts["events_read"] == len(events)
    assert counts["exact_repeats"] == len(events) - len(_distinct(events)) > 0
    events = _distinct(events)
    assert counts["users_read"] == events["user"].nunique()
    assert counts["users_dropped"] == events["user"].nunique() - len(lengths)
    assert counts["events_dropped"] == len(events) - lengths.sum()
    assert counts["users_with_one_event"] == (events["user"].value_counts() == 1).sum()
    missing = ~events["item"].isin(CATEGORIES)
    assert counts["events_without_features"] == {"category_id": missing.sum()}
    assert report.metadata["history_length"]["max"] == lengths.max()
    assert report.metadata["history_length"]["p50"] == lengths.quantile(0.5, "lower")
    assert report.plan.partitions == (15 if partition_events else 1)
    assert not (output / ".ingest").exists()


def test_frequency_threshold_equals_plain_pandas(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    events = make_events()
    raw = write_reviews(events, CATEGORIES)
    report = run_dataset(
        "amazon", raw, tmp_path / "out", min_interactions=20, frequency_threshold=30
    )
    oracle = _oracle(events, 20, threshold=30)
    _assert_equal(tmp_path / "out", oracle)
    infrequent = sum(row.count(2) for row in oracle["histories"]["item_id"])
    assert infrequent > 0
    assert report.metadata["counts"]["unknown_ids"]["item_id"] == infrequent
    assert report.metadata["counts"]["unknown_ids"]["user_id"] == 0


def test_the_hash_depends_on_the_content_alone(
    tmp_path: Path,
    make_events: Make,
    write_reviews: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = make_events()
    raw = write_reviews(events, CATEGORIES)
    options = {"min_interactions": 5, "ties": "item"}  # nor on the order of the lines
    first = run_dataset("amazon", raw, tmp_path / "a", **options)
    again = run_dataset("amazon", raw, tmp_path / "b", **options)
    assert of_data(first.metadata) == of_data(again.metadata)
    assert (tmp_path / "a/schema.pbtxt").read_bytes() == (tmp_path / "b/schema.pbtxt").read_bytes()
    # Many small blocks, partitions, files and row groups; and another order of the lines.
    monkeypatch.setattr(lookback.workflows.histories.write, "EVENTS_PER_FILE", 200)
    monkeypatch.setattr(lookback.formats.histories, "ROW_GROUP_USERS", 3)
    monkeypatch.setattr(lookback.workflows.text.blocks, "__defaults__", (1000,))
    write_reviews(events.sample(frac=1, random_state=1))
    other = run_dataset("amazon", raw, tmp_path / "c", partition_events=90, **options)
    assert len(list((tmp_path / "c/histories").iterdir())) > 3
    hashes = {report.metadata["content_hash"] for report in (first, again, other)}
    assert len(hashes) == 1
    _assert_equal(tmp_path / "c", _oracle(events.sort_values("item", kind="stable"), 5))
    changed = events.copy()
    changed.loc[0, "time"] += 1
    write_reviews(changed)
    report = run_dataset("amazon", raw, tmp_path / "d", **options)
    assert report.metadata["content_hash"] not in hashes


@pytest.mark.slow
def test_a_cluster_gives_the_same_hash(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    events = make_events()
    raw = write_reviews(events, CATEGORIES)
    alone = run_dataset("amazon", raw, tmp_path / "a", min_interactions=5, partition_events=300)
    two = run_dataset(
        "amazon", raw, tmp_path / "b", min_interactions=5, partition_events=300, workers=2
    )
    assert of_data(two.metadata) == of_data(alone.metadata)
    _assert_equal(tmp_path / "b", _oracle(events, 5))


def test_packed_literals_give_the_hash_of_strict_json(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    raw = write_reviews(make_events(), CATEGORIES)
    strict = run_dataset("amazon", raw, tmp_path / "a", min_interactions=5)
    for path in list(raw.iterdir()):
        lines = [repr(json.loads(line)) + "\n" for line in path.read_text("utf-8").splitlines()]
        (raw / f"{path.name}.gz").write_bytes(gzip.compress("".join(lines).encode()))
        path.unlink()
    literal = run_dataset("amazon", raw, tmp_path / "b", min_interactions=5)
    assert of_data(literal.metadata) == of_data(strict.metadata)
    reviews = raw / "reviews_Test.json.gz"
    reviews.write_bytes(reviews.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a whole gzip file"):
        run_dataset("amazon", raw, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_schema(tmp_path: Path, make_events: Make, write_reviews: Write) -> None:
    raw = write_reviews(make_events(), CATEGORIES)
    report = run_dataset("amazon", raw, tmp_path / "out", validation=True)
    schema = TensorflowMetadata.from_proto_text_file(str(tmp_path / "out")).to_merlin_schema()
    assert schema.column_names == ["user_id", "item_id", "category_id", "timestamp"]
    assert schema.select_by_tag(Tags.USER_ID).column_names == ["user_id"]
    assert schema.select_by_tag(Tags.ITEM_ID).column_names == ["item_id"]
    assert schema.select_by_tag(Tags.ITEM).column_names == ["item_id", "category_id"]
    assert schema.select_by_tag(Tags.TIME).column_names == ["timestamp"]
    assert schema.select_by_tag(Tags.SEQUENCE).column_names == [
        "item_id",
        "category_id",
        "timestamp",
    ]
    histories = _histories(tmp_path / "out")
    table = pq.read_table(next((tmp_path / "out/histories").iterdir()))
    assert table.schema.field("user_id").type == pa.int32()
    assert table.schema.field("item_id").type.value_type == pa.int32()
    assert table.schema.field("timestamp").type.value_type == pa.int64()
    for name in ("user_id", "item_id", "category_id"):
        column = schema[name]
        assert column.dtype.name == "int32"
        assert column.is_list == (name != "user_id")
        assert column.int_domain.min == 0
        assert column.int_domain.name == name
        assert column.int_domain.max + 1 == report.metadata["cardinalities"][name]
        values = histories[name].explode()
        assert values.min() >= 3
        assert values.max() == column.int_domain.max
        assert "cat_path" not in column.properties
    assert report.metadata["split"] == {"rule": "leave_last_out", "test": 1, "validation": 1}
    text = (tmp_path / "out/dataset.json").read_text()
    assert json.loads(text) == report.metadata
    assert str(tmp_path) not in text


def test_without_metadata_there_is_one_category(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    report = run_dataset("amazon", write_reviews(make_events()), tmp_path / "out")
    assert report.metadata["cardinalities"]["category_id"] == 4
    assert set(_histories(tmp_path / "out")["category_id"].explode()) == {3}
    encoder = nvt.Workflow.load(str(tmp_path / "out/workflow/encoder"))
    vocabulary = pq.read_table(
        tmp_path / "out/workflow/encoder/categories/unique.category_id.parquet"
    )
    assert vocabulary["category_id"].to_pylist() == ["no_category"]
    assert encoder.output_schema.column_names == ["user_id", "item_id", "category_id"]


def test_the_encoder_maps_raw_ids_of_any_frame(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    events = make_events()
    run_dataset("amazon", write_reviews(events, CATEGORIES), tmp_path / "out", min_interactions=20)
    events = _distinct(events)
    kept = events[events.groupby("user")["item"].transform("size") >= 20]
    codes = {name: _codes(kept[name]) for name in ("user", "item")}
    frame = pd.DataFrame(
        {
            "user_id": ["U003", "nobody", None, "U000"],
            "item_id": ["B000", "B919", "nothing", None],
            "category_id": ["no_category", "category 0", "category 9", "category 1"],
        }
    )
    expected_users = [codes["user"]["U003"], 2, 1, codes["user"]["U000"]]
    expected_items = [codes["item"]["B000"], codes["item"]["B919"], 2, 1]
    directory = tmp_path / "elsewhere"
    (tmp_path / "out/workflow").rename(directory)
    found = nvt.Workflow.load(str(directory / "encoder")).transform(frame)
    assert found["user_id"].tolist() == expected_users
    assert found["item_id"].tolist() == expected_items
    assert found["category_id"].tolist()[2] == 2
    assert set(found.dtypes.astype(str)) == {"int32"}
    # The whole workflow applies, too: a frame of raw events to histories.
    whole = nvt.Workflow.load(str(directory))
    user = events[events["user"] == "U003"].sort_values(["time", "item"])
    raw = pd.DataFrame(
        {
            "history_id": 0,
            "user_id": user["user"],
            "item_id": user["item"],
            "category_id": user["item"].map(CATEGORIES).fillna("no_category"),
            "timestamp": user["time"],
        }
    ).reset_index(drop=True)
    row = whole.transform(raw).iloc[0]
    assert row["user_id"] == codes["user"]["U003"]
    assert list(row["item_id"]) == [codes["item"][item] for item in user["item"]]


def test_transform_with_a_saved_workflow(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    events = make_events()
    raw = write_reviews(events, CATEGORIES)
    whole = run_dataset("amazon", raw, tmp_path / "run", min_interactions=20)
    fit_dataset("amazon", raw, tmp_path / "workflow", min_interactions=20)
    assert sorted(path.name for path in (tmp_path / "workflow").iterdir()) == [
        ".lookback.json",
        "categories",
        "encoder",
        "metadata.json",
        "options.json",
        "workflow.pkl",
    ]
    same = transform_dataset(tmp_path / "workflow", raw, tmp_path / "same")
    assert of_data(same.metadata) == of_data(whole.metadata)
    again = transform_dataset(tmp_path / "same", raw, tmp_path / "again")  # a dataset serves, too
    assert of_data(again.metadata) == of_data(whole.metadata)
    # New data: some users and items are known, some are not.
    new = make_events(users=90, items=60, events=1000, seed=5)
    directory = write_reviews(new, directory=tmp_path / "new")
    report = transform_dataset(
        tmp_path / "workflow",
        directory,
        tmp_path / "out",
        min_interactions=10,
        partition_events=200,
    )
    events, new = _distinct(events), _distinct(new)
    kept = events[events.groupby("user")["item"].transform("size") >= 20]
    users, items = _codes(kept["user"]), _codes(kept["item"])
    new = new[new.groupby("user")["item"].transform("size") >= 10]
    new = new.sort_values(["user", "time"], kind="stable")
    expected = {
        user: [items.get(item, 2) for item in rows["item"]] for user, rows in new.groupby("user")
    }
    found = _histories(tmp_path / "out")
    known = found[found["user_id"] > 2]
    assert known["user_id"].is_monotonic_increasing and found["user_id"].is_monotonic_increasing
    names = {code: user for user, code in users.items()}
    for user, row in zip(known["user_id"], known["item_id"], strict=True):
        assert list(row) == expected.pop(names[user])
    unknown = found[found["user_id"] == 2]
    assert sorted(map(tuple, unknown["item_id"])) == sorted(map(tuple, expected.values()))
    counts = report.metadata["counts"]["unknown_ids"]
    assert counts["user_id"] == len(unknown) > 0
    assert counts["item_id"] == (~new["item"].isin(items)).sum() > 0
    # Unknown users have an order, too, that partitions have no say in.
    one = transform_dataset(tmp_path / "workflow", directory, tmp_path / "one", min_interactions=10)
    assert of_data(one.metadata) == of_data(report.metadata)


def test_dropped_users_leave_no_trace(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    events = make_events(events=400)
    rare = pd.DataFrame({"user": "RARE", "item": [f"ONLY{n}" for n in range(19)], "time": 10**9})
    raw = write_reviews(pd.concat([events, rare]))
    report = run_dataset("amazon", raw, tmp_path / "with", min_interactions=20)
    without = run_dataset(
        "amazon", write_reviews(events), tmp_path / "without", min_interactions=20
    )
    assert report.metadata["content_hash"] == without.metadata["content_hash"]
    assert report.metadata["cardinalities"] == without.metadata["cardinalities"]


def test_refusals_leave_nothing_behind(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    raw = write_reviews(make_events(events=100))
    output = tmp_path / "out"

    def refused(match: str, directory: Path = raw, **options: object) -> None:
        with pytest.raises(UserError, match=match):
            run_dataset("amazon", directory, output, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["raw"]

    refused("min_interactions: expected an integer, 1 or more, received 0", min_interactions=0)
    refused("workers: expected an integer, 0 or more, or none, received -1", workers=-1)
    refused("has no option 'min_interaction'.*category.*min_interactions", min_interaction=5)
    refused("--input .*none does not exist", directory=tmp_path / "none")
    refused(r"None of the \d+ users has 99.*Pass a smaller --min_interactions", min_interactions=99)
    refused("No item has 999 or more", frequency_threshold=999, min_interactions=2)
    refused("too little for 2 worker", workers=2, memory_limit=10**9)
    reviews = raw / "reviews_Test.json"
    reviews.write_bytes(reviews.read_bytes() + b"{}\n")
    refused(r"(?s)reviews_Test\.json:101: no reviewerID: \{\}.*--max_bad_lines")
    reviews.write_bytes(b"\n\n")
    refused("the input is empty")
    reviews.write_bytes(b"")
    refused("the input is empty")
    with pytest.raises(
        UserError, match=r"no dataset 'books'. Choose of amazon, criteo, interactions"
    ):
        run_dataset("books", raw, output)
    with pytest.raises(UserError, match="is not a workflow"):
        transform_dataset(raw, raw, output)
    with pytest.raises(UserError, match="is not a dataset"):
        read_histories_info(raw)


def test_bad_lines_are_left_out_and_counted(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    events = make_events()
    raw = write_reviews(events)
    good = run_dataset("amazon", raw, tmp_path / "good")
    reviews = raw / "reviews_Test.json"
    lines = reviews.read_bytes().split(b"\n")
    lines[10:10] = [b"{", b'{"reviewerID": "A", "asin": "B", "unixReviewTime": -5}', b"\xff"]
    reviews.write_bytes(b"\n".join(lines))
    report = run_dataset("amazon", raw, tmp_path / "out", max_bad_lines=3)
    assert report.metadata["counts"]["bad_lines"] == {
        "neither JSON nor a Python literal": 1,
        "not UTF-8": 1,
        "unixReviewTime is not between 1995 and a year from now in s: name its unit with "
        "--time_unit (steps: any numbers that increase), and the years with --years if they are "
        "others": 1,
    }
    assert report.metadata["content_hash"] == good.metadata["content_hash"]


def test_an_existing_output_is_kept_unless_told(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    raw = write_reviews(make_events())
    run_dataset("amazon", raw, tmp_path / "out")
    with pytest.raises(UserError, match="--overwrite"):
        run_dataset("amazon", raw, tmp_path / "out", min_interactions=5)
    assert read_histories_info(tmp_path / "out")["options"]["min_interactions"] == 20
    run_dataset("amazon", raw, tmp_path / "out", min_interactions=5, overwrite=True)
    assert read_histories_info(tmp_path / "out")["options"]["min_interactions"] == 5


@pytest.mark.parametrize("stage", ["ingest", "_fit", "_transform"])
def test_a_killed_run_leaves_no_dataset(
    tmp_path: Path, make_events: Make, write_reviews: Write, stage: str
) -> None:
    raw = write_reviews(make_events())
    output = tmp_path / "out"
    # Killed at the end of a stage: everything of it is on disk, and nothing has its name.
    script = (
        "import os, signal, sys, lookback.workflows.histories.pipeline as base\n"
        "base_cluster = __import__('lookback.workflows.cluster').workflows.cluster\n"
        "base_cluster.forgo_tensorflow()\n"
        f"inner = base.{stage}\n"
        "def killed(*args, **options):\n"
        "    inner(*args, **options)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"base.{stage} = killed\n"
        "from lookback.workflows.pipeline import run_dataset\n"
        "run_dataset('amazon', sys.argv[1], sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, raw, output], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not output.exists()
    run_dataset("amazon", raw, output)
    assert read_histories_info(output)["counts"]["users"] > 0


def test_small_data_takes_no_cluster(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    raw = write_reviews(make_events())
    run_dataset("amazon", raw, tmp_path / "warm")
    started = time.perf_counter()
    report = run_dataset("amazon", raw, tmp_path / "out")
    assert report.plan.workers == 0
    assert time.perf_counter() - started < 5

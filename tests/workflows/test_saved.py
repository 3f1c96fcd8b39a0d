"""Saved workflows: `transform` reads data alone; the oracle is what NVTabular loads itself."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nvtabular as nvt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.core.errors import UserError
from lookback.formats.dataset_info import read_tabular_info
from lookback.formats.history_columns import categorical_names, history_columns
from lookback.workflows.histories import ops
from lookback.workflows.pipeline import fit_dataset, run_dataset, transform_dataset
from lookback.workflows.saved import OPTIONS_FILE
from lookback.workflows.tabular import ops as tabular_ops
from tests.metadata import of_data
from tests.serving.tabular_data import raw_rows
from tests.serving.tabular_data import write_dataset as write_rows


class Harm:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def plant_harm(workflow: Path, trace: Path) -> None:
    """Makes every pickle of a workflow harmful."""
    files = list(workflow.rglob("*.pkl"))
    assert files
    for file in files:
        file.write_bytes(pickle.dumps(Harm(trace)))


def assert_harmful(workflow: Path, trace: Path) -> None:
    with pytest.raises(AttributeError):  # the trace is no workflow
        nvt.Workflow.load(str(workflow))
    assert trace.exists()
    trace.unlink()


def forget_digests(workflow: Path) -> None:
    """Makes a saved workflow one of an earlier version."""
    file = workflow / OPTIONS_FILE
    file.write_text(json.dumps(of_data(json.loads(file.read_text()))))


@pytest.fixture
def raw(make_events: Callable[..., pd.DataFrame], write_reviews: Callable[..., Path]) -> Path:
    events = make_events()
    return write_reviews(events, {item: f"category {item[-1]}" for item in events["item"][:600]})


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A dataset of rows; what it was written from is beside it."""
    return write_rows(tmp_path / "rows")


def test_transform_of_histories_runs_no_code(raw: Path, tmp_path: Path) -> None:
    whole = run_dataset("amazon", raw, tmp_path / "run", min_interactions=20)
    trace = tmp_path / "trace"
    plant_harm(tmp_path / "run/workflow", trace)
    report = transform_dataset(tmp_path / "run", raw, tmp_path / "out")
    assert of_data(report.metadata) == of_data(whole.metadata)
    assert not trace.exists()
    nvt.Workflow.load(str(tmp_path / "out/workflow"))  # it was written anew, not copied
    assert not trace.exists()
    assert_harmful(tmp_path / "run/workflow", trace)
    for file in (tmp_path / "run/workflow").rglob("*.pkl"):
        file.unlink()
    without = transform_dataset(tmp_path / "run/workflow", raw, tmp_path / "without")
    assert of_data(without.metadata) == of_data(whole.metadata)


def test_transform_of_rows_runs_no_code(rows: Path, tmp_path: Path) -> None:
    whole = read_tabular_info(rows)
    trace = tmp_path / "trace"
    plant_harm(rows / "workflow", trace)
    report = transform_dataset(rows, rows.parent / "raw", tmp_path / "out", workers=0)
    assert report.metadata == whole
    assert not trace.exists()
    nvt.Workflow.load(str(tmp_path / "out/workflow"))
    assert not trace.exists()
    assert_harmful(rows / "workflow", trace)
    (rows / "workflow/workflow.pkl").unlink()
    without = transform_dataset(
        rows / "workflow", rows.parent / "raw", tmp_path / "without", workers=0
    )
    assert without.metadata == whole


@pytest.mark.parametrize("numbers", [False, True])
def test_restored_histories_equal_what_nvtabular_loads(
    raw: Path, make_events: Callable[..., pd.DataFrame], tmp_path: Path, numbers: bool
) -> None:
    columns = history_columns((), ("category_id",))
    events = make_events(seed=1).rename(
        columns={"user": "user_id", "item": "item_id", "time": "timestamp"}
    )
    if numbers:
        events["item_id"] = events["item_id"].str[1:].astype(int)
    events["category_id"] = "category " + events["item_id"].astype(str).str[-1]
    events["history_id"] = events["user_id"].str[1:].astype(int)
    limits = {"min_interactions": 20, "fewest_items": None, "frequency_threshold": 30}
    fitted = ops.build_workflow(columns, **limits, vocabulary_directory=tmp_path / "fit")
    fitted.fit(nvt.Dataset(events[events["user_id"] < "U040"], cpu=True))
    ops.save_workflow(fitted, tmp_path / "saved", {})
    vocabularies = ops.saved_vocabularies(tmp_path / "saved", categorical_names(columns))
    restored = ops.restore_workflow(vocabularies, columns, **limits)
    loaded = nvt.Workflow.load(str(tmp_path / "saved"))
    expected = loaded.transform(events)
    assert 2 in set(expected["user_id"]) and 2 in set(expected["item_id"].explode())
    pd.testing.assert_frame_equal(restored.transform(events), expected)
    assert restored.input_schema == loaded.input_schema
    ops.save_workflow(restored, tmp_path / "again", {})
    assert restored.output_schema == loaded.output_schema
    pd.testing.assert_frame_equal(
        nvt.Workflow.load(str(tmp_path / "again/encoder")).transform(events),
        nvt.Workflow.load(str(tmp_path / "saved/encoder")).transform(events),
    )


def test_restored_rows_equal_what_nvtabular_loads(rows: Path) -> None:
    names = ["label", *(f"{kind}_{n}" for kind in ("num", "cat") for n in range(3))]
    frame = pd.DataFrame(
        [[label, *numbers, *values] for label, numbers, values in raw_rows(text=False, seed=1)],
        columns=names,
    )
    loaded = nvt.Workflow.load(str(rows / "workflow"))
    restored = tabular_ops.restore_workflow(rows / "workflow")
    expected = loaded.transform(frame)
    assert 0 < (expected["cat_1"] == 0).mean() < 0.9
    pd.testing.assert_frame_equal(restored.transform(frame), expected)
    assert restored.output_schema == loaded.output_schema
    assert tabular_ops.known_values(restored) == tabular_ops.known_values(loaded)


def test_histories_without_their_vocabularies_are_refused(raw: Path, tmp_path: Path) -> None:
    fit_dataset("amazon", raw, tmp_path / "fit")
    forget_digests(tmp_path / "fit")
    path = tmp_path / "fit/categories/unique.item_id.parquet"

    def refused(found: str) -> None:
        text = rf"unique\.item_id\.parquet does not hold the known values.*{found}.*fit"
        with pytest.raises(UserError, match=text):
            transform_dataset(tmp_path / "fit", raw, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    pq.write_table(pa.table({"item_id": ["B000"]}), path)
    refused(r"the columns \['item_id'\]")
    path.write_bytes(b"PAR1")
    refused("Parquet")
    path.unlink()
    refused("No such file")


def test_rows_without_their_vocabularies_are_refused(rows: Path, tmp_path: Path) -> None:
    forget_digests(rows / "workflow")
    path = rows / "workflow/vocabulary/cat_1.arrow"

    def refused(found: str) -> None:
        text = rf"(?s)cat_1\.arrow does not hold the known values.*{found}.*fit"
        with pytest.raises(UserError, match=text):
            transform_dataset(rows / "workflow", rows.parent / "raw", tmp_path / "out", workers=0)
        assert not list(tmp_path.glob("out*"))

    shutil.copyfile(rows / "schema.pbtxt", path)
    refused("Not an Arrow file")
    table = pa.table({"key": pa.array([1], pa.int32()), "id": pa.array([1], pa.int32())})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    refused("found key int32, id int32")
    path.unlink()
    refused("No such file")


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        (("synthetic", {"scheduler": "tcp://127.0.0.1:1"}), "options.json: .*received 'scheduler'"),
        (("synthetic", {"memory_limit": 1}), "received 'memory_limit'"),
        (("synthetic", {"workers": 10**6}), "received 'workers'"),
        (("synthetic", {"x" * 10**5: 1}), "received 'xxx"),
        (("criteo", {"scheduler": "tcp://127.0.0.1:1"}), "received 'scheduler'"),
        (("synthetic", {"category": [5]}), r"category in .*options.json: expected text.*\[5\]"),
        (("synthetic", {"min_interactions": "x"}), "min_interactions in .*expected an integer"),
        (("synthetic", []), r"is not a workflow .*with options \[\]"),
        (([], {}), r"is not a workflow .*dataset \[\] with"),
        (({}, {}), "is not a workflow .*dataset {} with"),
        (("x" * 10**5, {}), "There is no dataset 'xxx"),
    ],
)
def test_what_a_foreign_workflow_says_is_checked(
    saved: tuple[Any, Any], expected: str, tmp_path: Path
) -> None:
    workflow = tmp_path / "workflow"
    workflow.mkdir()
    (workflow / "options.json").write_text(json.dumps({"dataset": saved[0], "options": saved[1]}))
    with pytest.raises(UserError, match=expected) as caught:
        transform_dataset(workflow, tmp_path, tmp_path / "out")
    assert len(str(caught.value)) < 2000
    assert not (tmp_path / "out").exists()


def test_a_workflow_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not a workflow"):
        transform_dataset(tmp_path, tmp_path, tmp_path / "out")

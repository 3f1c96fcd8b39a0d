from __future__ import annotations

from pathlib import Path

import dask.dataframe as dd
import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow.parquet as pq
import pytest
from nvtabular.ops import Categorify

from lookback.formats.history_columns import history_columns
from lookback.workflows.histories import ops
from lookback.workflows.histories.vocabulary_files import order_vocabulary

pytestmark = pytest.mark.filterwarnings("ignore:Initializing an NVTabular Dataset in CPU mode")


def _frame(seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    # Counts that all differ, so that upstream's order of ties has no say.
    words = np.repeat([f"w{number:02d}" for number in range(40)], np.arange(1, 41))
    random.shuffle(words)
    numbers = np.repeat(np.arange(40) * 7 - 50, np.arange(40, 0, -1))
    random.shuffle(numbers)
    return pd.DataFrame({"word": words, "number": numbers})


def _fitted(operator: Categorify, frame: pd.DataFrame, partitions: int) -> nvt.Workflow:
    workflow = nvt.Workflow(list(frame.columns) >> operator)
    return workflow.fit(nvt.Dataset(dd.from_pandas(frame, npartitions=partitions), cpu=True))


@pytest.mark.parametrize("partitions", [1, 3, 20])
@pytest.mark.parametrize("threshold", [0, 12])
def test_vocabulary_equals_categorify(tmp_path: Path, partitions: int, threshold: int) -> None:
    frame = _frame()
    limits = {"word": threshold, "number": threshold}
    ours = _fitted(ops.HistoryVocabulary(limits, tmp_path / "a"), frame, partitions)
    theirs = _fitted(
        Categorify(freq_threshold=threshold, out_path=str(tmp_path / "b"), dtype=np.int32),
        frame,
        partitions,
    )
    for name in frame.columns:
        for kind in ("unique", "meta"):
            found, expected = (
                pd.read_parquet(tmp_path / side / f"categories/{kind}.{name}.parquet")
                for side in "ab"
            )
            pd.testing.assert_frame_equal(found, expected, check_dtype=False)
        domains = [workflow.output_schema[name].int_domain for workflow in (ours, theirs)]
        assert domains[0] == domains[1]
    new = pd.DataFrame({"word": ["w39", "no", None, "w00"], "number": [-50, 153, 1000, 146]})
    found, expected = ours.transform(new), theirs.transform(new)
    assert found["word"].tolist() == [3, 2, 1, 2 if threshold else 42]
    pd.testing.assert_frame_equal(found, expected)


def test_ties_follow_the_values(tmp_path: Path) -> None:
    frame = pd.DataFrame({"word": ["b", "a", "ä", "c", "B", "c"], "number": [3, -1, 2, 2, 10, 3]})
    for partitions in (1, 4):
        for seed in range(3):
            shuffled = frame.sample(frac=1, random_state=seed).reset_index(drop=True)
            path = tmp_path / f"{partitions}{seed}"
            _fitted(ops.HistoryVocabulary({"word": 0, "number": 0}, path), shuffled, partitions)
            words = pq.read_table(path / "categories/unique.word.parquet")["word"].to_pylist()
            numbers = pq.read_table(path / "categories/unique.number.parquet")["number"].to_pylist()
            assert words == ["c", "B", "a", "b", "ä"]
            assert numbers == [2, 3, -1, 10]


def test_upstream_order_is_put_right(tmp_path: Path) -> None:
    path = tmp_path / "unique.word.parquet"
    pd.DataFrame({"word": ["b", "c", "a"], "word_size": [1, 2, 1]}).set_index(
        pd.RangeIndex(3, 6)
    ).to_parquet(path)
    order_vocabulary("word", path)
    read = pd.read_parquet(path)
    assert read["word"].tolist() == ["c", "a", "b"]
    assert read.index.tolist() == [3, 4, 5]


def test_vocabulary_passes_a_frame_without_rows(tmp_path: Path) -> None:
    frame = _frame()
    workflow = _fitted(ops.HistoryVocabulary({"word": 0, "number": 0}, tmp_path), frame, 2)
    empty = workflow.output_node.op.transform(nvt.ColumnSelector(["word"]), frame.iloc[:0])
    assert len(empty) == 0 and empty["word"].dtype == np.int32


def test_a_refitted_vocabulary_is_read_anew(tmp_path: Path) -> None:
    operator = ops.HistoryVocabulary({"word": 0, "number": 0}, tmp_path)
    frame = _frame()
    assert _fitted(operator, frame, 1).transform(frame)["word"].min() == 3
    other = pd.DataFrame({"word": ["only"], "number": [1]})
    assert _fitted(operator, other, 1).transform(other).values.tolist() == [[3, 3]]


def test_history_lists_sort_stably() -> None:
    frame = pd.DataFrame(
        {
            "history_id": [1, 0, 1, 0, 1, 1],
            "user_id": [9, 7, 9, 7, 9, 9],
            "item_id": np.array([1, 2, 3, 4, 5, 6], dtype=np.int32),
            "timestamp": [5, 1, 5, 0, 2, 5],
        }
    )
    operator = ops.HistoryLists(["user_id"], ["item_id", "timestamp"])
    found = operator.transform(nvt.ColumnSelector(list(frame.columns)), frame)
    assert found["user_id"].tolist() == [7, 9]
    assert [row.tolist() for row in found["item_id"]] == [[4, 2], [5, 1, 3, 6]]
    assert [row.tolist() for row in found["timestamp"]] == [[0, 1], [2, 5, 5, 5]]
    assert found["item_id"][0].dtype == np.int32
    empty = operator.transform(nvt.ColumnSelector(list(frame.columns)), frame.iloc[:0])
    assert len(empty) == 0


def test_history_lists_equal_pandas() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "history_id": random.integers(0, 40, 1000),
            "item_id": np.arange(1000),
            "timestamp": random.integers(0, 20, 1000),
        }
    ).assign(user_id=lambda frame: frame["history_id"] * 2)
    operator = ops.HistoryLists(["user_id"], ["item_id", "timestamp"])
    found = operator.transform(nvt.ColumnSelector(list(frame.columns)), frame)
    expected = (
        frame.sort_values(["history_id", "timestamp"], kind="stable")
        .groupby("history_id")
        .agg({"user_id": "first", "item_id": list, "timestamp": list})
    )
    assert found["user_id"].tolist() == expected["user_id"].tolist()
    assert [row.tolist() for row in found["item_id"]] == expected["item_id"].tolist()
    assert [row.tolist() for row in found["timestamp"]] == expected["timestamp"].tolist()


def test_min_interactions() -> None:
    frame = pd.DataFrame({"history_id": [0, 1, 1, 2, 2, 2]})
    assert ops.MinInteractions(2)(frame).tolist() == [False, True, True, True, True, True]
    assert not ops.MinInteractions(4)(frame).any()


def test_workflow_nodes_are_nvtabulars() -> None:
    workflow = ops.build_workflow(
        history_columns((), ("category_id",)),
        min_interactions=20,
        frequency_threshold=3,
        vocabulary_directory="unused",
    )
    kinds = []
    node = workflow.output_node
    while node.parents:
        kinds.append(type(node.op))
        node = node.parents[0]
    for upstream in (nvt.ops.AddMetadata, nvt.ops.Groupby, nvt.ops.Categorify, nvt.ops.Filter):
        assert any(issubclass(kind, upstream) for kind in kinds)
    assert ops.vocabulary_of(workflow).freq_threshold == {
        "user_id": 0,
        "item_id": 3,
        "category_id": 3,
    }

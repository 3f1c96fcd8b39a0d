"""`formats.dataset_info`: what is written is read, and what is no dataset is refused in words."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from lookback.core.errors import UserError
from lookback.formats.dataset_info import (
    DATASET_FILE,
    HISTORIES,
    TABULAR,
    content_of,
    is_tabular,
    read_histories_info,
    read_info,
    read_tabular_info,
    training_events,
    write_info,
)

SPLIT = {"split": {"rule": "leave_last_out", "test": 1, "validation": 0}}
ROWS = {"counts": {"train": 3}, "cardinalities": {"cat_0": 7}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for kind, content, read in (
        (HISTORIES, SPLIT, read_histories_info),
        (TABULAR, ROWS, read_tabular_info),
    ):
        written = write_info(tmp_path, kind, content)  # the second replaces the first
        assert list(written)[:2] == ["format", "format_version"]
        assert written["created_by"]["pyarrow"] == version("pyarrow")
        assert written.items() >= content.items()
        assert read(tmp_path) == read_info(tmp_path) == written
        assert is_tabular(tmp_path) is (kind == TABULAR)
        assert [file.name for file in tmp_path.iterdir()] == [DATASET_FILE]


@pytest.mark.parametrize("read", [read_histories_info, read_tabular_info, read_info])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is not a dataset: there is no dataset.json"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1, 2]", "expected a JSON object, found a list"),
        (b"null", "expected a JSON object, found a NoneType"),
        (b"{}", "version 1, found None version None"),
    ],
)
def test_what_is_no_dataset_is_refused(tmp_path: Path, read, content, said) -> None:
    if content is not None:
        (tmp_path / DATASET_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"python -m workflows run") as error:
        read(tmp_path)
    assert said in str(error.value) and str(tmp_path) in str(error.value)
    assert not is_tabular(tmp_path)


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATASET_FILE).mkdir()  # nobody may read it as a file, not even root
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_info(tmp_path)
    (tmp_path / "file").write_text("")
    for nowhere in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(UserError, match="is not a dataset"):
            read_info(nowhere)


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        (HISTORIES, {}, "has no split rule"),
        (HISTORIES, {"split": ["test"]}, "has no split rule"),
        (HISTORIES, {"split": 3}, "has no split rule"),
        (HISTORIES, {"split": {"test": 1, "validation": 0}}, "'rule' must be one of"),
        (HISTORIES, SPLIT | {"labels": ["clicks"]}, "'labels' must be one of"),
        (TABULAR, {"counts": {"train": 1}}, "'cardinalities' must hold whole numbers"),
        (TABULAR, ROWS | {"counts": {"train": "many"}}, "'counts' must hold whole numbers"),
        (TABULAR, ROWS | {"counts": [3]}, "'counts' must hold whole numbers"),
        (HISTORIES, SPLIT | {"format_version": 2}, "version 1, found 'lookback-histories' vers"),
    ],
)
def test_what_lacks_what_is_needed_is_refused(tmp_path: Path, kind, content, said) -> None:
    content = {"format": kind, "format_version": 1, **content}
    (tmp_path / DATASET_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_info(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    write_info(tmp_path, TABULAR, ROWS)
    with pytest.raises(UserError, match="expected format 'lookback-histories' version 1, found"):
        read_histories_info(tmp_path)


COUNTS = {"users": 10, "events": 100, "train_impressions": 55}


@pytest.mark.parametrize(
    ("said", "before", "expected"),
    [
        ({"split": {"rule": "leave_last_out", "test": 1, "validation": 1}}, 0, 100 - 10 * 2),
        ({"split": {"rule": "leave_last_out", "test": 1, "validation": 0}}, 1, 100 - 10 * 2),
        ({"split": {"rule": "time", "test": 7, "validation": 5}}, 0, 100 - 12),
        ({"split": {"rule": "users", "test": 7, "validation": 5}}, 1, 100 - 12 - 10),
        ({"split": {"rule": "time", "test": 99, "validation": 0}}, 1, 0),
        ({"labels": "explicit", "split": {"rule": "time", "test": 7, "validation": 5}}, 1, 55),
    ],
)
def test_events_to_train_on_follow_from_split_and_labels(tmp_path, said, before, expected) -> None:
    write_info(tmp_path, HISTORIES, {"counts": COUNTS, **said})
    assert training_events(tmp_path, before) == expected


def test_datasets_that_do_not_say_how_much_there_is_ask_for_the_batch(tmp_path: Path) -> None:
    for said in (SPLIT, {**SPLIT, "labels": "explicit", "counts": {"users": 1, "events": 2}}):
        write_info(tmp_path, HISTORIES, said)
        with pytest.raises(UserError, match="Give --global_batch_size"):
            training_events(tmp_path)


@pytest.mark.parametrize("found", [None, "", 7])
def test_data_without_a_content_hash_are_refused(tmp_path: Path, found: object) -> None:
    info = write_info(tmp_path, HISTORIES, SPLIT)
    with pytest.raises(UserError, match=r"dataset.json: expected 'content_hash', .*found"):
        content_of(tmp_path, info | {"content_hash": found})
    assert content_of(tmp_path, info | {"content_hash": "abc"}) == "abc"

"""`core.manifests`: digests against hashlib, and each way in which a directory may differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lookback.core.errors import UserError
from lookback.core.manifests import (
    FILES,
    SIZES,
    Verification,
    entries_of,
    fault_of,
    has_digests,
    is_whole,
    sealed,
    visible_files,
)

CONTENT = {"a": b"12345", "b/c": b"", "b/d": b"xyz" * 1000}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, content in {**CONTENT, ".hidden": b"", "b/.tmp/e": b"1"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_entries_are_sizes_and_sha_256(directory: Path) -> None:
    assert visible_files(directory) == sorted(CONTENT)
    assert entries_of(directory, visible_files(directory)) == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in CONTENT.items()
    }


def test_what_is_sealed_is_whole_until_it_is_changed() -> None:
    content = {"n": 1, "t": (1, 2), "f": 0.1, "s": "ü", FILES: {}, "numbers": {2: 1, 10: 2}}
    manifest = sealed(content)
    assert json.loads(json.dumps(manifest)) == manifest and is_whole(manifest)
    assert has_digests(manifest) and not has_digests({"n": 1})
    for key in manifest:
        assert not is_whole({**manifest, key: "other"})
        assert not is_whole({name: value for name, value in manifest.items() if name != key})
    assert not is_whole({**manifest, 1: "a key that JSON does not have"})


@pytest.mark.parametrize(
    "files",
    [
        {"../a": {"bytes": 1, "sha256": ""}},
        {"/a": {"bytes": 1, "sha256": ""}},
        {"a": {"bytes": 1.0, "sha256": ""}},
        {"a": {"bytes": 1}},
        {"a": "x"},
        ["a"],
    ],
)
def test_files_that_we_would_not_name_are_none(files: object) -> None:
    assert not is_whole(sealed({FILES: files}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: (d / "a").unlink(), "a is missing"),
        (lambda d: ((d / "a").unlink(), (d / "a").mkdir()), "a is missing"),
        (lambda d: (d / "b/d").write_bytes(b"xyz" * 999), "b/d has 2997 bytes instead of 3000"),
        (lambda d: (d / "b/c").write_bytes(b"1"), "b/c has 1 bytes instead of 0"),
        (lambda d: (d / "b/f").touch(), "b/f is there, which is not of it"),
        (lambda d: (d / "a").write_bytes(b"12346"), "the content of a is not what was written"),
    ],
)
def test_each_difference_is_named(
    directory: Path, change: Callable[[Path], object], said: str
) -> None:
    files = entries_of(directory, visible_files(directory))
    assert fault_of(directory, files, present=visible_files(directory)) is None
    change(directory)
    fault = fault_of(directory, files, present=visible_files(directory))
    assert fault is not None and fault.startswith(said)
    unread = fault_of(directory, files, present=visible_files(directory), verification=SIZES)
    assert (unread is None) == ("content" in said)


def test_ranks_share_the_digests(directory: Path) -> None:
    files = entries_of(directory, visible_files(directory))
    for name, content in CONTENT.items():
        (directory / name).write_bytes(b"?" * len(content))
    faults = [
        fault_of(directory, files, verification=Verification(rank=rank, ranks=3))
        for rank in range(3)
    ]
    said = [None if fault is None else fault.split()[3] for fault in faults]
    assert said == ["b/d", "a", None]  # by size; of the empty file nothing can be changed


def test_a_file_that_cannot_be_read_is_a_user_s_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = entries_of(directory, ["a"])

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(UserError, match=r"/a cannot be read \(Permission denied\)"):
        fault_of(directory, files)

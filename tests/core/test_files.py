from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lookback.core.errors import UserError
from lookback.core.files import atomic_directory, atomic_file, require_writable

ROOT = Path(__file__).resolve().parents[2]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_file_is_there_only_after_the_block(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"all of it")
        assert temporary.parent == tmp_path  # a rename across file systems is not atomic
        assert not target.exists()
    assert target.read_bytes() == b"all of it"
    assert names(tmp_path) == ["weights"]


def test_file_replaces_an_old_one_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    target.write_text("old")
    with atomic_file(str(target)) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert names(tmp_path) == ["weights"]


def test_failure_of_a_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "weights") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_results_are_as_readable_as_other_files(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("x")
        with atomic_directory(tmp_path / "directory"):
            pass
        assert os.umask(umask) == umask, "the umask was changed"
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == 0o666 & ~umask
    assert mode(tmp_path / "directory") == 0o777 & ~umask


def test_directory_is_there_only_after_the_block(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "dataset"  # the parent is made, too
    with atomic_directory(target) as temporary:
        (temporary / "part").mkdir()
        (temporary / "part" / "0.parquet").write_text("rows")
        assert temporary.parent == target.parent
        assert not target.exists()
    assert (target / "part" / "0.parquet").read_text() == "rows"
    assert names(target.parent) == ["dataset"]


def test_existing_directory_is_refused_before_the_block(tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    target.mkdir()
    (target / "mine").write_text("precious")
    ran = False
    with (
        pytest.raises(UserError, match=r"dataset already exists\. .*--overwrite"),
        atomic_directory(target),
    ):
        ran = True
    assert not ran
    assert (target / "mine").read_text() == "precious"
    assert names(tmp_path) == ["dataset"]


def test_overwrite_replaces_the_whole_directory(tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    target.mkdir()
    (target / "stale").write_text("old")
    with atomic_directory(target, overwrite=True) as temporary:
        (temporary / "fresh").write_text("new")
        assert names(target) == ["stale"]
    assert names(target) == ["fresh"]
    assert names(tmp_path) == ["dataset"]


def test_failure_while_overwriting_keeps_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    target.mkdir()
    (target / "stale").write_text("old")
    with (
        pytest.raises(ZeroDivisionError),
        atomic_directory(target, overwrite=True) as temporary,
    ):
        (temporary / "fresh").write_text("half")
        raise ZeroDivisionError
    assert (target / "stale").read_text() == "old"
    assert names(tmp_path) == ["dataset"]


def test_a_replacement_killed_between_its_renames_is_undone(tmp_path: Path) -> None:
    # What is left if the process dies after moving the old directory aside, before the new one is
    # in place.
    (tmp_path / ".dataset.ab12.old").mkdir()
    (tmp_path / ".dataset.ab12.old" / "old").write_text("old")
    (tmp_path / ".dataset.ab12.tmp").mkdir()
    with pytest.raises(UserError, match="already exists"), atomic_directory(tmp_path / "dataset"):
        pass
    assert names(tmp_path) == ["dataset"]
    assert names(tmp_path / "dataset") == ["old"]


def test_a_directory_that_cannot_be_written_to_is_named_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"results_dir: .*file cannot be written to .*Choose"):
        require_writable(tmp_path / "file", "results_dir")
    require_writable(tmp_path / "new" / "deep", "results_dir")
    assert names(tmp_path / "new" / "deep") == []


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from lookback.core.files import atomic_directory
with atomic_directory(sys.argv[1]) as temporary:
    (temporary / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "dataset")]
    killed = subprocess.run(command, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "dataset").exists()
    # The next run is not disturbed by what the dead one left.
    with atomic_directory(tmp_path / "dataset") as temporary:
        (temporary / "whole").write_text("whole")
        # What another process is writing is not: only unlocked directories are abandoned.
        with pytest.raises(UserError), atomic_directory(tmp_path / "dataset"):
            raise UserError("another writer, which clears up first")
        assert names(temporary) == ["whole"]
    assert names(tmp_path / "dataset") == ["whole"]
    assert names(tmp_path) == ["dataset"]  # and the dead one's gigabytes are gone

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lookback.core import files
from lookback.core.errors import UserError
from lookback.core.files import (
    atomic_directory,
    atomic_file,
    clear_up,
    inside_ours,
    remove_directory,
    require_readable,
    require_writable,
)
from lookback.core.outputs import RECORD, OutputKind

ROOT = Path(__file__).resolve().parents[2]
NOTES = OutputKind("set of notes")


def write_from(source: Path, target: Path) -> None:
    with atomic_directory(target, NOTES, inputs=[source]) as temporary:
        (temporary / "copy").write_text((source / "raw").read_text())


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
    with atomic_file(str(target), replaces=inside_ours) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    target.write_text("old")
    with (
        pytest.raises(ZeroDivisionError),
        atomic_file(target, replaces=inside_ours) as temporary,
    ):
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
        assert temporary.stat().st_dev == tmp_path.stat().st_dev  # else a rename is not atomic
        assert not target.exists()
    assert (target / "part" / "0.parquet").read_text() == "rows"
    assert names(target.parent) == ["dataset"]


def write(target: Path, name: str, kind: OutputKind | None = NOTES, **options: Any) -> None:
    """A directory with one file, `name`, which says its own name."""
    with atomic_directory(target, kind, **options) as temporary:
        (temporary / "part").mkdir()
        (temporary / "part" / name).write_text(name)
        (temporary / "empty").mkdir()


def tree(directory: Path) -> dict[str, str | None]:
    """The paths below a directory: a file's content, where a link points, None of a directory."""
    found: dict[str, str | None] = {}
    for path in directory.rglob("*"):
        text = str(path.readlink()) if path.is_symlink() else None
        if text is None and path.is_file():
            text = path.read_text()
        found[path.relative_to(directory).as_posix()] = text
    return found


def refused(target: Path, says: str, kind: OutputKind | None = NOTES, **options: Any) -> None:
    """Writing it is refused before the block, and nothing has changed."""
    above = next(path for path in target.parents if path.is_dir())
    before = tree(above)
    with pytest.raises(UserError, match=says), atomic_directory(target, kind, **options):
        raise AssertionError("the block ran")
    assert tree(above) == before


def test_existing_directory_is_refused_without_overwrite(tmp_path: Path) -> None:
    write(tmp_path / "ours", "old")
    refused(tmp_path / "ours", r"ours already exists .*or pass --overwrite\.")
    refused(tmp_path / "ours", r"directory, or remove it\.", kind=None)


def test_overwrite_replaces_the_whole_directory_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "notes"
    write(target, "old", overwrite=True)
    assert capsys.readouterr().err == ""
    with atomic_directory(target, NOTES, overwrite=True) as temporary:
        (temporary / "fresh").write_text("new")
        assert (target / "part" / "old").read_text() == "old"
    assert names(target) == [RECORD, "fresh"]
    assert capsys.readouterr().err == f"replaced the set of notes that was at {target}\n"
    write(target, "third", overwrite=True)
    assert names(tmp_path) == ["notes"] and names(target / "part") == ["third"]


def test_an_empty_directory_is_nothing_to_lose(tmp_path: Path) -> None:
    for kind in (NOTES, None):
        target = tmp_path / f"{kind}"
        target.mkdir()
        write(target, "new", kind)
        assert (target / "part" / "new").exists()


def test_only_what_we_wrote_is_replaced(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine").write_text("precious")
    no_record = rf"foreign exists and holds no {RECORD} that says it is a set of notes of ours"
    refused(foreign, no_record, overwrite=True)
    write(foreign / RECORD, "x")  # a directory of that name
    refused(foreign, no_record, overwrite=True)
    write(tmp_path / "other", "old", OutputKind("dataset"))
    refused(tmp_path / "other", "says it is a set of notes", overwrite=True)
    record = '{"format": "lookback-output", "kind": "set of notes"}'
    for text in ("", "[]", "null", "{}", record, record.replace("}", ', "entries": 5}')):
        (tmp_path / "other" / RECORD).write_text(text)
        refused(tmp_path / "other", "says it is a set of notes", overwrite=True)


@pytest.mark.parametrize("entry", ["notes.txt", "part/notes.txt", "mine/", "part/mine/", "link@"])
def test_what_somebody_put_beside_ours_is_kept(tmp_path: Path, entry: str) -> None:
    write(tmp_path / "ours", "old")
    (tmp_path / "outside").mkdir()
    path = tmp_path / "ours" / entry.rstrip("@/")
    if entry.endswith("/"):
        path.mkdir()
    elif entry.endswith("@"):
        path.symlink_to(tmp_path / "outside")
    else:
        path.write_text("precious")
    says = rf"ours is a set of notes of ours, but we did not write {entry.rstrip('@/')} in it"
    refused(tmp_path / "ours", says, overwrite=True)
    path.rmdir() if entry.endswith("/") else path.unlink()
    write(tmp_path / "ours", "new", overwrite=True)
    (tmp_path / "ours" / "part" / "new").unlink()  # less than we wrote is still all ours
    write(tmp_path / "ours", "newer", overwrite=True)


def test_a_link_in_the_place_of_our_file_makes_it_foreign(tmp_path: Path) -> None:
    write(tmp_path / "ours", "old")
    (tmp_path / "moved").write_text("precious")
    (tmp_path / "ours" / "part" / "old").unlink()
    (tmp_path / "ours" / "part" / "old").symlink_to(tmp_path / "moved")
    refused(tmp_path / "ours", "we did not write part/old", overwrite=True)


def test_nothing_is_written_through_a_link_or_below_a_file(tmp_path: Path) -> None:
    write(tmp_path / "ours", "old")
    (tmp_path / "link").symlink_to("ours")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("precious")
    for overwrite in (False, True):
        for name in ("link", "dangling", "loop"):
            refused(tmp_path / name, f"{name} is a symbolic link", overwrite=overwrite)
        refused(tmp_path / "file", "file is not a directory", overwrite=overwrite)
        refused(tmp_path / "file" / "out", "file is not a directory", overwrite=overwrite)
        refused(tmp_path / "dangling" / "out", "dangling/out cannot be", overwrite=overwrite)
        refused(tmp_path / "loop" / "out", "loop/out cannot be", overwrite=overwrite)
    with pytest.raises(UserError, match="/proc is a mount point"), atomic_directory("/proc", NOTES):
        pass


def test_inputs_are_kept_apart(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw"
    write(raw, "day_0")
    write(tmp_path / "elsewhere" / "ours", "old")
    (tmp_path / "elsewhere" / "ours" / "to_raw").symlink_to(raw)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    options = {"overwrite": True, "inputs": [raw]}
    refused(raw, "raw is the input itself", **options)
    refused(raw / "out", "raw/out lies in the input", **options)
    refused(raw / "deep" / "out", "lies in the input", **options)
    refused(tmp_path / "data", "data has the input .*raw in it", **options)
    refused(tmp_path / "link" / "raw", "is the input itself", **options)
    refused(raw / ".." / "raw", "is the input itself", **options)
    options["inputs"] = [tmp_path / "elsewhere" / "ours" / "to_raw"]
    refused(raw, "is the input itself", **options)
    options["inputs"] = [raw / "part" / "day_0"]
    refused(raw, "has the input .*day_0 in it", **options)
    write(tmp_path / "data" / "rawer", "new", inputs=[raw])


def test_the_directory_where_we_are_can_be_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(Path(), "new")
    assert names(tmp_path / "here" / "part") == ["new"] and names(tmp_path) == ["here"]


def test_failure_while_overwriting_keeps_the_old_directory(tmp_path: Path) -> None:
    write(tmp_path / "notes", "old")
    before = tree(tmp_path)
    with (
        pytest.raises(ZeroDivisionError),
        atomic_directory(tmp_path / "notes", NOTES, overwrite=True) as temporary,
    ):
        (temporary / "fresh").write_text("half")
        raise ZeroDivisionError
    assert tree(tmp_path) == before


def test_a_failed_rename_brings_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "notes", "old")
    before, rename = tree(tmp_path), Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "notes", "new", overwrite=True)
    assert tree(tmp_path) == before


def test_what_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "notes"
    with (
        pytest.raises(UserError, match="already exists"),
        atomic_directory(target, NOTES) as temporary,
    ):
        (temporary / "half").write_text("half")
        target.mkdir()
        (target / "mine").write_text("precious")
    assert tree(tmp_path) == {"notes": None, "notes/mine": "precious"}
    (target / "mine").unlink()
    write(target, "old")
    with (
        pytest.raises(UserError, match="did not write mine"),
        atomic_directory(target, NOTES, overwrite=True),
    ):
        (target / "mine").write_text("precious")
    assert (target / "mine").read_text() == "precious" and names(tmp_path) == ["notes"]


@pytest.mark.parametrize("change", ["edited", "pipe", "folder in place of a file"])
def test_what_somebody_changed_in_ours_is_kept(tmp_path: Path, change: str) -> None:
    write(tmp_path / "notes", "old")
    file = tmp_path / "notes" / "part" / "old"
    file.unlink()
    if change == "edited":
        file.write_text("a user's own words")
    elif change == "pipe":
        os.mkfifo(file)
    else:
        (file / "mine").mkdir(parents=True)
    before = tree(tmp_path) if change != "pipe" else None
    refused(tmp_path / "notes", "did not write part/old", overwrite=True)
    assert before is None or tree(tmp_path) == before


def test_what_comes_before_the_rename_is_judged_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last check and the rename, somebody may still write into the directory."""
    write(tmp_path / "notes", "old")
    check = files.check_directory

    def late(path: Path, *arguments: object, **options: object) -> None:
        check(path, *arguments, **options)
        (path / "late").write_text("precious")

    with (
        pytest.raises(UserError, match="did not write late"),
        atomic_directory(tmp_path / "notes", NOTES, overwrite=True) as temporary,
    ):
        (temporary / "new").write_text("new")
        monkeypatch.setattr(files, "check_directory", late)
    assert (tmp_path / "notes" / "late").read_text() == "precious"
    assert names(tmp_path) == ["notes"]


def test_an_input_in_the_working_directory_is_kept(tmp_path: Path) -> None:
    source = tmp_path / ".notes.lookback" / "old"
    source.mkdir(parents=True)
    (source / "raw").write_text("precious")
    with pytest.raises(UserError, match="has the input"):
        write_from(source, tmp_path / "notes")
    assert (source / "raw").read_text() == "precious"


def test_a_second_writer_is_refused_at_once(tmp_path: Path) -> None:
    target = tmp_path / "notes"
    for overwrite in (False, True):
        with atomic_directory(target, NOTES, overwrite=overwrite) as temporary:
            (temporary / "first").write_text("first")
            refused(target, "Another process is writing .*notes", overwrite=overwrite)
        assert names(target) == [RECORD, "first"] and names(tmp_path) == ["notes"]


def left_by_a_killed_writer(path: Path) -> Path:
    """The working directory of a directory, marked as `atomic_directory` marks it."""
    working = path.with_name(f".{path.name}.lookback")
    working.mkdir()
    mark = {"format": "lookback-working", "target": path.name}
    (working / "owner.json").write_text(json.dumps(mark))
    return working


def test_a_replacement_killed_between_its_renames_is_undone(tmp_path: Path) -> None:
    # What is left if the process dies after moving the old directory aside, before the new one is
    # in place.
    write(tmp_path / "notes", "old")
    working = left_by_a_killed_writer(tmp_path / "notes")
    (working / "new").mkdir()
    (tmp_path / "notes").rename(working / "old")
    (working / "new" / "half").write_text("half")
    with pytest.raises(UserError, match="already exists"):
        write(tmp_path / "notes", "new")
    assert names(tmp_path) == ["notes"] and names(tmp_path / "notes" / "part") == ["old"]
    # If it dies after both, the old one is gone for good.
    working = left_by_a_killed_writer(tmp_path / "notes")
    write(working / "old", "older")
    write(tmp_path / "notes", "new", overwrite=True)
    assert names(tmp_path) == ["notes"] and names(tmp_path / "notes" / "part") == ["new"]


def test_names_alone_are_no_reason_to_delete(tmp_path: Path) -> None:
    for name in (".notes.backup.old", ".notes.ab12.tmp", "notes.old", ".notes.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("precious")
    before = tree(tmp_path)
    write(tmp_path / "notes", "new")
    assert {path: text for path, text in tree(tmp_path).items() if path in before} == before
    (tmp_path / ".other.lookback").mkdir()
    (tmp_path / ".other.lookback" / "mine").write_text("precious")
    refused(tmp_path / "other", "other.lookback holds mine, which we did not write")
    for name in ("old", "new"):  # as ours are called
        (tmp_path / f".{name}.lookback" / name).mkdir(parents=True)
        (tmp_path / f".{name}.lookback" / name / "mine").write_text("precious")
        refused(tmp_path / name, f"{name}.lookback holds {name}, which we did not write")
        assert (tmp_path / f".{name}.lookback" / name / "mine").read_text() == "precious"
    # As after a kill between two renames, and then somebody else's directory in the place.
    working = left_by_a_killed_writer(tmp_path / "third")
    write(working / "old", "old")
    (working / "new").mkdir()
    write(tmp_path / "mine", "mine")
    (tmp_path / "mine").rename(tmp_path / "third")
    with pytest.raises(UserError, match=r"old is what was at .*third when"):
        write(tmp_path / "third", "new", overwrite=True)
    assert names(working / "old" / "part") == ["old"]
    assert names(tmp_path / "third" / "part") == ["mine"]


def test_a_directory_of_ours_is_removed_and_no_other(tmp_path: Path) -> None:
    write(tmp_path / "ours", "old")
    write(tmp_path / "mixed", "old")
    (tmp_path / "mixed" / "mine").write_text("precious")
    (tmp_path / "link").symlink_to("ours")
    (tmp_path / "foreign").mkdir()
    for name in ("mixed", "link", "foreign"):
        before = tree(tmp_path)
        remove_directory(tmp_path / name, NOTES)
        assert tree(tmp_path) == before
    remove_directory(tmp_path / "ours", NOTES)
    assert names(tmp_path) == ["foreign", "link", "mixed"]


def test_clearing_up_takes_what_killed_writers_left_of_such_names(tmp_path: Path) -> None:
    for name in (".step-x.lookback", ".step-2.tmp"):
        (tmp_path / name / "new").mkdir(parents=True)
    (left_by_a_killed_writer(tmp_path / "step-1") / "new").mkdir()
    clear_up(tmp_path, re.compile(r"step-\d"))
    assert names(tmp_path) == [".step-2.tmp", ".step-x.lookback"]
    with (
        atomic_directory(tmp_path / "step-3"),
        pytest.raises(UserError, match="Another process is writing"),
    ):
        clear_up(tmp_path, re.compile(r"step-\d"))


def test_a_file_replaces_only_what_it_may(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "ours").write_text("ours: 1")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")

    def ours(path: Path) -> bool:
        return path.read_text().startswith("ours")

    fifo = tmp_path / "pipe"
    for name, says, inputs in (
        ("mine", "mine already exists, and only what we wrote", []),
        ("directory", "directory is a directory", []),
        ("link", "link is a symbolic link", []),
        ("dangling", "dangling is a symbolic link", []),
        ("pipe", "pipe is a device or the like", []),
        ("mine/new", "mine is not a directory", []),
        ("ours", "ours is the input itself", [tmp_path / "ours"]),
        ("directory/new", "lies in the input", [tmp_path / "directory"]),
    ):
        with (
            pytest.raises(UserError, match=says),
            atomic_file(tmp_path / name, replaces=ours, inputs=inputs),
        ):
            raise AssertionError("the block ran")
    assert fifo.is_fifo() and (tmp_path / "mine").read_text() == "precious"
    with pytest.raises(UserError, match="already exists"), atomic_file(tmp_path / "ours"):
        raise AssertionError("the block ran")
    with atomic_file(tmp_path / "ours", replaces=ours) as temporary:
        temporary.write_text("ours: 2")
    assert (tmp_path / "ours").read_text() == "ours: 2"
    with (
        pytest.raises(UserError, match="already exists"),
        atomic_file(tmp_path / "late") as temporary,
    ):
        (tmp_path / "late").write_text("precious")
    assert (tmp_path / "late").read_text() == "precious"
    assert names(tmp_path) == ["dangling", "directory", "late", "link", "mine", "ours", "pipe"]


def test_a_directory_that_cannot_be_written_to_is_named_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"results_dir: .*file cannot be written to .*Choose"):
        require_writable(tmp_path / "file", "results_dir")
    require_writable(tmp_path / "new" / "deep", "results_dir")
    assert names(tmp_path / "new" / "deep") == []


def test_an_input_that_cannot_be_read_is_named_with_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    require_readable(tmp_path, "--input")
    require_readable(file, "--input", takes_file=True)
    for path, why in (
        (file, "is not a directory"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / ("x" * 300), "cannot be read \\(File name too long\\)"),
        (tmp_path / "a\0b", "cannot be read \\(.*null.*\\)"),
    ):
        with pytest.raises(UserError, match=f"(?s)^--input .* {why}. Give the one with the raw"):
            require_readable(path, "--input")
    with pytest.raises(UserError, match=r"none does not exist. Give a raw file, or a directory"):
        require_readable(tmp_path / "none", "--input", takes_file=True)

    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    with pytest.raises(UserError, match=r"^--input .* cannot be read \(Permission denied\)"):
        require_readable(tmp_path, "--input")


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
        with pytest.raises(UserError, match="Another"), atomic_directory(tmp_path / "dataset"):
            pass
        assert names(temporary) == ["whole"]
    assert names(tmp_path / "dataset") == ["whole"]
    assert names(tmp_path) == ["dataset"]  # and the dead one's gigabytes are gone


def test_what_a_killed_writer_of_a_file_left_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / ".weights.ab12_xyz.tmp"
    left.write_text("half")
    (tmp_path / ".weights.mine.tmp").write_text("somebody's")
    with atomic_file(tmp_path / "weights") as temporary:
        temporary.write_text("whole")
        assert (
            capsys.readouterr().err == f"note: {left} is of a process that was killed: remove it\n"
        )
        left.unlink()
        with atomic_file(tmp_path / "weights") as other:  # whose is being written is not named
            other.write_text("whole, too")
            assert capsys.readouterr().err == ""
        (tmp_path / "weights").unlink()
    assert names(tmp_path) == [".weights.mine.tmp", "weights"]


def test_a_failure_leaves_no_directory_above(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError), atomic_directory(tmp_path / "there" / "a" / "b" / "c"):
        raise OSError
    assert names(tmp_path / "there") == []
    with atomic_directory(tmp_path / "there" / "a" / "b" / "c"):
        pass
    assert names(tmp_path / "there" / "a" / "b") == ["c"]

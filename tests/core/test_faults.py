"""How commands fail: a sentence and a status for what can be put right, a file for what is ours."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from lookback.core.errors import UserError
from lookback.core.faults import (
    MOST_CHARACTERS,
    OURS,
    REPORTS,
    USER,
    cut,
    guarded,
    naming,
    sentence,
    status_of,
)


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def work() -> NoReturn:
        raise error

    return work


def said(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = guarded(raising(error))
    return status, capsys.readouterr().err


def test_success_has_the_status_of_the_work() -> None:
    assert (guarded(lambda: None), guarded(lambda: 3)) == (0, 3)


def test_a_users_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(UserError("--lr: expected a number."), capsys) == (
        USER,
        "error: --lr: expected a number.\n",
    )


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EROFS, "mounted read-only"),
        (errno.EACCES, "Mend its permissions"),
        (errno.ENOENT, "Check how it is written"),
        (errno.ENAMETOOLONG, "Choose a shorter name"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOTDIR, "A directory was expected"),
        (errno.EISDIR, "A file was expected"),
        (errno.ELOOP, "leads back to itself"),
        (errno.EIO, "does not answer"),
        (errno.ECONNREFUSED, "network"),
    ],
)
def test_errors_of_the_system_name_path_and_remedy(
    number: int, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = said(OSError(number, os.strerror(number), "/data/x"), capsys)
    assert status == USER
    assert text.startswith(f"error: /data/x: {os.strerror(number)}. ") and remedy in text
    assert text.count("\n") == 1
    both = sentence(OSError(number, os.strerror(number), "/data/x", None, "/data/y"))
    assert both is not None and both.startswith("/data/x -> /data/y: ")


def test_the_system_itself_is_put_in_words(tmp_path: Path, capsys) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    (tmp_path / "file").write_text("")
    for path, words in (
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path / "file" / "x", "Not a directory"),
        (tmp_path, "Is a directory"),
        (loop, "Too many levels of symbolic links"),
        (tmp_path / ("n" * 300), "File name too long"),
    ):
        assert guarded(lambda path=path: len(path.read_bytes())) == USER
        assert f"error: {path}: {words}. " in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_named_by_who_writes(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with naming(Path("/dev/full")), Path("/dev/full").open("w") as file:
            file.write("x")

    assert guarded(work) == USER
    assert "error: /dev/full: No space left on device. Free" in capsys.readouterr().err


def test_what_libraries_say_without_an_errno_is_left_as_it_is() -> None:
    with pytest.raises(OSError, match=r"^not a whole file$"), naming(Path("/d")):
        raise OSError("not a whole file")


def test_memory_that_ran_out_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    assert guarded(lambda: np.empty(1 << 60, "uint8").size) == USER
    assert "memory ran out (Unable to allocate" in capsys.readouterr().err
    assert "memory ran out (MemoryError)" in said(MemoryError(), capsys)[1]


def test_tensorflows_errors_of_disk_and_memory_are_sentences() -> None:
    # Their texts are what tensorflow 2.12.1 says; made here, as importing it takes seconds.
    def made(name: str, text: str) -> Exception:
        kind = type(name, (Exception,), {"__module__": "tensorflow.python.framework.errors_impl"})
        return kind(text)

    full = sentence(made("ResourceExhaustedError", "/d/model.tmp; No space left on device"))
    assert full is not None and full.startswith("/d/model.tmp; No space left on device. Free")
    closed = sentence(made("PermissionDeniedError", "/d/x; Permission denied"))
    assert closed is not None and "Mend its permissions" in closed
    memory = sentence(made("ResourceExhaustedError", "OOM when allocating tensor with shape[9,9]"))
    assert memory is not None and memory.startswith("memory ran out (OOM when allocating")
    assert sentence(made("InvalidArgumentError", "Incompatible shapes: [2] vs. [3]")) is None
    foreign = type("ResourceExhaustedError", (Exception,), {"__module__": "other"})
    assert sentence(foreign("OOM")) is None


@pytest.mark.parametrize(
    "error",
    [ValueError("odd\nmore"), OSError(errno.EBADF, "Bad file descriptor"), AssertionError()],
)
def test_a_fault_of_ours_is_kept_in_a_file(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> NoReturn:
        REPORTS.set(tmp_path)
        raise error

    before = REPORTS.get()
    assert guarded(work) == OURS == status_of(error)
    err = capsys.readouterr().err
    (file,) = tmp_path.iterdir()
    first = str(error).split("\n")[0]
    assert err.startswith(
        f"error: this is a fault of Lookback's, not yours: {type(error).__name__}: {first}"
    )
    assert f"The traceback is in {file}: please report it" in err and "Traceback (" not in err
    assert err.count("\n") == 2
    text = file.read_text()
    assert text.startswith(" ".join(sys.argv)) and str(error) in text
    assert "Traceback (most recent call last)" in text and "in work" in text
    assert REPORTS.get() is before  # a door's place is its own


def test_a_fault_without_a_place_lies_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def work() -> NoReturn:
        REPORTS.set(tmp_path / "not made yet")
        raise KeyError("k")

    assert guarded(work) == OURS
    assert len(list(tmp_path.glob("traceback-*.txt"))) == 1
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    capsys.readouterr()
    assert guarded(work) == OURS
    err = capsys.readouterr().err
    assert "could not be written to a file:\nTraceback (most recent call last)" in err


def test_developers_see_every_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOOKBACK_TRACEBACK", "1")
    status, text = said(UserError("no"), capsys)
    assert status == USER and "Traceback (most" in text and text.endswith("error: no\n")


@pytest.mark.parametrize("length", [MOST_CHARACTERS, MOST_CHARACTERS + 1, 10**6])
def test_no_message_is_longer_than_people_read(
    length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "begin" + "x" * (length - 8) + "end"
    shown = cut(text)
    assert len(shown) <= MOST_CHARACTERS and shown[:5] == "begin" and shown[-3:] == "end"
    if length > MOST_CHARACTERS:
        left, right = shown.split("... (")[0], shown.split(" characters left out) ...")[1]
        number = int(shown.split("... (")[1].split(" ")[0].replace(",", ""))
        assert number + len(left) + len(right) == length
    assert len(said(UserError(text), capsys)[1]) <= MOST_CHARACTERS + len("error: \n")


def test_interrupts_and_closed_pipes_have_the_shells_statuses(capsys) -> None:
    assert said(KeyboardInterrupt(), capsys) == (
        130,
        "error: interrupted; no output is half written\n",
    )
    assert said(BrokenPipeError(errno.EPIPE, "Broken pipe"), capsys) == (141, "")


def test_what_libraries_say_of_an_error_is_kept() -> None:
    arrow = OSError(errno.ENOSPC, "Error writing bytes to file")
    assert sentence(arrow) == (
        "a file, or standard output: No space left on device (Error writing bytes to file). Free "
        "some space there, or choose a place on another disk."
    )
    assert sentence(OSError(errno.EROFS, os.strerror(errno.EROFS))) == (
        "a file, or standard output: Read-only file system. The file system is mounted "
        "read-only: choose another place."
    )


def test_an_interrupt_within_a_destructor_ends_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Python ignores what is raised there."""

    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def work() -> int:
        thing = Interrupted()
        del thing
        time.sleep(10)
        return 0

    hook, began = sys.unraisablehook, time.monotonic()
    assert guarded(work) == 130
    assert time.monotonic() - began < 5
    assert capsys.readouterr().err == "error: interrupted; no output is half written\n"
    assert sys.unraisablehook is hook

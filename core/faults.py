"""How a command fails: one sentence, an exit status, and of our own faults a file for us.

What a user or whoever owns the machine can put right is a sentence: a `UserError`, an error of the
system that names a path, memory that ran out. All else is a fault of ours, whose traceback is
written to a file, so that it can be sent to us and does not bury what was said before it.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import os
import platform
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from lookback.core.errors import UserError

USER, OURS, INTERRUPTED = 2, 70, 130
"""Exit statuses: 2 as of the shell's own mistakes in usage, 70 is EX_SOFTWARE of sysexits.h, and
130 is 128 + SIGINT."""

TRACEBACK = "LOOKBACK_TRACEBACK"
"""Environment variable: 1 prints every error's traceback, too."""

REPORTS: contextvars.ContextVar[Path | None] = contextvars.ContextVar("REPORTS", default=None)
"""Where a run writes, and so the traceback of its fault; None: the directory of temporary files."""

MOST_CHARACTERS = 2000
"""Of a message."""

_CLOSED_PIPE = 141  # 128 + SIGPIPE, as if the system had ended the process
_MOMENT = 0.01  # seconds
_FIRST_LINE = 300  # characters of a fault's own message
_NO_MEMORY = (
    "memory ran out ({what}). Lower what is held at once: batch sizes, lengths of histories and "
    "embedding dimensions in training, --memory_limit or --workers of workflows; or use more "
    "processes or a larger machine."
)
_SPACE = "Free some space there, or choose a place on another disk."
_NAME = "Check how it is written."
_RIGHTS = "Mend its permissions (or those of the directories above it), or choose another place."
_FILES = "Raise the limit (ulimit -n), or use fewer workers, processes or ranks."
_PROCESSES = "Raise the limits (ulimit -u, ulimit -n), or use fewer workers and processes."
_DEVICE = "The disk or file system does not answer as it should: check it, then run again."
_NETWORK = "Check the address and the network, and that the other side is running."
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "Raise the limit of a file's size (ulimit -f), or choose another file system.",
    errno.EROFS: "The file system is mounted read-only: choose another place.",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOENT: _NAME,
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOTDIR: "A directory was expected there: check how it is written.",
    errno.EISDIR: "A file was expected there: check how it is written.",
    errno.ELOOP: "The link leads back to itself: give what is meant.",
    errno.EEXIST: "Choose another name, or move it away.",
    errno.ENOTEMPTY: "Choose another name, or move it away.",
    errno.EXDEV: "Choose a place on the same file system.",
    errno.EBUSY: "Something else uses it: end that, or choose another place.",
    errno.ETXTBSY: "Something else uses it: end that, or choose another place.",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EAGAIN: _PROCESSES,
    errno.EIO: _DEVICE,
    errno.ESTALE: _DEVICE,
    errno.ENXIO: _DEVICE,
    errno.ENODEV: _DEVICE,
    errno.ECONNREFUSED: _NETWORK,
    errno.ECONNRESET: _NETWORK,
    errno.EADDRINUSE: _NETWORK,
    errno.EADDRNOTAVAIL: _NETWORK,
    errno.ETIMEDOUT: _NETWORK,
    errno.EHOSTUNREACH: _NETWORK,
    errno.ENETUNREACH: _NETWORK,
}
"""What to do about the system's errors that are not ours."""


def guarded(work: Callable[[], int | None]) -> int:
    """Runs a door's work; gives its exit status, after a sentence on standard error if it failed.

    Args:
      work: what the door does; gives an exit status, None: 0.
    """
    context = contextvars.copy_context()
    context.run(REPORTS.set, None)
    try:
        with _interrupts_that_count():
            status = context.run(work)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("error: interrupted; no output is half written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _close_output()
        return _CLOSED_PIPE
    except Exception as error:
        _close_output()
        return _report(error, context.get(REPORTS))
    return status or 0


@contextlib.contextmanager
def _interrupts_that_count() -> Iterator[None]:
    """Within it, Ctrl-C is not lost where Python ignores exceptions: in destructors, in callbacks.

    Python would print the `KeyboardInterrupt` and go on. It comes once more, a moment later.
    """
    before = sys.unraisablehook

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            # Here it would be ignored again, so it comes from another thread.
            again = (threading.main_thread().ident, signal.SIGINT)
            threading.Timer(_MOMENT, signal.pthread_kill, again).start()
        else:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def sentence(error: BaseException) -> str | None:
    """What to say of an error that the user can put right, cut; None of a fault of ours."""
    if isinstance(error, UserError):
        text: str | None = str(error)
    elif isinstance(error, MemoryError):
        text = _NO_MEMORY.format(what=_first_line(error) or type(error).__name__)
    elif isinstance(error, OSError):
        text = _of_system(error)
    else:
        text = _of_tensorflow(error)
    return None if text is None else cut(text)


def status_of(error: BaseException) -> int:
    """The exit status of a process that an error ends."""
    return OURS if sentence(error) is None else USER


def cut(text: str) -> str:
    """A message of at most `MOST_CHARACTERS`: what is too much is left out of its middle."""
    if len(text) <= MOST_CHARACTERS:
        return text
    kept = MOST_CHARACTERS // 2 - 30
    left_out = len(text) - 2 * kept
    return f"{text[:kept]}... ({left_out:,} characters left out) ...{text[-kept:]}"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives the system's errors in a block the path that they are about, where they name none.

    An error of writing to an open file, such as that of a full disk, says only what happened.
    One without an errno is a library's own: its text is all it says, and a name would hide it.

    Args:
      path: what the block writes or reads.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def _of_system(error: OSError) -> str | None:
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    about = " -> ".join(map(os.fsdecode, names)) or "a file, or standard output"
    reason = os.strerror(error.errno or 0)
    # Libraries say more in its place, Arrow for one.
    detail = "" if reason in str(error.strerror) else f" ({str(error.strerror)[:_FIRST_LINE]})"
    return f"{about}: {reason}{detail}. {remedy}"


def _of_tensorflow(error: BaseException) -> str | None:
    """TensorFlow's errors of files end as the system's do; those of memory have a class."""
    if not type(error).__module__.startswith("tensorflow."):
        return None
    reason = _first_line(error)
    for number, remedy in _REMEDIES.items():
        if os.strerror(number) in reason:
            return f"{reason.rstrip('.')}. {remedy}"
    exhausted = type(error).__name__ == "ResourceExhaustedError"
    return _NO_MEMORY.format(what=reason) if exhausted else None


def _report(error: Exception, place: Path | None) -> int:
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exception(error, file=sys.stderr)
    message = sentence(error)
    if message is None:
        kind, text = type(error).__name__, _first_line(error)
        message = f"this is a fault of Lookback's, not yours: {kind}: {text}\n{_kept(error, place)}"
    print(f"error: {message}", file=sys.stderr)
    return status_of(error)


def _kept(error: Exception, place: Path | None) -> str:
    """Writes a traceback to a file, and says where."""
    name = f"traceback-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}.txt"
    text = "".join(traceback.format_exception(error))
    about = f"{' '.join(sys.argv)}\nPython {platform.python_version()}, {platform.platform()}\n\n"
    for directory in (place, Path(tempfile.gettempdir())):
        if directory is not None and directory.is_dir():
            with contextlib.suppress(OSError):
                file = directory / name
                file.write_text(about + text, encoding="utf-8", errors="backslashreplace")
                return f"The traceback is in {file}: please report it, with that file."
    return f"The traceback could not be written to a file:\n{text}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:_FIRST_LINE] if lines else ""


def _close_output() -> None:
    """Forgets what standard output does not take, as Python would report it at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

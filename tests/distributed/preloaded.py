"""Runs programs in forks of a process that has imported TensorFlow: it takes each new one 6 s.

usage: preloaded.py serve FD                         (a socket that listens; until stdin ends)
       preloaded.py SOCKET SCRIPT [ARGUMENT...]      (like python SCRIPT [ARGUMENT...])
       preloaded.py SOCKET -m MODULE [ARGUMENT...]   (like python -m MODULE [ARGUMENT...])

The last two are the process that launchers and tests see. It passes signals on and ends as the fork
ends; if it is killed, so is the fork. A fork runs on its machine (the namespaces of the network and
of the machine's name). What it shares with others and new processes do not: the order of sets
(PYTHONHASHSEED).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MACHINE = ("/proc/self/ns/net", "/proc/self/ns/uts")


def ask(path: str, words: list[str]) -> int:
    """Has a program run; gives its exit status, or ends by the signal that ended it."""
    ignored = [n for n in PASSED_ON if signal.getsignal(n) == signal.SIG_IGN]
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        for number in set(PASSED_ON) - set(ignored):
            signal.signal(number, lambda n, frame: server.send(bytes([n])))
        asked = {
            "words": words,
            "directory": str(Path.cwd()),
            "environment": dict(os.environ),
            "cores": [*os.sched_getaffinity(0)],
            "ignored": [int(n) for n in ignored],
        }
        with contextlib.ExitStack() as stack:
            machine = [stack.enter_context(Path(name).open()).fileno() for name in MACHINE]
            message = [json.dumps(asked).encode() + b"\n"]
            socket.send_fds(server, message, [0, 1, 2, *machine])
        status = int(server.makefile().readline())
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def serve(listening: socket.socket) -> list[str] | None:
    """Forks for everybody who asks; returns None at the end, and in a fork what it is to run."""
    while True:
        ready, _, _ = select.select([listening, 0], [], [])
        with contextlib.suppress(ChildProcessError):  # no keeper is left
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if 0 in ready:
            return None
        asking, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            return keep(asking)
        asking.close()


def keep(asking: socket.socket) -> list[str]:
    """Keeps a fork as long as who asked for it is there; returns in the fork, with its words."""
    message, descriptors, _, _ = socket.recv_fds(asking, 1 << 20, 3 + len(MACHINE))
    while not message.endswith(b"\n"):
        message += asking.recv(1 << 20)
    lives, own_end = os.pipe()
    child = os.fork()
    if child == 0:
        asking.close()
        os.close(lives)
        return become(json.loads(message), descriptors)
    for descriptor in (own_end, *descriptors):
        os.close(descriptor)
    while True:
        ready, _, _ = select.select([asking, lives], [], [])
        if lives in ready:  # the fork has ended
            break
        told = b""
        with contextlib.suppress(ConnectionError):
            told = asking.recv(16)
        for number in told or [signal.SIGKILL]:  # nobody is there any more
            os.kill(child, number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):  # who was killed does not listen
        asking.sendall(b"%d\n" % status)
    os._exit(0)


def become(asked: dict, descriptors: list[int]) -> list[str]:
    """Makes this process what was asked for; returns its words."""
    import numpy as np

    os.setsid()
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for name, descriptor in zip(MACHINE, descriptors[3:], strict=True):
        enter(name, descriptor)
    for number in asked["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.sched_setaffinity(0, asked["cores"])
    os.chdir(asked["directory"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    np.random.seed()  # other numbers than every other fork's
    return list(asked["words"])


def enter(name: str, descriptor: int) -> None:
    """Enters a namespace, if this process is in another; os.setns is of Python 3.12."""
    if os.fstat(descriptor).st_ino != Path(name).stat().st_ino:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, 0):
            raise OSError(ctypes.get_errno(), "this namespace cannot be entered", name)
    os.close(descriptor)


def run(words: list[str]) -> None:
    """Runs a script or a module as Python does."""
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], str(Path.cwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


def main() -> int:
    if sys.argv[1] != "serve":
        return ask(sys.argv[1], sys.argv[2:])
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    import ranks

    ranks.import_ahead()
    ranks.leave_plots_blank()
    words = serve(socket.socket(fileno=int(sys.argv[2])))
    if words is not None:
        run(words)
    return 0


if __name__ == "__main__":
    sys.exit(main())

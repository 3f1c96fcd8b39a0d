"""Ranks forked from a process that has imported TensorFlow, for which each would take 4 s.

For tests of what ranks compute. How they are launched, fail and end is tested with
scripts/run_model.sh, as users start them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

CYCLE_MILLISECONDS = "10"
"""How often Horovod's thread asks the others; the default is 1, which costs much of two cores."""


@contextlib.contextmanager
def rendezvous(sizes: Sequence[int]) -> Iterator[list[str]]:
    """Servers at which so many ranks find each other, as words for `ports`."""
    from horovod.runner.http.http_server import RendezvousServer

    with contextlib.ExitStack() as stack:
        words = []
        for size in sizes:
            server = RendezvousServer()
            words.append(f"{size}={server.start()}")
            stack.callback(server.stop)
            server.init([])
        yield words


def ports(words: Sequence[str]) -> dict[int, str]:
    """The server's port by number of ranks."""
    return {int(size): port for size, _, port in (word.partition("=") for word in words)}


def import_ahead() -> None:
    """Imports all that comes before the first thread of TensorFlow's, which a fork would lack.

    Importing merlin.models.tf starts some, and connects ranks by itself.
    """
    from lookback.core.imports import collect_rarely

    collect_rarely()
    import horovod.tensorflow
    import merlin.schema
    import tensorflow as tf

    import lookback.training.run

    del horovod, lookback, merlin, tf


def leave_plots_blank() -> None:
    """Leaves the drawing out of reports, as tests/conftest.py does in its process."""
    from lookback.training.output import report

    report.rendered = lambda figure: b"\x89PNG, not drawn"


def fork(ranks: int) -> int:
    """Returns in each of `ranks` new processes, with its rank.

    This process waits for them, ends the others when one fails, and exits with that one's status.
    """
    import_ahead()
    running = set()
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            return rank
        running.add(pid)
    status = 0
    while running:
        pid, ended = os.wait()
        running.discard(pid)
        if ended and not status:
            status = abs(os.waitstatus_to_exitcode(ended))
            for other in running:
                os.kill(other, 9)
    sys.exit(status)


def join(rank: int, ranks: int, port: str) -> None:
    """Makes this process one of `ranks`, as horovodrun would; to be followed by `start_world`."""
    own, of_all = (("RANK", "LOCAL_RANK"), ("SIZE", "LOCAL_SIZE"))
    os.environ |= {
        **{f"HOROVOD_{name}": str(rank) for name in own},
        **{f"HOROVOD_{name}": str(ranks) for name in of_all},
        "HOROVOD_CROSS_RANK": "0",
        "HOROVOD_CROSS_SIZE": "1",
        "HOROVOD_HOSTNAME": "localhost",
        "HOROVOD_CYCLE_TIME": CYCLE_MILLISECONDS,
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": "lo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": port,
    }

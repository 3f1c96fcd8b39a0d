"""Our side of peers: where their environments are, and how their programs are started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lookback.benchmarks.child import Child

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / ".venv" / "src"  # where `lookback` is found
ENVIRONMENTS = ROOT / ".tools" / "peers"

PEERS: dict[str, str] = {
    "deepctr_histories": "deepctr_torch",
    "fuxictr_histories": "fuxictr",
    "spark_criteo": "spark",
    "torch_dlrm": "torch",
    "torch_neumf": "torch",
}
"""The environment of each program: ``benchmarks/peers/NAME.py`` runs in ``.tools/peers/...``."""


def start_peer(name: str, **options: Any) -> Child:
    """Starts a program of `PEERS`, which is stopped but while it is asked for something.

    Args:
      name: a key of `PEERS`.
      **options: of its command line; None and False are left out, True is a bare flag.

    Raises:
      RuntimeError: if it ends before it is ready, with its last words.
    """
    command = [str(peer_python(name)), "-m", f"lookback.benchmarks.peers.{name}"]
    for option, value in options.items():
        if value is True:
            command.append(f"--{option}")
        elif value is not None and value is not False:
            command += [f"--{option}", str(value)]
    # Its own environment decides what it imports.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PYTHONPATH"] = str(SOURCES)
    return Child(command, cwd=ROOT, env=environment, stopped=True)


@contextlib.contextmanager
def contender(
    name: str, mode: str, *, steps: int = 1, **options: Any
) -> Iterator[Callable[[], int] | None]:
    """A peer for `benchmarks.harness.interleave`; None where its environment is not set up.

    Example:
      with contender("torch_dlrm", "train", batch=4096, rows=100_000) as peer:
          contenders = {"ours": ours, **({"torch": peer} if peer else {})}

    Args:
      name: a key of `PEERS`.
      mode: the program's command, such as "train" or "infer".
      steps: of one call.
      **options: of the program's command line.

    Yields:
      A function that does the steps and returns the number of samples. Between calls, the program
      is stopped and costs no time.
    """
    if missing(name):
        yield None
        return
    with start_peer(name, **options) as peer:
        yield lambda: int(peer.ask(do=mode, steps=steps)["samples"])


def peer_python(name: str) -> Path:
    """The interpreter of a peer's environment, whether or not it is there."""
    return ENVIRONMENTS / PEERS[name] / "bin" / "python"


def missing(name: str) -> str | None:
    """What to tell the reader of a report if a peer's environment is not set up; else None."""
    ready = ENVIRONMENTS / PEERS[name] / ".lookback-ready"
    if ready.exists() and peer_python(name).exists():
        return None
    return f"{name} was not measured: benchmarks/peers/setup.sh {PEERS[name]} sets it up."

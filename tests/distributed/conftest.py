"""A tiny dataset, and two machines out of one."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

HERE = Path(__file__).parent
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def _load(name: str) -> ModuleType:
    """A helper beside this file: tests are no packages, and import each other by path."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def launch() -> ModuleType:
    """tests/distributed/launch.py."""
    return _load("launch")


@pytest.fixture(scope="session")
def forked() -> ModuleType:
    """tests/distributed/ranks.py."""
    return _load("ranks")


@pytest.fixture(scope="session")
def kills(launch: ModuleType) -> ModuleType:
    """tests/distributed/kills.py."""
    return _load("kills")


@pytest.fixture(scope="session")
def dataset(make_histories, write_dataset, tmp_path_factory) -> Path:
    """See `write_tiny_dataset`."""
    directory = tmp_path_factory.mktemp("data") / "dataset"
    return write_tiny_dataset(make_histories, write_dataset, directory)


def write_tiny_dataset(make_histories, write_dataset, directory: Path) -> Path:
    """61 users, of whom some have hardly any history: no batch divides evenly by ranks."""
    lengths = np.random.default_rng(0).integers(2, 12, 61).tolist()
    histories = make_histories(lengths, items=83, categories=7)
    return write_dataset(histories, directory)


@dataclasses.dataclass(frozen=True)
class TwoHosts:
    """Two machines with one process each.

    Attributes:
      how: what makes them two.
      options: of run_model.sh.
      here: what to put before a command so that it runs on the first.
      there: the same for the second.
      path: PATH with an ssh that reaches the second.
    """

    how: str
    options: tuple[str, ...]
    here: tuple[str, ...]
    there: tuple[str, ...]
    path: str


SSH = """#!/usr/bin/env bash
# ssh as horovodrun calls it: options may follow the host. Like a real one, it dies alone.
while [[ $# -gt 0 ]]; do
  case $1 in
    -o | -p | -i) shift 2 ;;
    *) [[ -z ${{host:-}} ]] || break; host=$1; shift ;;
  esac
done
setsid {enter} sh -c "$*" <&0 &
wait $!
"""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


def _enter(namespace: str, address: str) -> tuple[str, ...]:
    """Runs a command as on a machine of its own, whose name is its address."""
    script = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
    return ("ip", "netns", "exec", namespace, "unshare", "--uts", "sh", "-c", script, address)


@contextlib.contextmanager
def _namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them."""
    names = [f"lookback-{os.getpid()}-{number}" for number in (1, 2)]
    try:
        for name in names:
            _ip("netns", "add", name)
        # The interface has the same name on both, which horovodrun needs.
        _ip(
            *("link", "add", "cable0", "netns", names[0], "type", "veth"),
            *("peer", "name", "cable0", "netns", names[1]),
        )
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable0")
            _ip("-n", name, "link", "set", "cable0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names[0], names[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    """Network namespaces; without the right to make any, two addresses of this machine."""
    directory = tmp_path / "bin"
    directory.mkdir()
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"

    def write_ssh(enter: str) -> None:
        (directory / "ssh").write_text(SSH.format(enter=enter))
        (directory / "ssh").chmod(0o755)

    with contextlib.ExitStack() as stack:
        try:
            if shutil.which("ip") is None:
                raise OSError("no ip")
            names = stack.enter_context(_namespaces())
            first, second = map(_enter, names, ADDRESSES)
            subprocess.run([*first, "true"], check=True, capture_output=True)
        except (OSError, subprocess.SubprocessError):
            write_ssh("")
            options = ("--hosts", "127.0.0.2:1,127.0.0.3:1", "--network_interface", "lo")
            yield TwoHosts("addresses", options, (), (), path)
            return
        write_ssh(shlex.join(second))
        options = ("--hosts", ",".join(f"{address}:1" for address in ADDRESSES))
        yield TwoHosts("namespaces", options, first, second, path)

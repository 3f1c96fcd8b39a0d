"""What a pack holds: which files of an environment, of its Python and of this checkout.

The tree that comes out is a checkout whose `.venv` is no virtual environment but a whole Python, so
that every documented command works in it, wherever it lies.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from lookback.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
STDLIB = "lib/python3.11"
PACKAGES = f"{STDLIB}/site-packages"

# What TensorFlow and Arrow bring to build against, and tests of packages.
NOT_LOADED = re.compile(
    r"^(tensorflow|pyarrow)/include/"
    r"|^(pandas|numpy|scipy|sklearn|numba|matplotlib|pyarrow|dask|distributed)/(.*/)?tests/"
    r"|^horovod/.*\.cmake$"
)
# Of Python: what needs a terminal (a libtinfo of ours would be everybody's bash's, too), tests.
NOT_OF_PYTHON = re.compile(
    r"^(site-packages|dist-packages|test|idlelib|tkinter|turtledemo|ensurepip|lib2to3|config-[^/]*)/"
    r"|^lib-dynload/(_tkinter|_test\w+|_ctypes_test|readline|_curses\w*|nis)\."
    r"|(^|/)(idle_)?tests?/|\.a$|\.opt-[12]\.pyc$"
)
# The C library comes with the kernel that it talks to: it is the target's.
OF_GLIBC = re.compile(
    r"^(ld-linux.*|lib(c|m|dl|rt|pthread|util|resolv|nsl|anl|BrokenLocale|mvec|thread_db))\.so"
)
SOURCES = ("*.py", "*.cc", "*.h", "*.sh", "*.yaml", "*.json")
NOT_OF_CHECKOUT = re.compile(r"^(tests|\.ci|docs/notebooks)/")

PYTHON = """#!/bin/sh
# Python, with the shared libraries that lie beside it.
bin=$(cd "$(dirname "$(readlink -f "$0")")" && pwd -P) || exit
LD_LIBRARY_PATH=$bin/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$bin/python3.11" "$@"
"""
LOOKBACK = """#!/bin/sh
bin=$(cd "$(dirname "$(readlink -f "$0")")" && pwd -P) || exit
exec "$bin/python" "$bin/../src/lookback/cli.py" "$@"
"""
HOROVODRUN = """#!/bin/sh
bin=$(cd "$(dirname "$(readlink -f "$0")")" && pwd -P) || exit
exec "$bin/python" -m horovod.runner.launch "$@"
"""


class Piece(NamedTuple):
    """One file of the tree.

    Attributes:
      name: its path in the tree.
      source: the file to read; None where `text` is what it holds.
      text: the contents.
      link: where a symbolic link points to.
    """

    name: str
    source: Path | None = None
    text: str | None = None
    link: str | None = None


def interpreter(environment: Path) -> Iterator[Piece]:
    """The Python that an environment was made from: itself, its library, what starts it.

    Args:
      environment: a virtual environment of Python 3.11.

    Raises:
      UserError: if it is none.
    """
    asked = "import os, sys, sysconfig; print(os.path.realpath(sys.executable)); "
    asked += "print(sysconfig.get_path('stdlib')); print(sys.version_info[:2])"
    python = environment / "bin" / "python"
    if not python.exists():
        raise UserError(
            f"--environment: {environment} has no Python: {python} is not there. Run "
            "scripts/setup.sh (with --gpu, scripts/gpu/build.sh), or name another."
        )
    answer = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(
            f"--environment: {environment} has no Python that runs: {answer.stderr.strip()}. Make "
            "it anew, or name another."
        )
    program, library, version = answer.stdout.splitlines()
    if version != "(3, 11)":
        raise UserError(
            f"--environment: expected one of Python 3.11, received {environment}, which has "
            f"{version}. Name another."
        )
    yield Piece(".venv/bin/python3.11", Path(program))
    yield Piece(".venv/bin/python", text=PYTHON)
    yield Piece(".venv/bin/python3", link="python")
    yield Piece(".venv/bin/lookback", text=LOOKBACK)
    yield Piece(".venv/bin/horovodrun", text=HOROVODRUN)
    # Debian's Python looks into dist-packages, everybody else's into site-packages.
    yield Piece(f".venv/{STDLIB}/dist-packages", link="site-packages")
    for path in _below(Path(library)):
        if not NOT_OF_PYTHON.search(path):
            yield Piece(f".venv/{STDLIB}/{path}", Path(library, path))


def locked(*locks: str) -> list[str]:
    """The names of all packages in lock files."""
    names: list[str] = []
    for lock in locks:
        names += re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / lock).read_text(), re.MULTILINE)
    return names


def packages(environment: Path, names: Iterable[str]) -> Iterator[Piece]:
    """The files of installed packages, as they were recorded when they were installed.

    Args:
      environment: where they are installed.
      names: of distributions.

    Raises:
      UserError: if one of them is not installed.
    """
    place = environment / PACKAGES
    found = {}
    for distribution in metadata.distributions(path=[str(place)]):
        found[_normalised(distribution.metadata["Name"])] = distribution
    for name in names:
        if _normalised(name) not in found:
            raise UserError(
                f"{place} has no {name}, which is locked. Run scripts/setup.sh, then again."
            )
        for entry in found[_normalised(name)].files or ():
            path = entry.as_posix()
            source = place / path
            # Scripts lie outside, and name this machine's Python; bytecode of files left out.
            if path.startswith("../") or NOT_LOADED.search(path) or not source.is_file():
                continue
            yield Piece(f".venv/{PACKAGES}/{path}", source)
            if path.endswith(".py"):
                yield from _bytecode(source, path)


def ours(environment: Path) -> Iterator[Piece]:
    """Files of the checkout, the link that makes it the package, our operations.

    Raises:
      UserError: if it is no checkout of git.
    """
    # What git knows, and new sources, which others may need; not whatever else lies around.
    new = ["--others", "--exclude-standard", "--", *SOURCES]
    for path in (*_listed("--cached"), *_listed(*new)):
        if not NOT_OF_CHECKOUT.match(path) and (ROOT / path).is_file():
            yield Piece(path, ROOT / path)
    yield Piece(".venv/src/lookback", link="../..")
    yield Piece(f".venv/{PACKAGES}/lookback.pth", text="../../../src\n")
    # scripts/setup.sh leaves an environment alone that has this file.
    yield Piece(".venv/.lookback-carried", text="made by scripts/airgap.sh\n")
    for path in sorted((environment / "lib").glob("lookback_kernels-*.so")):
        yield Piece(f".venv/lib/{path.name}", path)


def _listed(*which: str) -> Iterator[str]:
    """Files of the checkout, as git lists them."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", *which], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        raise UserError(
            f"{ROOT} is no checkout of git, and a pack holds the files that git knows. Pack from a "
            "clone."
        )
    yield from filter(None, listed.stdout.split("\0"))


def shared_libraries(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """What the pieces load from outside of the tree, but for the C library.

    Args:
      pieces: those that are to be packed.
    """
    names = {piece.name.rsplit("/", 1)[-1] for piece in pieces}
    binaries = [str(p.source) for p in pieces if p.source is not None and _is_binary(p.name)]
    wanted: dict[str, Path] = {}
    for start in range(0, len(binaries), 200):  # a command line has an end
        said = subprocess.run(
            ["ldd", *binaries[start : start + 200]], capture_output=True, text=True, check=False
        ).stdout
        for name, path in re.findall(r"^\t(\S+) => (/\S+) \(", said, re.MULTILINE):
            wanted[name] = Path(path)
    for name, path in sorted(wanted.items()):
        if not OF_GLIBC.match(name) and name not in names:
            yield Piece(f".venv/lib/{name}", path)


def _is_binary(name: str) -> bool:
    return name == ".venv/bin/python3.11" or re.search(r"\.so(\.|$)", name) is not None


def _bytecode(source: Path, path: str) -> Iterator[Piece]:
    """The compiled form of a module, without which the first start takes 20 s longer."""
    folder, _, name = path.rpartition("/")
    compiled = f"__pycache__/{name.removesuffix('.py')}.cpython-311.pyc"
    if (source.parent / compiled).is_file():
        yield Piece(
            f".venv/{PACKAGES}/{folder}/{compiled}".replace("//", "/"), source.parent / compiled
        )


def _below(folder: Path) -> Iterator[str]:
    """The files below a folder, relative to it, links to files among them."""
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        folders[:] = sorted(f for f in folders if f not in ("site-packages", "dist-packages"))
        for name in sorted(files):
            yield (inside / name).as_posix()


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

"""Builds the operations of `kernels/` for the TensorFlow that is installed.

A wheel brings them as sources: TensorFlow's C++ interface differs from version to version, and the
file that comes out holds the code for every CPU (`target_clones`), so it is made once for an
environment. It lies in the environment under a name that says what it was made of: another
TensorFlow, or another version of Lookback, finds no file instead of a wrong one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lookback.core.errors import UserError
from lookback.core.files import atomic_file, inside_ours
from lookback.core.options import option

COMPILERS = ("g++", "clang++", "c++")
ADVICE = "Debian and Ubuntu: apt-get install g++. Fedora: dnf install gcc-c++."


@dataclasses.dataclass(frozen=True)
class KernelOptions:
    """How the operations are built."""

    compiler: str | None = option(
        None, help=f"C++ compiler; none: the environment's CXX, else one of {', '.join(COMPILERS)}"
    )


def library() -> Path:
    """Where this environment's operations are, once they are built."""
    import tensorflow as tf

    digest = hashlib.sha256(tf.__version__.encode())
    for source in (*_sources("*.h"), *_sources()):
        digest.update(source.read_bytes())
    return Path(sys.prefix) / "lib" / f"lookback_kernels-{digest.hexdigest()[:12]}.so"


def set_up(options: KernelOptions) -> None:
    """Builds the operations where `loader` looks for them: the command `setup-kernels`.

    Raises:
      UserError: as `build` does.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    path = library()
    build(path, options.compiler)
    print(f"built {path}")


def build(path: Path, compiler: str | None = None) -> None:
    """Compiles the operations into one library; it is whole or not there.

    Args:
      path: the file to make.
      compiler: a program; None: as `KernelOptions` says.

    Raises:
      UserError: if there is no compiler, it fails, or `path` cannot be written.
    """
    import tensorflow as tf

    command = [_find(compiler), "-O3", "-fPIC", "-shared", *tf.sysconfig.get_compile_flags()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Its name says what is in it, so nobody else's file is there.
        with atomic_file(path, replaces=inside_ours) as temporary:
            result = subprocess.run(
                [*command, *map(str, _sources()), "-o", temporary, *tf.sysconfig.get_link_flags()],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            if result.returncode:
                raise UserError(
                    f"{command[0]} could not build our operations for TensorFlow {tf.__version__}: "
                    f"{_reason(result.stderr)}. Choose another C++ compiler with --compiler, or "
                    "go without: models then use TensorFlow's operations, more slowly."
                )
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be written to ({error.strerror}), so our operations cannot be "
            "built there. Run this as the owner of the environment, or go without: models then "
            "use TensorFlow's operations, more slowly."
        ) from error


def _sources(pattern: str = "*.cc") -> list[Path]:
    return sorted(Path(__file__).resolve().parent.glob(pattern))


def _find(compiler: str | None) -> str:
    """The compiler's path."""
    wanted = compiler or os.environ.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        found = shutil.which(name)
        if found is not None:
            return found
    if wanted:
        raise UserError(
            f"there is no C++ compiler {wanted!r}. Name one with --compiler or CXX. {ADVICE}"
        )
    raise UserError(f"no C++ compiler: {', '.join(COMPILERS)} are not on PATH. {ADVICE}")


def _reason(complaint: str) -> str:
    """The line of a compiler's output that says why."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[0].rstrip(".")

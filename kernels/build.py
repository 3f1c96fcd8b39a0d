"""Builds the operations of `kernels/` for the TensorFlow that is installed.

A wheel brings them as sources: TensorFlow's C++ interface differs from version to version, and the
file that comes out holds the code for every CPU (`target_clones`), so it is made once for an
environment. It lies in the environment under a name that says what it was made of: another
TensorFlow, or another version of Lookback, finds no file instead of a wrong one.

`tiles/level.cc` is compiled once for each level, with the flags of its instructions: intrinsics
have no clones. A compiler that does not know a level's flags leaves it out.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lookback.core.devices import cores
from lookback.core.errors import UserError
from lookback.core.files import atomic_file, inside_ours
from lookback.core.options import option

COMPILERS = ("g++", "clang++", "c++")
LEVELS: dict[str, tuple[str, ...]] = {
    "avx2": ("-mavx2", "-mfma"),
    "avx512": (
        *("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        "-mprefer-vector-width=512",
    ),
}
LEVELS["avx512_bf16"] = (*LEVELS["avx512"], "-mavx512bf16", "-DLOOKBACK_BFLOAT16")
LEVELS["amx"] = (*LEVELS["avx512_bf16"], "-mamx-tile", "-mamx-bf16", "-DLOOKBACK_AMX")
"""Of each level of `tiles/levels.cc`, the flags."""
HEADER = """#define EIGEN_USE_THREADS  // before any header of Eigen; sparse_update.cc needs it
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
"""
"""Precompiled: of 6 s that a source takes with TensorFlow's headers, they are 5."""
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
    digest.update(_digest_of_sources())
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

    program = find_compiler(compiler)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Its name says what is in it, so nobody else's file is there.
        with (
            atomic_file(path, replaces=inside_ours) as temporary,
            tempfile.TemporaryDirectory() as folder,
        ):
            compile_all(program, Path(folder), tf.sysconfig.get_compile_flags())
            objects = sorted(map(str, Path(folder).glob("*.o")))
            libraries = tf.sysconfig.get_link_flags()
            _run([program, "-shared", *objects, "-o", str(temporary), *libraries])
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be written to ({error.strerror}), so our operations cannot be "
            "built there. Run this as the owner of the environment, or go without: models then "
            "use TensorFlow's operations, more slowly."
        ) from error


def find_compiler(compiler: str | None) -> str:
    """The compiler's path.

    Args:
      compiler: a program; None: as `KernelOptions` says.

    Raises:
      UserError: if there is none.
    """
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


def compile_all(program: str, folder: Path, flags: Sequence[str]) -> None:
    """Compiles every source into an object file, as many at a time as there are cores.

    Args:
      program: the compiler.
      folder: of the object files.
      flags: TensorFlow's, for the files that include it.

    Raises:
      UserError: naming TensorFlow's version and the compiler's reason, if one fails.
    """
    common, header = [program, "-O3", "-fno-math-errno", "-fPIC"], folder / "tensorflow.h"
    header.write_text(HEADER)
    precompiled = ["-x", "c++-header", str(header), "-o", f"{header}.gch"]
    alone = [*common, "-std=c++17", "-ffp-contract=fast"]
    (level,), (levels,) = _sources("tiles/level.cc"), _sources("tiles/levels.cc")
    first = [
        [*common, *flags, *precompiled],
        [*alone, "-c", str(levels), "-o", str(folder / "levels.o")],
    ]
    for name, instructions in LEVELS.items():
        if _knows(program, instructions):
            output = folder / f"level_{name}.o"
            named = [*instructions, f"-DLOOKBACK_LEVEL={name}", "-c", str(level)]
            first.append([*alone, *named, "-o", str(output)])
    then = [
        [*common, *flags, "-include", str(header), "-c", str(source), "-o", str(output)]
        for source in _sources("*.cc")
        for output in [folder / f"{source.stem}.o"]
    ]
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        for commands in (first, then):
            list(pool.map(_run, commands))


def _knows(program: str, flags: Sequence[str]) -> bool:
    """Whether a compiler takes these flags."""
    command = [program, *flags, "-x", "c++", "-E", os.devnull, "-o", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode:
        import tensorflow as tf

        raise UserError(
            f"{command[0]} could not build our operations for TensorFlow {tf.__version__}: "
            f"{_reason(result.stderr)}. Choose another C++ compiler with --compiler, or "
            "go without: models then use TensorFlow's operations, more slowly."
        )


@functools.cache
def _digest_of_sources() -> bytes:
    digest = hashlib.sha256()
    for source in _sources("*.h", "*.cc", "tiles/*.h", "tiles/*.cc"):
        digest.update(source.read_bytes())
    return digest.digest()


def _sources(*patterns: str) -> list[Path]:
    folder = Path(__file__).resolve().parent
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


_COMPLAINTS = ("error", "undefined reference", "multiple definition", "cannot find")
"""In a line of a compiler's or a linker's output that says why it failed; a linker's driver ends
with an error that does not."""


def _reason(complaint: str) -> str:
    """The line of a compiler's output that says why."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    errors = [line for line in lines if any(word in line.lower() for word in _COMPLAINTS)]
    return (errors or lines or ["it said nothing"])[0].rstrip(".")

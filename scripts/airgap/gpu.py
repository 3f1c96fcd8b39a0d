"""A pack for GPUs holds an environment of `scripts/gpu/build.sh`, cut to one architecture."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lookback.core.errors import UserError
from lookback.scripts.airgap.contents import PACKAGES, Piece, locked, packages
from lookback.scripts.gpu.cut_fatbins import cut

# TensorFlow 2.12 takes a GPU only if it can open all of these. What it calls:
LIBRARIES = (
    *("libcudart.so.11.0", "libcublas.so.11", "libcublasLt.so.11", "libcurand.so.10"),
    *("libnccl.so.2", "libcudnn.so.8"),
)
# What it opens alone, as we have no FFT, no solver and no sparse matrix product.
STAND_INS = ("libcufft.so.10", "libcusolver.so.11", "libcusparse.so.11")
# Of the compiler, what XLA runs.
COMPILER = ("bin/ptxas", "nvvm/libdevice/libdevice.10.bc")
CUDA_DIRECTORY = ".venv/lib/cuda"
INSTEAD = {"tensorflow-cpu": "tensorflow"}
_CUDA_CODE = b".nv_fatbin"

PYTHON = """#!/bin/sh
# Python, with the shared libraries that lie beside it, and CUDA's compiler for XLA.
bin=$(cd "$(dirname "$(readlink -f "$0")")" && pwd -P) || exit
LD_LIBRARY_PATH=$bin/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
PATH=$bin/../lib/cuda/bin:$PATH
XLA_FLAGS="--xla_gpu_cuda_data_dir=$bin/../lib/cuda${XLA_FLAGS:+ $XLA_FLAGS}"
CUDA_MODULE_LOADING=${CUDA_MODULE_LOADING:-LAZY}
export LD_LIBRARY_PATH PATH XLA_FLAGS CUDA_MODULE_LOADING
exec "$bin/python3.11" "$@"
"""


def architecture_of(name: str) -> int:
    """The number in a name such as sm_90.

    Raises:
      UserError: if it is none.
    """
    match = re.fullmatch(r"sm_(\d{2,3})", name)
    if match is None:
        raise UserError(f"--gpu: expected an architecture such as sm_90, received {name!r}.")
    return int(match[1])


def gpu_packages(environment: Path, architecture: int, scratch: Path) -> Iterator[Piece]:
    """The packages, and CUDA's libraries beside Python's.

    Args:
      environment: of `scripts/gpu/build.sh`.
      architecture: such as 90.
      scratch: a directory for libraries that are cut or made; it must outlive the pieces.
    """
    names = [INSTEAD.get(name, name) for name in locked("requirements/runtime.txt")]
    for piece in packages(environment, [*names, "horovod", "merlin-sok"]):
        yield _cut(piece, architecture, scratch)
    yield from cuda(environment, architecture, scratch)


def cuda(environment: Path, architecture: int, scratch: Path) -> Iterator[Piece]:
    """CUDA's libraries, stand-ins for those that nothing calls, and XLA's compiler.

    Args:
      environment: of `scripts/gpu/build.sh`.
      architecture: such as 90.
      scratch: as of `gpu_packages`.

    Raises:
      UserError: naming what the environment lacks.
    """
    nvidia = environment / PACKAGES / "nvidia"
    for name in LIBRARIES:
        found = sorted(nvidia.glob(f"*/lib/{name}"))
        if not found:
            raise UserError(
                f"{nvidia} has no {name}. Make the environment with scripts/gpu/build.sh."
            )
        yield _cut(Piece(f".venv/lib/{name}", found[0]), architecture, scratch)
    for name in STAND_INS:
        made = scratch / name
        command = ["g++", "-shared", "-x", "c", "/dev/null", f"-Wl,-soname,{name}", "-o", made]
        subprocess.run(command, check=True)
        yield Piece(f".venv/lib/{name}", made)
    for name in COMPILER:
        source = nvidia / "cuda_nvcc" / name
        if not source.is_file():
            raise UserError(
                f"{source} is not there, and XLA needs it. Make the environment with "
                "scripts/gpu/build.sh."
            )
        yield Piece(f"{CUDA_DIRECTORY}/{name}", source)


def _cut(piece: Piece, architecture: int, scratch: Path) -> Piece:
    """A piece without the code for other architectures, if it has any."""
    if piece.source is None or not re.search(r"\.so(\.|$)", piece.name):
        return piece
    library = piece.source.read_bytes()
    if _CUDA_CODE not in library:
        return piece
    made = scratch / piece.name.replace("/", "_")
    made.write_bytes(cut(library, architecture))
    made.chmod(piece.source.stat().st_mode)
    return piece._replace(source=made)

"""What is packed for a GPU: CUDA code of one architecture, libraries, stand-ins."""

from __future__ import annotations

import ctypes
import struct
import subprocess

import pytest

from lookback.core.errors import UserError
from lookback.scripts.airgap import gpu
from lookback.scripts.airgap.contents import PACKAGES, Piece
from lookback.scripts.gpu.cut_fatbins import MAGIC, cut

PTX, ELF = 1, 2


def entry(kind, architecture, code):
    """As CUDA 11.8 has it: a header of 64 bytes, then the code."""
    header = struct.pack("<HHIQ", kind, 257, 64, len(code)) + bytes(12)
    return (header + struct.pack("<I", architecture)).ljust(64, b"\0") + code


def container(*entries):
    content = b"".join(entries)
    return MAGIC + struct.pack("<HHQ", 1, 16, len(content)) + content


SM80, SM86, SM90 = (entry(ELF, sm, bytes([sm]) * 100) for sm in (80, 86, 90))
PTX70, PTX80 = entry(PTX, 70, b"assembly of 70" * 9), entry(PTX, 80, b"assembly of 80" * 9)
OTHER = MAGIC + b"a mere number" * 5  # bytes that happen to be the same


@pytest.fixture
def library_of(tmp_path):
    """Builds a library with containers in it; `answer()` gives 42."""

    def make(*containers, name="lib.so"):
        (tmp_path / "code").write_bytes(b"".join(containers))
        source = tmp_path / "lib.c"
        source.write_text(
            "int answer() { return 42; }\n"
            '__asm__(".section .nv_fatbin,\\"a\\"\\n.incbin \\"%s\\"\\n.text");'
            % (tmp_path / "code")
        )
        library = tmp_path / name
        build = ["g++", "-x", "c", "-shared", "-fPIC", "-o", library, source]
        subprocess.run(build, check=True)
        return library

    return make


@pytest.mark.parametrize(
    ("entries", "architecture", "kept"),
    [
        ((SM80, SM90, PTX80), 90, SM90),
        ((SM80, PTX70, PTX80), 90, PTX80),  # machine code of another generation does not run
        ((SM80, SM86, PTX80), 89, SM86),
        ((SM90, PTX80), 80, PTX80),
        ((SM90, SM86), 70, SM90),  # nothing runs: the smallest, here the first of two as small
    ],
)
def test_what_runs_best_is_kept(library_of, entries, architecture, kept):
    whole = library_of(container(*entries), OTHER, container(*entries)).read_bytes()
    result = cut(whole, architecture)
    assert len(result) == len(whole)
    start = whole.index(container(*entries))
    length = len(container(*entries))
    for place in (start, start + length + len(OTHER)):
        found = result[place : place + length]
        assert found == container(kept).ljust(length, b"\0")
    assert OTHER in result
    # Beside the containers nothing has changed.
    assert result[:start] == whole[:start]
    assert result[start + 2 * length + len(OTHER) :] == whole[start + 2 * length + len(OTHER) :]


def test_a_cut_library_loads(library_of, tmp_path):
    whole = library_of(container(SM80, SM90))
    small = tmp_path / "small.so"
    small.write_bytes(cut(whole.read_bytes(), 90))
    assert ctypes.CDLL(str(small)).answer() == 42


def test_no_library_is_refused():
    with pytest.raises(ValueError, match="expected an ELF library"):
        cut(b"text", 90)


@pytest.fixture
def environment(tmp_path, library_of):
    """What build.sh leaves of CUDA, in small."""
    nvidia = tmp_path / "env" / PACKAGES / "nvidia"
    library = library_of(container(SM80, SM90, PTX80))
    for name in gpu.LIBRARIES:
        folder = nvidia / name.split(".")[0] / "lib"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(library.read_bytes())
    for name in gpu.COMPILER:
        (nvidia / "cuda_nvcc" / name).parent.mkdir(parents=True)
        (nvidia / "cuda_nvcc" / name).write_text("compiler")
    return tmp_path / "env"


def test_cudas_libraries_are_cut_and_the_others_stood_in_for(environment, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    pieces = {piece.name: piece for piece in gpu.cuda(environment, 90, scratch)}
    expected = {f".venv/lib/{name}" for name in (*gpu.LIBRARIES, *gpu.STAND_INS)}
    assert set(pieces) == expected | {f".venv/lib/cuda/{name}" for name in gpu.COMPILER}
    for name in gpu.LIBRARIES:
        content = pieces[f".venv/lib/{name}"].source.read_bytes()
        assert container(SM90) in content and SM80 not in content and PTX80 not in content
    for name in gpu.STAND_INS:
        said = ["readelf", "-d", pieces[f".venv/lib/{name}"].source]
        told = subprocess.run(said, capture_output=True, text=True, check=True).stdout
        assert f"soname: [{name}]" in told


def test_what_is_missing_is_named(environment, tmp_path):
    (lost,) = environment.rglob("libnccl.so.2")
    lost.unlink()
    with pytest.raises(UserError, match=r"has no libnccl\.so\.2"):
        list(gpu.cuda(environment, 90, tmp_path))
    with pytest.raises(UserError, match="sm_90, received 'h100'"):
        gpu.architecture_of("h100")
    assert gpu.architecture_of("sm_90") == 90


def test_what_has_no_cuda_code_stays(library_of, tmp_path):
    text = tmp_path / "module.py"
    text.write_text("pass")
    assert gpu._cut(Piece("a/module.py", text), 90, tmp_path).source == text

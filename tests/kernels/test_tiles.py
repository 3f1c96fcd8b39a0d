"""kernels/tiles without TensorFlow, under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lookback.core.errors import UserError
from lookback.kernels import build, loader

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
HERE = Path(__file__).resolve().parent


@pytest.mark.slow
@pytest.mark.parametrize("level", build.LEVELS)
def test_sanitizers_find_nothing(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKBACK_CPU_LEVEL", level)
    if level not in (loader.history_level("float32"), loader.history_level("bfloat16")):
        pytest.skip(f"this CPU is no {level}, or nothing is built")
    try:
        compiler = build.find_compiler(None)
    except UserError:
        pytest.skip("no C++ compiler")
    tiles, program = HERE.parents[1] / "kernels" / "tiles", tmp_path / "check"
    command = [compiler, "-std=c++17", "-O1", "-g", "-pthread", *SANITIZERS, f"-I{tiles}"]
    command += [*build.LEVELS[level], f"-DLOOKBACK_LEVEL={level}", "-DLOOKBACK_POISON"]
    command += [str(tiles / "level.cc"), str(HERE / "tiles_check.cc"), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fine\n"

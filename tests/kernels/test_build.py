"""kernels/build.py: what it says when the operations cannot be built, and where it puts them."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lookback.core.errors import UserError
from lookback.kernels import build as building


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """A program that takes a compiler's arguments: it writes them into the file to make, and beside
    itself; it has never heard of AMX."""
    path = tmp_path / "my compiler"
    path.write_text(
        '#!/bin/sh\ncase "$*" in *-mamx*) exit 1;; esac\n'
        'for word; do\n  [ "$last" != -o ] || echo "$@" > "$word"\n  last=$word\ndone\n'
        'echo "$@" >> "$0.log"\n'
    )
    path.chmod(0o755)
    return path


def test_the_compiler_gets_the_sources_and_what_tensorflow_says(
    tmp_path: Path, compiler: Path
) -> None:
    import tensorflow as tf

    path = tmp_path / "lib" / "ours.so"
    building.build(path, str(compiler))
    given = path.read_text().split()
    names = [Path(word).name for word in given]
    assert {"dot_interaction.o", "history_step_ops.o", "levels.o", "level_avx512.o"} <= set(names)
    assert "level_amx.o" not in names  # a level whose flags are unknown is left out
    assert {"-shared", *tf.sysconfig.get_link_flags()} <= set(given)
    assert [entry.name for entry in path.parent.iterdir()] == ["ours.so"]
    calls = (tmp_path / "my compiler.log").read_text().splitlines()
    (one,) = [call for call in calls if "/dot_interaction.cc" in call]
    assert f"-I{tf.sysconfig.get_include()}" in one.split()
    (level,) = [call for call in calls if "-DLOOKBACK_LEVEL=avx2 " in call]
    assert "-mavx2" in level.split() and "/level.cc" in level
    assert "tensorflow" not in level


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ours.so"
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no C\+\+ compiler: g\+\+, .* are not on PATH. Debian"):
        building.build(path)
    monkeypatch.setenv("CXX", "icpx")
    with pytest.raises(UserError, match=r"no C\+\+ compiler 'icpx'\. Name one with --compiler"):
        building.build(path)
    with pytest.raises(UserError, match=r"no C\+\+ compiler 'mine'"):
        building.build(path, "mine")


def test_a_compiler_that_fails_leaves_nothing_and_its_reason(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(
        "#!/bin/sh\necho 'In file included from x.cc:1:' >&2\n"
        "echo 'x.cc:3: fatal error: op.h: No such file' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    text = r"could not build our operations.*: x\.cc:3: fatal error: op\.h: No such file\. Choose"
    with pytest.raises(UserError, match=text):
        building.build(tmp_path / "ours.so", str(compiler))
    assert [entry.name for entry in tmp_path.iterdir()] == ["c++"]


def test_a_linker_that_fails_is_quoted_rather_than_its_driver(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *-shared*) ;; *) exit 0 ;; esac\n'
        "echo '/usr/bin/ld: in function `a:' >&2\n"
        "echo 'b.cc:(.text+0x10): multiple definition of `a; a.cc: first defined here' >&2\n"
        "echo 'clang: error: linker command failed with exit code 1' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    with pytest.raises(UserError, match=r": b\.cc:\(\.text\+0x10\): multiple definition of `a;"):
        building.build(tmp_path / "ours.so", str(compiler))


def test_an_environment_of_somebody_else_is_named(tmp_path: Path, compiler: Path) -> None:
    (tmp_path / "lib").touch()
    with pytest.raises(UserError, match=r"lib cannot be written to .* as the owner"):
        building.build(tmp_path / "lib" / "ours.so", str(compiler))


def test_the_library_s_name_says_what_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    here = building.library()
    assert here.parent == Path(sys.prefix) / "lib"
    monkeypatch.setattr(tf, "__version__", "2.99.0")
    assert building.library().name != here.name


def first_loader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """kernels/loader.py as a process has it that has asked for no operation yet."""
    spec = importlib.util.find_spec("lookback.kernels.loader")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


def test_models_say_once_why_they_run_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ours.so"
    monkeypatch.setattr(building, "library", lambda: path)
    for content, reason in ((None, "ours.so is not in"), (b"damaged", "ours.so cannot be loaded")):
        if content is not None:
            path.write_bytes(content)
        loader = first_loader(monkeypatch)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert loader.cpu_kernels() is None
            assert loader.history_level("float32") is None
        (record,) = caplog.records
        assert reason in record.getMessage()
        assert "lookback setup-kernels" in record.getMessage()


def test_setup_kernels_answers_without_tensorflow() -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-X", "importtime", "cli.py", "setup-kernels", "--help"]
    done = subprocess.run(
        command, cwd=root, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "--compiler TEXT" in done.stdout
    assert "numpy" not in done.stderr

"""The wheel: what it holds, what it needs, and that it works away from the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomllib

import lookback
from lookback.kernels.build import library
from tests.in_one_process import IN_ONE_PROCESS
from tests.test_architecture import DOORS, FLOORS

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
DATA = {
    "training/parallel/start_rank.sh",
    "workflows/log/schema.json",
    *(f"serving/server/demo/page/{n}" for n in ("index.html", "page.css", "page.js", "icon.svg")),
    *(f"kernels/{path.relative_to(ROOT / 'kernels')}" for path in (ROOT / "kernels").rglob("*.cc")),
    *(f"kernels/{path.relative_to(ROOT / 'kernels')}" for path in (ROOT / "kernels").rglob("*.h")),
    *(f"workflows/recipes/{path.name}" for path in (ROOT / "workflows/recipes").glob("*.yaml")),
}
"""What the product needs beside its modules."""


def product() -> set[str]:
    """Paths of the product's modules in the checkout."""
    modules = [ROOT / "__init__.py", *(ROOT / f"{name}.py" for name in DOORS)]
    for package in FLOORS:
        modules += (ROOT / package).rglob("*.py")
    return {path.relative_to(ROOT).as_posix() for path in modules}


def test_every_directory_of_the_product_is_a_listed_package() -> None:
    directories = {Path(path).parent.as_posix() for path in product()}
    names = {"lookback" if d == "." else f"lookback.{d.replace('/', '.')}" for d in directories}
    assert sorted(names) == PROJECT["tool"]["setuptools"]["packages"]


def test_it_needs_what_the_runtime_is_locked_from() -> None:
    lines = (ROOT / "requirements" / "runtime.in").read_text().splitlines()
    needs = [line for line in lines if line and not line.startswith("#")]
    assert PROJECT["project"]["dependencies"] == needs


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built in a copy: a build leaves files in its tree."""
    directory = tmp_path_factory.mktemp("wheel")
    everywhere = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info")
    outputs = {"demo", "runs", "data"}  # of the checkout itself

    def left_out(of: str, names: list[str]) -> set[str]:
        return everywhere(of, names) | (outputs if Path(of) == ROOT else set())

    shutil.copytree(ROOT, directory / "copy", ignore=left_out)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, directory],
        cwd=directory / "copy",
        check=True,
        capture_output=True,
    )
    (path,) = directory.glob("*.whl")
    return path


def test_the_wheel_holds_the_product_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"lookback-{lookback.__version__}-py3-none-any.whl"
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    about = {path for path in names if path.parts[0].endswith(".dist-info")}
    assert {path.as_posix() for path in names - about} == {
        f"lookback/{path}" for path in product() | DATA
    }
    described = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt"}
    described |= {"LICENSE", "THIRD_PARTY_NOTICES.md"}
    assert {path.name for path in about} == described


Run = Callable[..., str]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment with the wheel and this one's packages, not our checkout."""
    tools = ":".join(str(path) for path in (ROOT / ".tools").glob("*/bin"))
    uv = shutil.which("uv", path=f"{tools}:{os.environ['PATH']}")
    if uv is None:
        pytest.skip("no uv: this .venv is not of scripts/setup.sh")
    directory = tmp_path_factory.mktemp("environment")
    environment, empty = directory / "venv", directory / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    (packages,) = environment.glob("lib/python*/site-packages")
    # Path files in a directory that a path file names are not read: that of our checkout is not.
    (packages / "pins.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = [uv, "pip", "install", "--no-deps", "--offline", "--no-cache", "--python", python]
    subprocess.run([*install, wheel], check=True, capture_output=True)

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [environment / "bin" / program, *arguments],
            cwd=empty,
            env={"PATH": os.environ["PATH"], "HOME": str(empty), "TF_CPP_MIN_LOG_LEVEL": "2"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program} {' '.join(arguments)}\n{done.stderr[-3000:]}"
        return done.stdout

    where = run("python", "-c", "import lookback; print(lookback.__file__)").strip()
    assert Path(where) == packages / "lookback" / "__init__.py"
    return run


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """What scripts/setup.sh has compiled: a program that copies it, if its sources are there."""
    path = tmp_path / "c++"
    path.write_text(
        "#!/bin/sh\n"
        "for word; do\n"
        '  case $last in -c) [ -f "$word" ] || exit 1 ;; -o) output=$word ;; esac\n'
        "  last=$word\n"
        "done\n"
        f'case $1 in -shared) cp "{library()}" "$output" ;; *) : > "$output" ;; esac\n'
    )
    path.chmod(0o755)
    return path


@pytest.mark.slow
def test_from_raw_data_to_scores_in_an_empty_directory(installed: Run, compiler: Path) -> None:
    assert installed("lookback", "--version") == f"lookback {lookback.__version__}\n"
    built = installed("lookback", "setup-kernels", "--compiler", str(compiler))
    assert re.fullmatch(rf"built .*/venv/lib/{re.escape(library().name)}\n", built)

    def in_one_process(*lines: str) -> str:
        return installed("python", "-c", IN_ONE_PROCESS, json.dumps(lines))

    plan = in_one_process(
        "workflows generate --dataset synthetic --preset tiny --output raw",
        "workflows run --dataset synthetic --input raw --output data",
        "embeddings plan --dataset_dir data --ranks 2",
    )
    assert "item_id" in plan
    scores = in_one_process(
        "train --dataset_dir data --model_type din --epochs 1 --global_batch_size 4096 "
        "--embedding_dim 4 --results_dir results --export_dir export",
        "serving sample --export_dir export --dataset_dir data --users 2 --candidates 3 "
        "> requests.jsonl",
        "serving score --export_dir export --requests requests.jsonl",
    )
    answers = [json.loads(line) for line in scores.splitlines()[-2:]]
    assert [len(answer["candidates"]) for answer in answers] == [3, 3]

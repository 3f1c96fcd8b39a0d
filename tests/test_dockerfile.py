"""The Dockerfile, read as text: hadolint's rules, and ours that it does not know."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "Dockerfile"
TARGETS = ("cpu", "gpu")


class Instruction(NamedTuple):
    keyword: str
    argument: str


class Stage(NamedTuple):
    name: str
    image: str
    instructions: list[Instruction]

    def arguments(self, keyword: str) -> list[str]:
        return [line.argument for line in self.instructions if line.keyword == keyword]


def read() -> tuple[dict[str, str], list[Stage]]:
    """Returns the ARGs before the first FROM, with their defaults, and the stages."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    options: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        keyword, argument = line.split(maxsplit=1)
        if keyword == "FROM":
            image, name = re.fullmatch(r"(\S+) AS (\S+)", argument).groups()  # every stage is named
            stages.append(Stage(name, image, []))
        elif stages:
            stages[-1].instructions.append(Instruction(keyword, argument))
        else:
            assert keyword == "ARG", f"{keyword} before the first FROM"
            name, _, default = argument.partition("=")
            options[name] = default
    return options, stages


OPTIONS, STAGES = read()
EACH_STAGE = pytest.mark.parametrize("stage", STAGES, ids=[stage.name for stage in STAGES])


def test_hadolint_finds_nothing() -> None:
    command = [Path(sys.executable).parent / "hadolint", "--no-color", DOCKERFILE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def test_targets() -> None:
    assert [stage.name for stage in STAGES] == list(TARGETS)


def test_gpu_extends_the_merlin_image_by_build_argument() -> None:
    assert OPTIONS == {"MERLIN_IMAGE": "nvcr.io/nvidia/merlin/merlin-tensorflow:23.12"}
    assert STAGES[-1].image == "${MERLIN_IMAGE}"


@EACH_STAGE
def test_base_image_has_an_exact_tag(stage: Stage) -> None:
    image = re.sub(r"\$\{(\w+)\}", lambda match: OPTIONS[match[1]], stage.image)
    tag = image.rpartition(":")[2]
    assert re.match(r"\d+\.\d+", tag), f"{image}: {tag} is not a release"


@EACH_STAGE
def test_runs_as_an_ordinary_user(stage: Stage) -> None:
    assert stage.arguments("USER")[-1] == "1000"


@EACH_STAGE
def test_directories_are_absolute(stage: Stage) -> None:
    assert stage.arguments("WORKDIR")
    assert all(path.startswith("/") for path in stage.arguments("WORKDIR"))


@EACH_STAGE
def test_what_is_copied_exists_and_is_in_the_context(stage: Stage) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert not stage.arguments("ADD")
    for argument in stage.arguments("COPY"):
        *sources, _ = (word for word in argument.split() if not word.startswith("--"))
        for source in sources:
            assert (ROOT / source).exists(), f"COPY {source}: no such file"
            assert source.split("/")[0] not in ignored, (
                f"COPY {source}: .dockerignore leaves it out"
            )


@EACH_STAGE
def test_packages_leave_no_lists_and_no_caches(stage: Stage) -> None:
    for command in stage.arguments("RUN"):
        if "apt-get install" in command:
            assert "--no-install-recommends" in command
            assert "rm -rf /var/lib/apt/lists/*" in command
        if "pip install" in command:
            assert "--no-cache-dir" in command
            assert "--require-hashes" in command


def test_cpu_is_what_the_setup_script_makes() -> None:
    cpu = STAGES[0]
    assert any(command.startswith("scripts/setup.sh") for command in cpu.arguments("RUN"))
    order = [f"{line.keyword} {line.argument}" for line in cpu.instructions]
    setup = next(i for i, line in enumerate(order) if line.startswith("RUN scripts/setup.sh"))
    assert next(i for i, line in enumerate(order) if line.startswith("USER")) < setup
    # All that setup.sh reads has been copied by then; the code comes later, and changes more often.
    before = " ".join(order[:setup])
    read = {"requirements/", "kernels/", "core/", "__init__.py", "cli.py"}
    read |= {"scripts/setup.sh", "scripts/check_environment.py"}
    assert read <= set(before.split())
    assert any(line.endswith(" . .") for line in order[setup:])


def test_gpu_finds_the_checkout_as_the_package() -> None:
    gpu = STAGES[-1]
    (place,) = gpu.arguments("WORKDIR")
    parent, _, name = place.rpartition("/")
    assert name == "lookback"
    path_file = next(line for line in gpu.arguments("RUN") if "lookback.pth" in line)
    assert path_file.startswith(f"echo {parent} > ")
    assert f"exec python3 {place}/cli.py" in path_file


def test_context_leaves_out_what_is_built_here() -> None:
    ignored = set((ROOT / ".dockerignore").read_text().split("\n"))
    assert {".git", ".venv", ".tools", "demo", "runs", "**/__pycache__"} <= ignored

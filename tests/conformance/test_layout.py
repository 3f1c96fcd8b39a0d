"""The registries hold what their packages offer: one file and one line for each new entry."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REGISTRIES = [
    ("lookback.workflows", "DATASETS"),
    ("lookback.workflows", "TABULAR_DATASETS"),
    ("lookback.workflows", "ROW_DATASETS"),
    ("lookback.workflows", "GENERATORS"),
    ("lookback.models", "MODELS"),
    ("lookback.dataloading", "LAYOUTS"),
    ("lookback.serving.layouts.registry", "LAYOUTS"),
    ("lookback.benchmarks", "BENCHMARKS"),
    ("lookback.benchmarks.peers.client", "PEERS"),
    ("lookback.embeddings.backends", "BACKENDS"),
    ("lookback.embeddings.planners", "PLANNERS"),
    ("lookback.embeddings.sharding", "STRATEGIES"),
]
EACH_REGISTRY = pytest.mark.parametrize(("module", "name"), REGISTRIES)


@EACH_REGISTRY
def test_registry_is_a_dict_of_lower_case_names(module: str, name: str) -> None:
    registry = getattr(importlib.import_module(module), name)
    assert isinstance(registry, dict)
    assert registry
    assert all(key.isidentifier() and key == key.lower() for key in registry)


@pytest.mark.parametrize("package", ["embeddings/backends", "embeddings/sharding"])
def test_every_file_of_the_package_is_registered_or_shared(package: str) -> None:
    """What nobody registered cannot be chosen, and conformance skips it.

    Of models, `test_registries` holds the same: all modules with a `build` are registered.
    """
    module = f"lookback.{package}".replace("/", ".")
    name = dict(REGISTRIES)[module]
    registered = set(getattr(importlib.import_module(module), name))
    files = {path.stem for path in (ROOT / package).glob("*.py")}
    assert registered <= files, "an entry has no file of its name"
    assert files <= registered | {"__init__", "base"}


HEAVY = {"tensorflow", "nvtabular", "merlin.models", "pandas", "dask", "scipy", "matplotlib"}

LIGHT = {
    "lookback.core.options",
    "lookback.dataloading",
    "lookback.models.tabular_config",
    "lookback.training.config",
    "lookback.training.output.logging",
    "lookback.training.output.report",
}
"""What people import, or ask for help; of the product, that which the help of training needs."""


def test_command_lines_answer_help_without_tensorflow() -> None:
    """Heavy imports wait until there is work, so --help and bad arguments answer at once."""

    packages = ("workflows", "embeddings", "serving", "benchmarks")
    names = ([], ["train"], ["run"], ["workflows"], ["embeddings"], ["serving"])
    doors = (["cli.py", *name] for name in names)
    for command in (*(["-m", package] for package in packages), ["train.py"], *doors):
        code = [sys.executable, "-X", "importtime", *command, "--help"]
        result = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
        assert not imported & HEAVY, command
        if "train.py" in command:
            assert imported > LIGHT and "pyarrow" not in imported

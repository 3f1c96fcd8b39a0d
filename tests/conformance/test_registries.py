"""Nothing that could be registered is left out: parsed or imported, never by hand."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

from lookback.embeddings.config import LOCAL
from lookback.models import MODELS
from lookback.models.registry import ModelEntry

ROOT = Path(__file__).resolve().parents[2]


def functions_of(path: Path) -> set[str]:
    return {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}


def test_every_module_with_build_is_a_registered_model():
    builders = {p.stem for p in (ROOT / "models").glob("*.py") if "build" in functions_of(p)}
    registered = {entry.module.removeprefix("lookback.models.") for entry in MODELS.values()}
    assert builders == registered


@pytest.mark.parametrize("name", MODELS)
def test_a_model_s_module_has_its_name_and_takes_schema_config_and_sharding(name):
    entry = MODELS[name]
    assert isinstance(entry, ModelEntry)
    assert entry.module == f"lookback.models.{name}"
    assert dataclasses.is_dataclass(entry.config_class)
    module = importlib.import_module(entry.module)
    assert list(inspect.signature(module.build).parameters) == ["schema", "config", "sharding"]
    assert inspect.signature(module.build).parameters["sharding"].default == LOCAL
    assert list(inspect.signature(module.tables).parameters) == ["schema", "config"]


def test_models_do_not_share_options_classes():
    classes = [entry.config_class for entry in MODELS.values()]
    assert len(set(classes)) == len(classes)


def test_every_backend_is_registered():
    from lookback.embeddings.backends import BACKENDS
    from lookback.embeddings.backends.base import Backend

    found = set()
    for path in (ROOT / "embeddings" / "backends").glob("*.py"):
        if path.stem != "__init__":
            module = importlib.import_module(f"lookback.embeddings.backends.{path.stem}")
            found |= {
                cls
                for _, cls in inspect.getmembers(module, inspect.isclass)
                if cls.__module__ == module.__name__ and issubclass(cls, Backend)
            }
    assert found - {Backend} == set(BACKENDS.values())
    for name, backend in BACKENDS.items():
        assert backend.__module__ == f"lookback.embeddings.backends.{name}"
        assert not backend.__abstractmethods__


def test_every_table_optimizer_has_a_dense_one_and_is_registered():
    from lookback.embeddings import optimizers
    from lookback.training.optimizers import DENSE_OPTIMIZERS

    assert set(optimizers.TABLE_OPTIMIZERS) == set(DENSE_OPTIMIZERS)
    classes = {
        cls
        for _, cls in inspect.getmembers(optimizers, inspect.isclass)
        if issubclass(cls, optimizers.TableOptimizer) and cls is not optimizers.TableOptimizer
    }
    assert classes == set(optimizers.TABLE_OPTIMIZERS.values())


def test_every_reader_is_a_registered_dataset():
    from lookback.workflows import DATASETS, ROW_DATASETS
    from lookback.workflows.event_reader import EventReader

    found = set()
    for path in (ROOT / "workflows" / "datasets").glob("*.py"):
        names = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]
        if any("Reader" in ast.unparse(base) for node in names for base in node.bases):
            module = importlib.import_module(f"lookback.workflows.datasets.{path.stem}")
            found |= {
                cls
                for _, cls in inspect.getmembers(module, inspect.isclass)
                if issubclass(cls, EventReader) and cls.__module__ == module.__name__
            }
    assert found
    assert found == {*DATASETS.values(), *ROW_DATASETS.values()}

"""What is handed on says nothing of the machine it was made on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookback.serving.export import export_bundle
from tests.serving.tabular_data import small_model, write_dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def assert_no_paths(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    local = {str(path) for path in (tmp_path_factory.getbasetemp(), ROOT, sys.prefix)}
    local |= {str(Path(path).resolve()) for path in local}

    def check(directory: Path) -> None:
        files = [path for path in directory.rglob("*") if path.is_file()]
        assert files
        found = {
            f"{file.relative_to(directory)} has {path}"
            for file in files
            for path in local
            if path.encode() in file.read_bytes()
        }
        assert not found

    return check


def test_histories(
    dataset_dir: Path,
    train_sim: Callable[[bool], Any],
    tmp_path: Path,
    assert_no_paths: Callable[[Path], None],
) -> None:
    from lookback.workflows.pipeline import fit_dataset, transform_dataset

    trained = train_sim(False)
    for directory in (dataset_dir, trained.checkpoints, trained.bundle):
        assert_no_paths(directory)
    raw = dataset_dir.parent / "raw"
    fit_dataset("amazon", raw, tmp_path / "fit", min_interactions=5, workers=0)
    transform_dataset(tmp_path / "fit", raw, tmp_path / "transformed", workers=0)
    for name in ("fit", "transformed"):
        assert_no_paths(tmp_path / name)


@pytest.mark.slow
def test_rows(tmp_path: Path, assert_no_paths: Callable[[Path], None]) -> None:
    from lookback.workflows.pipeline import fit_dataset, transform_dataset

    dataset = write_dataset(tmp_path / "data")
    export_bundle(small_model(dataset), dataset, tmp_path / "bundle")
    raw, shape = tmp_path / "data/raw", {"numerical": 3, "categorical": 3, "workers": 0}
    fit_dataset("criteo", raw, tmp_path / "fit", **shape)
    transform_dataset(tmp_path / "fit", raw, tmp_path / "transformed", workers=0)
    for directory in (dataset, *(tmp_path / name for name in ("bundle", "fit", "transformed"))):
        assert_no_paths(directory)

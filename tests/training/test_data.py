"""What a run may ask of materialised samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from errors import UserError
from models import SIMConfig
from training.config import RunConfig
from training.data import open_source


@pytest.mark.parametrize(
    ("run", "options", "text"),
    [
        ({}, {"time_features": True}, "time_features: materialised samples have no timestamps"),
        ({"negatives": "uniform"}, {}, "negatives: materialised samples bring their negatives"),
        ({"test_negatives": 5}, {}, "test_negatives: materialised samples bring"),
        ({"repeatable": True}, {}, "repeatable: materialised samples bring"),
        ({"eval_split": "validation"}, {}, "eval_split: materialised samples have train and test"),
    ],
)
def test_what_only_histories_can_serve_is_refused(tmp_path: Path, run, options, text):
    (tmp_path / "metadata.json").write_text("{}")
    config = RunConfig(model_type="sim", dataset_dir=tmp_path, seed=0, **run)
    with pytest.raises(UserError, match=text):
        open_source(config, SIMConfig(**options))

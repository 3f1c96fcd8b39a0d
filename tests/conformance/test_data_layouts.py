"""What every layout must bear: a new one is tested by being registered."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from lookback.core.options import continued, from_values, options_of
from lookback.dataloading import LAYOUTS
from lookback.dataloading.layout import Layout, LayoutOptions
from lookback.models import MODELS
from lookback.serving.layouts.registry import LAYOUTS as SERVED
from lookback.serving.manifest import MANIFESTS
from lookback.training.run import command_line

ROOT = Path(__file__).resolve().parents[2]
EACH = pytest.mark.parametrize("name", LAYOUTS)

OF_EVERY_RUN: dict[str, Any] = {
    **{"seed": 3, "global_batch_size": None, "drop_remainder": False, "repeat_count": None},
    **{"optimizer": "adam", "lr": 0.001, "weight_decay": 0.0, "amp": False, "xla": False},
    **{"micro_batches": None, "wire_dtype": "float32", "gradient_wire_dtype": "float32"},
    **{"warmup_steps": 0, "warmup_factor": 0, "decay_start_step": None, "decay_steps": 0},
    **{"decay_power": 2.0, "decay_end_lr": 0.0, "loss_scale": None, "grads_accumulated": 1},
    **{"beta1": None, "beta2": None, "eps": None},
}
OF_LAYOUTS: dict[str, dict[str, Any]] = {
    "histories": {"negatives": "popularity", "repeatable": False, "shard_histories": False},
    "interactions": {"repeatable": False, "negative_samples": 4, "exact_negatives": False},
    "tabular": {"dataset_subset": None, "shuffle_batch_order": False},
}
"""What checkpoints say that a continued run must repeat, and the defaults: names and values of
those that were written when every run had the options of every layout."""


@EACH
def test_a_continued_run_repeats_what_it_always_did(name: str) -> None:
    model_type = next(m for m, entry in MODELS.items() if entry.config_class.layout == name)
    defaults = MODELS[model_type].config_class.run_defaults
    given = {option: OF_EVERY_RUN[option] for option in defaults if option in OF_EVERY_RUN}
    configs = from_values(
        command_line(), model_type=model_type, dataset_dir=Path("d"), **{**given, "seed": 3}
    )
    assert continued(*configs) == {**OF_EVERY_RUN, **OF_LAYOUTS[name]}


def test_loading_and_serving_know_the_same_layouts() -> None:
    assert set(LAYOUTS) == set(SERVED) == set(MANIFESTS)
    assert {entry.config_class.layout for entry in MODELS.values()} == set(LAYOUTS)
    for package in ("dataloading", "serving/layouts"):
        files = {path.parent.name for path in (ROOT / package).glob("*/layout.py")}
        assert files == set(LAYOUTS)


@EACH
def test_a_layout_owns_options_with_defaults(name: str) -> None:
    layout = LAYOUTS[name]
    assert isinstance(layout, Layout)
    assert type(layout).__module__ == f"lookback.dataloading.{name}.layout"
    assert issubclass(layout.options_class, LayoutOptions)
    assert layout.options_class().goals == {}
    names = set(options_of(layout.options_class))
    assert not names & set(command_line().shared())
    assert all(option.help for option in options_of(layout.options_class).values())


@EACH
def test_a_layout_finds_nothing_in_an_empty_directory(name: str, tmp_path: Path) -> None:
    assert LAYOUTS[name].found_in(tmp_path) is None
    assert LAYOUTS[name].found_in(tmp_path / "nowhere") is None


def test_options_classes_are_not_shared() -> None:
    classes = [layout.options_class for layout in LAYOUTS.values()]
    assert len(set(classes)) == len(classes)
    assert all(inspect.getdoc(found) != inspect.getdoc(LayoutOptions) for found in classes)

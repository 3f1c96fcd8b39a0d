"""Whole training runs for the benchmarks of accuracy: a model, a dataset, a seed, its figures."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from lookback.benchmarks.comparison import precision
from lookback.core.options import from_values
from lookback.dataloading.layout import LayoutOptions
from lookback.kernels.loader import portable
from lookback.models import MODELS
from lookback.serving.export import export_bundle
from lookback.training.config import RunConfig
from lookback.training.data import open_source
from lookback.training.output.logging import RunLogger
from lookback.training.run import command_line
from lookback.training.trainer import Trainer


def train_and_evaluate(
    run: RunConfig, data: LayoutOptions, options: Any, export_dir: Path | None = None
) -> dict[str, Any]:
    """Trains as train.py does and evaluates at the end.

    Args:
      run: of the run, with a seed; nothing is saved.
      data: options of the layout.
      options: of the model.
      export_dir: a bundle to write; None: none.

    Returns:
      The figures of the test split by name, such as "auc".
    """
    tf.keras.utils.set_random_seed(run.seed)
    # Each run has graphs and layer counters of its own.
    tf.keras.backend.clear_session()
    source = open_source(run, data, options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(precision(run.amp))
        if run.kernels == "none":
            stack.enter_context(portable())
        model = MODELS[run.model_type](source.schema, options)
        trainer = Trainer(model, source, run, model_identity={}, run_identity={}, goals=data.goals)
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        log = stack.enter_context(RunLogger(directory, enabled=False))
        summary = trainer.train(log).summary
        if export_dir is not None:
            export_bundle(model, run.dataset_dir, export_dir)
    return {n.removeprefix("test_"): value for n, value in summary.items() if n.startswith("test_")}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model with options, under a name.

    Attributes:
      label: for the table.
      model_type: key of MODELS.
      options: fields of the model's config that are not at their default.
    """

    label: str
    model_type: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(
        self, dataset_dir: Path, seed: int, export_dir: Path | None = None, **more: Any
    ) -> dict[str, Any]:
        """Trains once; gives the figures. `more` are options of train.py."""
        once = {"eval_split": "test", "eval_every": None}  # the protocols have no validation
        given = {"dataset_dir": dataset_dir, "seed": seed, **once, **more}
        run, data, options = from_values(
            command_line(), model_type=self.model_type, **given, **self.options
        )
        return train_and_evaluate(run, data, options, export_dir)

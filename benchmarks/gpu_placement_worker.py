"""Traces a model's training step and scoring as on a GPU, and says where their nodes would run.

usage: python -m lookback.benchmarks.gpu_placement_worker MODEL DATASET BATCH OUTPUT.json

In an environment with TensorFlow's build for GPUs; a GPU itself is not needed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from lookback.core import devices

_LARGEST = 12  # crossings that are listed


def main(model: str, dataset: Path, batch: int) -> dict[str, Any]:
    """What was found of a model's two graphs, by name.

    Args:
      model: a key of MODELS.
      dataset: that suits it.
      batch: rows.
    """
    devices.has_gpu = lambda: True  # before anything else of ours asks
    import tensorflow as tf

    from lookback.benchmarks.gpu_placement_graph import optimized, place
    from lookback.core.options import parse
    from lookback.dataloading.sources import as_tensors
    from lookback.embeddings.config import Sharding
    from lookback.models import MODELS
    from lookback.training.data import open_source
    from lookback.training.evaluation.steps import EvaluationSteps
    from lookback.training.optimizers import Optimizer
    from lookback.training.parallel.gathering import build_variables
    from lookback.training.run import command_line
    from lookback.training.steps import Steps

    words = ["--model_type", model, "--dataset_dir", str(dataset), "--seed", "1"]
    words += ["--global_batch_size", str(batch), "--valid_batch_size", str(batch)]
    run, data, options = parse(words, command_line())
    source = open_source(run, data, options)
    built = MODELS[model](source.schema, options, Sharding())
    build_variables(built, source)
    steps = Steps(built, Optimizer("adam", 0.01, 0.0, built), source, None)
    scoring = EvaluationSteps(built, source)
    evaluation = source.evaluations(source.held_out[-1])[0]
    source.eval_steps(evaluation.name)

    def train(feed: Any) -> Any:
        return next(steps.train(iter([feed])))[1]

    def score(feed: Any) -> Any:
        features = source.eval_batch(evaluation.name, as_tensors(feed))[0]
        return scoring.logits(features, evaluation.pieces)

    graphs = {
        "training": (train, next(iter(source.train_feeds(0, 0)))),
        "scoring": (score, next(iter(source.eval_feeds(evaluation.name)))),
    }
    found = {}
    for name, (function, feed) in graphs.items():
        traced = tf.function(function, autograph=False).get_concrete_function(as_tensors(feed))
        captured = {id(tensor) for tensor in traced.graph.internal_captures}
        fed = {t.op.name for t in traced.graph.inputs if id(t) not in captured}
        placed = place(optimized(traced), batch, fed)
        crossings = sorted(placed.crossings, key=lambda c: -c.bytes)
        found[name] = {
            "launches": placed.launches,
            "crossed_bytes": placed.crossed_bytes,
            "waits": placed.waits,
            "fed_bytes": sum(
                int(tf.size(tensor)) * tensor.dtype.size
                for tensor in tf.nest.flatten(as_tensors(feed))
            ),
            "without_kernel": dict(placed.without),
            "on_host": dict(placed.on_host),
            "nested": placed.nested,
            "crossings": [dataclasses.asdict(c) for c in crossings[:_LARGEST]],
        }
    return found


if __name__ == "__main__":
    name, directory, rows, output = sys.argv[1:]
    Path(output).write_text(json.dumps(main(name, Path(directory), int(rows))))

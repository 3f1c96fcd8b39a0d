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

from lookback.benchmarks.gpu_placement_hlo import launches
from lookback.core import devices

_LARGEST = 12  # crossings that are listed


def main(model: str, dataset: Path, batch: int) -> dict[str, Any]:
    """What was found of a model's two graphs, by name, without XLA and with it.

    Args:
      model: a key of MODELS.
      dataset: that suits it.
      batch: rows.
    """
    devices.has_gpu = lambda: True  # before anything else of ours asks
    from lookback.core.options import parse
    from lookback.dataloading.sources import as_tensors
    from lookback.embeddings.config import Sharding
    from lookback.models import MODELS
    from lookback.models.click_model import contract_of
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
    evaluation = source.evaluations(source.held_out[-1])[0]
    source.eval_steps(evaluation.name)
    feed = as_tensors(next(iter(source.train_feeds(0, 0))))
    eval_feed = as_tensors(next(iter(source.eval_feeds(evaluation.name))))
    contract, found = contract_of(built), {}
    for xla in (False, True):
        optimizer = Optimizer("adam", 0.01, 0.0, built)
        steps = Steps(built, optimizer, source, None, xla=xla)
        scoring = EvaluationSteps(built, source, xla=xla)

        def train(feed: Any, steps: Any = steps) -> Any:
            return next(steps.train(iter([feed])))[1]

        def score(feed: Any, scoring: Any = scoring) -> Any:
            features = source.eval_batch(evaluation.name, feed)[0]
            return scoring.logits(features, evaluation.pieces)

        if not xla:
            found["training"] = _found(train, feed, batch)
            found["scoring"] = _found(score, eval_feed, batch)
            continue
        features, labels = source.train_batch(feed)
        counts = contract.counts(features, labels)
        compiled = _compiled(steps.compiled, contract, features, labels, counts, counts)
        found["training, XLA"] = {**_found(train, feed, batch), "compiled": compiled}
        features = source.eval_batch(evaluation.name, eval_feed)[0]
        compiled = _compiled(scoring.compiled, contract, features)
        found["scoring, XLA"] = {**_found(score, eval_feed, batch), "compiled": compiled}
    return found


def _found(function: Any, feed: Any, batch: int) -> dict[str, Any]:
    """What there is outside of XLA's computation, or all without one."""
    import tensorflow as tf

    from lookback.benchmarks.gpu_placement_graph import optimized, place

    traced = tf.function(function, autograph=False).get_concrete_function(feed)
    captured = {id(tensor) for tensor in traced.graph.internal_captures}
    fed = {t.op.name for t in traced.graph.inputs if id(t) not in captured}
    placed = place(optimized(traced), batch, fed)
    crossings = sorted(placed.crossings, key=lambda c: -c.bytes)
    return {
        "launches": placed.launches,
        "kernels": dict(placed.kernels.most_common()),
        "crossed_bytes": placed.crossed_bytes,
        "waits": placed.waits,
        "fed_bytes": sum(
            int(tf.size(tensor)) * tensor.dtype.size for tensor in tf.nest.flatten(feed)
        ),
        "without_kernel": dict(placed.without),
        "on_host": dict(placed.on_host),
        "nested": placed.nested,
        "crossings": [dataclasses.asdict(c) for c in crossings[:_LARGEST]],
    }


def _compiled(compiled: Any, contract: Any, features: Any, *more: Any) -> dict[str, Any]:
    """What XLA makes of a computation on rows."""
    rows = contract.lookups.rows(features)
    compiler = compiled.function.experimental_get_compiler_ir(rows, features, *more)
    return dataclasses.asdict(launches(compiler(stage="optimized_hlo")))


if __name__ == "__main__":
    name, directory, rows, output = sys.argv[1:]
    Path(output).write_text(json.dumps(main(name, Path(directory), int(rows))))

"""Whole runs of the GPU check: SOK against the local backend, fp16 against fp32."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from lookback.core.devices import has_gpu
from lookback.embeddings.backends import BACKENDS
from lookback.embeddings.backends.base import Backend
from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.optimizers import LazyAdam
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec

# fp16 rounds to 3 digits: a test AUC of some thousand samples moves in the third.
AUC_TOLERANCE = 0.005
REHEARSED_TOLERANCE = 0.05  # of 200 users
SAME_AUC = 1e-5
ROWS_TOLERANCE = 1e-5
TABLES = (TableSpec("item", 1009, 16), TableSpec("user", 211, 8), TableSpec("tiny", 3, 16))
PLAN = ShardingPlan(
    1,
    TABLES,
    (
        Placement("item", "row_wise"),
        Placement("user", "table_wise", (0,)),
        Placement("tiny", "table_wise", (0,)),
    ),
)
_SEED = 5
LOOKBACK = (sys.executable, str(Path(__file__).resolve().parents[2] / "cli.py"))


def prepared(args: argparse.Namespace) -> Path:
    """A dataset to learn from: MovieLens-100k where its files are given, else generated."""
    dataset = Path(args.folder, "dataset")
    if dataset.exists():
        return dataset
    name, raw = (
        ("movielens", args.movielens) if args.movielens else ("synthetic", args.folder / "raw")
    )
    if args.movielens is None:
        size = ["--preset", "demo", "--scale", 0.1 if args.rehearse else 1.0, "--output", raw]
        lookback("workflows", "generate", "--dataset", name, *size)
    lookback("workflows", "run", "--dataset", name, "--input", raw, "--output", dataset)
    return dataset


def lookback(*words: object) -> None:
    """Runs a command line of `lookback`.

    Raises:
      RuntimeError: with the end of what it said, if it fails.
    """
    command = [*LOOKBACK, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        said = (result.stdout + result.stderr)[-2000:]
        raise RuntimeError(f"lookback {' '.join(map(str, words))} failed:\n{said}")


def trained(results: Path, dataset: Path, *words: object) -> float:
    """Runs `lookback train` with SIM; gives the AUC of the test split."""
    fixed = ["--model_type", "sim", "--dataset_dir", dataset, "--results_dir", results]
    lookback("train", *fixed, "--eval_split", "test", "--eval_every", "none", "--seed", 1, *words)
    found = json.loads((results / "report" / "metrics.json").read_text())["results"]
    return float(next(value for name, value in found.items() if name in ("auc", "test_auc")))


def fp32(args: argparse.Namespace) -> float:
    """The AUC of training in fp32, with the local backend; done once for both steps.

    Leaves its checkpoint in the folder's `local`.
    """
    note = args.folder / "fp32.json"
    if not note.exists():
        dataset = prepared(args)
        save = ["--save_checkpoint_path", args.folder / "local"]
        found = trained(args.folder / "fp32", dataset, *_epochs(args), *save)
        note.write_text(json.dumps(found))
    return float(json.loads(note.read_text()))


def auc_step(found: Any, args: argparse.Namespace) -> None:
    """(f) Training in fp16 (on CPUs bf16) gives the AUC of training in fp32."""
    found.add("data", "MovieLens-100k" if args.movielens else "generated")
    found.add("fp32", fp32(args))
    dataset = prepared(args)
    found.add("amp", trained(args.folder / "amp", dataset, *_epochs(args), "--amp"))
    tolerance = REHEARSED_TOLERANCE if args.rehearse else AUC_TOLERANCE
    found.add("equal", abs(found["amp"] - found["fp32"]) <= tolerance)


def sok_step(found: Any, args: argparse.Namespace) -> None:
    """(e) SOK's lookups and steps are the local backend's, and it reads and writes checkpoints.

    Where there is no GPU, the Horovod backend takes its place: the same calls, on a CPU.
    """
    name = "sok" if has_gpu() else "horovod"
    found.add("backend", name)
    differences = against_local(name)
    for what, difference in differences.items():
        found.add(what, difference)
    found.add("equal", max(differences.values()) <= ROWS_TOLERANCE)
    # What one process wrote, cut as if three had, is read by one; what that writes, by another.
    folder, backend = args.folder, ["--backend", name]
    three, again = folder / "three", folder / "again"
    save, load, evaluate = "--save_checkpoint_path", "--load_checkpoint_path", "--mode"
    found.add("auc_local", fp32(args))
    dataset = prepared(args)
    lookback("embeddings", "reshard", folder / "local", "--output", three, "--ranks", 3)
    read = [load, three, evaluate, "evaluate", *backend]
    found.add("auc_reloaded", trained(folder / "read", dataset, *read))
    more = ["--epochs", _epochs(args)[1] + 1, load, three, save, again, *backend]
    found.add("auc_trained_on", trained(folder / "more", dataset, *more))
    back = [load, again, evaluate, "evaluate"]
    found.add("auc_back", trained(folder / "back", dataset, *back))
    found.add(
        "same_after_reload",
        abs(found["auc_reloaded"] - found["auc_local"]) <= SAME_AUC
        and abs(found["auc_back"] - found["auc_trained_on"]) <= SAME_AUC,
    )


def _epochs(args: argparse.Namespace) -> tuple[str, int]:
    return "--epochs", 1 if args.rehearse else 3


def against_local(name: str) -> dict[str, float]:
    """Largest differences from the local backend and from NumPy: lookups, rows after a step.

    Args:
      name: key of BACKENDS.
    """
    if name == "horovod":
        import horovod.tensorflow as hvd

        hvd.init()
    other, local = _built(name, Sharding(name, PLAN)), _built("local", LOCAL)
    rng = np.random.default_rng(0)
    ids = {t.name: tf.constant(rng.integers(0, t.rows, 50), tf.int32) for t in TABLES}
    with tf.GradientTape(persistent=True) as tape:
        vectors = other.fetch(other.route(ids))
        expected = local.fetch(local.route(ids))
        losses = [
            tf.add_n([tf.reduce_sum(tf.sin(v)) for v in x.values()]) for x in (vectors, expected)
        ]
    tables = {name: variable.numpy() for name, variable in local.variables.items()}
    looked_up = max(
        float(np.max(np.abs(vectors[t.name] - tables[t.name][ids[t.name].numpy()]))) for t in TABLES
    )
    for backend, loss in zip((other, local), losses, strict=True):
        optimizer = LazyAdam(tf.constant(0.1))
        optimizer.build(backend.variables)
        gradients = tape.gradient(loss, dict(backend.variables))
        optimizer.apply(backend.reduce_gradients(gradients), backend.variables, tf.constant(1.0))
    stepped = max(
        float(np.max(np.abs(_rows(other, t.name) - _rows(local, t.name)))) for t in TABLES
    )
    return {"lookup_difference": looked_up, "step_difference": stepped}


def _built(name: str, sharding: Sharding) -> Backend:
    backend = BACKENDS[name](TABLES, sharding, _SEED)
    backend.build(tf.keras.layers.Layer())
    return backend


def _rows(backend: Backend, table: str) -> Any:
    """A table's rows, wherever the backend keeps them."""
    (part,) = (part for part in backend.held if part.shard.table == table)
    return backend.variables[part.variable].numpy()[part.start : part.stop]

"""The ranks of the equality tests: they train every case, and rank 0 writes what came of it.

usage: worker.py REPOSITORY DIRECTORY RANKS=PORT...     (the largest number first)

The same processes form each world: the first RANKS of them, whom a rendezvous server at PORT
connects. What RANKS ranks found is in DIRECTORY/RANKS.npz.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def whole_tensors(states, world) -> dict[str, np.ndarray]:
    """Every tensor, put together from the parts of all ranks."""
    parts = {
        name: [
            (part.rows, part.columns, np.concatenate(list(part.blocks())))
            for part in state.parts
            if state.shape and part.rows
        ]
        for name, state in states.items()
        if world.rank == 0 or not state.replicated
    }
    everybody = world.gather(parts)
    tensors = {}
    for name, state in states.items():
        if not state.shape:
            continue
        tensor = np.full(state.shape, np.nan, np.float32)
        for of_rank in everybody:
            for rows, columns, values in of_rank.get(name, ()):
                if columns is None:
                    tensor[rows.start : rows.stop : rows.step] = values
                else:
                    tensor[rows.start : rows.stop : rows.step, columns.start : columns.stop] = (
                        values
                    )
        tensors[name] = tensor
    return tensors


def run_in_parts(case, cases, sharding, world, optimizer_name) -> dict[str, np.ndarray]:
    """Losses and tensors of training in parts, which are to be the same to the bit."""
    import tensorflow as tf

    from lookback.training.optimizers import Optimizer
    from lookback.training.state import model_states
    from lookback.training.steps import Steps

    tf.keras.utils.set_random_seed(11)
    model = case.build(sharding)
    source = cases.BatchesInParts(case, world.rank, world.size)
    model(source.parts_of(next(source.train_feeds()))[0][0], training=False)
    optimizer = Optimizer(optimizer_name, 0.05, 0.0, model, world=world)
    steps = Steps(
        model,
        optimizer,
        source,
        None,
        world=world,
        in_parts=("micro_batches",),
        contract=case.contract(model),
    )
    losses = [float(result["total_loss"]) for _, result in steps.train(source.train_feeds())]
    tensors = whole_tensors(model_states(model) | optimizer.states(), world)
    return {
        "loss:curve": np.array(losses),
        **{f"parameter:{name}": value for name, value in tensors.items()},
    }


def run(case, cases, sharding, world, optimizer_name, *, prefetch=False) -> dict[str, np.ndarray]:
    """Logits before training, losses, tensors after it, and bytes sent in it."""
    import tensorflow as tf

    from lookback.training.optimizers import Optimizer
    from lookback.training.state import model_states
    from lookback.training.steps import Steps

    tf.keras.utils.set_random_seed(11)
    model = case.build(sharding)
    source = cases.Batches(case, world.rank, world.size)
    features, _ = next(source.train_feeds())
    logits = model(features, training=False).numpy()
    rate = 1.0 if optimizer_name == "sgd" else 0.05
    optimizer = Optimizer(optimizer_name, rate, 0.0, model, world=world)
    contract = case.contract(model)
    steps = Steps(
        model, optimizer, source, None, world=world, prefetch_ids=prefetch, contract=contract
    )
    backend = contract.lookups.embeddings.backend
    before = dict(backend.sent_bytes)
    losses = [float(result["total_loss"]) for _, result in steps.train(source.train_feeds())]
    sent = {k: v - before[k] for k, v in backend.sent_bytes.items()}
    tensors = whole_tensors(model_states(model) | optimizer.states(), world)
    return {
        "forward:logits": world.concatenate(logits),
        "loss:curve": np.array(losses),
        **{f"parameter:{name}": value for name, value in tensors.items()},
        **{f"sent:{kind}": np.array(world.gather(int(v))) for kind, v in sent.items()},
    }


def worlds(rank: int, servers: dict[int, str]) -> Iterator[Any]:
    """The worlds of this rank, one after another."""
    import horovod.tensorflow as hvd
    import ranks as forked

    from lookback.training.parallel.horovod_world import start_world

    for ranks, port in servers.items():
        if rank >= ranks:
            return
        forked.join(rank, ranks, port)
        yield start_world()
        hvd.shutdown()


def train(case: Any, cases: Any, name: str, sharding: Any, world: Any) -> dict[str, np.ndarray]:
    """One run of `cases.RUNS`, by its name.

    Eager but for `graph`: tracing SIM takes longer than all its steps, and TensorFlow rounds
    otherwise in graphs, whose operations it fuses.
    """
    import tensorflow as tf

    optimizer = cases.optimizer(case, name)
    tf.config.run_functions_eagerly("graph" not in name)
    try:
        if name.endswith("parts"):
            return run_in_parts(case, cases, sharding, world, optimizer)
        return run(case, cases, sharding, world, optimizer, prefetch="ahead" in name)
    finally:
        tf.config.run_functions_eagerly(False)


def main() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    repository, output, *words = sys.argv[1:]
    sys.path.insert(0, repository)
    import ranks as forked

    from lookback.training.process import stop_spinning

    here = Path(repository) / "tests" / "distributed"
    servers = forked.ports(words)
    rank = forked.fork(max(servers))
    stop_spinning()
    cases = None
    for world in worlds(rank, servers):
        if cases is None:  # not before: it imports Merlin, which connects ranks by itself
            cases = load(here / "cases.py")
            made = cases.cases(load(here.parent / "conftest.py").make_schema.__wrapped__())
        results = {}
        for model, name in cases.RUNS[world.size]:
            sharding = cases.sharding(made[model], name, world.size)
            found = train(made[model], cases, name, sharding, world)
            results |= {f"{model}/{name}/{key}": value for key, value in found.items()}
        if world.rank == 0:
            np.savez(Path(output) / f"{world.size}.npz", **results)


if __name__ == "__main__":
    main()

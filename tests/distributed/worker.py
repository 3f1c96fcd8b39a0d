"""One rank of the equality tests: trains every case and lets rank 0 write what came of it.

usage: worker.py REPOSITORY DIRECTORY RANKS=PORT...

The ranks that were launched together do it first, then the first RANKS of them, whom a rendezvous
server at PORT connects anew: importing TensorFlow and Merlin takes as long as all that follows.
What R ranks found is in DIRECTORY/R.npz.
"""

from __future__ import annotations

import dataclasses
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


def gradients_of(case, model, optimizer, source, world) -> dict[str, np.ndarray]:
    """The gradient of the whole batch's loss, by name of what it belongs to; out of the graph."""
    import tensorflow as tf

    from lookback.training.state import model_states
    from lookback.training.steps import Steps

    contract = case.contract(model)
    steps = Steps(model, optimizer, source, None, world=world, contract=contract)
    variables = optimizer.variables_to_differentiate
    batch = next(source.train_feeds())
    counts = contract.counts(*batch)
    totals = dict(zip(counts, world.sum(list(counts.values())), strict=True))
    reduced, _ = optimizer.reduced(steps._gradients(batch, counts, totals)[1])
    kept = {v.ref(): tf.identity(v) for v in variables}
    for variable, gradient in zip(variables, reduced, strict=True):
        variable.assign(tf.zeros_like(variable) if gradient is None else gradient_of(gradient))
    found = whole_tensors(model_states(model), world)
    dense = {f"model/{i}": v.numpy() for i, v in enumerate(optimizer.dense)}
    for variable in variables:
        variable.assign(kept[variable.ref()])
    return {name: value for name, value in found.items() if name.startswith("table/")} | dense


def gradient_of(gradient):
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)  # duplicates of an IndexedSlices are summed


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
        model, optimizer, source, None, world=world, in_parts=True, contract=case.contract(model)
    )
    losses = [float(result["total_loss"]) for _, result in steps.train(source.train_feeds())]
    tensors = whole_tensors(model_states(model) | optimizer.states(), world)
    return {
        "loss:curve": np.array(losses),
        **{f"parameter:{name}": value for name, value in tensors.items()},
    }


def run(case, cases, sharding, world, optimizer_name, *, prefetch=False) -> dict[str, np.ndarray]:
    """Logits and gradients before training, losses, tensors after it, and bytes sent in it."""
    import tensorflow as tf

    from lookback.training.optimizers import Optimizer
    from lookback.training.state import model_states
    from lookback.training.steps import Steps

    tf.keras.utils.set_random_seed(11)
    model = case.build(sharding)
    source = cases.Batches(case, world.rank, world.size)
    features, _ = next(source.train_feeds())
    logits = model(features, training=False).numpy()
    optimizer = Optimizer(optimizer_name, 0.05, 0.0, model, world=world)
    gradients = {} if prefetch else gradients_of(case, model, optimizer, source, world)
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
        **{f"gradient:{name}": value for name, value in gradients.items()},
        **{f"parameter:{name}": value for name, value in tensors.items()},
        **{f"sent:{kind}": np.array(world.gather(int(v))) for kind, v in sent.items()},
    }


OPTIMIZERS = {"bags": "adam", "sim": "adagrad"}


def worlds(servers: dict[int, str]) -> Iterator[Any]:
    """Those who were launched together, then as many of them as each server waits for."""
    import horovod.tensorflow as hvd

    from lookback.training.parallel.horovod_world import start_world

    yield start_world()
    rank = hvd.rank()
    os.environ.pop("LOOKBACK_ANNOUNCEMENT", None)  # made once, to the launcher
    for ranks, port in servers.items():
        hvd.shutdown()
        if rank >= ranks:
            return
        os.environ |= {
            **dict.fromkeys(("HOROVOD_SIZE", "HOROVOD_LOCAL_SIZE"), str(ranks)),
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
            "HOROVOD_GLOO_RENDEZVOUS_PORT": port,
        }
        yield start_world()


def results_of(world, cases, make_schema) -> dict[str, np.ndarray]:
    """What the ranks of a world find, by case and quantity."""
    import tensorflow as tf

    from lookback.embeddings.config import Sharding

    results: dict[str, np.ndarray] = {}
    made = cases.cases(make_schema)
    cuts_evenly = cases.BatchesInParts.PARTS % world.size == 0

    def keep(
        model: str, name: str, sharding: Sharding, optimizer: str = "", train=run, **more: Any
    ) -> None:
        optimizer = optimizer or OPTIMIZERS[model]
        found = train(made[model], cases, sharding, world, optimizer, **more)
        results.update({f"{model}/{name}/{key}": value for key, value in found.items()})

    # Tracing SIM takes longer than all its steps here, so that most runs do without; the last plan
    # runs as a graph, too: SIM on two ranks, bags where a rank has no rows.
    tf.config.run_functions_eagerly(True)
    last = {}
    for model, case in made.items():
        for mix in cases.MIXES:
            last[model] = Sharding("horovod", cases.plan(case.tables(), mix, world.size))
            keep(model, mix, last[model])
        if cuts_evenly:
            keep(model, "parts", last[model], "adam", run_in_parts)
    # Adam in full moves also rows that nobody looks up, whoever holds them.
    keep("bags", "full_adam", last["bags"], "full_adam")
    if cuts_evenly:
        keep("bags", "full_adam_parts", last["bags"], "full_adam", run_in_parts)
    keep("bags", "ahead", last["bags"], prefetch=True)
    keep("bags", "bfloat16", dataclasses.replace(last["bags"], wire_dtype="bfloat16"))
    tf.config.run_functions_eagerly(False)
    if world.size == 2:
        keep("sim", "graph", last["sim"], prefetch=True)
    if world.size == 3:
        keep("bags", "graph", last["bags"])
    return results


def main() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    repository, output, *others = sys.argv[1:]
    sys.path.insert(0, repository)
    from lookback.training.process import stop_spinning

    stop_spinning()
    cases = load(Path(repository) / "tests" / "distributed" / "cases.py")
    make_schema = load(Path(repository) / "tests" / "conftest.py").make_schema.__wrapped__()
    servers = {int(ranks): port for ranks, _, port in (word.partition("=") for word in others)}
    for world in worlds(servers):
        results = results_of(world, cases, make_schema)
        if world.rank == 0:
            np.savez(Path(output) / f"{world.size}.npz", **results)


if __name__ == "__main__":
    main()

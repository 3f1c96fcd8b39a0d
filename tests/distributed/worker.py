"""One rank of the equality tests: trains every case and lets rank 0 write what came of it.

usage: horovodrun -np R python worker.py REPOSITORY OUTPUT.npz
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

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


def gradients_of(model, optimizer, source, world) -> dict[str, np.ndarray]:
    """The gradient of the whole batch's loss, by name of what it belongs to; out of the graph."""
    import tensorflow as tf

    from training.state import model_states
    from training.steps import Steps

    steps = Steps(model, optimizer, source, None, world=world)
    variables = optimizer.variables_to_differentiate
    batch = next(source.train_feeds())
    counts = steps._loss_counts(batch)
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

    from training.optimizers import Optimizer
    from training.state import model_states
    from training.steps import Steps

    tf.keras.utils.set_random_seed(11)
    model = case.build(sharding)
    source = cases.BatchesInParts(case, world.rank, world.size)
    model(source.parts_of(next(source.train_feeds()))[0][0], training=False)
    optimizer = Optimizer(optimizer_name, 0.05, 0.0, model, world=world)
    steps = Steps(model, optimizer, source, None, world=world, in_parts=True)
    losses = [float(result["total_loss"]) for _, result in steps.train(source.train_feeds())]
    tensors = whole_tensors(model_states(model) | optimizer.states(), world)
    return {
        "loss:curve": np.array(losses),
        **{f"parameter:{name}": value for name, value in tensors.items()},
    }


def run(case, cases, sharding, world, optimizer_name, *, prefetch=False) -> dict[str, np.ndarray]:
    """Logits and gradients before training, losses, tensors after it, and bytes sent in it."""
    import tensorflow as tf

    from training.optimizers import Optimizer
    from training.state import model_states
    from training.steps import Steps

    tf.keras.utils.set_random_seed(11)
    model = case.build(sharding)
    source = cases.Batches(case, world.rank, world.size)
    features, _ = next(source.train_feeds())
    logits = model(features, training=False).numpy()
    optimizer = Optimizer(optimizer_name, 0.05, 0.0, model, world=world)
    gradients = {} if prefetch else gradients_of(model, optimizer, source, world)
    steps = Steps(model, optimizer, source, None, world=world, prefetch_ids=prefetch)
    backend = model.first.embeddings.backend
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


def main() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    repository, output = sys.argv[1:]
    sys.path.insert(0, repository)
    from training.distributed import start_world

    world = start_world()
    cases = load(Path(repository) / "tests" / "distributed" / "cases.py")
    make_schema = load(Path(repository) / "tests" / "conftest.py").make_schema.__wrapped__()
    from embeddings.config import Sharding

    results: dict[str, np.ndarray] = {}

    def keep(key: str, found: dict[str, np.ndarray]) -> None:
        results.update({f"{key}/{name}": value for name, value in found.items()})

    # Tracing SIM takes longer than all its steps here, so that most runs do without; the last
    # plan runs as a graph, too.
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    for model, case in cases.cases(make_schema).items():
        for mix in cases.MIXES:
            sharding = Sharding("horovod", cases.plan(case.tables(), mix, world.size))
            keep(f"{model}/{mix}", run(case, cases, sharding, world, OPTIMIZERS[model]))
        if cases.BatchesInParts.PARTS % world.size == 0:
            keep(f"{model}/parts", run_in_parts(case, cases, sharding, world, "adam"))
    keep("sim/ahead", run(case, cases, sharding, world, OPTIMIZERS["sim"], prefetch=True))
    tf.config.run_functions_eagerly(False)
    if world.size == 2:  # tracing costs every rank some ten seconds of a core
        keep("sim/graph", run(case, cases, sharding, world, OPTIMIZERS["sim"], prefetch=True))
    bags = cases.cases(make_schema)["bags"]
    sharding = Sharding("horovod", cases.plan(bags.tables(), "mixed", world.size))
    keep("bags/graph", run(bags, cases, sharding, world, OPTIMIZERS["bags"]))
    sharding = Sharding("horovod", sharding.plan, "bfloat16")
    keep("bags/bfloat16", run(bags, cases, sharding, world, OPTIMIZERS["bags"]))
    if world.rank == 0:
        np.savez(output, **results)


if __name__ == "__main__":
    main()

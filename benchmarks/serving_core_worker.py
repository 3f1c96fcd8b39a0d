"""The process of a contender of `serving_core`: exports SIM, then scores when it is told to.

Started as a file, with a `lookback` of any version in the path: it uses what all of them have.
A line in is a JSON object with `how` (score or naive), `candidates`, `calls`, `warmup` and
`seconds` (after which no further call begins; null: no end); a line out has the `seconds` of each
call and the `logits` of the first request. Where `how` is requests, it has the `requests` instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_DIFFERENT = 16  # requests that take turns, so that not all lookups hit rows in the caches
_SHORT = 10  # slots of the short history, as NVIDIA's SIM has
_SEED = 7


def main() -> None:
    """Gets ready, says so, and answers line by line."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--history", type=int)
    args = parser.parse_args()
    model = _export(args.dataset, args.bundle, args.history)
    from lookback.serving.bundle import Bundle

    bundle = Bundle.load(args.bundle)
    ways = {
        "score": lambda request: bundle.score([request])[0].logit,
        "naive": _naive(model, args.bundle, args.history),
    }
    print("{}", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        requests = [
            _request(bundle, args.history, asked["candidates"], number)
            for number in range(_DIFFERENT)
        ]
        if asked["how"] == "requests":
            print(json.dumps({"requests": requests}), flush=True)
            continue
        print(json.dumps(_turn(ways[asked["how"]], requests, asked)), flush=True)


def _turn(
    score: Callable[[Any], Any], requests: list[dict[str, Any]], asked: dict[str, Any]
) -> dict[str, Any]:
    for request in requests[: asked["warmup"]]:
        score(request)
    times: list[float] = []
    for request in itertools.islice(itertools.cycle(requests), asked["calls"]):
        began = time.perf_counter()
        score(request)
        times.append(time.perf_counter() - began)
        if asked["seconds"] is not None and sum(times) > asked["seconds"]:
            break
    logits = np.asarray(score(requests[0]), np.float64)
    return {"seconds": times, "logits": logits.reshape(-1).tolist()}


def _export(dataset: Path, bundle: Path, history: int) -> Any:
    """Exports SIM with the weights of a seed."""
    import tensorflow as tf

    from lookback.formats.schema import read_schema
    from lookback.models import MODELS, SIMConfig
    from lookback.serving.export import export_bundle

    tf.keras.utils.set_random_seed(_SEED)
    config = SIMConfig(max_seq_length=history, long_seq_length=history - _SHORT)
    model = MODELS["sim"](read_schema(dataset), config)
    lists = {
        f"{name}_history": tf.ones([2, history], tf.int32) for name in ("item_id", "category_id")
    }
    items = {name: tf.ones([2, 1], tf.int32) for name in ("item_id", "category_id")}
    model({"user_id": tf.ones([2], tf.int32), **items, **lists})
    export_bundle(model, dataset, bundle)
    return model


def _request(bundle: Any, history: int, candidates: int, number: int) -> dict[str, Any]:
    """Request `number`: random items of the catalogue."""
    random = np.random.default_rng((_SEED, candidates, number))
    encoder = bundle.encoder
    items = encoder.encoders["item_id"]
    ids = random.integers(3, len(items) + 3, history + candidates, np.int32)

    def named(own: Any) -> dict[str, Any]:
        categories = encoder.catalogue.lookup("category_id", own)
        return {
            "item_id": items.decode(own),
            "category_id": encoder.encoders["category_id"].decode(categories),
        }

    (user,) = encoder.encoders["user_id"].decode(random.integers(3, 900, 1))
    return {"user_id": user, "history": named(ids[:history]), "candidates": named(ids[history:])}


def _naive(model: Any, bundle: Path, history: int) -> Callable[[dict[str, Any]], Any]:
    """`Workflow.transform`, then `model.predict` of a row for each candidate."""
    import nvtabular as nvt
    import pandas as pd

    workflow = nvt.Workflow.load(str(bundle / "workflow" / "encoder"))

    def score(request: dict[str, Any]) -> Any:
        names = ("item_id", "category_id")
        frame = pd.DataFrame(
            {name: [*request["history"][name], *request["candidates"][name]] for name in names}
        )
        frame["user_id"] = request["user_id"]
        encoded = workflow.transform(nvt.Dataset(frame, cpu=True)).compute()
        count = len(frame) - history
        inputs: dict[str, Any] = {
            "user_id": np.repeat(encoded["user_id"].to_numpy()[:1].astype(np.int32), count)
        }
        for name in names:
            values = encoded[name].to_numpy().astype(np.int32)
            inputs[f"{name}_history"] = np.tile(values[:history], (count, 1))
            inputs[name] = values[history:, np.newaxis]
        return model.predict(inputs, batch_size=count, verbose=0)

    return score


if __name__ == "__main__":
    main()

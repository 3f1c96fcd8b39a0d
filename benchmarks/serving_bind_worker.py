"""The process of `serving`'s PyTriton: a bundle behind `Triton.bind`, as its documents have it.

It says at which ports it listens, and ends with its standard input.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Serves until it is told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--http", type=int)
    parser.add_argument("--grpc", type=int)
    args = parser.parse_args()
    # pytriton first: it sets up logging and paths that TensorFlow would find otherwise.
    from pytriton.decorators import batch
    from pytriton.model_config import ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    from lookback.serving.server.models import Models
    from lookback.serving.server.scorer import CheckedRequests

    model = Models().load("sim", args.bundle)

    @batch
    def infer(request: Any) -> dict[str, Any]:
        checked = CheckedRequests.of(model, [json.loads(text) for text in request[:, 0]])
        scores = model.score(checked.requests, checked.counts)
        scored = zip(checked.requests, scores, strict=True)
        answers = [[json.dumps(model.answer(r, s)).encode()] for r, s in scored]
        return {"answer": np.array(answers, np.object_)}

    listening = TritonConfig(
        http_address="127.0.0.1",
        http_port=args.http,
        grpc_address="127.0.0.1",
        grpc_port=args.grpc,
        allow_metrics=False,
    )
    with Triton(config=listening) as triton:
        triton.bind(
            model_name="sim",
            infer_func=infer,
            inputs=[Tensor(name="request", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(max_batch_size=16),
        )
        triton.run()
        print("{}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

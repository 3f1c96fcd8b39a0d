"""Benchmarks: each answers one question. `python -m benchmarks` lists them.

A benchmark module has `QUESTION` (a string literal, so that listing need not import the module),
`add_arguments(parser)` and `run(args) -> Report`; `args.quick` asks for an answer within 60 s.
TensorFlow and the like are imported by `run`, so that `--help` stays fast. `MODES`, if a benchmark
has it, names the modules that answer in its place where a flag is given.
"""

from __future__ import annotations

import logging
import os
import warnings

from lookback.core.imports import expect_no_pytorch

BENCHMARKS = {
    "accuracy": "lookback.benchmarks.accuracy",
    "cold_start": "lookback.benchmarks.cold_start",
    "criteo_workflow": "lookback.benchmarks.criteo_workflow",
    "dien_train": "lookback.benchmarks.dien_train",
    "din_train": "lookback.benchmarks.din_train",
    "dlrm_accuracy": "lookback.benchmarks.dlrm_accuracy",
    "dlrm_inference": "lookback.benchmarks.dlrm_inference",
    "dlrm_train": "lookback.benchmarks.dlrm_train",
    "gpu_placement": "lookback.benchmarks.gpu_placement",
    "limited_memory": "lookback.benchmarks.limited_memory",
    "loader": "lookback.benchmarks.loader",
    "ncf_accuracy": "lookback.benchmarks.ncf_accuracy",
    "ncf_inference": "lookback.benchmarks.ncf_inference",
    "ncf_train": "lookback.benchmarks.ncf_train",
    "roofline": "lookback.benchmarks.roofline",
    "scaling": "lookback.benchmarks.scaling",
    "serving": "lookback.benchmarks.serving",
    "serving_core": "lookback.benchmarks.serving_core",
    "sharding": "lookback.benchmarks.sharding",
    "sim_inference": "lookback.benchmarks.sim_inference",
    "sim_train": "lookback.benchmarks.sim_train",
    "streamed_histories": "lookback.benchmarks.streamed_histories",
    "synthetic": "lookback.benchmarks.synthetic",
    "world_size": "lookback.benchmarks.world_size",
}


def quieten() -> None:
    """Silences the start-up chatter of TensorFlow and Merlin, which would bury a table.

    To be called before they are imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    expect_no_pytorch()
    warnings.filterwarnings("ignore", message="Initializing an NVTabular Dataset in CPU")

"""Benchmarks: each answers one question. `python -m benchmarks` lists them.

A benchmark module has `QUESTION` (a string literal, so that listing need not import the module),
`add_arguments(parser)` and `run(args) -> Report`; `args.quick` asks for an answer within 60 s.
TensorFlow and the like are imported by `run`, so that `--help` stays fast.
"""

from __future__ import annotations

import logging
import os
import warnings

BENCHMARKS = {
    "accuracy": "benchmarks.accuracy",
    "criteo_workflow": "benchmarks.criteo_workflow",
    "dlrm_accuracy": "benchmarks.dlrm_accuracy",
    "dlrm_inference": "benchmarks.dlrm_inference",
    "dlrm_train": "benchmarks.dlrm_train",
    "loader": "benchmarks.loader",
    "ncf_accuracy": "benchmarks.ncf_accuracy",
    "ncf_inference": "benchmarks.ncf_inference",
    "ncf_train": "benchmarks.ncf_train",
    "sharding": "benchmarks.sharding",
    "sim_inference": "benchmarks.sim_inference",
    "sim_train": "benchmarks.sim_train",
    "synthetic": "benchmarks.synthetic",
    "world_size": "benchmarks.world_size",
}


def quieten() -> None:
    """Silences the start-up chatter of TensorFlow and Merlin, which would bury a table.

    To be called before they are imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    for message in (".*dtype mappings did not load", "Initializing an NVTabular Dataset in CPU"):
        warnings.filterwarnings("ignore", message=message)

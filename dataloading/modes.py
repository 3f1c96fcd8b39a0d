"""What a run does by its `--mode`, as conditions of the options that it gives an effect to.

They stand here, below training, as layouts' options have such conditions, too.
"""

from __future__ import annotations

from lookback.core.options import SET, UNSET
from lookback.core.options.needs import Condition

EVALUATION_MODES = ("evaluate", "test")
"""Two names of one mode: those of NVIDIA's SIM and of its DLRM for PyTorch."""
INFERENCE = ("inference", "inference_benchmark")

TRAINS: Condition = {"mode": ("train",)}
LEARNS: Condition = {"mode": ("train",), "benchmark": UNSET}
"""Trains for the model's sake, not to measure the speed: it evaluates, saves and exports."""
EVALUATES: tuple[Condition, ...] = (LEARNS, {"mode": EVALUATION_MODES})
INFERS: Condition = {"mode": INFERENCE}
MEASURES: Condition = {"benchmark": SET}
MEASURES_SIZES: Condition = {"mode": ("inference_benchmark",)}
SCORES: Condition = {"mode": ("inference",)}

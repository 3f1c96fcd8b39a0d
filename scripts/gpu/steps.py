"""The steps of the GPU check, each run in a process of its own: ``steps.py STEP OUTPUT [...]``.

What a step has found is in its file after every measurement, so that its time limit loses nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from lookback.core.devices import has_gpu
from lookback.core.rates import gemm_rate
from lookback.kernels.loader import portable
from lookback.scripts.gpu import cases, device
from lookback.scripts.gpu.runs import auc_step, sok_step
from lookback.scripts.gpu.trace import read_profile

TOLERANCE = 1e-4  # of float32 on two devices, whose sums have other orders
_PROFILED = 5


class Findings(dict[str, Any]):
    """What a step found, written whenever something is added."""

    def __init__(self, path: Path) -> None:
        """Writes to `path`."""
        super().__init__()
        self._path = path

    def add(self, name: str, value: Any) -> None:
        """Notes and writes."""
        self[name] = value
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self))
        new.replace(self._path)  # a time limit may end this process anywhere


def device_step(found: Findings, args: argparse.Namespace) -> None:
    """(a) Devices, products, copies."""
    gpus = [
        tf.config.experimental.get_device_details(gpu)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    found.add("gpus", [{k: str(v) for k, v in gpu.items()} for gpu in gpus])
    build = tf.sysconfig.get_build_info()
    found.add("build", {k: str(v) for k, v in build.items()})
    side, seconds = (256, 0.05) if args.rehearse else (8192, 1.0)
    for name, dtype, tf32 in (
        ("float32", tf.float32, False),
        ("tf32", tf.float32, True),
        ("bfloat16", tf.bfloat16, True),
        ("float16", tf.float16, True),
    ):
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        found.add(f"{name}_flops_per_s", gemm_rate(dtype.name, seconds, side))
    size = 1 << (20 if args.rehearse else 30)
    for name, rate in device.copy_rates(size, seconds).items():
        found.add(name, rate)


def one_step(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Losses, scores and variables of every model, before and after one step of SGD."""
    tf.config.experimental.enable_tensor_float_32_execution(False)
    arrays: dict[str, np.ndarray] = {}
    given = dict(np.load(args.start)) if args.start else {}
    for name, sizes in cases.TINY.items():
        tf.keras.utils.set_random_seed(1)
        case = cases.Case(name, sizes, optimizer="sgd")
        variables = case.model.variables
        for number, variable in enumerate(variables):
            key = f"{name}/{number}/start"
            if key in given:  # both begin with the same numbers, whoever drew them
                variable.assign(given[key])
            arrays[key] = variable.numpy()
        arrays[f"{name}/scores"] = next(case.scores()).numpy()
        arrays[f"{name}/loss"] = next(case.steps())["total_loss"].numpy()
        for number, variable in enumerate(variables):
            arrays[f"{name}/{number}/end"] = variable.numpy()
    return arrays


def equality_step(found: Findings, args: argparse.Namespace) -> None:
    """(b) One step of each model equals the CPU's, whose results `--start` has."""
    expected = dict(np.load(args.start))
    # A rehearsal compares our operations with TensorFlow's.
    with portable() if args.rehearse else contextlib.nullcontext():
        ours = one_step(args)
    for name in cases.TINY:
        worst = {}
        for key, value in expected.items():
            if key.startswith(f"{name}/") and not key.endswith("/start"):
                worst[key] = float(np.max(np.abs(ours[key].astype(float) - value)))
        moved = max(
            float(
                np.max(
                    np.abs(expected[key].astype(float) - expected[key.replace("/end", "/start")])
                )
            )
            for key in expected
            if key.startswith(f"{name}/") and key.endswith("/end")
        )
        largest = max(worst, key=lambda key: worst[key])
        found.add(
            name,
            {
                "equal": worst[largest] <= TOLERANCE,
                "largest_difference": worst[largest],
                "of": largest,
                "largest_change_of_the_step": moved,
            },
        )


def throughput_step(found: Findings, args: argparse.Namespace) -> None:
    """(c) Training and inference of one model, with XLA or without."""
    sizes = (cases.TINY if args.rehearse else cases.FULL)[args.model]
    seconds = 0.05 if args.rehearse else 1.5
    half = "mixed_float16" if has_gpu() else "mixed_bfloat16"
    precisions = (("fp16", half, True), ("tf32", "float32", True), ("fp32", "float32", False))
    # In a rehearsal with XLA, the other precisions would run the same lines once more.
    for precision, policy, tf32 in precisions[: 1 if args.rehearse and args.xla else 3]:
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        tf.keras.backend.clear_session()
        tf.keras.mixed_precision.set_global_policy(policy)
        case = cases.Case(args.model, sizes, xla=args.xla)
        with device.busy() as busy:
            training = cases.rate(case.steps(), lambda result: float(result["rows"]), seconds)
        memory = device.peak_memory()
        found.add(f"train_{precision}", {**training, **busy, "peak_memory_bytes": memory})
        with device.busy() as busy:
            inference = cases.rate(case.scores(), lambda logits: float(tf.size(logits)), seconds)
        memory = device.peak_memory()
        found.add(f"infer_{precision}", {**inference, **busy, "peak_memory_bytes": memory})
        del case


def profile_step(found: Findings, args: argparse.Namespace) -> None:
    """(d) What the time of a step of SIM goes to."""
    sizes = (cases.TINY if args.rehearse else cases.FULL)["sim"]
    steps = cases.Case("sim", sizes).steps()
    for _ in range(3):
        next(steps)["total_loss"].numpy()
    with tempfile.TemporaryDirectory() as directory:
        tf.profiler.experimental.start(directory)
        for _ in range(_PROFILED):
            result = next(steps)
        result["total_loss"].numpy()
        tf.profiler.experimental.stop()
        found.add("sim_step", read_profile(Path(directory), _PROFILED))


STEPS: dict[str, Callable[[Findings, argparse.Namespace], None]] = {
    "device": device_step,
    "equality": equality_step,
    "throughput": throughput_step,
    "profile": profile_step,
    "sok": sok_step,
    "auc": auc_step,
}


def main(arguments: list[str]) -> None:
    """Runs a step."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("step", choices=[*STEPS, "reference"])
    parser.add_argument("output", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--model", choices=[*cases.FULL])
    parser.add_argument("--xla", action="store_true")
    parser.add_argument("--start", type=Path, help="arrays of the step `reference`")
    parser.add_argument("--folder", type=Path, help="for files of whole runs")
    parser.add_argument("--movielens", type=Path)
    args = parser.parse_args(arguments)
    if args.step == "reference":
        # One step of each is no reason for a graph, and on a CPU to trace one takes the longest.
        tf.config.run_functions_eagerly(True)
        np.savez(args.output, **one_step(args))
    else:
        STEPS[args.step](Findings(args.output), args)


if __name__ == "__main__":
    main(sys.argv[1:])

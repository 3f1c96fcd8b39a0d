"""Runs the steps of `scripts/gpu_check.sh`, each with its time limit, and writes what they find.

The file is rewritten after every step and holds what an ended one had found. `--rehearse` runs all
of it, tiny, on a CPU: on the day only the device differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lookback import __version__
from lookback.core.doctor import facts
from lookback.core.errors import UserError
from lookback.core.faults import guarded
from lookback.core.files import atomic_file

SECONDS = 480.0
"""Of all steps together: 8 minutes."""
LIMITS = {
    "device": 45.0,
    "equality": 75.0,
    "throughput": 215.0,
    "profile": 35.0,
    "sok": 75.0,
    "auc": 34.0,
}
"""Seconds of each step; one that ends early leaves its time to nobody, so that none is late."""
OF_ONE_MODEL = 60.0
"""Seconds of a model, with or without XLA, in the step `throughput`."""
STEPS_MODULE = "lookback.scripts.gpu.steps"
REHEARSED = 20.0
"""How many times as long a step of a rehearsal may take: a CPU traces and starts as slowly as it
does, and may have other work."""
MODELS = ("sim", "dlrm", "neumf", "dien", "din", "dcnv2")

# Rows a second of one A100, from NVIDIA's READMEs: SIM, DLRM for PyTorch (small, batch 32k), NCF.
# `fp16` is their AMP.
PUBLISHED = {
    ("sim", "train_tf32", False): 381_211,
    ("sim", "train_tf32", True): 462_013,
    ("sim", "train_fp16", False): 484_361,
    ("sim", "train_fp16", True): 571_728,
    ("sim", "infer_tf32", True): 918_555,
    ("sim", "infer_fp16", True): 771_120,
    ("dlrm", "train_tf32", False): 2_498_002,
    ("dlrm", "train_fp16", False): 4_081_969,
    ("neumf", "train_tf32", False): 22_640_000,
    ("neumf", "train_fp16", False): 33_590_000,
    ("neumf", "infer_tf32", False): 60_320_000,
    ("neumf", "infer_fp16", False): 90_670_000,
}
# Twice NVIDIA's A100, or more.
TARGETS = {
    ("sim", "train_tf32", False): 577_000,
    ("sim", "train_fp16", True): 1_100_000,
    ("dlrm", "train_tf32", False): 5_700_000,
    ("dlrm", "train_fp16", False): 9_100_000,
    ("neumf", "train_tf32", False): 45_000_000,
    ("neumf", "train_fp16", False): 68_000_000,
}


@dataclasses.dataclass
class Clock:
    """What is left of the time.

    Attributes:
      end: of everything, as `time.monotonic` counts.
    """

    end: float

    def seconds(self, limit: float) -> float:
        """What a step may take."""
        return max(0.0, min(limit, self.end - time.monotonic()))


class Checker:
    """Runs steps and keeps what they found."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        """Prepares; `folder` is for files of the steps."""
        self._args, self._folder = args, folder
        self._patience = REHEARSED if args.rehearse else 1.0
        self._clock = Clock(time.monotonic() + self._patience * args.seconds)
        self.found: dict[str, Any] = {
            "lookback": __version__,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "rehearsal": args.rehearse,
            "host": {**facts(), "load": os.getloadavg()[0], "node": platform.machine()},
            "steps": {},
        }

    def run(self) -> None:
        """Runs what was asked for, in order."""
        steps: Mapping[str, Callable[[float], None]] = {
            "device": lambda seconds: self._step("device", seconds, []),
            "equality": self._equality,
            "throughput": self._throughput,
            "profile": lambda seconds: self._step("profile", seconds, []),
            "sok": lambda seconds: self._step("sok", seconds, self._data_words()),
            "auc": lambda seconds: self._step("auc", seconds, self._data_words()),
        }
        for name in self._args.only:
            steps[name](self._clock.seconds(self._patience * LIMITS[name]))
            self._write()

    def _equality(self, seconds: float) -> None:
        """The reference on the CPU first; what it leaves of the time is the device's."""
        reference, start = self._folder / "reference.npz", time.monotonic()
        said = self._child(["reference", reference], seconds, {"CUDA_VISIBLE_DEVICES": ""})
        if said is not None:
            self.found["steps"]["equality"] = {"status": f"the CPU's results: {said}"}
            return
        left = seconds - (time.monotonic() - start)
        self._step("equality", left, ["--start", reference])

    def _throughput(self, seconds: float) -> None:
        """Each model with and without XLA; the ones that have targets first."""
        group = Clock(time.monotonic() + seconds)
        for model, xla in self._combinations():
            name = f"throughput_{model}{'_xla' if xla else ''}"
            words = ["--model", model, *(["--xla"] if xla else [])]
            self._step(name, group.seconds(self._patience * OF_ONE_MODEL), words, "throughput")
            self._write()

    def _combinations(self) -> Iterator[tuple[str, bool]]:
        first, others = MODELS[:3], MODELS[3:]
        if self._args.rehearse:  # the steps of all models are in `equality`
            yield from (("sim", True), ("sim", False))
            return
        yield from ((model, xla) for model in first for xla in (False, True))
        yield from ((model, xla) for xla in (False, True) for model in others)

    def _data_words(self) -> list[object]:
        movielens = self._args.movielens
        return ["--folder", self._folder, *(["--movielens", movielens] if movielens else [])]

    def _step(
        self,
        name: str,
        seconds: float,
        words: Sequence[object],
        step: str | None = None,
    ) -> None:
        """Runs a step in a process of its own; notes what it found and how it ended."""
        output, start = self._folder / f"{name}.json", time.monotonic()
        said = self._child([step or name, output, *words], seconds, {})
        found = json.loads(output.read_text()) if output.exists() else {}
        status = said or "done"
        self.found["steps"][name] = {
            "status": status,
            "seconds": round(time.monotonic() - start, 1),
            **found,
        }
        print(f"{name:<22} {self.found['steps'][name]['seconds']:>6.1f} s  {status}", flush=True)

    def _child(
        self, words: Sequence[object], seconds: float, environment: Mapping[str, str]
    ) -> str | None:
        """Runs a step; gives how it failed, or None."""
        if seconds < 1:
            return "no time was left for it"
        rehearse = ["--rehearse"] if self._args.rehearse else []
        command = [sys.executable, "-m", STEPS_MODULE, *map(str, words), *rehearse]
        try:
            result = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
                env={**os.environ, "PYTHONWARNINGS": "ignore", **environment},
            )
        except subprocess.TimeoutExpired:
            return f"ended by its limit of {seconds:.0f} s"
        if result.returncode:
            print(result.stderr[-3000:], file=sys.stderr)
            lines = result.stderr.strip().splitlines()
            return f"failed: {lines[-1] if lines else f'exit status {result.returncode}'}"
        return None

    def _write(self) -> None:
        with atomic_file(self._args.output, replaces=_is_ours) as temporary:
            temporary.write_text(json.dumps(self.found, indent=1) + "\n")


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """The throughputs, beside NVIDIA's and the targets, and the card's limits.

    Args:
      found: what the file holds.
    """
    steps = found["steps"]
    card = steps.get("device", {})
    named = ("float32", "tf32", "float16", "memory")
    limits = [f"{n} {card[k] / 1e12:.2f} T/s" for n in named if (k := _limit(n)) in card]
    yield "limits: " + ", ".join(limits)
    yield (
        f"{'model':<8}{'what':<12}{'XLA':<5}{'rows/s':>14}{'A100':>14}{'target':>14}{'busy':>7}"
        f"{'GB':>7}"
    )
    for model in MODELS:
        for xla in (False, True):
            step = steps.get(f"throughput_{model}{'_xla' if xla else ''}", {})
            for what, value in step.items():
                if not isinstance(value, dict):
                    continue
                key = (model, what, xla)
                memory, busy = value.get("peak_memory_bytes"), value.get("gpu_busy_fraction")
                yield (
                    f"{model:<8}{what:<12}{'on' if xla else 'off':<5}{value['rows_per_s']:>14,.0f}"
                    f"{_number(PUBLISHED.get(key)):>14}{_number(TARGETS.get(key)):>14}"
                    f"{'' if busy is None else f'{busy:.0%}':>7}"
                    f"{'' if memory is None else f'{memory / 1e9:.1f}':>7}"
                )
    for name, step in steps.items():
        if not name.startswith("throughput"):
            yield f"{name}: {step['status']}" + _verdict(step)


def main(arguments: Sequence[str]) -> int:
    """Runs the check; the exit status is 1 where a step failed or came out unequal.

    Args:
      arguments: see `scripts/gpu_check.sh --help`.
    """
    parser = argparse.ArgumentParser(prog="scripts/gpu_check.sh", allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--movielens", type=Path, help="MovieLens-100k's directory")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(LIMITS))
    args = parser.parse_args(arguments)
    for step in args.only:
        if step not in LIMITS:
            raise UserError(f"--only: expected some of {', '.join(LIMITS)}, received {step!r}.")
    if not args.rehearse and (why := facts()["driver"]["why"]):
        raise UserError(f"expected a GPU, found none: {why}. Without one, give --rehearse.")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        checker = Checker(args, Path(folder))
        checker.run()
    print("\n".join(table(checker.found)))
    steps = checker.found["steps"]
    bad = [name for name, step in steps.items() if not _good(step)]
    print(f"{args.output}: " + (f"not as it should be: {', '.join(bad)}" if bad else "all is well"))
    return 1 if bad else 0


def _good(step: Mapping[str, Any]) -> bool:
    if step["status"] != "done":
        return False
    verdicts = [step, *(value for value in step.values() if isinstance(value, dict))]
    return all(v.get("equal", True) and v.get("same_after_reload", True) for v in verdicts)


def _verdict(step: Mapping[str, Any]) -> str:
    parts = {name: v for name, v in step.items() if name in ("equal", "same_after_reload", "data")}
    unequal = [n for n, v in step.items() if isinstance(v, dict) and not v.get("equal", True)]
    words = [f"{name} {value}" for name, value in parts.items()]
    words += [f"{name} differs by {step[name]['largest_difference']:.1e}" for name in unequal]
    return f" ({', '.join(words)})" if words else ""


def _limit(name: str) -> str:
    return "memory_bytes_per_s" if name == "memory" else f"{name}_flops_per_s"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _is_ours(path: Path) -> bool:
    """Whether a file is an earlier check's."""
    try:
        return "rehearsal" in json.loads(path.read_text())
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))

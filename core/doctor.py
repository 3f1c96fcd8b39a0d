"""`lookback doctor`: what is installed here, what works, and why the rest does not.

What needs no TensorFlow is found at once; the rest is tried in processes of its own, so that one
that hangs or dies is a line of the report and not its end.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from lookback import __version__
from lookback.core.devices import cores
from lookback.core.gpus import Driver, ask_driver
from lookback.core.options import option
from lookback.core.processes import ends_with_parent
from lookback.core.sizes import format_size

# Flags of /proc/cpuinfo, from the oldest: TensorFlow's wheels need the first.
CPU_LEVELS = {
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-512 BF16": "avx512_bf16",
    "AMX": "amx_bf16",
}
# distribution -> what it is for, where one can do without. Alternatives share a line.
PACKAGES = {
    "tensorflow": "",
    "tensorflow-cpu": "",
    "keras": "",
    "merlin-core": "",
    "merlin-models": "",
    "nvtabular": "",
    "pyarrow": "",
    "pandas": "",
    "numpy": "",
    "horovod": "several processes",
    "merlin-sok": "--backend sok, on GPUs",
    "cudf": "workflows on GPUs",
    "nvidia-pytriton": "serving --engine triton",
    "lmdb": "a history store on disk",
    "redis": "a history store in Redis",
    "optuna": "lookback tune",
}
_SECONDS = 180.0
_LONGEST_REASON = 300


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """What to check, and how to print it."""

    json: bool = option(False, help="one JSON object instead of a report")
    quick: bool = option(
        False, help="only what needs no TensorFlow: versions, CPU, driver and GPUs; in a second"
    )


@dataclasses.dataclass(frozen=True)
class Check:
    """Something that is tried in a process of its own.

    Attributes:
      name: of the line in the report.
      module: run with ``-m``; its last line of output is a JSON object with `works`, `why` if it
        does not, `says`, and figures.
      word: the module's only argument.
      package: what must be installed (as it is imported); None: nothing.
    """

    name: str
    module: str
    word: str
    package: str | None = None


def facts(driver: Driver | None = None) -> dict[str, Any]:
    """What is known without TensorFlow.

    Args:
      driver: what it says; None: it is asked.
    """
    return {
        "lookback": __version__,
        "python": platform.python_version(),
        "prefix": sys.prefix,
        "system": f"{platform.system()} {platform.release()}, glibc {platform.libc_ver()[1]}",
        "cpu": cpu(),
        "memory": psutil.virtual_memory().total,
        "driver": dataclasses.asdict(driver or ask_driver()),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def cpu(cpuinfo: str | None = None) -> dict[str, Any]:
    """Model, cores and levels of the CPU.

    Args:
      cpuinfo: what the kernel says; None: it is read.
    """
    text = Path("/proc/cpuinfo").read_text() if cpuinfo is None else cpuinfo
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    have = set(flags[1].split()) if flags else set()
    return {
        "model": model[1].strip() if model else platform.machine(),
        "cores": cores(),
        "levels": {name: flag in have for name, flag in CPU_LEVELS.items()},
    }


def tried(check: Check, seconds: float = _SECONDS) -> dict[str, Any]:
    """Runs a check; never raises.

    Args:
      check: to run.
      seconds: after which it has failed.

    Returns:
      Its object: `works`, `why`, `says` and figures.
    """
    if check.package and importlib.util.find_spec(check.package) is None:
        return {"works": False, "why": f"{check.package} is not installed"}
    try:
        process = subprocess.run(
            [sys.executable, "-m", check.module, check.word],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
            preexec_fn=ends_with_parent(),
        )
    except subprocess.TimeoutExpired:
        return {"works": False, "why": f"it did not end within {seconds:g} s"}
    for line in reversed(process.stdout.splitlines()):
        if line.startswith("{"):
            answer: dict[str, Any] = json.loads(line)
            return answer
    lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
    why = lines[-1] if lines else "it said nothing"
    return {"works": False, "why": f"exit status {process.returncode}: {why[:_LONGEST_REASON]}"}


def examine(options: DoctorOptions, checks: Sequence[Check], required: str) -> int:
    """Runs all checks and prints the report.

    Args:
      options: of the command.
      checks: that are tried unless only a quick look is wanted.
      required: the name of the one without which nothing can be trained here.

    Returns:
      The exit status: 0, or 1 if what is required does not work.
    """
    found = facts()
    results: dict[str, Any] = {}
    if not options.json:
        _print_lines(_facts_lines(found))
    for check in () if options.quick else checks:
        results[check.name] = tried(check)
        if not options.json:
            _print_lines([_check_line(check.name, results[check.name])])
    if options.json:
        print(json.dumps({**found, "checks": results}))
    return 0 if options.quick or results[required]["works"] else 1


def _print_lines(lines: Iterator[str] | Sequence[str]) -> None:
    for line in lines:
        print(line, flush=True)  # the next check takes seconds


def _facts_lines(found: Mapping[str, Any]) -> Iterator[str]:
    line: Callable[[str, str], str] = "{:<11} {}".format
    yield line("lookback", f"{found['lookback']}, Python {found['python']}, {found['prefix']}")
    yield line("system", f"{found['system']}, {format_size(found['memory'])} of memory")
    levels = found["cpu"]["levels"]
    have = ", ".join(name for name, there in levels.items() if there) or "no AVX"
    lack = ", ".join(name for name, there in levels.items() if not there)
    yield line(
        "cpu",
        f"{found['cpu']['model']}, {found['cpu']['cores']} cores: {have}"
        + (f" (not {lack})" if lack else ""),
    )
    driver = found["driver"]
    if driver["why"]:
        yield line("gpu", f"none: {driver['why']}")
    for number, gpu in enumerate(driver["gpus"]):
        yield line(
            f"gpu {number}",
            f"{gpu['name']}, compute capability {gpu['capability']}, "
            f"{format_size(gpu['memory'])}; driver {driver['version']} for CUDA {driver['cuda']}",
        )
    there = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    yield from textwrap.wrap(line("packages", there), 100, subsequent_indent=" " * 12)
    for name, purpose in PACKAGES.items():
        if purpose and found["packages"][name] is None:
            yield line("", f"{name} is not installed: {purpose}")


def _check_line(name: str, result: Mapping[str, Any]) -> str:
    if result["works"]:
        return f"{name:<11} works: {result['says']}"
    return f"{name:<11} does not work: {result['why']}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

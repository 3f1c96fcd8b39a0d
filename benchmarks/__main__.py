"""`python -m benchmarks [NAME] [--quick] [options]`: lists the benchmarks, or runs one."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lookback.benchmarks import BENCHMARKS, quieten
from lookback.core.errors import UserError
from lookback.core.faults import guarded


def question(name: str) -> str:
    """The question that a benchmark answers, read from its source without importing it.

    Args:
      name: a key of `BENCHMARKS`.
    """
    spec = importlib.util.find_spec(BENCHMARKS[name])
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"Benchmark {name!r} has no module {BENCHMARKS[name]}.")
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if not isinstance(node, ast.Assign):
            continue
        if any(isinstance(target, ast.Name) and target.id == "QUESTION" for target in node.targets):
            return str(ast.literal_eval(node.value))
    raise AttributeError(f"{spec.origin} assigns no string literal to QUESTION.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status.

    Args:
      arguments: without the program's name; None: those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _run(words))


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m benchmarks NAME [--quick] [options]\n")
        print("Prints a table, then one JSON line: machine, config, every figure, the ratios.\n")
        width = max(map(len, BENCHMARKS))
        for name in BENCHMARKS:
            print(f"  {name:<{width}}  {question(name)}")
        print("\npython -m benchmarks NAME --help lists a benchmark's options.")
        return 0
    name = arguments[0]
    if name not in BENCHMARKS:
        names = ", ".join(BENCHMARKS)
        raise UserError(f"no benchmark is named {name!r}. Expected one of: {names}.")
    quieten()
    module, options = importlib.import_module(BENCHMARKS[name]), arguments[1:]
    for flag, other in getattr(module, "MODES", {}).items():
        if flag in options:
            name, module = f"{name} {flag}", importlib.import_module(other)
            options.remove(flag)
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.QUESTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes, done within 60 s")
    module.add_arguments(parser)
    args = parser.parse_args(options)
    # After parsing, so that --help does not wait for NumPy and rich.
    from lookback.benchmarks.harness import machine_info, print_report

    load, start = os.getloadavg()[0], time.monotonic()
    report = module.run(args)
    machine = {**machine_info(), "load_1min_before": load}
    print_report(name, report, machine, seconds=time.monotonic() - start)
    return 1 if report.failures else 0


if __name__ == "__main__":
    # As an exception, so that a benchmark that is ended ends its ranks and peers.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())

"""How fast NeuMF trains, against NeuMF in PyTorch, and how much memory both need."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lookback.benchmarks import ncf_options, quieten

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "How many samples a second does NeuMF train, against PyTorch, and in what memory?"

LABELS = {
    "ours": "NeuMF, fp32",
    "ours_amp": "NeuMF, --amp",
    "ours_lazy": "NeuMF, fp32, lazy_adam",
    "torch": "PyTorch",
}
_TARGET = 7.0  # times PyTorch: the project's target (benchmarks/README.md)
_STEPS = 3  # of a measurement of memory; the first allocates what later ones use again

# Arguments of `Contenders.train`.
_OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_amp": {"amp": True},
    "ours_lazy": {"optimizer": "lazy_adam"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    ncf_options.add_arguments(parser)
    parser.add_argument(
        "--no_memory", action="store_true", help="do not measure memory, which takes a while"
    )


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Measures memory, of each contender in a process of its own; then times training steps.

    Ours draw their positives and negatives within the step that is timed, PyTorch gets batches
    that were made beforehand. All but `lazy_adam` update every row of every table in every step.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.ncf_contenders import Contenders, compare, make_histories
    from lookback.benchmarks.options import batch_sizes

    largest = max(batch_sizes(args))
    measured = [] if args.no_memory else ["ours", "torch"] if args.quick else list(LABELS)
    memory = peak_memory(args, largest, measured)
    shown = ", ".join(f"{LABELS[name]} {size / 2**30:.2f} GiB" for name, size in memory.items())
    report = compare(
        args,
        make_histories(args),
        title="NeuMF training",
        mode="train",
        labels=LABELS,
        pairs=Contenders.train_pairs,
        choose=lambda ours, _: {name: ours.train(**options) for name, options in _OURS.items()},
        notes=[
            f"Target: NeuMF {_TARGET} x PyTorch. Ours draw negatives within the step; PyTorch's "
            "batches are made beforehand, which the clock does not see.",
            *([f"Peak memory (RSS) at batch {largest:,}: {shown}."] if memory else []),
        ],
    )
    found = {f"{name}_peak_rss_bytes_{largest}": size for name, size in memory.items()}
    return dataclasses.replace(report, figures={**report.figures, **found})


def peak_memory(args: argparse.Namespace, batch_size: int, names: Sequence[str]) -> dict[str, int]:
    """Peak RSS in bytes of training with batches of a size, by name.

    Ours includes TensorFlow and the generated interactions, PyTorch's its prepared batches.

    Args:
      args: as of `run`.
      batch_size: rows.
      names: keys of LABELS.

    Returns:
      What was found; without PyTorch where its environment is not set up.
    """
    found = {}
    for name in names:
        # A process of its own, for a peak is that of a process's whole life. Spawned: TensorFlow's
        # threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            1, mp_context=context, initializer=quieten
        ) as process:
            size = process.submit(peak_of, name, args, batch_size).result()
        if size is not None:
            found[name] = size
    return found


def peak_of(name: str, args: argparse.Namespace, batch_size: int) -> int | None:
    """Trains a few steps; the peak RSS of this process, or of the peer (None: not set up)."""
    from lookback.benchmarks.ncf_contenders import Contenders, make_histories
    from lookback.core.processes import resident_peak

    contenders = Contenders(make_histories(args), batch_size)
    if name != "torch":
        step = contenders.train(**_OURS[name])
        for _ in range(_STEPS):
            step()
        return resident_peak()
    with contenders.peer(contenders.train_pairs(), args) as peer:
        if peer is None:
            return None
        peer.ask(do="train", steps=_STEPS)
        return peer.peak_rss_bytes()

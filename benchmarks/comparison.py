"""Our models against others' on the same batches: turns, a table, ratios."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import merlin.models.tf as mm
import tensorflow as tf

from lookback.benchmarks.harness import BenchmarkReport, Timing, gemm, interleave
from lookback.benchmarks.options import batch_sizes, turns
from lookback.dataloading.sources import Batch, BatchSource
from lookback.training.optimizers import Optimizer
from lookback.training.precision import LossScale, amp_policy
from lookback.training.steps import Steps

_DTYPES = ("float32", "bfloat16")

Contender = Callable[[], int]
"""Does a batch to its end and returns its rows."""


def compare(
    args: argparse.Namespace,
    *,
    title: str,
    labels: Mapping[str, str],
    reference: str,
    contenders: Callable[[int], AbstractContextManager[Mapping[str, Contender]]],
    flops: float | Mapping[str, float],
    config: Mapping[str, Any],
    notes: Sequence[str],
    rivals: Mapping[str, Sequence[str]] = {},
) -> BenchmarkReport:
    """Times contenders at each batch size and sets ours against the others.

    Args:
      args: of the command line, with the options of `benchmarks.options.add_timing`.
      title: of the table.
      labels: names of the contenders, by key. Keys of ours begin with "ours"; one that ends with
        "amp" is measured by the peak of bf16.
      reference: key of the contender that the table compares with, if it takes part.
      contenders: gives those of a batch size, by key, for as long as it is entered.
      flops: floating point operations of a sample, products of matrices only: of all alike, or by
        key of those whose fraction of the machine's peak is to be told.
      config: what was measured, beside --quick.
      notes: lines for below the table.
      rivals: by key of a contender, others' software that does its work on the same histories; the
        table compares with the fastest of it.
    """
    # Products take part, so that a machine that is slow for a while has lower peaks meanwhile.
    products = {dtype: gemm(dtype) for dtype in _DTYPES}
    needed = flops if isinstance(flops, Mapping) else dict.fromkeys(labels, flops)
    rows: list[tuple[object, ...]] = []
    figures: dict[str, Any] = {"flops_per_sample": flops}
    ratios, shown = dict[str, float](), list[str]()
    for size in batch_sizes(args):
        with contenders(size) as functions:
            timings = interleave({**products, **functions}, **turns(args))
        peaks = {dtype: timings.pop(dtype).highest for dtype in _DTYPES}
        shown.append("{:,.0f} GFLOP/s, bf16 {:,.0f}".format(*(p / 1e9 for p in peaks.values())))
        figures |= {f"gemm_peak_flops_per_s_{dtype}_{size}": p for dtype, p in peaks.items()}
        ratios |= _ratios(timings, size)
        for name, found in timings.items():
            figures[f"{name}_samples_per_s_{size}"] = found.as_dict()
            fraction = ""
            if name in needed:
                peak = peaks["bfloat16" if name.endswith("amp") else "float32"]
                share = figures[f"{name}_fraction_of_gemm_peak_{size}"] = (
                    found.median * needed[name] / peak
                )
                fraction = f"{share:.0%}"
            speeds = (round(found.median), round(found.lowest), round(found.highest))
            over = f"{found.over(timings[reference]):.2f} x" if reference in timings else ""
            cells = [size, labels[name], *speeds, fraction, over]
            if rivals:
                best = _best(timings, rivals.get(name, ()))
                if best is not None:
                    ratios[f"{name}_over_best_peer_{size}"] = found.over(best)
                cells.append("" if best is None else f"{found.over(best):.2f} x")
            rows.append(tuple(cells))
    return BenchmarkReport(
        title=title,
        columns=(
            *("batch", "model", "samples/s", "lowest", "highest"),
            *("of GEMM peak", f"over {labels[reference].partition(',')[0]}"),
            *(["over best peer"] if rivals else []),
        ),
        rows=rows,
        config={**config, "quick": args.quick},
        figures=figures,
        ratios=ratios,
        notes=[
            f"{_shown(flops)} MFLOP a sample, products of matrices only. GEMM peak beside "
            f"{'; '.join(shown)} (for --amp).",
            *notes,
        ],
    )


@contextlib.contextmanager
def precision(amp: bool) -> Iterator[str]:
    """Within it, Keras' policy is that of --amp, or float32; gives its name."""
    before = tf.keras.mixed_precision.global_policy()
    policy = amp_policy() if amp else "float32"
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield policy
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def train_step(
    model: mm.Model, optimizer: Optimizer, source: BatchSource, feeds: Iterator[Any]
) -> Contender:
    """Our training step, as the trainer takes it; traced under the policy in force.

    Args:
      model: built.
      optimizer: of the model.
      source: of batches.
      feeds: of the source, one a step.
    """
    fp16 = tf.keras.mixed_precision.global_policy().compute_dtype == "float16"
    results = Steps(model, optimizer, source, LossScale() if fp16 else None).train(feeds)
    next(results)

    def work() -> int:
        _, result = next(results)
        float(result["total_loss"])
        return int(result["rows"])

    return work


def prepared(batches: Sequence[Batch]) -> BatchSource:
    """A source of batches that are in memory already: a feed is a batch."""
    return _Prepared(batches)


class _Prepared(BatchSource):
    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def train_steps(self) -> int:
        return len(self._batches)

    def train_feeds(self, epoch: int, first_step: int) -> Iterator[Batch]:
        del epoch
        yield from self._batches[first_step:]

    def parts_of(self, feed: Batch) -> Sequence[Batch]:
        return [feed]

    def eval_steps(self, split: str) -> int:
        del split
        return len(self._batches)

    def eval_feeds(self, split: str) -> Iterator[Batch]:
        del split
        yield from self._batches

    def train_batch(self, feed: Batch) -> Batch:
        return feed

    def eval_batch(self, split: str, feed: Batch) -> Batch:
        del split
        return feed

    def describe(self, feed: Batch) -> dict[str, list[Any]]:
        return {"label": feed[1].numpy().ravel().tolist()}


def endless_feeds(source: BatchSource) -> Iterator[Any]:
    """Feeds of one epoch after another."""
    for epoch in itertools.count():
        yield from source.train_feeds(epoch, 0)


def _ratios(timings: Mapping[str, Timing], size: int) -> dict[str, float]:
    """Each of ours over each of the others."""
    mine = [name for name in timings if name.startswith("ours")]
    return {
        f"{name}_over_{other}_{size}": timings[name].over(timings[other])
        for name in mine
        for other in timings
        if other not in mine
    }


def _best(timings: Mapping[str, Timing], names: Sequence[str]) -> Timing | None:
    """The fastest of some contenders, as far as they took part."""
    found = [timings[name] for name in names if name in timings]
    return max(found, key=lambda timing: timing.median) if found else None


def _shown(flops: float | Mapping[str, float]) -> str:
    values = sorted(set(flops.values())) if isinstance(flops, Mapping) else [flops]
    return ", ".join(f"{value / 1e6:.2f}" for value in values)

"""How fast NeuMF scores, and how long a batch takes, beside NeuMF in PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from lookback.benchmarks import ncf_options

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.benchmarks.ncf_contenders import Contenders

QUESTION = "How many samples a second does NeuMF score, against PyTorch, and what is the latency?"

LABELS = {
    "ours": "NeuMF, 101 candidates a user",
    "ours_amp": "NeuMF, --amp",
    "ours_pairs": "NeuMF, flat pairs",
    "ours_pairs_amp": "NeuMF, flat pairs, --amp",
    "torch": "PyTorch",
}
_TARGET = 5.0  # times PyTorch: the project's target (benchmarks/README.md)
_LATENCY_SIZES = (1024, 4096, 16_384, 65_536, 262_144, 1_048_576)  # NVIDIA's table
_QUICK_SIZES = _LATENCY_SIZES[:3]
_WARMUP = 5  # calls before those that are timed, as of `benchmarks.harness.latencies`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    ncf_options.add_arguments(parser)
    parser.add_argument(
        "--latency_steps", type=int, help="batches timed one by one (default 200; quick 20)"
    )
    parser.add_argument(
        "--latency_seconds", type=float, default=20.0, help="after which no further one is timed"
    )


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Times probabilities of users' evaluation candidates, then of single batches of any pairs.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.ncf_contenders import Contenders, compare, make_histories

    histories = make_histories(args)
    report = compare(
        args,
        histories,
        title="NeuMF inference",
        mode="infer",
        labels=LABELS,
        pairs=Contenders.candidate_pairs,
        choose=lambda ours, pairs: {
            "ours": ours.score_candidates(),
            "ours_amp": ours.score_candidates(amp=True),
            "ours_pairs": ours.score_pairs(pairs),
            "ours_pairs_amp": ours.score_pairs(pairs, amp=True),
        },
        notes=[
            f"Target: NeuMF {_TARGET} x PyTorch. Flat pairs are the same pairs with a user each, "
            "as PyTorch gets them.",
        ],
    )
    latency = _latency(args, Contenders(histories, _LATENCY_SIZES[0]))
    notes = [note for note, _ in latency.values()]
    found = {name: figures for name, (_, figures) in latency.items()}
    return dataclasses.replace(
        report, figures={**report.figures, **found}, notes=[*report.notes, *notes]
    )


def _latency(
    args: argparse.Namespace, contenders: Contenders
) -> dict[str, tuple[str, dict[str, float]]]:
    """Lines and figures of single batches of pairs drawn at random, as in NVIDIA's table."""
    from lookback.benchmarks.harness import latencies, latency_figures, latency_note

    found = {}
    limits = {
        "steps": args.latency_steps or (20 if args.quick else 200),
        "max_seconds": args.latency_seconds,
    }
    for size in _QUICK_SIZES if args.quick else _LATENCY_SIZES:
        pairs = contenders.random_pairs(size)
        figures = {
            "ours_pairs": latencies(contenders.score_pairs(pairs), **limits),
            "ours_pairs_amp": latencies(contenders.score_pairs(pairs, amp=True), **limits),
        }
        with contenders.peer(pairs, args) as peer:
            if peer is not None:  # which counts its seconds itself: a message takes some, too
                peer.ask(do="infer", steps=_WARMUP)
                figures["torch"] = latency_figures(
                    lambda: float(peer.ask(do="infer")["seconds"]), **limits
                )
        for name, values in figures.items():
            note = latency_note(size, LABELS[name], values)
            found[f"{name}_latency_ms_{size}"] = (note, values)
    return found

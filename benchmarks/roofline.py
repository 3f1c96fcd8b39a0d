"""How close each model comes to what this machine could do at most.

A sample's cost is counted (`benchmarks.costs`), the machine's peaks are measured
(`benchmarks.peaks`), and so is the model's speed. A limit is what a peak alone would allow, as if
all else were free; the lowest of a model's limits binds it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lookback.benchmarks import history_options
from lookback.benchmarks.costs import Cost, neumf_cost, tabular_cost
from lookback.models.config import DIENConfig, DINConfig, SIMConfig
from lookback.models.neumf_config import NeuMFConfig
from lookback.models.tabular_config import DCNv2Config, DLRMConfig

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport, Timing

QUESTION = "What share of this machine's limits does each model reach, training and scoring?"

_HISTORY = {
    "sim": SIMConfig(),
    "dien": DIENConfig(),
    "din": DINConfig(),
    "din_unit": DINConfig(interaction="activation_unit"),
}
_TABULAR: dict[str, tuple[DLRMConfig | DCNv2Config, str]] = {
    "dlrm": (DLRMConfig(), "sgd"),
    "dcnv2": (DCNv2Config(), "adam"),
}
MODELS = (*_HISTORY, *_TABULAR, "neumf")
_BATCH = {"neumf": 65_536}
_DEFAULT_BATCH = 4096
_TABLES = {"tables": 26, "table_rows": 100_000, "numerical": 13}  # as `dlrm_train` has them
_INTERACTIONS = {"users": 138_493, "items": 26_744, "events": 5_000_000}  # MovieLens-20M's
_DTYPES = {"fp32": "float32", "--amp": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Of the machine.

    Attributes:
      flops: a second, of products, by dtype.
      copy: bytes a second, read and written.
      rows: a second, read at random places, by width.
    """

    flops: Mapping[str, float]
    copy: float
    rows: Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
      model: of `MODELS`.
      mode: "training" or "scoring".
      precision: "fp32" or "--amp".
      batch: samples of a call.
      cost: of a sample.
      run: does a batch and returns its samples.
    """

    model: str
    mode: str
    precision: str
    batch: int
    cost: Cost
    run: Callable[[], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    history_options.add_data(parser)
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, help="default all of them; quick sim din"
    )
    parser.add_argument(
        "--global_batch_size",
        type=int,
        help=f"rows of a batch (default {_DEFAULT_BATCH}; of neumf {_BATCH['neumf']})",
    )
    parser.add_argument("--rounds", type=int, help="measurements of each (default 5; quick 3)")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Measures the peaks, then each model's training and scoring, in both precisions.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.harness import BenchmarkReport, gemm, interleave
    from lookback.benchmarks.options import turns

    models = args.models or (("sim", "din") if args.quick else MODELS)
    rows, figures = [], dict[str, Any]()
    alone, beside = measured_peaks(), dict[str, Mapping[str, float]]()
    for model in models:
        works = {f"{w.mode} {w.precision}": w for w in _works(model, args)}
        # Products take part, so that a machine that is slow for a while has lower peaks meanwhile.
        products = {dtype: gemm(dtype) for dtype in _DTYPES.values()}
        timings = interleave(
            {**products, **{name: work.run for name, work in works.items()}}, **turns(args)
        )
        peaks = dataclasses.replace(
            alone, flops={dtype: timings[dtype].highest for dtype in products}
        )
        beside[model] = peaks.flops
        for name, work in works.items():
            row, found = _line(work, timings[name], peaks)
            rows.append(row)
            figures[f"{model} {name}"] = found
    return BenchmarkReport(
        title="Share of the machine's limits",
        columns=(
            *("model", "", "", "batch", "MFLOP", "bytes", "bound by"),
            *("limit, /s", "samples/s", "of the limit", "of products"),
        ),
        rows=rows,
        config={"models": list(models), "quick": args.quick},
        figures={"peaks": dataclasses.asdict(alone), "peaks_beside": beside, **figures},
        ratios={name: found["fraction"] for name, found in figures.items()},
        notes=[
            f"Peaks: {alone.flops['float32'] / 1e9:,.0f} GFLOP/s fp32, "
            f"{alone.flops['bfloat16'] / 1e9:,.0f} bf16 ({bfloat16_level()}); copying "
            f"{alone.copy / 1e9:,.1f} GB/s; random rows a second "
            + ", ".join(f"{rate / 1e6:,.1f} M of {dim}" for dim, rate in alone.rows.items())
            + " floats. The limits are those of products that took turns with the models.",
            "MFLOP and bytes are of a sample, FLOPs those of products. Rows count as read from "
            "memory each time: popular ones are found in caches, so that this limit can be passed.",
        ],
    )


def measured_peaks() -> Peaks:
    """Those of this machine."""
    from lookback.benchmarks.harness import gemm_peak
    from lookback.benchmarks.peaks import copy_bandwidth, random_rows

    widths = {SIMConfig().embedding_dim, DLRMConfig().embedding_dim, NeuMFConfig().factors}
    return Peaks(
        {dtype: gemm_peak(dtype) for dtype in _DTYPES.values()},
        copy_bandwidth(),
        {dim: random_rows(dim) for dim in sorted(widths)},
    )


def bfloat16_level() -> str:
    """What multiplies in bfloat16 here, as the CPU says."""
    from lookback.benchmarks.harness import machine_info

    flags = machine_info()["cpu_flags"]
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16"}
    return next((name for flag, name in known.items() if flag in flags), "without instructions")


def limits(cost: Cost, peaks: Peaks, dtype: str) -> dict[str, float]:
    """Samples a second that each peak alone allows.

    Args:
      cost: of a sample.
      peaks: of the machine.
      dtype: that products are computed in.
    """
    seconds = {
        "products": cost.flops / peaks.flops[dtype],
        "bandwidth": cost.streamed_bytes / peaks.copy,
        "random rows": sum(number / peaks.rows[dim] for dim, number in cost.rows.items()),
    }
    return {name: 1 / value for name, value in seconds.items() if value}


def _line(work: Work, timing: Timing, peaks: Peaks) -> tuple[Sequence[object], dict[str, Any]]:
    """A row of the table and its figures."""
    dtype = _DTYPES[work.precision]
    allowed = limits(work.cost, peaks, dtype)
    bound = min(allowed, key=allowed.__getitem__)
    fraction = timing.median / allowed[bound]
    of_peak = timing.median * work.cost.flops / peaks.flops[dtype]
    found = {
        "samples_per_s": timing.as_dict(),
        "flops_per_sample": work.cost.flops,
        "bytes_per_sample": work.cost.bytes,
        "limits_samples_per_s": allowed,
        "bound": bound,
        "fraction": fraction,
        "fraction_of_gemm_peak": of_peak,
    }
    name = work.model if work.mode == "training" and work.precision == "fp32" else ""
    row = (
        *(name, work.mode, work.precision, work.batch, work.cost.flops / 1e6),
        *(round(work.cost.bytes), bound, round(allowed[bound]), round(timing.median)),
        *(f"{fraction:.0%}", f"{of_peak:.0%}"),
    )
    return row, found


def _works(model: str, args: argparse.Namespace) -> Iterator[Work]:
    batch = args.global_batch_size or _BATCH.get(model, _DEFAULT_BATCH)
    make = _history if model in _HISTORY else _tabular if model in _TABULAR else _neumf
    for mode, precision, cost, work in make(model, args, batch):
        yield Work(model, mode, precision, batch, cost, work)


def _history(
    model: str, args: argparse.Namespace, batch: int
) -> Iterator[tuple[str, str, Cost, Callable[[], int]]]:
    from lookback.benchmarks.history_contenders import Contenders, load

    contenders = Contenders(load(args), batch, _HISTORY[model])
    for precision in _DTYPES:
        amp = precision == "--amp"
        yield "training", precision, contenders.cost(training=True), contenders.train_ours(amp=amp)
        yield "scoring", precision, contenders.cost(training=False), contenders.infer_ours(amp=amp)


def _tabular(
    model: str, args: argparse.Namespace, batch: int
) -> Iterator[tuple[str, str, Cost, Callable[[], int]]]:
    from lookback.benchmarks.dlrm_contenders import Contenders

    config, optimizer = _TABULAR[model]
    contenders = Contenders(config, **_TABLES, batch_size=batch)
    sizes = (_TABLES["tables"], _TABLES["numerical"])
    training = tabular_cost(
        config, *sizes, training=True, updated=contenders.distinct_rows(), optimizer=optimizer
    )
    for precision in _DTYPES:
        amp = precision == "--amp"
        train = contenders.train_ours(amp=amp, optimizer=optimizer)
        yield "training", precision, training, train
        scoring = tabular_cost(config, *sizes, training=False)
        yield "scoring", precision, scoring, contenders.infer_ours(amp=amp)


def _neumf(
    model: str, args: argparse.Namespace, batch: int
) -> Iterator[tuple[str, str, Cost, Callable[[], int]]]:
    from lookback.benchmarks.data import resident_interactions
    from lookback.benchmarks.ncf_contenders import Contenders

    contenders = Contenders(resident_interactions(**_INTERACTIONS), batch)
    rows = (_INTERACTIONS["users"] + _INTERACTIONS["items"]) / batch
    pairs = contenders.random_pairs(batch)
    for precision in _DTYPES:
        amp = precision == "--amp"
        training = neumf_cost(NeuMFConfig(), training=True, all_rows=rows)
        yield "training", precision, training, contenders.train(amp=amp)
        scoring = neumf_cost(NeuMFConfig(), training=False)
        yield "scoring", precision, scoring, contenders.score_pairs(pairs, amp=amp)

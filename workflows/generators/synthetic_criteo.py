"""Synthetic clicks in Criteo's format, whose best possible AUC is known.

`synthetic_criteo_law` says what is drawn, and with what probability of a click. Rows are
written as raw files ``day_0 .. day_{D-1}``, which `run --dataset criteo` reads, or straight as the
dataset it would make of them, but for two things: the vocabulary is the whole table, whether or not
a value occurs (id 0: missing; 1 + r: value r, by falling probability), and rows are not shuffled,
as they are independent already. Both are of the same rows, bit by bit.

``oracle.json`` tells the AUC of the true probabilities, which no model can beat but by luck, on the
validation and test rows: `expected` over all labels that could have been drawn, and `drawn` for
those that were, with its standard error. `without_interactions` is what a sum of effects reaches,
the expected AUC of the logit without its part x.

Rows come from Philox streams keyed by (seed, day, block), so the bytes do not depend on how many
threads draw them. Memory holds a few blocks for each thread and the probabilities of the last day.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from lookback.core.devices import cores
from lookback.core.errors import UserError
from lookback.core.options import check_options, option, without
from lookback.workflows.cluster import open_runner
from lookback.workflows.generators.criteo_tables import ROWS
from lookback.workflows.generators.synthetic_criteo_law import (
    LARGEST_TABLE,
    CriteoLaw,
    CriteoLawConfig,
    DrawnRows,
    sigmoid,
)
from lookback.workflows.generators.synthetic_criteo_text import lines
from lookback.workflows.output import DATASET, RAW, Output

BLOCK_ROWS = 65_536
"""Rows that share a random stream: part of the format, for another value gives other bytes."""

ORACLE = "oracle.json"
_SMALLEST_TABLE = 4  # that scaling leaves; NVIDIA's smallest has four rows, too
_GZIP_LEVEL = 3

Floats = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class SyntheticCriteoConfig:
    """What is generated.

    Attributes:
      law: of the rows.
      rows: of all days together.
      days: D; all but the last are for training, the last is halved.
    """

    law: CriteoLawConfig
    rows: int = 1_000_000
    days: int = 24

    def __post_init__(self) -> None:
        """Validates.

        Raises:
          UserError: naming the option, what it may be and what came.
        """
        if not 2 <= self.days <= 10_000:
            raise UserError(f"days must be from 2 to 10,000, received {self.days}.")
        if self.rows < 2 * self.days:
            raise UserError(
                f"rows must be at least two a day, {2 * self.days:,}, received {self.rows:,}."
            )

    def rows_of(self, day: int) -> int:
        """Rows of a day: as equal as can be."""
        return self.rows * (day + 1) // self.days - self.rows * day // self.days

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each split."""
        last = self.rows_of(self.days - 1)
        return {
            "train": self.rows - last,
            "validation": last // 2,
            "test": last - last // 2,
        }


def scaled(cardinalities: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """Table sizes times a factor; small ones keep at least four rows (or what they have).

    Raises:
      UserError: if the factor is not positive.
    """
    if not 0 < factor < math.inf:
        raise UserError(f"scale must be above 0, received {factor}.")
    return tuple(max(min(rows, _SMALLEST_TABLE), round(rows * factor)) for rows in cardinalities)


_SIZES = "; ".join(f"{name}: {sum(rows):,} rows in all" for name, rows in ROWS.items())


@dataclasses.dataclass(frozen=True)
class CriteoOptions:
    """How the command line says what to generate, beside the law."""

    scope = "criteo"

    variant: str = option(
        "t15",
        choices=(*ROWS, "custom"),
        help="table sizes: those of NVIDIA's recipe for Criteo 1TB with a frequency threshold of "
        f"15, 3 or 0 ({_SIZES}), or --cardinalities",
    )
    cardinalities: tuple[int, ...] | None = option(
        None,
        help="rows of each table, of the variant custom",
        nonempty=True,
        at_least=2,
        at_most=LARGEST_TABLE,
    )
    scale: float = option(1.0, help="multiply the table sizes by it", above=0)
    rows: int = option(SyntheticCriteoConfig.rows, help="rows of all days together", at_least=1)
    days: int = option(
        SyntheticCriteoConfig.days, help="the last is for validation and test", at_least=2
    )
    format: Literal["tsv", "parquet"] = option("tsv", help="raw files, or the dataset itself")
    gzip: bool = option(False, help="compress the raw files", needs={"format": ("tsv",)})
    threads: int | None = option(
        None, help="of no influence on the result; none: one for each core", at_least=1
    )

    def __post_init__(self) -> None:
        check_options(self)
        if (self.cardinalities is not None) != (self.variant == "custom"):
            raise UserError(
                "--cardinalities and --variant custom go together: the other variants have table "
                f"sizes of their own. Received --variant {self.variant} and "
                f"{'no' if self.cardinalities is None else 'some'} cardinalities."
            )

    @property
    def tables(self) -> tuple[int, ...]:
        """Rows of each table."""
        return scaled(self.cardinalities or ROWS[self.variant], self.scale)


OPTIONS = (CriteoOptions, without(CriteoLawConfig, "cardinalities"))
"""What `generate` is given of."""


def generate(output: Path, overwrite: bool, options: CriteoOptions, law: Any) -> None:
    """Generates what the command line asks for.

    Args:
      output: the directory to create.
      overwrite: replace what we generated there.
      options: how many rows, of which tables, in which form.
      law: the fields of a `CriteoLawConfig`, cardinalities excepted.

    Raises:
      UserError: for values that cannot be met, or an output that exists.
    """
    report = generate_criteo(
        SyntheticCriteoConfig(
            CriteoLawConfig(options.tables, **vars(law)), options.rows, options.days
        ),
        output,
        format=options.format,
        compress=options.gzip,
        overwrite=overwrite,
        threads=options.threads,
        log=lambda text: print(text, file=sys.stderr),
    )
    counts = report["counts"]
    print(
        f"{output}: {options.rows:,} rows, {report['click_rate']:.1%} clicks; "
        + ", ".join(f"{counts[split]:,} {split}" for split in ("train", "validation", "test"))
    )
    for split, auc in report["bayes_auc"].items():
        print(
            f"Bayes AUC, {split}: {auc['expected']:.4f} expected, {auc['drawn']:.4f} ± "
            f"{auc['standard_error']:.4f} on the labels drawn, {auc['without_interactions']:.4f} "
            "expected without interactions"
        )


def generate_criteo(
    config: SyntheticCriteoConfig,
    output_dir: str | Path,
    *,
    format: str = "tsv",
    compress: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes rows and oracle.json; the directory appears when all is done.

    Args:
      config: what to generate.
      output_dir: the directory to create.
      format: of the rows: raw files (`tsv`) or the dataset (`parquet`).
      compress: raw files as `.gz`.
      overwrite: replace what we generated, in the same format, at `output_dir`.
      threads: that draw and format; None: one for each core.
      log: told when a day is written.

    Returns:
      The content of oracle.json.

    Raises:
      UserError: if `output_dir` exists and `overwrite` is false, or an option cannot be met.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, received {threads}.")
    if compress and format != "tsv":
        raise UserError("--gzip is of raw files: expected --format tsv, received parquet.")
    law = CriteoLaw(config.law)
    truth = _Truth(config)
    workers = threads or cores()
    kind = DATASET if format == "parquet" else RAW
    with Output(Path(output_dir), kind, overwrite, ()).create() as directory:
        if format == "parquet":
            _write_parquet(law, config, directory, workers, truth, log)
        else:
            _write_text(law, config, directory, workers, truth, log, compress)
        report = truth.report(law)
        (directory / ORACLE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if format == "parquet":
            _describe(config, directory, report)
    return report


class _Truth:
    """Collects the true logits and labels of the last day."""

    def __init__(self, config: SyntheticCriteoConfig) -> None:
        self._config = config
        self._clicks = 0
        self._last: list[tuple[Floats, Floats, npt.NDArray[np.bool_]]] = []

    def add(self, day: int, rows: DrawnRows) -> None:
        self._clicks += int(rows.label.sum())
        if day == self._config.days - 1:
            self._last.append((rows.logit, rows.logit - rows.interaction, rows.label))

    def report(self, law: CriteoLaw) -> dict[str, Any]:
        config, counts = self._config, self._config.counts
        logit, effects, label = (np.concatenate(c) for c in zip(*self._last, strict=True))
        half = counts["validation"]
        return {
            "format": "lookback-oracle",
            "format_version": 1,
            "bayes_auc": {
                "validation": _bayes_auc(logit[:half], effects[:half], label[:half]),
                "test": _bayes_auc(logit[half:], effects[half:], label[half:]),
            },
            "click_rate": self._clicks / config.rows,
            "counts": counts,
            "bias": law.bias,
            "interacting": law.interacting,
            "config": dataclasses.asdict(config),
            "seed": config.law.seed,
        }


def _bayes_auc(logit: Floats, effects: Floats, label: npt.NDArray[np.bool_]) -> dict[str, Any]:
    p = sigmoid(logit)
    drawn, error = drawn_auc(logit, label)
    return {
        "expected": expected_auc(logit, p),
        "drawn": drawn,
        "standard_error": error,
        "without_interactions": expected_auc(effects, p),
    }


def expected_auc(scores: Floats, p: Floats) -> float:
    """AUC of scores over all labels that could be drawn, by expected pairs.

    ``sum_{i != j} p_i (1 - p_j) [s_i > s_j] / sum_{i != j} p_i (1 - p_j)``, ties counted half: the
    expected number of pairs in the right order over that of all pairs.

    Args:
      scores: ``[n]``.
      p: ``[n]`` probability that the label is 1.
    """
    below, _ = _around(scores, 1.0 - p)
    # A row makes no pair with itself; in `below` it is half of one.
    itself = float(p @ (1.0 - p))
    pairs = float(p.sum() * (1.0 - p).sum()) - itself
    return (float(p @ below) - 0.5 * itself) / pairs


def drawn_auc(scores: Floats, label: npt.NDArray[np.bool_]) -> tuple[float | None, float | None]:
    """AUC of scores for labels, and its standard error (DeLong et al. 1988).

    Args:
      scores: ``[n]``.
      label: ``[n]`` bool.

    Returns:
      Both; None, None with fewer than two rows of a class.
    """
    positives, negatives = int(label.sum()), int((~label).sum())
    if min(positives, negatives) < 2:
        return None, None
    below, _ = _around(scores, (~label).astype(np.float64))
    _, above = _around(scores, label.astype(np.float64))
    share_below, share_above = below[label] / negatives, above[~label] / positives
    variance = share_below.var(ddof=1) / positives + share_above.var(ddof=1) / negatives
    return float(share_below.mean()), float(np.sqrt(variance))


def _around(scores: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """``[n]`` the weight of all with a smaller and with a larger score, ties half in each."""
    _, group = np.unique(scores, return_inverse=True)
    of_group = np.bincount(group, weight)
    below = np.cumsum(of_group) - 0.5 * of_group
    return below[group], (of_group.sum() - below)[group]


def _blocks(
    law: CriteoLaw,
    config: SyntheticCriteoConfig,
    threads: int,
    encode: Callable[[DrawnRows], T],
) -> Iterator[tuple[int, DrawnRows, T]]:
    """Day, rows and what `encode` makes of them, of all blocks in order.

    NumPy lets go of the interpreter lock, so threads draw side by side.
    """

    def work(task: tuple[int, int, int]) -> tuple[int, DrawnRows, T]:
        drawn = law.draw(*task)
        return task[0], drawn, encode(drawn)

    tasks = (
        (day, block, min(BLOCK_ROWS, config.rows_of(day) - block * BLOCK_ROWS))
        for day in range(config.days)
        for block in range(math.ceil(config.rows_of(day) / BLOCK_ROWS))
    )
    with open_runner(threads, threads=True) as runner:
        yield from runner.map(work, tasks, label="rows")


def _write_text(
    law: CriteoLaw,
    config: SyntheticCriteoConfig,
    directory: Path,
    threads: int,
    truth: _Truth,
    log: Callable[[str], None],
    compress: bool,
) -> None:
    def encode(rows: DrawnRows) -> bytes:
        text = lines(rows)
        # Members of a gzip file may follow each other, so each thread compresses its own.
        return gzip.compress(text, _GZIP_LEVEL, mtime=0) if compress else text

    current, out = -1, None
    with contextlib.ExitStack() as stack:
        for day, rows, text in _blocks(law, config, threads, encode):
            if out is None or day != current:
                stack.close()
                current = day
                name = f"day_{day}.gz" if compress else f"day_{day}"
                out = stack.enter_context((directory / name).open("wb"))
                log(f"{name}: {config.rows_of(day):,} rows")
            out.write(text)
            truth.add(day, rows)


def _write_parquet(
    law: CriteoLaw,
    config: SyntheticCriteoConfig,
    directory: Path,
    threads: int,
    truth: _Truth,
    log: Callable[[str], None],
) -> None:
    from lookback.formats.tabular_files import TabularWriter

    numerical, categorical = config.law.numerical, len(config.law.cardinalities)
    writers = {
        split: TabularWriter(directory, split, numerical, categorical) for split in config.counts
    }
    left = config.counts["validation"]
    current = -1
    for day, rows, arrays in _blocks(law, config, threads, _as_dataset):
        if day != current:
            current = day
            log(f"day {day}: {config.rows_of(day):,} rows")
        truth.add(day, rows)
        if day < config.days - 1:
            writers["train"].write(*arrays)
            continue
        here = min(left, len(rows.label))
        left -= here
        writers["validation"].write(*(array[:here] for array in arrays))
        writers["test"].write(*(array[here:] for array in arrays))
    for writer in writers.values():
        writer.close()


def _as_dataset(rows: DrawnRows) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Label [n], numerical [n, N] and categorical [n, M] as the workflow writes them."""
    numerical = np.log(np.maximum(rows.numbers + 2.0, 1.0)).astype(np.float32)
    return rows.label.astype(np.float32), numerical.T, rows.ids.T


def _describe(config: SyntheticCriteoConfig, directory: Path, report: dict[str, Any]) -> None:
    from lookback.formats.tabular_files import write_description

    write_description(
        directory,
        dataset="criteo",
        options={"generator": "synthetic_criteo", **dataclasses.asdict(config)},
        counts={**report["counts"], "bayes_auc": report["bayes_auc"]},
        cardinalities={f"cat_{n}": rows for n, rows in enumerate(config.law.cardinalities)},
        numerical=config.law.numerical,
    )

"""The options that datasets of both kinds have."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal, cast

from lookback.core.errors import UserError
from lookback.core.limits import MOST_BYTES, MOST_THREADS
from lookback.core.options import check_options, option
from lookback.workflows.times import (
    FIRST_YEAR,
    LAST_YEAR,
    NANOSECONDS,
    STEPS,
    TimeUnit,
    UnitOfYears,
)

WHERE = "where it runs (no influence on the result)"
Device = Literal["auto", "cpu", "gpu"]


@dataclasses.dataclass(frozen=True)
class DatasetOptions(abc.ABC):
    """What the options of each kind of datasets begin with."""

    scope = "options of all datasets of the kind"

    frequency_threshold: int = option(
        0,
        help="values (items, and features of items) that occur less often share an index",
        at_least=0,
        continued=True,
    )
    max_bad_lines: int = option(
        0, help="leave out up to so many lines that cannot be read", at_least=0
    )
    workers: int | None = option(
        None,
        help="processes (of tabular datasets: threads); 0: this one alone; none: by size",
        at_least=0,
        scope=WHERE,
        limit=MOST_THREADS,
    )
    scheduler: str | None = option(
        None, help="address of an existing Dask cluster to use", scope=WHERE
    )
    memory_limit: int | None = option(
        None,
        help="stay within so much, such as 6GB; none: what is free",
        unit="bytes",
        at_least=1,
        scope=WHERE,
        limit=MOST_BYTES,
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    @abc.abstractmethod
    def content(self) -> dict[str, Any]:
        """The options that have a say in the output."""


@dataclasses.dataclass(frozen=True)
class TimedOptions(DatasetOptions):
    """How times of events are read."""

    time_unit: TimeUnit | None = option(
        None,
        help="of times that are numbers; none: the publisher's (s; ms of Amazon 2023). steps: any "
        "numbers that increase, not checked. ISO 8601 and parquet's types tell theirs",
    )
    years: tuple[int, ...] | None = option(
        None,
        help="FIRST,LAST: the years in which times lie; none: 1995 to a year from now, as others "
        "are mostly of another unit",
        at_least=FIRST_YEAR,
        at_most=LAST_YEAR,
    )

    def __post_init__(self) -> None:
        """Validates."""
        super().__post_init__()
        if self.years is not None and self.time_unit in (None, STEPS):
            raise UserError(
                "years: expected with --time_unit s, ms, us, ns, yyyymmdd or yymmddhh, as other "
                f"years make it harder to tell units, received {self.time_unit}. Name the unit."
            )
        if self.years is not None and (len(self.years) != 2 or self.years[0] > self.years[1]):
            raise UserError(
                "years: expected two, the first and the last one as in 1980,1999, received "
                f"{','.join(map(str, self.years))}."
            )

    @property
    def unit(self) -> TimeUnit | None:
        """Of times that are numbers, with the years in which all times lie; None: as published."""
        if self.years is None or self.time_unit is None:
            return self.time_unit
        return cast(TimeUnit, UnitOfYears(self.time_unit, *self.years))

    @property
    def ticks(self) -> int:
        """Units of the parsed times in one of the time that is written."""
        return 1 if self.time_unit == STEPS else NANOSECONDS

"""The options that datasets of both kinds have."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

from lookback.core.limits import MOST_BYTES, MOST_THREADS
from lookback.core.options import check_options, option

WHERE = "where it runs (no influence on the result)"


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

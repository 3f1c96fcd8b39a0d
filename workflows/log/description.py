"""The YAML file that describes a log: its keys, as frozen dataclasses.

`schema.json` beside this file is their JSON Schema; ``lookback workflows schema`` prints it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar, Literal

from lookback.core.options import option
from lookback.core.options.nested import Nested
from lookback.core.yaml_files import Place
from lookback.formats.history_columns import Role
from lookback.formats.tabular_columns import INPUTS
from lookback.workflows.histories.feature_specs import (
    MOST_ELEMENTS,
    FeatureSpec,
    FeatureType,
)
from lookback.workflows.histories.gather import Ties
from lookback.workflows.histories.reader import MIN_INTERACTIONS, RESERVED, Duplicates
from lookback.workflows.log.splits import Layout, SplitRule
from lookback.workflows.log.values import Interval, Values
from lookback.workflows.times import STEPS, known_zone

VERSION = 1
FileFormat = Literal["csv", "jsonl", "parquet"]
ENDINGS: dict[str, FileFormat] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
"""Which format files of an ending are, where none is named; ``.gz`` after it changes nothing."""

Unit = Literal["s", "ms", "us", "ns", "yyyymmdd", "yymmddhh", "iso", "steps"]
Labels = Literal["sampled", "explicit"]

CATEGORIES = ("category", "categories")
MOST_QUANTILES = 10_000
MOST_BUCKETS = 1 << 30
MOST_OF_BAG = 1024

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_GAP = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h|d)?", re.ASCII)
_GAP_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
ENDINGS_OF_BATCHES = ("_history", "_negatives")
NEEDED_OF_EVENTS = ("user", "item", "time")
"""Keys of the files of events that histories are made of; a row of layout tabular may lack them."""

_OF_HISTORIES = {"layout": ("histories",)}


@dataclass(frozen=True, kw_only=True)
class CsvFormat(Nested):
    """How lines of CSV are written."""

    separator: str = option(",", help="between fields: one character or several", nonempty=True)
    header: bool = option(True, help="whether the first line of each file names the columns")
    columns: tuple[str, ...] | None = option(
        None, help="names of the columns, in order, of files without a header", nonempty=True
    )
    encoding: Literal["utf-8", "latin-1"] = option("utf-8", help="of the text")
    quote: str = option('"', help="around fields with separators in them; '': there is none")
    decimal: Literal[".", ","] = option(
        ".", help="before the fraction of numbers; beside a comma, numbers have no points"
    )

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """See `Nested.contradictions`."""
        if self.header and self.columns is not None:
            yield ("columns",), "the header names them. Remove it, or say header: false."
        if not self.header and self.columns is None:
            yield ("header",), "without a header, expected the key columns beside it: [a, b, ...]."
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            twice = next(name for name in self.columns if self.columns.count(name) > 1)
            yield ("columns",), f"expected each name once, received {twice!r} twice."
        if "\\" in self.separator:
            yield ("separator",), 'a tab is "\\t" in double quotes; other backslashes are not read.'
        elif not self.separator.isascii() or set(self.separator) & {"\n", "\r", "\0"}:
            yield ("separator",), f"expected ASCII within a line, received {self.separator!r}."
        if len(self.quote) > 1 or not self.quote.isascii() or self.quote in ("\n", "\r", "\\"):
            yield ("quote",), f"expected one character or '', received {self.quote!r}."
        elif self.quote and (self.quote in self.separator or len(self.separator) > 1):
            yield ("quote",), "beside a separator of several characters, expected quote: ''."


@dataclass(frozen=True, kw_only=True)
class Feature(Nested):
    """One feature: where it stands, and of which type it is."""

    type: FeatureType = option(
        help="category, a vocabulary of values; categories, a list of them; number; buckets, a "
        "number's place among boundaries; hash, a category without a vocabulary"
    )
    column: str | None = option(
        None,
        help="where it stands, if not under its own name; JSON and parquet: a.b",
        nonempty=True,
    )
    min_count: int | None = option(
        None,
        help="values with fewer events share an id; none: --frequency_threshold",
        at_least=0,
        needs={"type": CATEGORIES},
    )
    buckets: int | None = option(
        None,
        help="ids that values share; none of categories: a vocabulary",
        at_least=1,
        limit=MOST_BUCKETS,
        needs={"type": ("hash", "categories")},
    )
    quantiles: int | None = option(
        None,
        help="how many buckets of equally many events",
        at_least=2,
        limit=MOST_QUANTILES,
        needs={"type": ("buckets",)},
    )
    boundaries: tuple[float, ...] | None = option(
        None, help="between buckets, ascending", nonempty=True, needs={"type": ("buckets",)}
    )
    fill: float | None = option(
        None,
        help="takes the place of missing values; none: their mean",
        needs={"type": ("number",)},
    )
    log: bool = option(
        False, help="sign(x) log(1 + |x|) takes the place of x", needs={"type": ("number",)}
    )
    clip: Interval | None = option(
        None, help="smallest and largest value", needs={"type": ("number",)}
    )
    standardise: bool = option(
        True,
        help="subtract the mean, divide by the standard deviation",
        needs={"type": ("number",)},
    )
    separator: str | None = option(
        None,
        help="between the categories of one value; none: JSON, or a list of parquet",
        nonempty=True,
        needs={"type": ("categories",)},
    )
    flags: tuple[str, ...] | None = option(
        None,
        help="instead of column: columns of 0 and 1 that say which categories a row has",
        nonempty=True,
        needs={"type": ("categories",)},
    )
    most: int = option(
        MOST_ELEMENTS,
        help="categories of one value that are kept, those of most events",
        at_least=1,
        limit=MOST_OF_BAG,
        needs={"type": ("categories",)},
    )

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """See `Nested.contradictions`."""
        if self.type == "hash" and self.buckets is None:
            yield ("type",), "of a hash, expected the key buckets, too: how many ids values share."
        if self.type == "buckets" and (self.boundaries is None) == (self.quantiles is None):
            both = "neither" if self.quantiles is None else "both"
            yield ("type",), f"of buckets, expected boundaries or quantiles, received {both}."
        if self.flags is not None and (self.column is not None or self.separator is not None):
            yield ("flags",), "in place of column and separator, received both. Remove one."
        ends = self.boundaries or ()
        if any(low >= high for low, high in itertools.pairwise(ends)):
            yield ("boundaries",), f"expected ascending numbers, received {list(ends)}."

    def spec(self, of: Role) -> FeatureSpec:
        """What is asked of the pipeline."""
        return FeatureSpec(
            of=of,
            type=self.type,
            min_count=self.min_count,
            buckets=self.buckets,
            boundaries=self.boundaries,
            quantiles=self.quantiles,
            fill=self.fill,
            log=self.log,
            clip=None if self.clip is None else self.clip.bounds,
            standardise=self.standardise,
            separator=self.separator,
            most=self.most,
        )


@dataclass(frozen=True, kw_only=True)
class EventFeature(Feature):
    """One feature that stands in the files of events."""

    of: Literal["event", "item"] | None = option(
        None,
        help="(histories) whose it is: the event's, or the item's as it was then (its price), so "
        "that each candidate has its own; none: the event's",
    )
    known: Literal["before", "after"] | None = option(
        None,
        help="(histories) before: when an item is shown (device, hour), so of targets, too; after: "
        "only when the event is over (dwell time, rating), so of histories alone; none: after",
        needs={"of": ("event", None)},
    )

    @property
    def role(self) -> Role:
        """Whose it is to the pipeline."""
        if self.of == "item":
            return "item"
        return "context" if self.known == "before" else "event"


@dataclass(frozen=True, kw_only=True)
class TimeColumn(Nested):
    """Where times stand, and how they are written."""

    shorthand: ClassVar[str | None] = "column"

    column: str = option(help="where they stand", nonempty=True)
    unit: Unit | None = option(
        None,
        help="of numbers; iso: text of ISO 8601 alone; steps: any numbers that increase; none: s, "
        "but text of ISO 8601 and parquet's types tell theirs",
    )
    zone: str | None = option(
        None, help="of times that name none (Europe/Paris); none: UTC, and they are counted"
    )

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """See `Nested.contradictions`."""
        if self.zone is not None and not known_zone(self.zone):
            yield ("zone",), f"expected a zone such as Europe/Paris, received {self.zone!r}."
        if self.zone not in (None, "UTC") and self.unit not in (None, "iso"):
            yield ("zone",), f"numbers of unit {self.unit} have none. Remove it."


@dataclass(frozen=True, kw_only=True)
class LabelColumn(Nested):
    """Which rows are clicks, where rows are impressions."""

    column: str = option(help="where labels stand", nonempty=True)
    positive: Values = option(Values((1,)), help="values of clicks; all others are none")


@dataclass(frozen=True, kw_only=True)
class Condition(Nested):
    """A condition on one column; rows that it does not hold for are left out, and counted."""

    column: str = option(help="the column", nonempty=True)
    in_: Values | None = option(None, help="values of which it is one")
    not_in: Values | None = option(None, help="values of which it is none")
    at_least: float | None = option(None, help="its smallest number")
    at_most: float | None = option(None, help="its largest number")
    present: bool | None = option(None, help="whether there is a value")

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """See `Nested.contradictions`."""
        rest = (self.in_, self.not_in, self.at_least, self.at_most, self.present)
        if all(entry is None for entry in rest):
            yield (), "expected one of in, not_in, at_least, at_most, present, received none."


@dataclass(frozen=True, kw_only=True)
class _Files(Nested):
    """Files of rows, and how they are written."""

    files: tuple[str, ...] = option(
        help="names or patterns (logs/*.csv.gz), from the directory of this file or --input",
        nonempty=True,
    )
    format: FileFormat | None = option(None, help="of the files; none: as their names end")
    csv: CsvFormat | None = option(None, help="how CSV is written")

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """See `Nested.contradictions`."""
        found = [self.format or format_of(name) for name in self.files]
        for name, kind in zip(self.files, found, strict=True):
            if PurePath(name).is_absolute() or name.startswith("~"):
                wrong = f"expected a path from --input on, received {name!r}. Give --input, too."
                yield ("files",), wrong
            elif kind is None:
                wrong = (
                    f"the ending of {name!r} tells no format: expected the key format beside it."
                )
                yield ("files",), wrong
        if self.csv is not None and "csv" not in found and None not in found:
            yield ("csv",), f"the files are {found[0]}. Remove it."
        if len(set(found)) > 1:
            yield ("files",), f"expected files of one format, received {_listed(found)}."

    @property
    def kind(self) -> FileFormat:
        """The format of the files."""
        return self.format or format_of(self.files[0]) or "csv"


@dataclass(frozen=True, kw_only=True)
class EventFiles(_Files):
    """Files with one event a row."""

    user: str | None = option(
        None, help="column of the users' ids; histories need it", nonempty=True
    )
    item: str | None = option(
        None, help="column of the items' ids; histories need it", nonempty=True
    )
    time: TimeColumn | None = option(
        None, help="column of the times; histories and a split by time need it"
    )
    label: LabelColumn | None = option(
        None, help="of explicit labels, and of layout tabular: which rows are clicks"
    )
    where: tuple[Condition, ...] = option((), help="conditions that all must hold of a row")
    features: Mapping[str, EventFeature] = option(factory=dict, help="features of events, by name")

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """See `Nested.contradictions`."""
        yield from super().contradictions()
        yield from _wrong_names(self.features)
        time = None if self.time is None else self.time.column
        chosen = [column for column in (self.user, self.item, time) if column is not None]
        if len(set(chosen)) < len(chosen):
            listed = _listed(chosen)
            yield (), f"expected different columns of user, item and time, received {listed}."


@dataclass(frozen=True, kw_only=True)
class KeyedFiles(_Files):
    """Files with one item, or one user, a row."""

    key: str = option(help="column of the ids", nonempty=True)
    features: Mapping[str, Feature] = option(factory=dict, help="features, by name")

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """See `Nested.contradictions`."""
        yield from super().contradictions()
        yield from _wrong_names(self.features)
        if not self.features:
            yield ("features",), "expected a feature, received none: the files would not be read."


@dataclass(frozen=True, kw_only=True)
class Filters(Nested):
    """Which users and items are kept."""

    min_events_per_user: int | None = option(
        None, help=f"fewest events of a user; without it {MIN_INTERACTIONS}", at_least=1
    )
    min_events_per_item: int = option(0, help="fewest events of an item", at_least=0)
    iterate: bool = option(
        False, help="filter again until all that are left have enough; false: once"
    )


@dataclass(frozen=True, kw_only=True)
class Sessions(Nested):
    """Histories that end where nothing happens for a while."""

    gap: str = option(help="the longest time within one: 30min, 2h, 1d, or seconds", nonempty=True)

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """See `Nested.contradictions`."""
        if _seconds(self.gap) is None:
            yield ("gap",), f"expected a time like 90s, 30min, 2h or 1d, received {self.gap!r}."

    @property
    def seconds(self) -> int:
        """The gap in seconds, or steps."""
        return _seconds(self.gap) or 0


@dataclass(frozen=True, kw_only=True)
class LogFile(Nested):
    """A log: files of events, of items and of users, and what becomes of them."""

    version: int = option(help="of this format: 1", at_least=VERSION, at_most=VERSION)
    layout: Layout = option(
        "histories",
        help="histories: what each user did, for SIM, DIN, DIEN, NeuMF; tabular: each row by "
        "itself with its label, for DLRM and DCNv2",
    )
    events: EventFiles = option(help="files with one event a row")
    items: KeyedFiles | None = option(None, help="files with one item a row")
    users: KeyedFiles | None = option(None, help="files with one user a row")
    filters: Filters = option(Filters(), help="which users and items are kept", needs=_OF_HISTORIES)
    sessions: Sessions | None = option(
        None,
        help="cut histories where nothing happens for a while; none: they are whole",
        needs=_OF_HISTORIES,
    )
    labels: Labels = option(
        "sampled",
        help="sampled: every row is a positive, negatives are drawn; explicit: rows are "
        "impressions, with clicks among them",
        needs=_OF_HISTORIES,
    )
    split: SplitRule = option(SplitRule(), help="what is held out")
    duplicates: Duplicates | None = option(
        None, help="see --duplicates; none: keep", needs=_OF_HISTORIES
    )
    ties: Ties | None = option(None, help="see --ties; none: file", needs=_OF_HISTORIES)

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """See `Nested.contradictions`."""
        if self.layout == "tabular":
            yield from wrong_of_rows(self.events, self.items, self.users, self.split)
        else:
            yield from wrong_of_histories(
                self.events, self.items, self.users, self.labels, self.split
            )
        if self.labels == "explicit" and self.split.by == "last":
            wrong = (
                "of explicit labels, expected by: time or users, received last: impressions that "
            )
            yield ("split",), f"{wrong}are shown together belong to one part."
        if self.events.time is not None and self.events.time.unit == STEPS:
            moments = {
                "validation_from": self.split.validation_from,
                "test_from": self.split.test_from,
            }
            for name, moment in moments.items():
                if moment is not None and moment.is_date:
                    yield ("split", name), "times are steps, so expected a number of steps."
            if self.sessions is not None and not self.sessions.gap.isdecimal():
                yield ("sessions", "gap"), "times are steps, so expected a number of steps."


def wrong_of_histories(
    events: EventFiles,
    items: KeyedFiles | None,
    users: KeyedFiles | None,
    labels: Labels,
    split: SplitRule,
) -> Iterator[tuple[Place, str]]:
    """What is wrong with the parts of a description of histories; see `Nested.contradictions`."""
    for key in NEEDED_OF_EVENTS:
        if getattr(events, key) is None:
            wrong = "expected this key: histories are of users, items and times (layout: tabular"
            yield ("events", key), f"{wrong} takes rows without them)."
    if labels == "explicit" and events.label is None:
        yield ("events", "label"), "expected this key, as labels are explicit: {column, positive}."
    if labels == "sampled" and events.label is not None:
        wrong = (
            "it has an effect only with labels: explicit. Add that, or use events.where instead."
        )
        yield ("events", "label"), wrong
    yield from _names_of_two(events, items, users)
    yield from ((("split", *below), sentence) for below, sentence in split.wrong_with("histories"))


def wrong_of_rows(
    events: EventFiles, items: KeyedFiles | None, users: KeyedFiles | None, split: SplitRule
) -> Iterator[tuple[Place, str]]:
    """What is wrong with the parts of a description of layout tabular."""
    if events.label is None:
        yield (
            ("events", "label"),
            "expected this key: rows are learned from by their labels.",
        )
    for part, files, key in (("items", items, "item"), ("users", users, "user")):
        if files is not None and getattr(events, key) is None:
            yield (part,), f"expected events.{key}, too: the column of the rows that joins them."
    if not (events.features or events.user or events.item):
        yield ("events", "features"), "expected a feature, received none to learn from."
    for part, own in (("events", events), ("items", items), ("users", users)):
        for name, feature in own.features.items() if own is not None else ():
            for wrong in _wrong_of_row(feature):
                yield (part, "features", name, wrong), _NOT_TABULAR[wrong]
            if name in INPUTS:
                yield (part, "features", name), f"the name is taken. Rename it: column: {name}."
    yield from _names_of_two(events, items, users)
    for key, column in (("users", events.user), ("time", events.time)):
        if split.by == key and column is None:
            wanted = key.removesuffix("s")
            yield ("split", "by"), f"expected events.{wanted}, by which the rows are split."
    yield from ((("split", *below), sentence) for below, sentence in split.wrong_with("tabular"))


_NOT_TABULAR = {
    "type": "a row of layout tabular has one value a column, and no lists. Make a column of each "
    "category (type: category or hash), or leave the layout histories.",
    "of": "a row of layout tabular is by itself: what stands in it is of that row. Remove it.",
    "known": "all that stands in a row of layout tabular is read to predict its label, so leave "
    "features out that are known only afterwards, and remove this key of the others.",
}


def _wrong_of_row(feature: Feature) -> list[str]:
    """Keys of a feature that layout tabular does not have."""
    given = {"type": feature.type == "categories"}
    if isinstance(feature, EventFeature):
        given |= {"of": feature.of is not None, "known": feature.known is not None}
    return [key for key, is_given in given.items() if is_given]


def _names_of_two(
    events: EventFiles, items: KeyedFiles | None, users: KeyedFiles | None
) -> Iterator[tuple[Place, str]]:
    seen: dict[str, str] = {}
    for part, files in (("events", events), ("items", items), ("users", users)):
        for name in files.features if files is not None else ():
            if name in seen:
                yield (
                    (part, "features", name),
                    f"{seen[name]} has a feature of this name. Rename one.",
                )
            seen.setdefault(name, part)


def format_of(name: str) -> FileFormat | None:
    """The format of a file, or of a pattern of files, by the ending; None: it tells none."""
    name = name.removesuffix("*")
    ending = PurePath(name.removesuffix(".gz")).suffix
    if ending == ".parquet":
        return None if name.endswith(".gz") else "parquet"
    return ENDINGS.get(ending)


def _wrong_names(features: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
    for name, feature in features.items():
        column = feature.column or name
        if not NAME.fullmatch(name) or name.endswith(ENDINGS_OF_BATCHES):
            wrong = (
                "a name has up to 64 letters, digits and underscores, a letter first, and no "
                f"{' or '.join(ENDINGS_OF_BATCHES)} at its end. Rename it, and say column: "
                f"{column}."
            )
            yield ("features", name), wrong
        elif name in RESERVED:
            yield ("features", name), f"the name is taken. Rename it, and say column: {column}."


def _seconds(text: str) -> int | None:
    found = _GAP.fullmatch(text.strip())
    seconds = 0 if found is None else round(float(found[1]) * _GAP_UNITS[found[2] or "s"])
    return seconds if seconds > 0 else None


def _listed(words: Iterable[object]) -> str:
    return ", ".join(map(str, words))

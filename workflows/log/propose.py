"""Files → a description of them, with the reason for each line; what is in doubt is left open.

A description with something left open does not load: the error names the keys to set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lookback.core.yaml_files import StrictDumper
from lookback.workflows.histories.reader import MIN_INTERACTIONS, RESERVED
from lookback.workflows.log.description import MOST_OF_BAG, NAME, format_of
from lookback.workflows.log.guess import (
    ITEM_NAME,
    LABEL_NAME,
    USER_NAME,
    Guess,
    guess,
    text_of,
)
from lookback.workflows.log.look import Look, look_at

MOST_OF_BAG_PROPOSED = 16
_MOSTLY = 0.9  # share of the events' ids that a key of another name must have; of rows, its own
_SHOWN = 6  # columns or values in a comment
_SPLIT_OF_ROWS = {"by": "rows", "test": 0.1, "validation": 0.1, "seed": 0}


@dataclass(frozen=True)
class Proposal:
    """A description, and what it leaves open.

    Attributes:
      text: of the YAML file.
      open: key that must be set -> what to choose from.
      rows: how many rows were looked at.
    """

    text: str
    open: Mapping[str, str]
    rows: int


@dataclass
class _Group:
    """Files with the same columns."""

    looks: list[Look]
    columns: dict[str, list[Any]]
    guesses: dict[str, Guess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.guesses = {name: guess(name, values) for name, values in self.columns.items()}

    def add(self, look: Look) -> None:
        """Takes a file; of JSON lines it may have keys that were not in others."""
        self.looks.append(look)
        for name, values in look.columns.items():
            if name not in self.columns:
                self.columns[name] = values
                self.guesses[name] = guess(name, values)

    def holds(self, look: Look) -> bool:
        """Whether a file is another of these: of JSON lines, keys may be absent in any order."""
        first = self.looks[0]
        if (look.kind, look.csv) != (first.kind, first.csv):
            return False
        if look.kind != "jsonl":
            return [*look.columns] == [*self.columns]
        shared = len(look.columns.keys() & self.columns.keys())
        return 2 * shared > len(look.columns.keys() | self.columns.keys())

    @property
    def names(self) -> str:
        return ", ".join(look.path.name for look in self.looks)

    def of_kind(self, kind: str) -> list[str]:
        return [name for name, found in self.guesses.items() if found.kind == kind]

    def named(self, pattern: re.Pattern[str]) -> list[str]:
        """Columns that are called as ids are: the ones whose names are nothing but that first."""
        times = self.of_kind("time")
        found = [name for name in self.columns if pattern.fullmatch(name) and name not in times]
        return [name for name in found if re.search(r"id$|^asin|_asin$", name.lower())] or found

    def unique(self) -> list[str]:
        """Columns that tell rows apart, but for a few that are there again."""
        return [
            name
            for name, found in self.guesses.items()
            if not found.missing
            and found.distinct >= _MOSTLY * self.looks[0].rows
            and found.kind != "time"
        ]

    def positive(self, label: str) -> int | str:
        """What a label with two values has of clicks, as it stands in the files."""
        words = {text_of(value) for value in self.columns[label]}
        return next((word for word in sorted(words) if word.lower() == "true"), 1)


@dataclass
class _Writer:
    """Lines of YAML, and what is open.

    Attributes:
      rows: the label of rows that may be of layout tabular, which then is proposed; None: none.
    """

    rows: str | None = None
    lines: list[str] = field(default_factory=list)
    open: dict[str, str] = field(default_factory=dict)

    def add(self, depth: int, key: str, value: Any = None, why: str = "") -> None:
        """A key with its value; None: a mapping follows."""
        shown = "" if value is None else f" {_written(value)}"
        self.lines.append(f"{'  ' * depth}{key}:{shown}{f'  # {why}' if why else ''}")

    def note(self, depth: int, text: str) -> None:
        """A comment of its own."""
        self.lines.append(f"{'  ' * depth}# {text}")

    def choice(self, depth: int, path: str, choices: Iterable[str], why: str) -> None:
        """A key that somebody must set."""
        listed = list(choices)
        said = ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
        self.open[path] = f"{why}: {said}" if said else why
        self.lines.append(
            f"{'  ' * depth}{path.rsplit('.', 1)[-1]}:  # SET THIS, {self.open[path]}"
        )


def propose(paths: Sequence[Path], directory: Path) -> Proposal:
    """Looks at files and proposes a description.

    Args:
      paths: the files.
      directory: where the description will lie.

    Raises:
      UserError: if one cannot be read.
    """
    looks = [look_at(path) for path in paths]
    groups = _grouped(looks)
    out = _Writer()
    rows = sum(look.rows for look in looks)
    seen = "all rows" if all(look.whole for look in looks) else f"{rows:,} rows"
    out.note(0, f"Proposed from {seen} of {len(looks)} file(s), and no more: check every line.")
    out.note(0, "Keys and their values: `lookback workflows schema`.")
    out.add(0, "version", 1)
    events = _events_of(groups)
    if events is None:
        out.note(0, "Which files are events is in doubt: none or several have users, items, times.")
        out.choice(0, "events", [group.names for group in groups], "files of events of")
        return Proposal("\n".join(out.lines) + "\n", out.open, rows)
    out.rows = _label_alone(events)
    if out.rows is not None:
        why = f"{out.rows} looks like a label, and not both users and items are called so"
        out.choice(0, "layout", ["tabular", "histories (with events.user and events.item)"], why)
    user, item = _write_events(out, events, directory)
    parts = (("items", item, ITEM_NAME), ("users", user, USER_NAME))
    others = [group for group in groups if group is not events]
    keys = {
        part: [_key_of(group, events, column, name) for group in others]
        for part, column, name in parts
    }
    for part, column, _ in parts:
        fitting = [number for number, key in enumerate(keys[part]) if key is not None]
        both = [n for n in fitting if all(found[n] is not None for found in keys.values())]
        if len(fitting) == 1 and not both:
            (number,) = fitting
            _write_keyed(out, part, others[number], str(keys[part][number]), directory, column)
        elif fitting:
            names = [others[number].names for number in fitting]
            out.choice(0, part, [*names, "or remove this line"], "several fit, or fit users, too")
    for number, group in enumerate(others):
        if all(found[number] is None for found in keys.values()):
            out.note(0, f"Not used: {group.names}, of which no column is the events' user or item.")
    if out.rows is None:
        _write_rest(out, events)
    else:
        out.add(0, "split", _SPLIT_OF_ROWS, "of all rows, drawn by the seed")
        out.note(0, "or what is later: {by: time, validation_from: ..., test_from: ...}")
        out.note(0, "or the last rows: {by: last, test: 0.1, validation: 0.1}")
    return Proposal("\n".join(out.lines) + "\n", out.open, rows)


def _grouped(looks: Sequence[Look]) -> list[_Group]:
    groups: list[_Group] = []
    for look in looks:
        alike = next((group for group in groups if group.holds(look)), None)
        if alike is None:
            groups.append(_Group([look], dict(look.columns)))
        else:
            alike.add(look)
    return groups


def _events_of(groups: Sequence[_Group]) -> _Group | None:
    """The one group that may be events."""
    if len(groups) == 1:
        return groups[0]
    timed = [group for group in groups if group.of_kind("time")]
    full = [group for group in timed if group.named(USER_NAME) and group.named(ITEM_NAME)]
    for found in (full, timed):
        if len(found) == 1:
            return found[0]
    return None


def _write_events(out: _Writer, group: _Group, directory: Path) -> tuple[str | None, str | None]:
    """Writes the files of events; gives the columns of users and items, where they are clear."""
    out.add(0, "events")
    _write_files(out, "events", group, directory)
    chosen: list[str | None] = []
    doubtful: set[str] = set()
    times = group.of_kind("time")
    for key, pattern in (("user", USER_NAME), ("item", ITEM_NAME)):
        named = group.named(pattern)
        if len(named) == 1:
            found = group.guesses[named[0]]
            out.add(1, key, named[0], f"by its name; {found.distinct:,} different in the rows seen")
            chosen.append(named[0])
        elif out.rows is not None:
            found_so = f"several: {', '.join(named[:_SHOWN])}" if named else "no column"
            out.note(1, f"{key}: {found_so}, by their names; histories need one")
            chosen.append(None)
        else:
            ids = named or [n for n in group.columns if n not in times and not _is_list(group, n)]
            what = "several columns are called so" if named else "no column is called so; one of"
            out.choice(1, f"events.{key}", ids, what)
            chosen.append(None)
            doubtful |= set(ids)
    if len(times) == 1:
        _write_time(out, times[0], group.guesses[times[0]])
    elif out.rows is not None:
        found_so = f"several: {', '.join(times[:_SHOWN])}" if times else "no column"
        out.note(1, f"time: {found_so}, by their values; a split by time needs one")
    else:
        why = "several columns are times" if times else "no column is a time; numbers that increase"
        choices = times or [n for n, g in group.guesses.items() if g.kind == "number"]
        out.choice(1, "events.time", choices, f"{why} (unit: steps)" if not times else why)
    taken = {*chosen, *(times if len(times) == 1 else ())}
    labels = _labels_of(group, taken)
    left = [n for n in group.columns if n not in {*taken, *labels, *doubtful, *times}]
    if out.rows is not None:
        said = {"column": out.rows, "positive": [group.positive(out.rows)]}
        out.add(1, "label", said, "two values; leave features out that are known only afterwards")
        for name in labels:
            if name != out.rows:
                out.note(1, f"{name}: left out, looks like a label, too")
    _write_features(out, group, left, True)
    for name in sorted({*doubtful, *times} - taken):
        kept = _written(_feature(group.guesses[name]))
        out.note(2, f"{name}: {kept}  # unless it is chosen above; {group.guesses[name].reason}")
    return chosen[0], chosen[1]


def _write_time(out: _Writer, name: str, found: Guess) -> None:
    out.add(1, "time", {"column": name, "unit": found.unit}, found.reason)
    if found.zoneless:
        out.note(2, "taken as UTC; other clocks: add zone: Europe/Paris or the like")


def _write_files(out: _Writer, part: str, group: _Group, directory: Path) -> None:
    paths = [Path(os.path.relpath(look.path, directory)).as_posix() for look in group.looks]
    look = group.looks[0]
    out.add(1, "files", paths, _rows_of(group))
    if format_of(look.path.name) != look.kind:
        out.add(1, "format", look.kind, "which the ending does not tell")
    if look.csv is not None:
        content = look.csv.content()
        if not look.header_sure:
            choices = ["true", "false, with columns: [a, b, ...] beside it"]
            out.add(1, "csv")
            for key, value in content.items():
                out.add(2, key, value)
            out.choice(2, f"{part}.csv.header", choices, look.reasons[-1])
        elif content:
            out.add(1, "csv", content, "; ".join(look.reasons))
        elif look.reasons:
            out.note(1, "; ".join(look.reasons))


def _rows_of(group: _Group) -> str:
    rows = sum(look.rows for look in group.looks)
    if all(look.whole for look in group.looks):
        return f"{rows:,} rows, all looked at"
    packed = any(look.path.suffix == ".gz" for look in group.looks)
    where = "the beginning" if packed else "the beginning and some places further on"
    return f"{rows:,} rows looked at, of {where}"


def _write_features(out: _Writer, group: _Group, names: Sequence[str], of_events: bool) -> None:
    """Writes a feature a line; what is none, as a comment."""
    unused = ("text", "constant") if out.rows is None else ("text", "constant", "categories")
    proposed = [name for name in names if group.guesses[name].kind not in unused]
    if proposed:
        out.add(1, "features")
        if of_events and out.rows is None:
            out.note(2, "known: before, of what is known when an item is shown (device, hour)")
    for name in names:
        found = group.guesses[name]
        if found.kind in unused:
            lists = "; layout tabular has no lists" if found.kind == "categories" else ""
            out.note(2 if proposed else 1, f"{name}: left out, {found.reason}{lists}")
            continue
        feature = _feature(found)
        own = re.sub(r"\W+", "_", name).strip("_")
        own = own if NAME.fullmatch(own) and own not in RESERVED else f"feature_{own}"[:64]
        if own != name:
            feature = {"column": name, **feature}
        missing = f"; {max(found.missing, 0.01):.0%} missing" if found.missing else ""
        out.add(2, own, feature, f"{found.reason}{missing}")


def _feature(found: Guess) -> dict[str, Any]:
    if found.kind == "categories":
        most = min(max(found.most, 1), MOST_OF_BAG_PROPOSED, MOST_OF_BAG)
        separator = {} if found.separator is None else {"separator": found.separator}
        return {"type": "categories", **separator, "most": most}
    if found.kind == "number":
        return {"type": "number", **({"log": True} if found.log else {})}
    return {"type": "category"}  # of times, too, where another is the events'


def _key_of(
    group: _Group, events: _Group, column: str | None, pattern: re.Pattern[str]
) -> str | None:
    """The column of a group that has the ids of a column of the events; None if none does."""
    if column is None:
        return None
    values = set(map(str, events.columns[column]))
    unique = group.unique()
    if column in unique:
        return column
    shares = {key: len(values & set(map(str, group.columns[key]))) / len(values) for key in unique}
    named = [key for key in unique if pattern.fullmatch(key) and shares[key]]
    fitting = named or [key for key in unique if shares[key] > _MOSTLY]
    return fitting[0] if len(fitting) == 1 else None


def _write_keyed(
    out: _Writer, part: str, group: _Group, key: str, directory: Path, column: str | None
) -> None:
    features = [name for name in group.columns if name != key]
    kept = [n for n in features if group.guesses[n].kind not in ("text", "constant", "time")]
    if not kept:
        out.note(0, f"Not used: {group.names}, which has no feature of {part}.")
        return
    out.add(0, part)
    _write_files(out, part, group, directory)
    repeated = group.looks[0].rows - group.guesses[key].distinct
    said = f"{repeated} rows have one that was there before" if repeated else "once a row"
    out.add(1, "key", key, f"{said}; the events' {column} has the same values")
    times = [name for name in features if group.guesses[name].kind == "time"]
    _write_features(out, group, [name for name in features if name not in times], False)
    for name in times:
        out.note(2, f"{name}: left out, a time of {part} is no feature")


def _label_alone(group: _Group) -> str | None:
    """The label of rows that are nobody's, or of nothing, as far as names tell; else None."""
    labels = _labels_of(group, ())
    if not labels or (group.named(USER_NAME) and group.named(ITEM_NAME)):
        return None
    return labels[0]


def _labels_of(group: _Group, taken: Iterable[str | None]) -> list[str]:
    return [
        name
        for name, found in group.guesses.items()
        if name not in set(taken) and found.binary and LABEL_NAME.fullmatch(name)
    ]


def _write_rest(out: _Writer, events: _Group) -> None:
    labels = _labels_of(events, ())
    out.add(
        0, "filters", {"min_events_per_user": MIN_INTERACTIONS}, "users with fewer are left out"
    )
    if labels:
        positive = _written([events.positive(labels[0])])
        out.note(0, f"{labels[0]} has two values. If rows are impressions and it says which were")
        out.note(0, "clicked: explicit, with under events")
        out.note(0, f"  label: {{column: {labels[0]}, positive: {positive}}}")
        out.note(0, "and a split by time or users. If only the positive rows count: sampled, with")
        out.note(0, f"  where: [{{column: {labels[0]}, in: {positive}}}]")
        out.note(0, "For models of rows (DLRM, DCNv2) say layout: tabular and that label instead.")
        out.choice(0, "labels", ["explicit", "sampled"], f"{labels[0]} looks like a label")
    else:
        out.add(0, "labels", "sampled", "every row is a positive; negatives are drawn")
    out.add(0, "split", {"by": "last", "validation": True}, "the last events of each user")


def _is_list(group: _Group, name: str) -> bool:
    return group.guesses[name].kind in ("categories", "constant")


def _written(value: Any) -> str:
    text = yaml.dump(
        value,
        Dumper=StrictDumper,
        default_flow_style=True,
        width=10**6,
        allow_unicode=True,
        sort_keys=False,
    )
    return text.removesuffix("...\n").strip()

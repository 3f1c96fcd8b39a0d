"""Amazon reviews: ``reviews_*.json[l][.gz]`` and, where there is one, ``meta_*.json[l][.gz]``.

Lines are JSON objects, or the Python literals that the 2014 files hold. A review is an event:
``reviewerID``, ``asin``, ``unixReviewTime``. An item's category is the last of its first path of
``categories``, as in NVIDIA's recipe (SIM/preprocessing/io.py reads ``categories[0][-1]``); the
flat ``category`` list of the 2018 files and the flat ``categories`` of the 2023 ones serve as well.
An item without metadata, or without a category in it, is of ``no_category``.

Reviews of 2023 have other names: ``user_id``, ``parent_asin`` (which metadata are about) and
``timestamp``, in milliseconds.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from lookback.core.errors import UserError
from lookback.core.options import option
from lookback.formats import history_columns as names
from lookback.workflows.cluster import Runner
from lookback.workflows.histories.gather import KnownFeatures, first_of_each
from lookback.workflows.histories.reader import Reader
from lookback.workflows.passed_over import columns_not_read
from lookback.workflows.text import (
    BadLineCounter,
    BadLineError,
    Block,
    Parsed,
    blocks,
    first_line,
    is_utf8,
    parse_lines,
)
from lookback.workflows.times import TimeUnit, read_number, read_numbers

ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
NO_CATEGORY = "no_category"
CATEGORY = "category_id"

_EVENTS = pa.schema(
    [
        (names.USER_ID, pa.string()),
        (names.ITEM_ID, pa.string()),
        (names.TIMESTAMP, pa.int64()),
    ]
)
_ITEMS = pa.schema([(names.ITEM_ID, pa.string()), (CATEGORY, pa.string())])

_STRING = rb"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_STRINGS = rb"\[(?:" + _STRING + rb"(?:, " + _STRING + rb")*)?\]"
_LITERAL_ASIN = re.compile(rb"[{ ]'asin': '([0-9A-Za-z]+)'[,}]")
_LITERAL_USER = re.compile(rb"[{ ]'reviewerID': '([0-9A-Za-z]+)'[,}]")
_LITERAL_TIME = re.compile(rb"[{ ]'unixReviewTime': (\d{1,18})[,}]")
_LITERAL_CATEGORIES = re.compile(
    rb"[{ ]'categories': (\[" + _STRINGS + rb"(?:, " + _STRINGS + rb")*\])[,}]"
)


@dataclasses.dataclass(frozen=True)
class _Review:
    """What the reviews of an edition call user, item and time, and the time's unit."""

    user: str
    item: str
    time: str
    unit: TimeUnit

    @property
    def schema(self) -> pa.Schema:
        """The three, as Arrow reads them."""
        types = zip((self.user, self.item, self.time), _EVENTS.types, strict=True)
        return pa.schema(list(types))


_FIRST = _Review("reviewerID", "asin", "unixReviewTime", "s")
_OF_2023 = _Review("user_id", "parent_asin", "timestamp", "ms")


@dataclasses.dataclass(frozen=True)
class AmazonReader(Reader):
    """One or more categories of Amazon reviews."""

    scope = "options of amazon"
    user_features: ClassVar[tuple[str, ...]] = ()
    item_features: ClassVar[tuple[str, ...]] = (CATEGORY,)

    category: str | None = option(
        None,
        help="which reviews_NAME.json[.gz] to read where the directory holds several: NAME, or "
        "NAME,NAME",
    )

    def event_files(self, directory: Path) -> list[Path]:
        """The files of reviews."""
        found = _by_category(directory, "reviews")
        if not found:
            raise UserError(
                f"{directory} has no reviews_*.json[l] or reviews_*.json[l].gz. Point --input at "
                "the directory that holds the reviews (scripts/download_amazon.sh fetches them), "
                "and name other editions' files so: Books.jsonl is reviews_Books.jsonl."
            )
        if self.category is None:
            if len(found) > 1:
                raise UserError(
                    f"{directory} holds reviews of several categories: {', '.join(found)}. Choose "
                    "with --category NAME, or NAME,NAME for more than one."
                )
            return list(found.values())
        chosen = [name.strip() for name in self.category.split(",")]
        unknown = [name for name in chosen if name not in found]
        if unknown:
            raise UserError(
                f"{directory} has no reviews_{unknown[0]}.json[.gz]. It has: {', '.join(found)}."
            )
        return [found[name] for name in dict.fromkeys(chosen)]

    def remarks(self, paths: Sequence[Path]) -> list[str]:
        """What of the first review is not read."""
        lines = []
        with contextlib.suppress(BadLineError):  # which is told with its number later
            value = _object(first_line(paths[0]).encode())
            lines += columns_not_read(
                key for key in value if key not in _edition(value).schema.names
            )
        return lines

    def unknown(self, directory: Path) -> list[str]:
        """Whether there are metadata."""
        if self.metadata_files(directory):
            return []
        return [f"WARNING: there is no meta_*.json[.gz]: every item is of {NO_CATEGORY}"]

    def of_new(self, directory: Path) -> tuple[Reader, tuple[str, ...]]:
        """See `Reader.of_new`."""
        return self, () if self.metadata_files(directory) else ("items",)

    def parse_block(self, block: Block, unit: TimeUnit | None = None) -> Parsed:
        """Reviews of a block."""
        return self.parse_events(block.read(), block.first, unit)

    def parse_events(self, data: bytes, first: bool, unit: TimeUnit | None = None) -> Parsed:
        """Reviews of a block of lines."""
        parsed = parse_strict(data, unit)
        if parsed is None:
            parsed = parse_lines(data, functools.partial(_review, unit=unit), _EVENTS)
        return parsed

    def features(
        self, directory: Path, runner: Runner, bad_lines: BadLineCounter
    ) -> tuple[list[KnownFeatures], dict[str, int]]:
        """The items' categories, and how many lines repeat an item (the first one counts)."""
        files = self.metadata_files(directory)
        defaults = {CATEGORY: NO_CATEGORY}
        if not files:
            return [KnownFeatures(names.ITEM_ID, defaults)], {}
        tables = []
        for path, parsed in runner.map(
            _parse_metadata,
            (block for file in files for block in blocks(file)),
            label="metadata",
            carries_data=any(file.suffix == ".gz" for file in files),
        ):
            bad_lines.add(path, parsed)
            tables.append(parsed.table)
        table = pa.concat_tables(tables) if tables else _ITEMS.empty_table()
        table, repeated = first_of_each(table, names.ITEM_ID)
        counts = {
            "duplicate_item_metadata": repeated,
            "items_in_metadata": len(table),
            "items_without_category": pc.sum(pc.equal(table[CATEGORY], NO_CATEGORY)).as_py() or 0,
        }
        return [KnownFeatures(names.ITEM_ID, defaults, table)], counts

    def metadata_files(self, directory: Path) -> Sequence[Path]:
        """The metadata of each file of reviews, where there is some.

        The 5-core files ``reviews_X_5.json`` go with ``meta_X.json``.
        """
        metadata = _by_category(directory, "meta")
        files = []
        for path in self.event_files(directory):
            name = _category(path)
            for candidate in (name, name.removesuffix("_5")):
                if candidate in metadata:
                    files.append(metadata[candidate])
                    break
        return list(dict.fromkeys(files))


def _by_category(directory: Path, kind: str) -> dict[str, Path]:
    """Files of a kind by category; refuses a category that is there packed and unpacked."""
    found: dict[str, Path] = {}
    paths = sorted(path for ending in ENDINGS for path in directory.glob(f"{kind}_*{ending}"))
    for path in paths:
        name = _category(path)
        if name in found:
            raise UserError(
                f"Both {found[name]} and {path} exist. Delete one (the first may be a partly "
                "unpacked copy of the second)."
            )
        found[name] = path
    return found


def _category(path: Path) -> str:
    return path.name.split(".json", 1)[0].split("_", 1)[1]


def _edition(value: Mapping[str, Any]) -> _Review:
    """Which names a review has."""
    return _OF_2023 if "user_id" in value and "reviewerID" not in value else _FIRST


def parse_strict(data: bytes, unit: TimeUnit | None) -> Parsed | None:
    """All lines at once, or None where any of them may be bad (or is no strict JSON)."""
    if data[:2] == b"{'" or not is_utf8(data):
        return None
    lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    if not data.strip():
        return Parsed(_EVENTS.empty_table(), lines)
    edition = _OF_2023 if b'"user_id"' in data[: data.find(b"\n") + 1 or None] else _FIRST
    try:
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=pa.cpu_count() > 1, block_size=4 << 20),
            parse_options=pj.ParseOptions(
                explicit_schema=edition.schema, unexpected_field_behavior="ignore"
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        return None
    # Arrow takes two objects on a line for two lines, and passes over blank ones.
    if len(table) != lines and len(table) != sum(1 for line in data.split(b"\n") if line.strip()):
        return None
    table = table.select(edition.schema.names).rename_columns(_EVENTS.names)
    if any(column.null_count for column in table.columns):
        return None
    times, good = read_numbers(table[names.TIMESTAMP].to_numpy(), unit or edition.unit)
    if not good.all():
        return None
    for name in (names.USER_ID, names.ITEM_ID):
        if pc.any(pc.equal(table[name], "")).as_py():
            return None
    return Parsed(table.set_column(2, names.TIMESTAMP, pa.array(times)), lines)


def _object(line: bytes) -> dict[str, Any]:
    """A line as JSON, or as a Python literal."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise BadLineError("not UTF-8") from error
    try:
        value = _JSON.decode(text)
    except (ValueError, RecursionError):
        try:
            value = _literal(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise BadLineError("neither JSON nor a Python literal") from error
    if isinstance(value, tuple) and text.startswith("{"):
        pairs, value = value, dict(value)
        return value if len(value) == len(pairs) else _Repeating(pairs)
    raise BadLineError("not an object")


_JSON = json.JSONDecoder(object_pairs_hook=tuple)
"""Gives objects as tuples of pairs, in which a key that is there twice can be seen; lists are
lists."""


class _Repeating(dict[str, Any]):
    """An object in which keys are there twice.

    Those that nobody reads do no harm, and Arrow passes over them; those that are read are refused,
    as by Arrow.
    """

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.twice = {key for key in self if keys.count(key) > 1}


def _literal(text: str) -> Any:
    """A Python literal's value; a dict as a tuple of pairs."""
    node = ast.parse(text.lstrip(" \t"), mode="eval").body
    value = ast.literal_eval(node)
    if isinstance(node, ast.Dict) and isinstance(value, dict):
        return tuple((key, value[key]) for key in map(ast.literal_eval, filter(None, node.keys)))
    return value


def _field(value: dict[str, Any], key: str) -> Any:
    """What a key stands for; None without it.

    Raises:
      BadLineError: if it is there twice.
    """
    if isinstance(value, _Repeating) and key in value.twice:
        raise BadLineError(f"{key} is there twice")
    return value.get(key)


def _identifier(value: dict[str, Any], key: str) -> str:
    if key not in value:
        raise BadLineError(f"no {key}")
    found = _field(value, key)
    if not isinstance(found, str) or not found:
        raise BadLineError(f"{key} is not a non-empty string")
    try:
        found.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, written as an escape
        raise BadLineError(f"{key} is not Unicode text") from error
    return found


def _review(line: bytes, unit: TimeUnit | None) -> tuple[str, str, int | float]:
    quick = review_of_literal(line)
    if quick is not None:
        return *quick[:2], read_number(quick[2], unit or _FIRST.unit, _FIRST.time)
    value = _object(line)
    edition = _edition(value)
    user = _identifier(value, edition.user)
    item = _identifier(value, edition.item)
    if edition.time not in value:
        raise BadLineError(f"no {edition.time}")
    time = _field(value, edition.time)
    if isinstance(time, float) and time.is_integer():
        time = int(time)
    if not isinstance(time, int) or isinstance(time, bool) or time >= 1 << 63:
        raise BadLineError(f"{edition.time} is not an integer")
    return user, item, read_number(time, unit or edition.unit, edition.time)


def _parse_metadata(block: Any) -> tuple[Path, Parsed]:
    """Task: items and categories of a block."""
    return block.path, parse_lines(block.read(), item_of_line, _ITEMS)


def item_of_line(line: bytes) -> tuple[str, str]:
    """Item and category of a line of metadata, in JSON or as a Python literal."""
    quick = item_of_literal(line)
    if quick is not None:
        return quick
    value = _object(line)
    key = "parent_asin" if "parent_asin" in value else "asin"
    return _identifier(value, key), _last_category(value)


def review_of_literal(line: bytes) -> tuple[str, str, int] | None:
    """Fields of a Python-literal line, or None where the long way is needed; see `_occur_once`."""
    if not _occur_once(line, b"'reviewerID': ", b"'asin': ", b"'unixReviewTime': "):
        return None
    user, item, time = (
        pattern.search(line) for pattern in (_LITERAL_USER, _LITERAL_ASIN, _LITERAL_TIME)
    )
    if user is None or item is None or time is None:
        return None
    return user[1].decode(), item[1].decode(), int(time[1])


def item_of_literal(line: bytes) -> tuple[str, str] | None:
    """Item and category of a Python-literal line, or None where the long way is needed."""
    if not _occur_once(line, b"'asin': ", b"'categories': "):
        return None
    asin = _LITERAL_ASIN.search(line)
    categories = _LITERAL_CATEGORIES.search(line)
    if asin is None or categories is None:
        return None
    category = _last_category({"categories": ast.literal_eval(categories[1].decode())})
    return None if category == NO_CATEGORY else (asin[1].decode(), category)


def _occur_once(line: bytes, *keys: bytes) -> bool:
    """Whether a line may be read by its patterns instead of evaluated as a whole.

    Evaluating a literal with a review's text or an item's description and related items takes
    about 100 us, finding the fields 5 us. It is done where there is no doubt which text a key
    goes with: the line looks whole and has each key once.
    """
    return (
        line.startswith(b"{'")
        and line.endswith(b"}")
        and all(line.count(key) == 1 for key in keys)
        and is_utf8(line)
    )


def _last_category(value: dict[str, Any]) -> str:
    """The last of the first path; a flat list is one path, and text a path of one.

    Raises:
      BadLineError: if a key that is read is there twice.
    """
    for key in ("categories", "category"):
        path = _field(value, key)
        if isinstance(path, list) and path and isinstance(path[0], list):
            path = path[0]
        last = path[-1] if isinstance(path, list) and path else path
        if isinstance(last, str) and last:
            return last
    return NO_CATEGORY

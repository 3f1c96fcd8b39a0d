"""MovieLens ratings in the layouts of the 100k, 1M, 20M and 25M sets (and newer ones alike).

==========  ==================  ====================  ==========================
set         ratings             movies                users
==========  ==================  ====================  ==========================
100k        u.data (tab)        u.item (``|``)        u.user (``|``)
1M, 10M     ratings.dat (::)    movies.dat (::)       users.dat (::, 1M only)
20M, 25M    ratings.csv         movies.csv            none
==========  ==================  ====================  ==========================

Every rating is an event, whatever its value, but for those below `--min_rating`. A movie's category
is the combination of its genres as one name (``Animation|Children's|Comedy``): a category is one id
an item here, no genre is the chief one, and the combination loses nothing (216 of them in the 100k
set). A movie without genres is of ``no_category``.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from lookback.core.errors import UserError
from lookback.core.options import check_options, option
from lookback.formats import history_columns as names
from lookback.workflows.cluster import Runner
from lookback.workflows.histories.gather import KnownFeatures, first_of_each
from lookback.workflows.histories.reader import Reader
from lookback.workflows.text import (
    EXCERPT,
    BadLineCounter,
    BadLineError,
    Block,
    Parsed,
    blocks,
    first_line,
    parse_lines,
)
from lookback.workflows.times import SECONDS, TimeUnit, read_number, read_numbers

CATEGORY = "category_id"
NO_CATEGORY = "no_category"
NO_GENRES = "(no genres listed)"
UNKNOWN = "unknown"

GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
"""The flags that end a line of u.item, in their order (u.genre)."""

RATINGS_LEFT_OUT = "ratings_left_out"

_RATING = "rating"
_RATINGS = pa.schema(
    [
        (names.USER_ID, pa.int64()),
        (names.ITEM_ID, pa.int64()),
        (_RATING, pa.float64()),
        (names.TIMESTAMP, pa.int64()),
    ]
)
_ITEMS = pa.schema([(names.ITEM_ID, pa.int64()), (CATEGORY, pa.string())])
_CSV_HEADER = "userId,movieId,rating,timestamp"
_INTEGER = re.compile(rb"-?\d+")  # not all that int() takes: 1_0 is a mistake
_MARK = "\ufeff".encode()  # Excel begins files with it


@dataclasses.dataclass(frozen=True)
class _Layout:
    ratings: str
    movies: str
    users: str | None
    separator: str
    encoding: str
    user_columns: tuple[str, ...] = ()


_LAYOUTS = (
    _Layout(
        "u.data", "u.item", "u.user", "\t", "latin-1", ("id", "age", "gender", "occupation", "zip")
    ),
    _Layout(
        "ratings.dat",
        "movies.dat",
        "users.dat",
        "::",
        "latin-1",
        ("id", "gender", "age", "occupation", "zip"),
    ),
    _Layout("ratings.csv", "movies.csv", None, ",", "utf-8"),
)
USER_FEATURES = ("gender", "age", "occupation", "zip")


@dataclasses.dataclass(frozen=True)
class MovieLensReader(Reader):
    """A MovieLens set; the layout follows from the files in the directory."""

    scope = "options of movielens"
    item_features: ClassVar[tuple[str, ...]] = (CATEGORY,)

    user_columns: str | None = option(
        None,
        help=f"user features to add, of {', '.join(USER_FEATURES)} (100k and 1M sets): NAME, or "
        "NAME,NAME",
    )
    min_rating: float | None = option(
        None,
        help="leave out ratings below it; none: every rating is an event, the lowest, too",
        at_least=0,
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def user_features(self) -> tuple[str, ...]:  # type: ignore[override]
        """The chosen columns of the users' file."""
        chosen = tuple(name.strip() for name in (self.user_columns or "").split(",") if name)
        unknown = [name for name in chosen if name not in USER_FEATURES]
        if unknown:
            raise UserError(
                f"--user_columns: there is no {unknown[0]!r}. Choose of {', '.join(USER_FEATURES)}."
            )
        if len(set(chosen)) < len(chosen):
            raise UserError(
                f"--user_columns: expected each column once, received {', '.join(chosen)}."
            )
        return chosen

    def event_files(self, directory: Path) -> list[Path]:
        """The file of ratings."""
        ratings = _layout(directory).ratings
        path = _find(directory, ratings) or directory / ratings
        line = first_line(path)
        begins = re.split("::|\t|,", line)[0].strip()
        if line and line != _CSV_HEADER and not _INTEGER.fullmatch(begins.encode()):
            raise UserError(
                f"{path}:1: expected a rating, or the header {_CSV_HEADER!r}; received "
                f"{line[:EXCERPT]!r}. Put the columns into this order, or read the file by their "
                "names: --dataset interactions with --user_column, --item_column, --time_column."
            )
        return [path]

    def metadata_files(self, directory: Path) -> Sequence[Path]:
        """The movies', and the users' if a feature of theirs is asked for."""
        layout = _layout(directory)
        users = [layout.users] if self.user_features and layout.users else []
        found = [_find(directory, name) for name in (layout.movies, *users)]
        return [path for path in found if path is not None]

    def unknown(self, directory: Path) -> list[str]:
        """Whether there are movies."""
        movies = _layout(directory).movies
        if _find(directory, movies) is not None:
            return []
        return [f"WARNING: there is no {movies}[.gz]: every movie is of {NO_CATEGORY}"]

    def of_new(self, directory: Path) -> tuple[Reader, tuple[str, ...]]:
        """See `Reader.of_new`."""
        layout = _layout(directory)
        lacks = () if _find(directory, layout.movies) is not None else ("items",)
        if self.user_features and (not layout.users or _find(directory, layout.users) is None):
            return dataclasses.replace(self, user_columns=None), (*lacks, "users")
        return self, lacks

    def parse_block(self, block: Block, unit: TimeUnit | None = None) -> Parsed:
        """Ratings of a block; without a unit their times are seconds."""
        return self.parse_events(block.read(), block.first, unit or SECONDS)

    def parse_events(self, data: bytes, first: bool, unit: TimeUnit = SECONDS) -> Parsed:
        """Ratings of a block of lines, in any of the three layouts."""
        header = first and data.removeprefix(_MARK).startswith(_CSV_HEADER.encode())
        parsed = parse_table(data, header, unit)
        if parsed is None:
            parse_line = functools.partial(_rating, unit=unit)
            parsed = parse_lines(data, parse_line, _RATINGS, skip=header)
        table = parsed.table
        if self.min_rating is not None:
            table = table.filter(pc.greater_equal(table[_RATING], self.min_rating))
        parsed.counts = {RATINGS_LEFT_OUT: len(parsed.table) - len(table)}
        parsed.table = table.drop([_RATING])
        return parsed

    def features(
        self, directory: Path, runner: Runner, bad_lines: BadLineCounter
    ) -> tuple[list[KnownFeatures], dict[str, int]]:
        """Genres of the movies, and the chosen features of the users."""
        layout = _layout(directory)
        defaults = {CATEGORY: NO_CATEGORY}
        counts = {}
        movies = _find(directory, layout.movies)
        if movies is not None:
            table, repeated = _read(movies, _MovieLine(layout), _ITEMS, bad_lines)
            without = pc.sum(pc.equal(table[CATEGORY], NO_CATEGORY)).as_py() or 0
            counts = {
                "duplicate_item_metadata": repeated,
                "items_in_metadata": len(table),
                "items_without_category": without,
            }
            found = [KnownFeatures(names.ITEM_ID, defaults, table)]
        else:
            found = [KnownFeatures(names.ITEM_ID, defaults)]
        if self.user_features:
            name = layout.users or "users.dat"
            users = _find(directory, name)
            if users is None:
                raise UserError(
                    f"--user_columns needs the users' file, and {directory / name} is not there. "
                    "Leave the option out (the 20M and 25M sets know nothing of their users)."
                )
            schema = pa.schema(
                [(names.USER_ID, pa.int64()), *((n, pa.string()) for n in self.user_features)]
            )
            places = [layout.user_columns.index(name) for name in self.user_features]
            table, _ = _read(users, _UserLine(layout, places), schema, bad_lines)
            default = dict.fromkeys(self.user_features, UNKNOWN)
            found.append(KnownFeatures(names.USER_ID, default, table))
        return found, counts


def _layout(directory: Path) -> _Layout:
    found = [
        layout
        for layout in _LAYOUTS
        if any((directory / f"{layout.ratings}{packed}").exists() for packed in ("", ".gz"))
    ]
    if not found:
        wanted = ", ".join(layout.ratings for layout in _LAYOUTS)
        raise UserError(
            f"{directory} has none of {wanted}. Point --input at an unpacked MovieLens set "
            "(scripts/download_movielens.sh fetches one)."
        )
    if len(found) > 1:
        raise UserError(
            f"{directory} holds {' and '.join(layout.ratings for layout in found)}: two sets. "
            "Give each a directory of its own."
        )
    return found[0]


def _find(directory: Path, name: str) -> Path | None:
    """A file, packed or not; None if there is neither."""
    found = [path for path in (directory / name, directory / f"{name}.gz") if path.exists()]
    if len(found) > 1:
        raise UserError(
            f"Both {found[0]} and {found[1]} exist. Delete one (the first may be a partly unpacked "
            "copy of the second)."
        )
    return found[0] if found else None


def parse_table(data: bytes, header: bool, unit: str) -> Parsed | None:
    """All lines at once, or None where any of them may be bad."""
    start = data.find(b"\n") + 1 if header else 0
    lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    body = data[start:] if header else data
    if not body.strip():
        return Parsed(_RATINGS.empty_table(), lines)
    line = body[: body.find(b"\n")] if b"\n" in body else body
    if b"x" in body or b"X" in body:  # Arrow takes 0x1F for a number
        return None
    if b"::" in line:
        if b"\t" in body:
            return None
        body = body.replace(b"::", b"\t")
        separator = "\t"
    else:
        separator = "\t" if b"\t" in line else ","
    try:
        table = pcsv.read_csv(
            pa.BufferReader(body),
            read_options=pcsv.ReadOptions(
                column_names=_RATINGS.names, use_threads=pa.cpu_count() > 1
            ),
            parse_options=pcsv.ParseOptions(delimiter=separator, quote_char=False),
            convert_options=pcsv.ConvertOptions(
                column_types=dict(zip(_RATINGS.names, _RATINGS.types, strict=True)),
                null_values=[],
            ),
        )
    except pa.ArrowInvalid:
        return None
    times, good = read_numbers(table[names.TIMESTAMP].to_numpy(), unit)
    if not good.all():
        return None
    return Parsed(table.set_column(3, names.TIMESTAMP, pa.array(times)), lines)


def _rating(line: bytes, unit: str) -> tuple[int, int, float, int | float]:
    fields = [field.strip() for field in re.split(rb"::|\t|,", line)]
    if len(fields) != len(_RATINGS):
        raise BadLineError(f"{len(fields)} fields instead of {len(_RATINGS)}")
    user, item, rating, time = fields
    if not all(_INTEGER.fullmatch(field) for field in (user, item, time)) or b"_" in rating:
        raise BadLineError("not numbers")
    try:
        found = int(user), int(item), float(rating), int(time)
    except ValueError as error:
        raise BadLineError("not numbers") from error
    if any(not -(1 << 63) <= number < 1 << 63 for number in (found[0], found[1], found[3])):
        raise BadLineError("a number too large")
    return *found[:3], read_number(found[3], unit, "the time")


@dataclasses.dataclass(frozen=True)
class _UserLine:
    """Parses a line of the users' file."""

    layout: _Layout
    places: list[int]

    def __call__(self, line: bytes) -> tuple[int | str, ...]:
        separator = "|" if self.layout.separator == "\t" else self.layout.separator
        fields = line.decode(self.layout.encoding).split(separator)
        if len(fields) != len(self.layout.user_columns) or not fields[0].isdigit():
            raise BadLineError("not a line of the users' file")
        return (int(fields[0]), *(fields[place] for place in self.places))


@dataclasses.dataclass(frozen=True)
class _MovieLine:
    """Parses a line of the movies' file: id and genres."""

    layout: _Layout

    def __call__(self, line: bytes) -> tuple[int, str]:
        try:
            text = line.decode(self.layout.encoding)
        except UnicodeDecodeError as error:
            raise BadLineError("not UTF-8") from error
        if self.layout.separator == "\t":
            fields = text.split("|")
            flags = fields[-len(GENRES_100K) :]
            if len(fields) < len(GENRES_100K) + 2 or not set(flags) <= {"0", "1"}:
                raise BadLineError("not a line of u.item")
            chosen = [genre for genre, flag in zip(GENRES_100K, flags, strict=True) if flag == "1"]
            genres = "|".join(chosen)
        elif self.layout.separator == "::":
            fields = text.split("::")
            if len(fields) < 3:
                raise BadLineError("not a line of movies.dat")
            genres = fields[-1]
        else:
            fields = next(csv.reader([text]), [])
            if len(fields) != 3:
                raise BadLineError("not a line of movies.csv")
            genres = fields[2]
        if not fields[0].isdigit():
            raise BadLineError("the movie id is not a number")
        return int(fields[0]), NO_CATEGORY if genres in ("", NO_GENRES) else genres


def _read(
    path: Path,
    parse_line: Callable[[bytes], tuple[Any, ...]],
    schema: pa.Schema,
    bad_lines: BadLineCounter,
) -> tuple[pa.Table, int]:
    """A small file of features, one row an id; also gives the number of repeated ids."""
    tables = []
    for block in blocks(path):
        data = block.read()
        header = block.first and data.removeprefix(_MARK).startswith(b"movieId,")
        parsed = parse_lines(data, parse_line, schema, skip=header)
        bad_lines.add(path, parsed)
        tables.append(parsed.table)
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    return first_of_each(table, schema.names[0])

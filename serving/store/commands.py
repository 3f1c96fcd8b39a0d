"""The commands of the history store: load-histories, append, inspect, delete, compact."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from lookback.core.digests import reading
from lookback.core.errors import UserError
from lookback.core.limits import MOST_WIDTH
from lookback.core.options import Command, CommandLine, option
from lookback.core.outputs import check_apart
from lookback.core.utf8 import decode
from lookback.formats.verification import DatasetChecks, verify_dataset
from lookback.serving.store.redis_records import SCHEME

if TYPE_CHECKING:
    from lookback.serving.manifest import HistoriesManifest, InteractionsManifest, Manifest
    from lookback.serving.store.completion import RawCatalogue
    from lookback.serving.store.events import EventRows
    from lookback.serving.store.store import HistoryStore

_PARQUET = b"PAR1"
_ADDRESS = "where the histories are: a directory, or redis://HOST:PORT/DATABASE"


@dataclasses.dataclass(frozen=True)
class StoreOptions:
    """The store that a command reads or writes."""

    scope: ClassVar[str] = "store"
    store: str = option(help=_ADDRESS, nonempty=True)


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """Whose histories are loaded, and how many events of each are kept."""

    scope: ClassVar[str] = "histories"
    dataset_dir: Path = option(help="dataset of histories", positional=True)
    bundle: Path | None = option(
        None, help="check that this bundle can be served from the store, too"
    )
    category_feature: str | None = option(
        None, help="item feature by which events are found; none: that of the bundle, or the first"
    )
    max_events: int = option(
        10_000, help="newest events of a user that are kept", at_least=1, limit=MOST_WIDTH
    )
    overwrite: bool = option(False, help="replace a store that is there (flag)")
    keep: bool = option(
        False,
        help="the store is there, of an earlier version of the dataset: keep what was appended to "
        "it (flag)",
    )

    def __post_init__(self) -> None:
        """Validates.

        Raises:
          UserError: if a store is to be replaced and kept.
        """
        if self.keep and self.overwrite:
            raise UserError("--keep and --overwrite: expected one of them.")


@dataclasses.dataclass(frozen=True)
class AppendOptions:
    """Which events are appended."""

    scope: ClassVar[str] = "events"
    events: str = option(
        "-", help="JSON lines, - for standard input; or a Parquet file, a row an event"
    )
    bundle: Path | None = option(
        None, help="whose catalogue says what events leave out of their items"
    )
    batch_events: int = option(
        256, help="events that are made durable, and acknowledged, together", at_least=1
    )


@dataclasses.dataclass(frozen=True)
class UserOptions:
    """Whose history is shown."""

    scope: ClassVar[str] = "user"
    user: str = option(help="raw id of the user", positional=True)
    category: str | None = option(None, help="only the events of this category")


@dataclasses.dataclass(frozen=True)
class DeleteOptions:
    """The users to delete."""

    scope: ClassVar[str] = "users"
    user: str | None = option(None, help="raw id of the user", positional=True)
    users_file: Path | None = option(
        None, help="file of raw ids, one a line: the store is written anew once for all of them"
    )

    def __post_init__(self) -> None:
        """Validates."""
        if (self.user is None) == (self.users_file is None):
            raise UserError("user or --users_file: expected one of them.")


def _load(options: LoadOptions, store: StoreOptions, checks: DatasetChecks) -> None:
    if not store.store.startswith(SCHEME):
        read = (options.dataset_dir, options.bundle)
        check_apart(Path(store.store), filter(None, read))
    note = checks.begin(options.dataset_dir)
    if note is not None:
        print(note, file=sys.stderr)
    verify_dataset(options.dataset_dir, checks.verification)
    with contextlib.ExitStack() as stack:
        kept = None
        if options.keep:
            kept = stack.enter_context(_opened(store, writes=True))
        _load_into(options, store, kept)


def _load_into(options: LoadOptions, store: StoreOptions, kept: HistoryStore | None) -> None:
    """Loads histories into a store that is there, or else makes one."""
    from lookback.serving.manifest import Manifest
    from lookback.serving.store.datasets import StoredDataset
    from lookback.serving.store.store import HistoryStore
    from lookback.serving.store.vocabularies import require_bundle

    category = options.category_feature or (None if kept is None else kept.head.category)
    if options.bundle is None:
        dataset = StoredDataset(options.dataset_dir, category, options.max_events)
    else:
        manifest = _with_store(Manifest.read(options.bundle), options.bundle)
        category = category or manifest.options.get("category_feature")
        dataset = StoredDataset(options.dataset_dir, category, options.max_events)
        require_bundle(dataset.head, store.store, manifest, options.bundle)
    if dataset.hashed:
        print(
            f"note: of {', '.join(dataset.hashed)} the dataset has hashes; what is stored are "
            "texts of the same hashes",
            file=sys.stderr,
        )
    head, users = dataset.head, dataset.users()
    renewed = None
    if kept is None:
        HistoryStore.create(store.store, head, users, overwrite=options.overwrite)
    else:
        renewed = kept.renew(head, users, dataset.as_known)
    found = dataset.loaded
    print(f"{found.users:,} users, {found.events:,} events; by category: {dataset.head.category}")
    for count, what in (
        (found.unknown_users, "users were left out: their ids are unknown to the dataset"),
        (found.dropped, f"events were left out: of a user the newest {options.max_events:,} stay"),
        (found.unknown_items, "events are of items whose ids are unknown to the dataset"),
    ):
        if count:
            print(f"{count:,} {what}")
    if renewed is not None:
        print(
            f"{renewed.kept:,} events that had been appended were kept, {renewed.found:,} of which "
            f"the dataset has, too; {renewed.too_old:,} are older than what is kept of their users"
        )


def _append(options: AppendOptions, store: StoreOptions) -> None:
    from lookback.serving.store.merging import Appended

    with _opened(store, writes=True) as histories, _source(options.events) as source:
        batches = _batches(options, histories, source)
        total = Appended()
        for through, events in batches:
            total += histories.append(events)
            # What is said here is on the disk.
            print(json.dumps({"through": through, **dataclasses.asdict(total)}), flush=True)


def _inspect(options: UserOptions, store: StoreOptions) -> None:
    from lookback.serving.store.events import raw_value

    with _opened(store) as histories:
        user = raw_value(histories.head, histories.head.user_id, options.user)
        history = histories.get(user)
        if history is None:
            raise UserError(f"The store {histories.place} has no user {user!r}.")
        places = None
        if options.category is not None:
            if histories.head.category is None:
                raise UserError("--category: the items of this store have no category.")
            category = raw_value(histories.head, histories.head.category, options.category)
            places = history.record.of_category(category)
        print(json.dumps({"id": user, **history.as_json(places)}, ensure_ascii=False))


def _delete(options: DeleteOptions, store: StoreOptions) -> None:
    from lookback.serving.store.events import raw_value

    with _opened(store, writes=True) as histories:
        head = histories.head
        users = [raw_value(head, head.user_id, word) for word in _words(options)]
        unknown = histories.delete(users)
        print(f"{len(set(users)) - len(unknown):,} users deleted")
        if unknown:
            names = ", ".join(map(repr, unknown[:5]))
            print(f"{len(unknown):,} were not there: {names}")


def _compact(store: StoreOptions) -> None:
    with _opened(store, writes=True) as histories:
        before, after = histories.compact()
        print(f"{before:,} bytes before, {after:,} after")


def _words(options: DeleteOptions) -> list[str]:
    if options.users_file is None:
        return [options.user or ""]
    with reading(options.users_file):
        lines = decode(options.users_file.read_bytes()).splitlines()
    return [line for line in lines if line]


@contextlib.contextmanager
def _opened(store: StoreOptions, *, writes: bool = False) -> Iterator[HistoryStore]:
    from lookback.serving.store.store import HistoryStore

    with contextlib.closing(HistoryStore.open(store.store, writes=writes)) as histories:
        yield histories


@contextlib.contextmanager
def _source(events: str) -> Iterator[BinaryIO]:
    if events == "-":
        yield sys.stdin.buffer
        return
    with contextlib.ExitStack() as stack:
        with reading(Path(events)):
            file = stack.enter_context(Path(events).open("rb"))
        yield file


def _batches(
    options: AppendOptions, histories: HistoryStore, source: BinaryIO
) -> Iterator[tuple[int, EventRows]]:
    """Events, and how many lines or rows that are, from the first on.

    Raises:
      UserError: naming the line or row that is wrong; what was before its batch is kept.
    """
    from lookback.serving.store.events import read_event_table, read_events

    head, size, name = histories.head, options.batch_events, options.events
    if name != "-" and source.peek(4)[:4] == _PARQUET:  # type: ignore[attr-defined]
        import pyarrow as pa

        from lookback.core.arrow_files import open_parquet

        if options.bundle is not None:
            raise UserError("--bundle: rows of Parquet say all of their items. Leave it out.")
        through = 0
        with open_parquet(name) as file:
            for batch in file.iter_batches(size):
                with _named(lambda n: f"{name}, row {through + n + 1}"):  # noqa: B023
                    events = read_event_table(head, pa.Table.from_batches([batch]))
                through += batch.num_rows
                yield through, events
        return
    from lookback.serving.request_lines import load_line, request_lines

    items = None if options.bundle is None else _catalogue(histories, options.bundle)
    name = "standard input" if name == "-" else name
    size = 1 if source.isatty() else size
    lines = request_lines(source, name)
    while some := list(itertools.islice(lines, size)):
        objects = [load_line(line, f"{name}, line {number}") for number, line in some]
        with _named(lambda n: f"{name}, line {some[n][0]}"):
            events = read_events(head, objects, items)
        yield some[-1][0], events


@contextlib.contextmanager
def _named(where: Callable[[int], str]) -> Iterator[None]:
    from lookback.serving.requests import NumberedError

    try:
        yield
    except NumberedError as error:
        raise UserError(f"{where(error.index)}: {error.detail}") from error


def _with_store(manifest: Manifest, bundle: Path) -> HistoriesManifest | InteractionsManifest:
    from lookback.serving.manifest import InteractionsManifest

    if isinstance(manifest, InteractionsManifest):
        return manifest
    return _of_histories(manifest, bundle)


def _of_histories(manifest: Manifest, bundle: Path) -> HistoriesManifest:
    from lookback.serving.manifest import HistoriesManifest

    if not isinstance(manifest, HistoriesManifest):
        raise UserError(
            f"--bundle {bundle}: expected a model over histories, found one over "
            f"{manifest.layout}, which needs no store."
        )
    return manifest


def _catalogue(histories: HistoryStore, bundle: Path) -> RawCatalogue:
    from lookback.serving.layouts.registry import LAYOUTS
    from lookback.serving.manifest import Manifest
    from lookback.serving.store.completion import RawCatalogue
    from lookback.serving.store.vocabularies import require_bundle

    manifest = _of_histories(Manifest.read(bundle), bundle)
    require_bundle(histories.head, histories.place, manifest, bundle)
    encoder: Any = LAYOUTS[manifest.layout].load_encoder(bundle, manifest)
    return RawCatalogue(encoder)


COMMANDS = {
    "load-histories": Command(
        "fill a history store with the users of a dataset",
        CommandLine((LoadOptions, StoreOptions, DatasetChecks)),
        _load,
    ),
    "append": Command(
        "append events to a history store, durably before each is acknowledged",
        CommandLine((AppendOptions, StoreOptions)),
        _append,
    ),
    "inspect": Command(
        "print what a history store has of a user",
        CommandLine((UserOptions, StoreOptions)),
        _inspect,
    ),
    "delete": Command(
        "delete users from a history store, and from its files",
        CommandLine((DeleteOptions, StoreOptions)),
        _delete,
    ),
    "compact": Command(
        "write a history store anew, without what is no longer in it",
        CommandLine((StoreOptions,)),
        _compact,
    ),
}

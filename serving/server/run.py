"""Runs a server until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lookback.core.errors import UserError
from lookback.core.options import SET, option
from lookback.serving.server.listening import is_local, listen, written

if TYPE_CHECKING:
    from lookback.serving.bundle import Bundle
    from lookback.serving.server.address import Engine, Site
    from lookback.serving.server.demo.data import DemoUsers
    from lookback.serving.server.models import StoreReading
    from lookback.serving.store.store import HistoryStore

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

MOST_BATCH_ROWS = 1024
"""That a batch of Triton's may take; what our own engine takes, `serving.server.backlog` says."""
TRITON_GRPC, TRITON_CONTROL = 8001, 8002
OF_ENGINE = {
    "local": ("max_batch_rows", "demo_ui", "demo_dataset"),
    "triton": ("grpc_port", "control_port"),
}
"""Options that one engine has and the other does not; None, or no flag: not given."""

_LEAST_OF_TOKEN = 16  # characters
_A_MOMENT = 0.01  # seconds
_NAME = "letters, digits, '_', '-' and '.'"


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """What is served, and where."""

    scope: ClassVar[str] = "server"
    bundles: tuple[str, ...] = option(
        help="what train.py exported: DIR, or NAME=DIR; the name is that of the directory else",
        positional=True,
        nonempty=True,
    )
    host: str = option(
        "127.0.0.1", help="address to listen at; others than this machine's: see docs"
    )
    port: int = option(
        8000, help="port to listen at; 0: any that is free", at_least=0, at_most=65535
    )
    engine: Literal["local", "triton"] = option(
        "local", help="local: this process scores; triton: NVIDIA's Triton does (extra `triton`)"
    )
    grpc_port: int | None = option(
        None, help="triton: port of its gRPC; none: 8001", at_least=0, at_most=65535
    )
    control_port: int | None = option(
        None,
        help="triton: port of health, metrics and loading; none: 8002",
        at_least=0,
        at_most=65535,
    )
    max_batch_rows: int | None = option(
        None, help="local: candidates that are scored together; none: 1,024", at_least=1
    )
    max_wait_ms: float | None = option(
        None,
        help="how long a request may have to wait for its turn, refused with 503 where it would be "
        "longer; none: so long that it is answered in twice its own time where more than 24 "
        "clients call",
        unit="ms",
        above=0,
    )
    drain_seconds: float = option(
        30.0, help="how long SIGTERM waits for requests that are under way", unit="s", at_least=0
    )
    admin_token_file: Path | None = option(
        None, help="file with the token of those who may load other bundles; none: nobody may"
    )
    trusted_digest: tuple[str, ...] = option(
        (), help="SHA-256 of each bundle's bundle.json, in their order; others are not opened"
    )
    store: str | None = option(
        None,
        help="history store (a directory, or redis://HOST:PORT/DATABASE) of users whom requests "
        "name without a history",
        nonempty=True,
    )
    store_read_only: bool = option(
        False,
        help="take no events: another process writes the store (flag)",
        needs={"store": SET},
    )
    beyond_window: bool = option(
        False,
        help="models of hard search find events of the candidates' categories in the whole stored "
        "history, not in the newest of training alone (flag)",
        needs={"store": SET},
    )

    demo_ui: bool = option(
        False,
        help="serve a page, too, that shows what models over histories attend to (flag)",
    )
    demo_dataset: Path | None = option(
        None,
        help="the dataset that the bundles were trained on, whose users the page shows; none: "
        "those of the store",
        needs={"demo_ui": SET},
    )

    def __post_init__(self) -> None:
        """Validates.

        Raises:
          UserError: naming the option.
        """
        named_bundles(self.bundles)
        foreign = OF_ENGINE["triton" if self.engine == "local" else "local"]
        given = [f"--{name}" for name in foreign if getattr(self, name) not in (None, False)]
        if given:
            raise UserError(f"{', '.join(given)}: --engine {self.engine} has no such option.")
        if self.demo_ui and self.demo_dataset is None and self.store is None:
            raise UserError(
                "--demo_ui: expected users to show: those of a dataset (--demo_dataset), or of a "
                "history store (--store)."
            )
        if self.trusted_digest and len(self.trusted_digest) != len(self.bundles):
            raise UserError(
                f"--trusted_digest: expected one for each of {len(self.bundles)} bundles, received "
                f"{len(self.trusted_digest)}."
            )

    @property
    def wait_seconds(self) -> float | None:
        """What `max_wait_ms` says, if it does."""
        return None if self.max_wait_ms is None else self.max_wait_ms / 1000


def named_bundles(words: Sequence[str]) -> dict[str, Path]:
    """Directories by name.

    Raises:
      UserError: if a name is none, or is there twice.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, separator, directory = word.partition("=")
        path = Path(directory if separator else word)
        name = name if separator else path.resolve().name
        if not name or not all(c.isalnum() or c in "_-." for c in name) or not name.isascii():
            raise UserError(
                f"bundles: expected a name of {_NAME} before '=', received {word!r:.80}."
            )
        if name in found:
            raise UserError(f"bundles: {name!r} is there twice. Name them: a=DIR b=DIR.")
        found[name] = path
    return found


def serve(options: ServeOptions) -> None:
    """Loads bundles and answers requests until SIGTERM or Ctrl-C, and then what is under way.

    Raises:
      UserError: if a bundle cannot be loaded, or the address cannot be listened at.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    bundles = named_bundles(options.bundles)
    token = None if options.admin_token_file is None else _token(options.admin_token_file)
    port = options.port
    if options.engine == "triton":
        port = TRITON_CONTROL if options.control_port is None else options.control_port
    with contextlib.ExitStack() as stack:
        sockets = listen(options.host, port)
        for found in sockets:
            stack.callback(found.close)
        if options.demo_ui and not all(is_local(found) for found in sockets):
            raise UserError(
                f"--demo_ui: it shows people's histories to whoever asks, so only on this machine; "
                f"--host {options.host} is for others, too. Leave --demo_ui or --host out."
            )
        from lookback.serving.server.models import StoreReading

        store = None
        if options.store is not None:
            from lookback.serving.store.store import HistoryStore

            store = HistoryStore.open(options.store, writes=not options.store_read_only)
            stack.callback(store.close)
        reading = StoreReading(store, options.beyond_window)
        asyncio.run(_serve(options, bundles, token, sockets, reading))


def _engine(
    options: ServeOptions, reading: StoreReading
) -> contextlib.AbstractAsyncContextManager[Engine]:
    if options.engine == "local":
        return _local_engine(options, reading)
    from lookback.serving.server.triton.run import triton_engine

    return triton_engine(
        options.host,
        options.port,
        TRITON_GRPC if options.grpc_port is None else options.grpc_port,
        reading=reading,
        store_address=options.store,
        drain_seconds=options.drain_seconds,
        wait_seconds=options.wait_seconds,
    )


@contextlib.asynccontextmanager
async def _local_engine(options: ServeOptions, reading: StoreReading) -> AsyncIterator[Engine]:
    """The one of this process."""
    from lookback.serving.server.address import Engine
    from lookback.serving.server.backlog import Backlog
    from lookback.serving.server.metrics import Metrics
    from lookback.serving.server.models import Models, spare_imports
    from lookback.serving.server.scorer import Scorer

    spare_imports()
    metrics = Metrics()
    if reading.store is not None:
        metrics.watch_cache(reading.store)
    rows = MOST_BATCH_ROWS if options.max_batch_rows is None else options.max_batch_rows
    scorer = Scorer(rows, Backlog(options.wait_seconds), metrics)
    models = Models(reading.store, beyond_window=reading.beyond_window)
    try:
        yield Engine(models, scorer, metrics, f"http://{written(options.host)}:{{port}}/v2")
    finally:
        await scorer.close()


async def _serve(
    options: ServeOptions,
    bundles: Mapping[str, Path],
    token: str | None,
    sockets: Sequence[socket.socket],
    reading: StoreReading,
) -> None:
    from lookback.serving.server.address import MOST_READ, Site
    from lookback.serving.server.front import ScoringServer

    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    async with _engine(options, reading) as engine:
        for (name, directory), digest in zip(
            bundles.items(), options.trusted_digest or [None] * len(bundles), strict=True
        ):
            model = await loop.run_in_executor(None, engine.models.load, name, directory, digest)
            print(f"{name}: {model.manifest.model_type}, digest {model.digest}", flush=True)
            if reading.store is not None and model.histories is None:
                print(
                    f"{name} scores rows, of which a store of histories knows nothing: its "
                    "requests say all that it reads",
                    flush=True,
                )
            if ending.is_set():
                return
        local = all(is_local(found) for found in sockets)
        names = LOCAL_NAMES if local else None
        site = Site(engine.models, engine.scorer, engine.metrics, token, names)
        users = await loop.run_in_executor(None, _demo_users, options, engine.models, reading.store)
        server = ScoringServer(
            site,
            users,
            max_body_size=MOST_READ,
            body_timeout=60,
            idle_connection_timeout=300,
        )
        server.add_sockets(list(sockets))
        site.ready = True
        if not local:
            print(
                "warning: this server knows no users and no encryption, and listens for other "
                "machines: put a gateway in front of it.",
                file=sys.stderr,
            )
        said = engine.address.format(port=sockets[0].getsockname()[1])
        print(f"serving at {said}", flush=True)
        if users is not None:
            print(f"the page is at {said.removesuffix('/v2')}/demo/", flush=True)
        await ending.wait()
        print("ending: what is under way is answered first", flush=True)
        site.ready = False
        server.stop()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_drained(site), options.drain_seconds)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(server.close_all_connections(), 1)


def _demo_users(
    options: ServeOptions, models: Any, store: HistoryStore | None
) -> dict[str, DemoUsers] | None:
    """The users of the page, by model; None without one.

    Raises:
      UserError: if a bundle is not of that dataset, or has nothing to show of the store.
    """
    if not options.demo_ui:
        return None
    from lookback.serving.server.demo.data import DemoUsers

    def users_of(bundle: Bundle) -> DemoUsers:
        if options.demo_dataset is not None:
            return DemoUsers.of_dataset(bundle, options.demo_dataset)
        assert store is not None  # as the options say
        return DemoUsers.of_store(bundle, store)

    return {name: users_of(model.bundle) for name, model in models.served.items()}


async def _drained(site: Site) -> None:
    while site.active:
        await asyncio.sleep(_A_MOMENT)


def _token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--admin_token_file {path} cannot be read: {error}.") from error
    if len(token) < _LEAST_OF_TOKEN or not token.isprintable() or not token.isascii():
        raise UserError(
            f"--admin_token_file {path}: expected one line of {_LEAST_OF_TOKEN} or more characters "
            "(openssl rand -hex 32 makes one)."
        )
    return token

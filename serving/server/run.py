"""Runs a server until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lookback.core.errors import UserError
from lookback.core.options import SET, option

if TYPE_CHECKING:
    from lookback.serving.server.address import Site
    from lookback.serving.store.store import HistoryStore

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

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
    max_batch_rows: int = option(
        1024, help="candidates that are scored together, of several requests", at_least=1
    )
    max_waiting_rows: int = option(
        2048, help="candidates that may wait; requests beyond are refused with 503", at_least=1
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

    def __post_init__(self) -> None:
        """Validates.

        Raises:
          UserError: naming the option.
        """
        named_bundles(self.bundles)
        if self.trusted_digest and len(self.trusted_digest) != len(self.bundles):
            raise UserError(
                f"--trusted_digest: expected one for each of {len(self.bundles)} bundles, received "
                f"{len(self.trusted_digest)}."
            )


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
    sockets = _listen(options.host, options.port)
    with contextlib.ExitStack() as stack:
        for found in sockets:
            stack.callback(found.close)
        store = None
        if options.store is not None:
            from lookback.serving.store.store import HistoryStore

            store = HistoryStore.open(options.store, writes=not options.store_read_only)
            stack.callback(store.close)
        asyncio.run(_serve(options, bundles, token, sockets, store))


async def _serve(
    options: ServeOptions,
    bundles: Mapping[str, Path],
    token: str | None,
    sockets: Sequence[socket.socket],
    store: HistoryStore | None,
) -> None:
    from tornado.httpserver import HTTPServer

    from lookback.serving.server.address import MOST_READ, Site
    from lookback.serving.server.app import application
    from lookback.serving.server.metrics import Metrics
    from lookback.serving.server.models import Models
    from lookback.serving.server.scorer import Scorer

    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    metrics, models = Metrics(), Models(store, beyond_window=options.beyond_window)
    if store is not None:
        metrics.watch_cache(store)
    for (name, directory), digest in zip(
        bundles.items(), options.trusted_digest or [None] * len(bundles), strict=True
    ):
        model = await loop.run_in_executor(None, models.load, name, directory, digest)
        print(f"{name}: {model.bundle.manifest.model_type}, digest {model.digest}", flush=True)
        if store is not None and model.histories is None:
            print(f"{name} reads no histories: the store is nothing to it", flush=True)
        if ending.is_set():
            return
    scorer = Scorer(options.max_batch_rows, options.max_waiting_rows, metrics)
    local = all(_is_local(found) for found in sockets)
    site = Site(models, scorer, metrics, token, LOCAL_NAMES if local else None)
    server = HTTPServer(
        application(site), max_body_size=MOST_READ, body_timeout=60, idle_connection_timeout=300
    )
    server.add_sockets(list(sockets))
    site.ready = True
    if not local:
        print(
            "warning: this server knows no users and no encryption, and listens for other "
            "machines: put a gateway in front of it.",
            file=sys.stderr,
        )
    port = sockets[0].getsockname()[1]
    print(f"serving at http://{_written(options.host)}:{port}/v2", flush=True)
    await ending.wait()
    print("ending: what is under way is answered first", flush=True)
    site.ready = False
    server.stop()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_drained(site), options.drain_seconds)
    scorer.close()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(server.close_all_connections(), 1)


async def _drained(site: Site) -> None:
    while site.active:
        await asyncio.sleep(_A_MOMENT)


def _listen(host: str, port: int) -> list[socket.socket]:
    from tornado.netutil import bind_sockets

    try:
        return bind_sockets(port, host)
    except OSError as error:  # gaierror is one
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}). Choose "
            "another port (0: any that is free), or end who uses it."
        ) from error


def _is_local(found: socket.socket) -> bool:
    return ipaddress.ip_address(found.getsockname()[0]).is_loopback


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host


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

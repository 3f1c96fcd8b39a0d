"""A server in a thread of the tests' process, and what it answers."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from typing import Any, NamedTuple

from lookback.serving.server.run import LOCAL_NAMES

TOKEN = "0123456789abcdef"


class Answer(NamedTuple):
    """Of an HTTP request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


class Running:
    """A server in a thread of this process."""

    def __init__(
        self, models: Any, rows: int = 1024, wait_seconds: float | None = 10.0, users: Any = None
    ) -> None:
        self.models, self._users = models, users
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(rows, wait_seconds, started)), daemon=True
        )
        self._thread.start()
        assert started.wait(10)

    async def _run(self, rows: int, wait_seconds: float | None, started: threading.Event) -> None:
        from tornado.netutil import bind_sockets

        from lookback.serving.server.address import MOST_READ, Site
        from lookback.serving.server.backlog import Backlog
        from lookback.serving.server.front import ScoringServer
        from lookback.serving.server.metrics import Metrics
        from lookback.serving.server.scorer import Scorer

        metrics = Metrics()
        scorer = Scorer(rows, Backlog(wait_seconds), metrics)
        self.site = Site(self.models, scorer, metrics, TOKEN, LOCAL_NAMES)
        server = ScoringServer(self.site, self._users, max_body_size=MOST_READ)
        sockets = bind_sockets(0, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        server.add_sockets(sockets)
        self.site.ready = True
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        started.set()
        await self._end.wait()
        server.stop()
        await self.site.scorer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, data, names)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def score(self, body: Any, name: str = "sim") -> Answer:
        return self.call("POST", f"/v2/models/{name}/score", body)

"""The server's front: an overload is refused at the headers, before any body is read or parsed.

At three times its capacity a server refuses two thirds of the calls, on the cores that score the
rest. So a refusal goes without the machinery of an address. The body is received and dropped, as
a connection that is kept alive demands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Mapping
from typing import Any
from urllib.parse import unquote

from tornado import httputil, web
from tornado.httpserver import HTTPServer

from lookback.serving.server.address import Site
from lookback.serving.server.app import application
from lookback.serving.server.backlog import OverloadedError
from lookback.serving.server.demo.data import DemoUsers

_SCORED = re.compile(r"/v2/models/([^/?]+)(?:/versions/[^/?]+)?/(?:infer|score)(?:$|\?)")


class ScoringServer(HTTPServer):
    """Answers at its addresses, and reports clients that come and go to the scorer."""

    def initialize(  # type: ignore[override]  # instead of __init__
        self, site: Site, users: Mapping[str, DemoUsers] | None = None, **limits: Any
    ) -> None:
        """Starts to listen at nothing yet.

        Args:
          site: what the addresses share.
          users: see `application`.
          **limits: of tornado's server, of bodies and connections.
        """
        self._site, self._addresses = site, application(site, users)
        super().initialize(self._addresses, **limits)

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """What takes a message's parts."""
        return _Admission(self._site, self._addresses, server_conn, request_conn)

    def on_close(self, server_conn: Any) -> None:
        """A connection ends."""
        super().on_close(server_conn)
        self._site.scorer.leave(server_conn.context.address)


class _Admission(httputil.HTTPMessageDelegate):
    """Passes a message on to its address, or refuses it."""

    def __init__(
        self, site: Site, addresses: web.Application, server_conn: object, connection: Any
    ) -> None:
        self._site, self._connection = site, connection
        self._inner = addresses.start_request(server_conn, connection)
        self._model = ""
        self._refused: OverloadedError | None = None

    def headers_received(
        self, start_line: Any, headers: httputil.HTTPHeaders
    ) -> Awaitable[None] | None:
        found = _SCORED.match(start_line.path) if start_line.method == "POST" else None
        model = self._site.models.served.get(unquote(found[1])) if found else None
        if model is not None and self._site.ready:
            try:
                self._site.scorer.arrive(model, self._connection.context.address)
            except OverloadedError as error:
                self._model, self._refused = model.name, error
                return None
        return self._inner.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return None if self._refused is not None else self._inner.data_received(chunk)

    def finish(self) -> None:
        if self._refused is None:
            self._inner.finish()
            return
        body = json.dumps({"error": str(self._refused)}).encode()
        headers = httputil.HTTPHeaders(
            {
                "Server": "lookback",
                "Content-Type": "application/json; charset=UTF-8",
                "Content-Length": str(len(body)),
                "Retry-After": str(self._refused.retry_seconds),
            }
        )
        line = httputil.ResponseStartLine("HTTP/1.1", 503, "Service Unavailable")
        self._connection.write_headers(line, headers, body)
        self._connection.finish()
        self._site.metrics.requests.labels(self._model, 503).inc()

    def on_connection_close(self) -> None:
        if self._refused is None:
            self._inner.on_connection_close()

"""What all addresses of a server have in common: who may call, errors in JSON, bounded bodies."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from tornado import web

from lookback.core.errors import UserError, shown
from lookback.core.faults import MOST_CHARACTERS
from lookback.serving.server.metrics import Metrics
from lookback.serving.server.models import Models, Served
from lookback.serving.server.scorer import Scorer

if TYPE_CHECKING:
    from lookback.serving.server.triton.engine import TritonModels, TritonScorer

MOST_BYTES = 16 << 20
"""Of a body: a history of some hundred thousand events."""

MOST_READ = 4 * MOST_BYTES
"""Of a body that is too large: up to here it is read, so that its sender hears why."""

_NONE = "-"  # the model of an address that names none, in metrics


class TooLargeError(UserError):
    """A body is larger than what is taken."""


class Engine(NamedTuple):
    """What scores, and how it is reached; the address is a format of the port that we listen at."""

    models: Models | TritonModels
    scorer: Scorer | TritonScorer
    metrics: Metrics
    address: str


class Site:
    """What all addresses share.

    Attributes:
      models: that are served.
      scorer: of their requests.
      metrics: what is counted.
      token: of administrators; None: there are none.
      names: hosts by which a client may call the server; None: any.
      ready: whether it takes requests.
      active: how many of them are not answered yet.
    """

    def __init__(
        self,
        models: Models | TritonModels,
        scorer: Scorer | TritonScorer,
        metrics: Metrics,
        token: str | None = None,
        names: frozenset[str] | None = None,
    ) -> None:
        """Not ready yet."""
        self.models, self.scorer, self.metrics = models, scorer, metrics
        self.token, self.names = token, names
        self.ready = False
        self.active = 0


class Address(web.RequestHandler):
    """What every address does: who may call, errors in JSON, counting.

    Attributes:
      site: that it is of.
      model: that it is about, in metrics.
    """

    site: Site
    model = _NONE

    def initialize(self, site: Site) -> None:
        """Takes what all addresses share."""
        self.site = site

    def set_default_headers(self) -> None:
        """Of every answer."""
        self.set_header("Server", "lookback")
        self.set_header("X-Content-Type-Options", "nosniff")

    def prepare(self) -> None:
        """Refuses pages of other sites, whose browser is on this machine."""
        host = urlsplit(f"//{self.request.host}")
        origin = self.request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.request.host:
            raise web.HTTPError(403, reason="Forbidden", log_message="of another site")
        if self.site.names is not None and host.hostname not in self.site.names:
            self.fail(403, f"This server is {', '.join(sorted(self.site.names))}, not that host.")

    def fail(self, status: int, message: str) -> None:
        """Answers with an error, and ends."""
        self.set_status(status)
        self.finish({"error": message[:MOST_CHARACTERS]})

    def require_token(self) -> None:
        """Refuses callers without the administrators' token."""
        given = self.request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.site.token is None:
            self.fail(403, "This server was started without --admin_token_file.")
        elif not hmac.compare_digest(given.encode(), self.site.token.encode()):
            self.set_header("WWW-Authenticate", "Bearer")
            self.fail(401, "Expected the token of administrators: Authorization: Bearer TOKEN.")

    def write_error(self, status_code: int, **_: Any) -> None:
        """Of what nobody foresaw no more than the status: the rest is in the log."""
        said = self._reason
        if status_code == 405:
            own, none = type(self), web.RequestHandler
            names = [m for m in own.SUPPORTED_METHODS if _method(own, m) is not _method(none, m)]
            self.set_header("Allow", ", ".join(names))
            said = f"Expected {' or '.join(names)}, received {self.request.method}."
        self.finish({"error": said})

    def on_finish(self) -> None:
        """Counts the answer."""
        self.site.metrics.requests.labels(self.model, self.get_status()).inc()

    def named(self, name: str, version: str | None = None) -> Served | None:
        """A model; without one the answer says so."""
        model: Served | None = self.site.models.served.get(name)
        if model is None:
            known = ", ".join(self.site.models.served) or "none"
            self.fail(404, f"There is no model {shown(name)}. Those that are served: {known}.")
            return None
        if version not in (None, str(model.version)):
            self.fail(404, f"{name} is served in version {model.version}, not {shown(version)}.")
            return None
        self.model = name
        return model


def _method(of: type[web.RequestHandler], name: str) -> Any:
    return getattr(of, name.lower())


@web.stream_request_body
class Bodied(Address):
    """One that takes a body, of a bounded size."""

    def prepare(self) -> None:
        """As of every address; nothing is read yet."""
        super().prepare()
        self._chunks: list[bytes] = []
        self._size = 0

    def data_received(self, chunk: bytes) -> None:
        """Keeps a piece of the body, as long as it is not too large."""
        self._size += len(chunk)
        if self._size <= MOST_BYTES:
            self._chunks.append(chunk)

    @property
    def body(self) -> bytes:
        """All of it.

        Raises:
          TooLargeError: if it is more than `MOST_BYTES`.
        """
        if self._size > MOST_BYTES:
            raise TooLargeError(
                f"Expected a body of at most {MOST_BYTES:,} bytes, received {self._size:,}."
            )
        return b"".join(self._chunks)

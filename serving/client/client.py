"""Calls a server of bundles over HTTP: connections are kept, and what may be tried again is.

A call is tried again where that can help and can do no harm: the server was too busy (503; not
before its Retry-After is over), or the connection was refused or lost. Scoring changes nothing, so
it may be done twice. What the server refuses (4xx) it would refuse again.
"""

from __future__ import annotations

import collections
import http.client
import json
import random
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from lookback.core.errors import UserError, shown
from lookback.core.json_files import load_json
from lookback.serving.client.answers import Answer, answer_of

SERVER = "http://127.0.0.1:8000"
"""Where `serving serve` listens if nothing else is said."""

FIRST_WAIT = 0.1
"""Seconds, about, before a call is tried again; each time twice as long."""
LONGEST_WAIT = 5.0
MOST_OF_A_CALL = 8 << 20
"""Bytes of requests that are sent at once: half of what a server takes, for a single large one."""
REQUESTS_A_CALL = 256

_OK = 200
_BUSY = 503
_CONNECTIONS = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


class RefusedError(UserError):
    """The server refused a call.

    Args:
      status: of HTTP.
      message: what the server said.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UnavailableError(UserError):
    """The server did not answer, however often it was asked."""


class _Reply(NamedTuple):
    status: int
    retry_after: float
    body: bytes


class Client:
    """A server, as seen from here. Threads may share one.

    Example:
      with Client("http://127.0.0.1:8000") as client:
          (ranking,) = client.score("sim", [{"user_id": "A1", "history": {"item_id": []},
                                            "candidates": {"item_id": ["B1", "B2"]}}])
          ranking.candidates[0].features["item_id"]
    """

    def __init__(
        self,
        server: str = SERVER,
        *,
        timeout: float = 30.0,
        retries: int = 5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Connects when first asked.

        Args:
          server: its address, http:// or https://, maybe with a path of a gateway.
          timeout: seconds that a call may take, with all its tries and the waits between them.
          retries: how often a call is tried again.
          sleep: waits so many seconds.

        Raises:
          UserError: if the address is none.
        """
        try:
            parts = urlsplit(server)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if host is None or parts.scheme not in _CONNECTIONS or parts.query or parts.fragment:
            raise UserError(f"server: expected an address such as {SERVER}, received {server!r}.")
        if timeout <= 0 or retries < 0:
            raise UserError(
                f"expected a timeout above 0 and no negative number of retries, received {timeout} "
                f"and {retries}."
            )
        self._server, self._kind = server.rstrip("/"), _CONNECTIONS[parts.scheme]
        self._host, self._port, self._path = host, port, parts.path.rstrip("/")
        self._timeout, self._retries, self._sleep = timeout, retries, sleep
        self._idle: collections.deque[http.client.HTTPConnection] = collections.deque()

    def __enter__(self) -> Client:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Closes."""
        self.close()

    def close(self) -> None:
        """Closes the connections that no call uses."""
        while self._idle:
            self._idle.pop().close()

    def score(self, model: str, requests: Iterable[Mapping[str, Any]]) -> list[Answer]:
        """Scores requests.

        Args:
          model: its name on the server.
          requests: as its layout reads them; see `schema`.

        Returns:
          An answer to each, in their order.

        Raises:
          RefusedError: if the server refuses one; none is answered then.
          UnavailableError: if it does not answer in time.
        """
        return [answer_of(found) for found in self.answers(model, requests)]

    def answers(self, model: str, requests: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As `score`, but answers as the JSON that the server wrote."""
        found: list[dict[str, Any]] = []
        for texts in _calls(requests):
            body = b"[%s]" % b",".join(texts)
            try:
                found += self._call("POST", self._of(model, "score"), body)
            except RefusedError as error:
                raise RefusedError(error.status, _renumbered(str(error), len(found))) from error
        return found

    def schema(self, model: str) -> dict[str, Any]:
        """What a model is, and JSON Schemas of its "request" and its "answer"."""
        found: dict[str, Any] = self._call("GET", self._of(model, "schema"))
        return found

    def models(self) -> list[str]:
        """Names of what is served."""
        found: list[str] = self._call("GET", "/v2/models")["models"]
        return found

    def ready(self) -> bool:
        """Whether the server takes requests now."""
        try:
            return self._exchange("GET", "/v2/health/ready", None, self._timeout).status == _OK
        except (OSError, http.client.HTTPException):
            return False

    def _of(self, model: str, what: str) -> str:
        return f"/v2/models/{quote(model, safe='')}/{what}"

    def _call(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The JSON of what is answered.

        Raises:
          RefusedError: if it is an error that will stay one.
          UnavailableError: if nothing is answered in time.
        """
        end = time.monotonic() + self._timeout
        for number in range(self._retries + 1):
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2**number) * random.uniform(0.5, 1)
            try:
                reply = self._exchange(method, path, body, end - time.monotonic())
            except TimeoutError as error:
                raise self._unavailable("no answer came") from error
            except (OSError, http.client.HTTPException) as error:
                said = str(error) or type(error).__name__
            else:
                if reply.status == _OK:
                    return load_json(reply.body, f"the answer of {self._server}")
                said = _error_of(reply)
                if reply.status != _BUSY:
                    raise RefusedError(reply.status, said)
                wait = max(wait, reply.retry_after)
            if number == self._retries or time.monotonic() + wait >= end:
                break
            self._sleep(wait)
        raise self._unavailable(said)

    def _unavailable(self, said: str) -> UnavailableError:
        return UnavailableError(
            f"{self._server} does not answer, tried for at most {self._timeout:g} s and "
            f"{1 + self._retries} times: {said}. Start it (lookback serving serve), wait until it "
            "is ready, or give its address (--server)."
        )

    def _exchange(self, method: str, path: str, body: bytes | None, seconds: float) -> _Reply:
        """Asks once; on a connection that was closed meanwhile, once more on a new one."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        while True:
            try:
                connection, kept = self._idle.pop(), True
            except IndexError:
                connection, kept = self._kind(self._host, self._port), False
            connection.timeout = max(seconds, 0.001)
            if connection.sock is not None:
                connection.sock.settimeout(connection.timeout)
            try:
                connection.request(method, self._path + path, body, headers)
                reply = connection.getresponse()
                after = reply.getheader("Retry-After") or ""
                found = _Reply(
                    reply.status, float(after) if after.isdecimal() else 0.0, reply.read()
                )
            except BaseException as error:
                connection.close()
                # A server closes what was idle for long: that is no failure of it.
                if kept and isinstance(error, ConnectionError | http.client.RemoteDisconnected):
                    continue
                raise
            if reply.will_close:
                connection.close()
            else:
                self._idle.append(connection)
            return found


def _calls(requests: Iterable[Mapping[str, Any]]) -> Iterable[Sequence[bytes]]:
    """Requests as JSON, as many at a time as a call may have."""
    texts: list[bytes] = []
    size = 0
    for index, request in enumerate(requests):
        try:
            text = json.dumps(request, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise UserError(f"requests[{index}]: expected what JSON can say: {error}.") from error
        if texts and (len(texts) == REQUESTS_A_CALL or size + len(text) > MOST_OF_A_CALL):
            yield texts
            texts, size = [], 0
        texts.append(text)
        size += len(text)
    if texts:
        yield texts


def _renumbered(message: str, before: int) -> str:
    """A message about ``requests[N]`` of a call as one about all requests."""
    start, mark, rest = message.partition("]")
    number = start.removeprefix("requests[")
    if not mark or number == start or not number.isdecimal():
        return message
    return f"requests[{before + int(number)}]{rest}"


def _error_of(reply: _Reply) -> str:
    """What the server says of an error, or what is known of it."""
    try:
        content = load_json(reply.body, "the answer")
        if isinstance(content, dict) and isinstance(content.get("error"), str):
            return content["error"]
    except UserError:
        pass
    return f"HTTP status {reply.status}, {shown(reply.body[:80])}"

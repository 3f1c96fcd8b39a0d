"""The process of `serving`'s clients, who ask a server when a line says so.

A line in is a JSON object with `via` (http or grpc), `address`, the `requests` (a file, a line
each), `clients`, `seconds`, and `rate`: requests a second at even intervals, whichever of the
clients is free, or null: each client asks again as soon as it is answered. A line out has of every
call that was answered the `seconds` from the moment at which it was due; how many were `refused`
(503), the error of each that `failed`, how much later than due calls were sent (`late`), how
long it all took (`elapsed`), the seconds of a core that the clients took (`cpu`) and the `first`
answer. It imports nothing of `lookback`, and HTTP's clients are sockets of one thread: as threads,
64 of them waited for each other's turn at Python's lock, and took that for the server's time.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_MODEL = "sim"
_SECONDS = 60.0  # in which an answer must come
_HEAD_END = b"\r\n\r\n"
_PIECE = 1 << 18  # bytes

Ask = Callable[[int], tuple[int, Any]]
"""Sends request number N; a status, and a function that reads the answer, or the error."""


class Call(NamedTuple):
    """One that was made.

    Attributes:
      status: as of HTTP.
      seconds: from when it was due to its answer.
      late: how much later than due it was sent.
      fault: the error, if it was neither answered nor refused.
    """

    status: int
    seconds: float
    late: float
    fault: str


def main() -> None:
    """Answers line by line."""
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(make_calls(json.loads(line))), flush=True)


def make_calls(asked: dict[str, Any]) -> dict[str, Any]:
    """Makes the calls that a line asks for; gives what the line out says of them."""
    texts = Path(asked["requests"]).read_text().splitlines()
    kind: type[_HttpClients] | type[_GrpcClients]
    kind = _HttpClients if asked["via"] == "http" else _GrpcClients
    callers = kind(asked["address"], texts, asked["clients"])
    first = callers.warm_up()
    cpu, began = time.process_time(), time.perf_counter()
    found = callers.run(asked["seconds"], asked["rate"])
    return {
        "seconds": [call.seconds for call in found if call.status == 200],
        "refused": [call.status for call in found].count(503),
        "failed": [call.fault for call in found if call.fault],
        "late": [call.late for call in found],
        "elapsed": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "first": first,
    }


class _Connection:
    """One of HTTP, which is kept."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), _SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.unsent = memoryview(b"")
        self.answer, self.length = b"", 0
        self.due = self.sent = 0.0

    def begin(self, message: bytes, due: float) -> None:
        """Sends a message, or as much of it as is taken without waiting."""
        self.unsent, self.answer, self.length = memoryview(message), b"", 0
        self.due, self.sent = due, time.perf_counter()
        self.send()

    def send(self) -> None:
        """Sends on."""
        with contextlib.suppress(BlockingIOError):
            self.unsent = self.unsent[self.socket.send(self.unsent) :]

    def receive(self) -> bool:
        """Reads what has come; whether that is all of the answer."""
        piece = self.socket.recv(_PIECE)
        if not piece:
            raise ConnectionError("the server has closed a connection")
        self.answer += piece
        if not self.length and _HEAD_END in self.answer:
            head = self.answer.partition(_HEAD_END)[0]
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self.length = len(head) + len(_HEAD_END) + int(length)
        return bool(self.length) and len(self.answer) >= self.length

    @property
    def call(self) -> Call:
        """What became of it, as of now."""
        status = int(self.answer.split(b" ", 2)[1])
        fault = "" if status in (200, 503) else self.content.decode("utf-8", "replace")
        return Call(status, time.perf_counter() - self.due, self.sent - self.due, fault)

    @property
    def content(self) -> bytes:
        """The answer's body."""
        return self.answer.partition(_HEAD_END)[2]


class _HttpClients:
    """Connections of one thread.

    Args:
      address: of the server.
      texts: requests in JSON.
      clients: how many.
    """

    def __init__(self, address: str, texts: Sequence[str], clients: int) -> None:
        self._messages = [_message(address, text) for text in texts]
        self._connections = [_Connection(address) for _ in range(clients)]

    def warm_up(self) -> Any:
        """Has each ask once; gives the answer to the first request."""
        for connection in self._connections:
            connection.socket.sendall(self._messages[0])
            connection.begin(b"", 0.0)
            while not connection.receive():
                pass
            connection.socket.setblocking(False)
        answer = json.loads(self._connections[0].content)
        return json.loads(answer["outputs"][0]["data"][0])

    def run(self, seconds: float, rate: float | None) -> list[Call]:
        """Asks for so long; rate: see the module."""
        found: list[Call] = []
        free = collections.deque(self._connections)
        began = time.perf_counter()
        with selectors.DefaultSelector() as selector:
            for connection in self._connections:
                selector.register(connection.socket, selectors.EVENT_READ, connection)
            for number in itertools.count():
                now = time.perf_counter()
                due = now if rate is None else began + number / rate
                while due < began + seconds and (due > now or not free):
                    wait = max(0.0, due - now) if free else None
                    self._wait(selector, wait, free, found)
                    now = time.perf_counter()
                    due = now if rate is None else due
                if due >= began + seconds:
                    break
                connection = free.popleft()
                connection.begin(self._messages[number % len(self._messages)], due)
                if connection.unsent:
                    both = selectors.EVENT_READ | selectors.EVENT_WRITE
                    selector.modify(connection.socket, both, connection)
            while len(free) < len(self._connections):
                self._wait(selector, _SECONDS, free, found)
        return found

    @staticmethod
    def _wait(
        selector: selectors.BaseSelector,
        seconds: float | None,
        free: collections.deque[_Connection],
        found: list[Call],
    ) -> None:
        """Waits for one of the connections, and does what it can."""
        for key, ready in selector.select(seconds):
            connection = key.data
            if ready & selectors.EVENT_WRITE:
                connection.send()
                if not connection.unsent:
                    selector.modify(connection.socket, selectors.EVENT_READ, connection)
            if ready & selectors.EVENT_READ and connection.receive():
                found.append(connection.call)
                free.append(connection)


def _message(address: str, text: str) -> bytes:
    tensor = {"name": "request", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = (
        f"POST /v2/models/{_MODEL}/infer HTTP/1.1\r\nHost: {address}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _GrpcClients:
    """Threads, each with a client of NVIDIA's; as `_HttpClients`."""

    def __init__(self, address: str, texts: Sequence[str], clients: int) -> None:
        self._asks = [_over_grpc(address, texts) for _ in range(clients)]

    def warm_up(self) -> Any:
        """As of HTTP."""
        for number, ask in enumerate(self._asks):
            ask(number)
        return json.loads(self._asks[0](0)[1]())

    def run(self, seconds: float, rate: float | None) -> list[Call]:
        """As of HTTP."""
        numbers, lock = itertools.count(), threading.Lock()
        found: list[Call] = []
        began = time.perf_counter() + 0.05  # by then all threads wait

        def client(ask: Ask) -> None:
            while True:
                with lock:
                    number = next(numbers)
                now = time.perf_counter()
                due = max(began, now) if rate is None else began + number / rate
                if due >= began + seconds:
                    return
                if due > now:
                    time.sleep(due - now)
                sent = time.perf_counter()
                status, read = ask(number)
                fault = "" if status in (200, 503) else str(read())
                found.append(Call(status, time.perf_counter() - due, sent - due, fault))

        threads = [threading.Thread(target=client, args=(ask,)) for ask in self._asks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


def _over_grpc(address: str, texts: Sequence[str]) -> Ask:
    import numpy as np
    from tritonclient.grpc import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    tensors = []
    for text in texts:
        tensor = InferInput("request", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], np.object_))
        tensors.append(tensor)
    client = InferenceServerClient(address)

    def ask(number: int) -> tuple[int, Any]:
        try:
            answer = client.infer(_MODEL, [tensors[number % len(tensors)]], client_timeout=_SECONDS)
        except InferenceServerException as error:
            text = str(error)
            return (503 if str(error.status()) == "StatusCode.UNAVAILABLE" else 500), lambda: text
        return 200, lambda: answer.as_numpy("answer").reshape(-1)[0]

    return ask


if __name__ == "__main__":
    main()

"""The process of `serving`'s clients: threads that ask a server when a line says so.

A line in is a JSON object with `via` (http or grpc), `address`, the `requests` (a file, a line
each), `clients`, `seconds`, and `rate`: requests a second at even intervals, whichever of the
clients is free, or null: each client asks again as soon as it is answered. A line out has of every
call that was answered the `seconds` from the moment at which it was due; how many were `refused`
(503), what is said of each that `failed`, how much later than due calls were sent (`late`), how
long it all took (`elapsed`) and the `first` answer. It imports nothing of `lookback`: it is to take
little of the cores.
"""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MODEL = "sim"
_SECONDS = 60.0  # in which an answer must come

Ask = Callable[[int], tuple[int, Any]]
"""Sends request number N; a status, and how the answer is read, or what is said of a fault."""


def main() -> None:
    """Answers line by line."""
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(make_calls(json.loads(line))), flush=True)


def make_calls(asked: dict[str, Any]) -> dict[str, Any]:
    """Makes the calls that a line asks for; gives what the line out says of them."""
    texts = Path(asked["requests"]).read_text().splitlines()
    kind = {"http": _over_http, "grpc": _over_grpc}[asked["via"]]
    asks = [kind(asked["address"], texts) for _ in range(asked["clients"])]
    for number, ask in enumerate(asks):  # connected, and warm
        ask(number)
    first = json.loads(asks[0](0)[1]())
    numbers, lock = itertools.count(), threading.Lock()
    found: list[tuple[int, float, float]] = []  # status, seconds, how late it was sent
    failed: list[str] = []
    began = time.perf_counter() + 0.05  # by then all threads wait
    end = began + asked["seconds"]

    def client(ask: Ask) -> None:
        while True:
            with lock:
                number = next(numbers)
            now = time.perf_counter()
            due = max(began, now) if asked["rate"] is None else began + number / asked["rate"]
            if due >= end:
                return
            if due > now:
                time.sleep(due - now)
            sent = time.perf_counter()
            status, read = ask(number)
            found.append((status, time.perf_counter() - due, sent - due))
            if status not in (200, 503):
                failed.append(str(read()))

    threads = [threading.Thread(target=client, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    statuses = [status for status, *_ in found]
    return {
        "seconds": [seconds for status, seconds, _ in found if status == 200],
        "refused": statuses.count(503),
        "failed": failed,
        "late": [late for *_, late in found],
        "elapsed": elapsed,
        "first": first,
    }


def _over_http(address: str, texts: list[str]) -> Ask:
    bodies = [
        json.dumps(
            {"inputs": [{"name": "request", "datatype": "BYTES", "shape": [1, 1], "data": [text]}]}
        ).encode()
        for text in texts
    ]
    connection = http.client.HTTPConnection(address, timeout=_SECONDS)

    def ask(number: int) -> tuple[int, Any]:
        body = bodies[number % len(bodies)]
        connection.request("POST", f"/v2/models/{_MODEL}/infer", body)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            return answer.status, lambda: content.decode("utf-8", "replace")
        return 200, lambda: json.loads(content)["outputs"][0]["data"][0]

    return ask


def _over_grpc(address: str, texts: list[str]) -> Ask:
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

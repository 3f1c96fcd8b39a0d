"""The clients of `benchmarks serving`, against a server whose answers and speed are known."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lookback.benchmarks import serving_client

SERVICE = 0.02


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    one = threading.Lock()  # at once

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        (text,) = body["inputs"][0]["data"]
        status = int(text)
        if status == 200:
            with self.one:
                time.sleep(SERVICE)
        said = json.dumps({"outputs": [{"data": [json.dumps({"is": status})]}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(address: str, path: Path, statuses: list[int], **how: Any) -> dict[str, Any]:
    path.write_text("".join(f"{status}\n" for status in statuses))
    asked = {"via": "http", "address": address, "requests": str(path), "seconds": 0.5}
    return serving_client.make_calls({**asked, **how})


def test_a_client_of_a_closed_loop_asks_one_after_another(address, tmp_path):
    found = run(address, tmp_path / "requests", [200, 503, 200, 400], clients=1, rate=None)
    answered, refused, failed = (len(found["seconds"]), found["refused"], len(found["failed"]))
    assert found["first"] == {"is": 200}
    assert min(found["seconds"]) >= SERVICE
    assert sum(found["seconds"]) <= found["elapsed"]
    # Half of the requests are answered, and a quarter each is refused and fails.
    assert answered >= 4 and abs(refused - answered / 2) <= 1 and abs(failed - answered / 2) <= 1


def test_at_a_rate_what_has_to_wait_is_counted_from_when_it_was_due(address, tmp_path):
    """Twice what can be answered: the k-th, due after k / rate, is answered after k SERVICE."""
    rate = 2 / SERVICE
    found = run(address, tmp_path / "requests", [200], clients=64, rate=rate)
    assert len(found["seconds"]) == round(0.5 * rate)  # all that were due, and no more
    waits = sorted(found["seconds"])
    for k, waited in enumerate(waits, 1):
        assert waited >= k * (SERVICE - 1 / rate) - SERVICE
    assert found["elapsed"] >= len(waits) * SERVICE

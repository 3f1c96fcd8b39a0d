"""The process of Triton's server: started, asked, told to load, ended."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import secrets
import subprocess
import time
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.core.processes import ends_with_parent
from lookback.serving.server.triton.installation import Installation
from lookback.serving.server.triton.repository import ModelRepository

START_SECONDS = 60.0
"""In which the server must listen; models are loaded later."""

_LOAD_SECONDS = 600.0
_A_MOMENT = 0.05  # seconds
_HEADER = "lookback-token"
_RESTRICTED = "shared-memory,model-repository,logging,trace,statistics"
_SHARED_MEMORY = Path("/dev/shm")


@dataclasses.dataclass(frozen=True)
class Ports:
    """Where it listens, at one address."""

    host: str
    http: int
    grpc: int
    metrics: int


class TritonProcess:
    """A server that has been started and has no models yet.

    What may change it (models, shared memory, logging) is refused to all who do not know a token,
    which is drawn here for each start and told nobody. It stands on the server's command line, as
    Triton reads it nowhere else.
    """

    def __init__(
        self, installation: Installation, repository: ModelRepository, ports: Ports, drain: float
    ) -> None:
        """Starts it; `wait` says when it listens.

        Args:
          installation: of Triton.
          repository: of its models.
          ports: where it listens.
          drain: seconds in which calls that are under way may end.
        """
        self._ports = ports
        self._token = secrets.token_hex(32)
        self._region = f"lookback_{secrets.token_hex(8)}_"
        self._models: list[str] = []
        rule = f"{_RESTRICTED}:{_HEADER}={self._token}"
        options = {
            "model-repository": repository.models,
            "backend-directory": repository.backends,
            "model-control-mode": "explicit",
            "backend-config": f"python,shm-region-prefix-name={self._region}",
            "http-address": ports.host,
            "http-port": ports.http,
            "grpc-address": ports.host,
            "grpc-port": ports.grpc,
            "metrics-address": "127.0.0.1",
            "metrics-port": ports.metrics,
            "allow-gpu-metrics": "false",
            "pinned-memory-pool-byte-size": 0,
            "http-restricted-api": rule,
            "grpc-restricted-protocol": rule,
            "exit-timeout-secs": max(1, round(drain)),
            "log-info": "false",
        }
        self._process = subprocess.Popen(
            [
                installation.server,
                "--disable-auto-complete-config",
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            env=installation.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=ends_with_parent(),
            start_new_session=True,  # Ctrl-C is ours
        )

    @property
    def alive(self) -> bool:
        """Whether the server itself runs; models may be dead all the same."""
        return self._process.poll() is None

    def stubs(self) -> dict[int, str]:
        """The processes of its models that run, and whose each is; two of one that is exchanged."""
        found = {}
        for path in Path(f"/proc/{self._process.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError, IndexError):  # of what has ended meanwhile
                for pid in map(int, path.read_text().split()):
                    # The program, then models/NAME/VERSION/model.py; nothing of one that has ended.
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    if words[0].endswith(b"_stub"):
                        found[pid] = Path(words[1].decode()).parts[-3]
        return found

    def wait(self) -> None:
        """Waits until it listens.

        Raises:
          UserError: if it does not.
        """
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.alive:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._ask("GET", "/v2/health/live", None, _A_MOMENT * 20)[0] == 200:
                    return
            time.sleep(_A_MOMENT)
        status = self._process.poll()
        self.end(0)
        raise UserError(
            f"Triton's server did not start in {START_SECONDS:.0f} s"
            f"{'' if status is None else f' (it ended with status {status})'}; what it wrote above "
            "says why. Is a port taken? --engine local needs no Triton."
        )

    def load(self, name: str) -> None:
        """Loads the newest version of a model, beside the one that serves, and then in its place.

        Raises:
          UserError: if that fails; what served serves on.
        """
        status, said = self._ask("POST", f"/v2/repository/models/{name}/load", {}, _LOAD_SECONDS)
        if status != 200:
            raise UserError(said)

    def reload(self, name: str) -> None:
        """Unloads a model, whose process is dead, and loads it again; errors as of `load`."""
        self._ask("POST", f"/v2/repository/models/{name}/unload", {}, _LOAD_SECONDS)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.ready(name):
            time.sleep(_A_MOMENT)
        self.load(name)

    def ready(self, name: str) -> bool:
        """Whether Triton says that a model is; it says so of one whose process is dead, too."""
        return self._ask("GET", f"/v2/models/{name}/ready", None, START_SECONDS)[0] == 200

    def metrics(self) -> bytes:
        """What it counts, in Prometheus' format."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports.metrics, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            return connection.getresponse().read()

    def end(self, seconds: float) -> None:
        """Ends it, when calls that are under way are answered.

        Args:
          seconds: how long that may take.
        """
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for left in _SHARED_MEMORY.glob(f"{self._region}*"):  # those of processes that were killed
            with contextlib.suppress(OSError):
                left.unlink()

    def _ask(self, method: str, path: str, body: Any, seconds: float) -> tuple[int, str]:
        """A status and, of an error, what it says."""
        connection = http.client.HTTPConnection(self._ports.host, self._ports.http, timeout=seconds)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {_HEADER: self._token})
            answer = connection.getresponse()
            content = answer.read()
        try:
            return answer.status, str(json.loads(content or b"{}").get("error", ""))
        except ValueError:
            return answer.status, content.decode("utf-8", "replace")

"""A real Redis server, durable as a history store needs it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("redis-server")


class RedisServer:
    """One that can be killed and started again on its files.

    Args:
      directory: of its files.
    """

    def __init__(self, directory: Path) -> None:
        if PROGRAM is None:
            pytest.skip("needs redis-server (Debian's package of that name)")
        self.directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.start()

    def address(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def client(self) -> Any:
        import redis

        return redis.Redis(port=self.port)

    def start(self) -> None:
        import redis

        options = [
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "3600 1"),
        ]
        assert PROGRAM is not None
        self.process = subprocess.Popen([PROGRAM, *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:  # until it listens, and has read its files
            with contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError):
                if self.client().ping():
                    return
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

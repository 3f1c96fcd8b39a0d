"""Notes that processes and their launcher leave for each other, and that outlive who wrote them.

They lie in the key-value store of horovodrun, through which its processes find each other: where
one of them dies, the store still says why. Plain HTTP, so that a launcher can use it, too.

Whoever reaches the store may write to it. So a note carries its HMAC-SHA256 (RFC 2104) under a
secret that `training.parallel.launch` draws for each job, and its processes find in their
environment.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import time
from collections.abc import Mapping
from typing import Any

ERROR = "error"
"""Key of the first error: {"rank": int, "text": str, "status": int}, the status being its exit's"""
STOP = "stop"
"""Key of the launcher's request to save a checkpoint and end."""
LOST_CONNECTION = 75
"""Exit status of a process that lost another one: EX_TEMPFAIL of sysexits.h, as starting again may
well succeed."""
SECRET = "LOOKBACK_SECRET"
"""Name of the environment variable."""

_SCOPE = "lookback"  # of the store
_HERE = "here-"  # key of a rank, by its number, that has started
_ALL_HERE = "all-here"
_SEAL_BYTES = hashlib.sha256().digest_size
_SECONDS_BETWEEN_LOOKS = 0.1
_TIMEOUT = 5.0  # seconds; the store is a thread of the launcher, and its answers are bytes


class NoLauncherError(Exception):
    """Nobody listens at the launcher's address any more."""


class JobStore:
    """The store of one launcher.

    Attributes:
      secret: of the run; "" where there is none (horovodrun without run_model.sh): then notes of
        strangers look like others.
      found_strange: whether a note of a stranger has been found, and ignored.
    """

    def __init__(self, host: str, port: int, secret: str) -> None:
        """Knows where the store is; connects at each call."""
        self.secret = secret
        self.found_strange = False
        self._address = (host, port)

    @classmethod
    def of_this_process(cls) -> JobStore | None:
        """The store of the launcher that started this process; None if it has none."""
        host = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR")
        port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT")
        secret = os.environ.get(SECRET, "")
        return None if host is None or port is None else cls(host, int(port), secret)

    def put(self, key: str, note: Mapping[str, Any]) -> None:
        """Leaves a note, in place of an earlier one of that key.

        Raises:
          NoLauncherError: if the launcher has ended.
          OSError: if it cannot be reached.
        """
        text = json.dumps(note).encode()
        self._request("PUT", key, self.seal(key, text) + text)

    def get(self, key: str) -> dict[str, Any] | None:
        """The note of that key; None if nobody left one. Errors are those of `put`."""
        body = self._request("GET", key)
        if body is None:
            return None
        seal, text = body[:_SEAL_BYTES], body[_SEAL_BYTES:]
        if not hmac.compare_digest(seal, self.seal(key, text)):
            self.found_strange = True
            return None
        return dict(json.loads(text))

    def meet(self, rank: int, size: int, seconds: float) -> None:
        """Waits until all ranks have called this.

        Raises:
          TimeoutError: if they have not within `seconds`.
          NoLauncherError, OSError: as `put`.
        """
        deadline = time.monotonic() + seconds
        self.put(f"{_HERE}{rank}", {})
        awaited = [f"{_HERE}{other}" for other in range(1, size)] if rank == 0 else [_ALL_HERE]
        for key in awaited:
            while self.get(key) is None:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{key} is not there after {seconds:.0f} s")
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        if rank == 0:
            self.put(_ALL_HERE, {})

    def seal(self, key: str, text: bytes) -> bytes:
        """HMAC of a note: under another key the same text has another, so nobody can move it."""
        message = f"{key}\n".encode() + text
        return hmac.digest(self.secret.encode(), message, hashlib.sha256)

    def _request(self, method: str, key: str, body: bytes | None = None) -> bytes | None:
        connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT)
        try:
            connection.request(method, f"/{_SCOPE}/{key}", body)
            response = connection.getresponse()
            return response.read() if response.status == http.HTTPStatus.OK else None
        except ConnectionRefusedError as error:
            raise NoLauncherError(f"nobody listens at {self._address}") from error
        except http.client.HTTPException as error:  # it died while answering
            raise OSError(f"{self._address}: {error!r}") from error
        finally:
            connection.close()

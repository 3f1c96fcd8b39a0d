"""Where table rows live: BACKENDS maps a backend's name to its class."""

from __future__ import annotations

from lookback.embeddings.backends.base import Backend
from lookback.embeddings.backends.horovod import HorovodBackend
from lookback.embeddings.backends.local import LocalBackend
from lookback.embeddings.backends.sok import SOKBackend

BACKENDS: dict[str, type[Backend]] = {
    "local": LocalBackend,
    "horovod": HorovodBackend,
    "sok": SOKBackend,
}

"""Where table rows live: BACKENDS maps a backend's name to its class."""

from __future__ import annotations

from embeddings.backends.base import Backend
from embeddings.backends.horovod import HorovodBackend
from embeddings.backends.local import LocalBackend
from embeddings.backends.sok import SOKBackend

BACKENDS: dict[str, type[Backend]] = {
    "local": LocalBackend,
    "horovod": HorovodBackend,
    "sok": SOKBackend,
}

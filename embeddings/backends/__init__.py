"""Where table rows live: BACKENDS maps a backend's name to its class."""

from __future__ import annotations

from embeddings.backends.local import LocalBackend

BACKENDS = {"local": LocalBackend}

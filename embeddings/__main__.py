"""`python -m embeddings`: `lookback embeddings`, out of a checkout."""

from __future__ import annotations

import sys

from lookback.cli import embeddings

if __name__ == "__main__":
    sys.exit(embeddings(sys.argv[1:], "python -m embeddings"))

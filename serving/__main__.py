"""`python -m serving`: `lookback serving`, out of a checkout."""

from __future__ import annotations

import sys

from lookback.cli import serving

if __name__ == "__main__":
    sys.exit(serving(sys.argv[1:], "python -m serving"))

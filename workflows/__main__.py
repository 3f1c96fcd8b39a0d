"""`python -m workflows`: `lookback workflows`, out of a checkout."""

from __future__ import annotations

import sys

from lookback.cli import workflows

if __name__ == "__main__":
    sys.exit(workflows(sys.argv[1:], "python -m workflows"))

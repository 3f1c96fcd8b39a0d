"""From an exported bundle to scores of raw ids: ``python -m serving``."""

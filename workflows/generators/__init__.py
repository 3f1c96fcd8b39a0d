"""Data made from a known law, so that the best possible score is known."""

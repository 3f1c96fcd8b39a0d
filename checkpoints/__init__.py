"""Checkpoints: the format, the store of a run, and what is done with them without the run."""

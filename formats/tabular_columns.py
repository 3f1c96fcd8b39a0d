"""Names of what batches and requests of tabular data hold. Nothing here needs Merlin."""

from __future__ import annotations

NUMERICAL = "numerical"
CATEGORICAL = "categorical"
INPUTS = (NUMERICAL, CATEGORICAL)
"""The features of a batch and fields of a request, of all columns each; no column is called so."""

"""The largest sizes that options take: anything larger is a typing error.

Without them a slip ends hours later in an allocation that fails, or in an integer that wraps.
"""

from __future__ import annotations

MOST_ROWS = (1 << 31) - 1
"""Of a batch, a table or a candidate list: TensorFlow numbers them in int32."""
MOST_WIDTH = 1 << 16
"""Of a layer, a vector or a history: a square matrix of it takes 16 GiB."""
MOST_LAYERS = 1 << 8
"""Of a network."""
MOST_PARTS = 1 << 16
"""Of a batch, and so many processes: each has a step's latency of its own."""
MOST_STEPS = 1 << 40
"""Of a run, which a step of a microsecond would do in 13 days."""
MOST_PASSES = 1 << 20
"""Over a dataset. With `MOST_STEPS`, a product of two still is an int64."""
MOST_SECONDS = 1 << 31
"""To wait, 68 years."""
MOST_THREADS = 1 << 12
"""Of a machine."""
MOST_BYTES = 1 << 50
"""Of a machine's memory, a pebibyte."""
MOST_NEGATIVES = 1 << 24
"""For a positive: more than catalogues have."""
MOST_INTEGER = (1 << 63) - 1
"""That a machine counts to, for whatever names no bound."""

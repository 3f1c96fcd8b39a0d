"""How much the processes of a run send each other."""

from __future__ import annotations

import tensorflow as tf

from lookback.core.world import World
from lookback.embeddings.collection import collections_of


class TrafficMeter:
    """Counts the bytes of table rows, ids and gradients that all ranks send in a step."""

    def __init__(self, model: tf.keras.Model, world: World) -> None:
        """Begins at the model's present counts; `model` is built."""
        self._collections, self._world = collections_of(model), world
        self._since = (0, 0)  # bytes, steps

    def figures(self, steps: int) -> dict[str, float]:
        """Bytes a step since the last call; empty if nothing travels. A collective.

        Args:
          steps: that the run has taken so far.
        """
        sent = sum(sum(c.backend.sent_bytes.values()) for c in self._collections)
        (sent_before, steps_before), self._since = self._since, (sent, steps)
        if self._world.size == 1 or steps == steps_before:
            return {}
        mine = (sent - sent_before) / (steps - steps_before)
        return {"sent_bytes_a_step": sum(self._world.gather(mine))}

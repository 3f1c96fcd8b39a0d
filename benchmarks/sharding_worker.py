"""One rank of the `sharding` benchmark: SIM, ready to train steps when told."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from lookback.benchmarks.child_server import serve
from lookback.benchmarks.rank_groups import join_group


def main(path: str) -> None:
    """Joins a group of ranks and does what it asks."""
    config, streams = join_group(path)  # bound to its cores before there are threads
    from lookback.training.parallel.horovod_world import start_world
    from lookback.training.process import stop_spinning

    world = start_world(prefetch_ids=config["prefetch_ids"])
    if world.size > 1:
        stop_spinning()  # as train.py does
    worker = Worker(config, world)
    worker.train(config["warmup_steps"])
    functions = (worker.train, worker.counted, worker.exchange, worker.without_deduplication)
    serve({function.__name__: function for function in functions}, {}, streams)


class Worker:
    """SIM on one rank's part of the batches."""

    def __init__(self, config: Mapping[str, Any], world: Any) -> None:
        """Builds it.

        Args:
          config: dataset_dir, batch (rows, all ranks together), wire_dtype, prefetch_ids.
          world: the ranks.
        """
        import tensorflow as tf

        from lookback.dataloading.histories.resident import Histories
        from lookback.dataloading.histories.sources import ResidentSource
        from lookback.dataloading.histories.windows import WindowConfig
        from lookback.dataloading.parts import Part
        from lookback.embeddings.config import Sharding
        from lookback.embeddings.types import Placement, ShardingPlan
        from lookback.models import MODELS
        from lookback.models.config import SIMConfig
        from lookback.training.optimizers import Optimizer
        from lookback.training.parallel.gathering import build_variables
        from lookback.training.steps import Steps

        self._world = world
        self._wire_bytes = tf.as_dtype(config["wire_dtype"]).size
        histories = Histories.load(config["dataset_dir"])
        self._source = ResidentSource(
            histories,
            WindowConfig(),
            seed=0,
            batch_size=config["batch"],
            part=Part(world.rank, world.size),
        )
        options, sharding = SIMConfig(), Sharding()
        self.tables = MODELS["sim"].tables(histories.schema, options)
        if world.size > 1:
            placements = tuple(Placement(t.name, "row_wise") for t in self.tables)
            plan = ShardingPlan(world.size, tuple(self.tables), placements)
            sharding = Sharding("horovod", plan, config["wire_dtype"])
        tf.keras.utils.set_random_seed(0)
        self._model = MODELS["sim"](histories.schema, options, sharding)
        build_variables(self._model, self._source)
        self._collection = self._model.body.embeddings
        optimizer = Optimizer("adam", 0.01, 0.0, self._model, world=world)
        steps = Steps(
            self._model,
            optimizer,
            self._source,
            None,
            world=world,
            prefetch_ids=config["prefetch_ids"],
        )
        self._steps = steps.train(self._feeds())
        self._lookup = tf.function(self._look_up, reduce_retracing=True, autograph=False)

    def train(self, steps: int) -> dict[str, Any]:
        """Trains steps; rows (of all ranks)."""
        rows = 0
        for _, result in itertools.islice(self._steps, steps):
            float(result["total_loss"])
            rows += int(result["rows"])
        return {"rows": rows}

    def counted(self, steps: int) -> dict[str, Any]:
        """Trains steps; seconds, and bytes sent by all ranks."""
        before = self._sent()
        began = time.perf_counter()
        self.train(steps)
        return {"seconds": time.perf_counter() - began, "sent": self._sent() - before}

    def exchange(self, steps: int) -> dict[str, Any]:
        """Looks up what steps look up, there and back, and nothing else; seconds."""
        feeds = itertools.islice(self._feeds(), steps)
        batches = [self._model.body.lookups(self._source.train_batch(feed)[0]) for feed in feeds]
        self._lookup(batches[0])
        self._world.gather(None)
        began = time.perf_counter()
        for ids in batches:
            float(self._lookup(ids))
        return {"seconds": time.perf_counter() - began}

    def without_deduplication(self, steps: int) -> dict[str, Any]:
        """Bytes that all ranks would send if every id travelled as often as it occurs."""
        total = 0
        for feed in itertools.islice(self._feeds(), steps):
            features, _ = self._source.train_batch(feed)
            by_feature = self._model.body.lookups(features)
            tables = self._collection.get_config()["feature_tables"]
            dims = {table.name: table.dim for table in self.tables}
            for feature, ids in by_feature.items():
                elsewhere = np.sum(ids.numpy() % self._world.size != self._world.rank)
                total += int(elsewhere) * (4 + 2 * self._wire_bytes * dims[tables[feature]])
        return {"sent": sum(self._world.gather(total))}

    def _feeds(self) -> Any:
        return itertools.chain.from_iterable(
            self._source.train_feeds(epoch, 0) for epoch in itertools.count()
        )

    def _look_up(self, ids: Any) -> Any:
        import tensorflow as tf

        variables = list(self._collection.backend.variables.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            vectors = self._collection(ids)
            total = tf.add_n([tf.reduce_sum(v) for v in vectors.values()])
        gradients = tape.gradient(total, variables)
        return total + tf.add_n([tf.reduce_sum(g.values) for g in gradients])

    def _sent(self) -> int:
        own = sum(self._collection.backend.sent_bytes.values())
        return sum(self._world.gather(own))


if __name__ == "__main__":
    main(sys.argv[1])

"""Models, batches and plans of the equality tests, alike in the oracle's process and in the ranks.

Loaded by path from both, so it imports nothing of the tests.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from merlin.schema import Schema

from lookback.embeddings.collection import EmbeddingCollection
from lookback.embeddings.config import Sharding
from lookback.embeddings.sharding import STRATEGIES
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec
from lookback.formats import history_columns
from lookback.formats.features import dataset_column
from lookback.models import MODELS
from lookback.models.blocks.click_loss import ClickLoss
from lookback.models.click_model import Contract, Lookups, contract_of
from lookback.models.config import SIMConfig

STEPS = 2
ROWS_A_RANK = {1: (13,), 2: (9, 4), 3: (7, 0, 6), 4: (5, 0, 7, 1)}  # of a batch of 13


def _runs(**names: str) -> tuple[tuple[str, str], ...]:
    return tuple((model, name) for model, of_it in names.items() for name in of_it.split())


# What each strategy computes on any number of ranks, embeddings/test_exchange.py tests without
# processes. Here, four ranks are more than a table has rows, three divide nothing, and fewer do
# what may go wrong in another way with as many. SIM takes four times as long: it is there for
# lookups, losses and counts that bags have not. `fused` is SIM as wide as one operation takes it:
# its local tables are read by the operation, others' rows are brought to it.
RUNS = {
    4: _runs(bags="row_wise mixed parts full_adam_parts bfloat16"),
    3: _runs(bags="column_wise graph_ahead", sim="mixed"),
    2: _runs(bags="data_parallel table_wise mixed parts", fused="mixed parts"),
    1: _runs(bags="mixed parts", fused="parts"),
}
"""Model and name of what each number of ranks does: every table by the strategy of that name, or
each by another (`mixed`, and the rest).

`parts`: each batch in four parts. `full_adam`: its optimizer moves also rows that nobody looks up.
`graph_ahead`: not eagerly, and ids are exchanged a step before. `bfloat16`: on the wire.
"""

BAG_TABLES = (
    TableSpec("words", rows=23, dim=4),
    TableSpec("site", rows=11, dim=6),
    TableSpec("tiny", rows=3, dim=4),  # fewer rows than ranks
    TableSpec("tags", rows=17, dim=6),
)
BAGS = {"title": "words", "body": "words", "site": "site", "tiny": "tiny", "tags": "tags"}
COMBINERS = {"title": "mean", "body": "sum", "tiny": "sqrtn", "tags": "mean"}

SIM_OPTIONS = SIMConfig(
    embedding_dim=5,  # divides by no number of ranks
    max_seq_length=9,
    long_seq_length=5,
    k=2,
    stage_one_mlp_dims=(6,),
    stage_two_mlp_dims=(7, 4),
    aux_mlp_dims=(6, 4),
)
FUSED_OPTIONS = dataclasses.replace(SIM_OPTIONS, embedding_dim=16)


class BagModel(tf.keras.Model):
    """A DLRM-like model: bags and single ids, concatenated, through two layers to a logit."""

    def __init__(self, sharding: Sharding) -> None:
        super().__init__()
        self.embeddings = EmbeddingCollection(
            BAG_TABLES, BAGS, combiners=COMBINERS, sharding=sharding, seed=5
        )
        self._hidden = tf.keras.layers.Dense(6, activation="tanh")
        self._logit = tf.keras.layers.Dense(1)

    @property
    def contract(self):
        output = types.SimpleNamespace(default_loss=ClickLoss())
        return Contract({"click": output}, lookups=Lookups(self.embeddings, dict))

    def call(self, inputs, targets=None, training=False):
        del targets, training
        vectors = self.embeddings(inputs)
        return self._logit(self._hidden(tf.concat([vectors[name] for name in sorted(BAGS)], 1)))


def bag_batch(rng: np.random.Generator, rows: range) -> tuple[dict, np.ndarray]:
    """Rows of a batch of 13: empty bags, repeated ids, reserved ids.

    Bags are as long in every batch: a graph is traced anew for another number of ids.
    """
    of_lengths = np.random.default_rng(0)

    def bags(table: int, longest: int) -> list[list[int]]:
        lengths = of_lengths.integers(0, longest + 1, 13)
        lengths[3] = 0
        ids = [rng.integers(0, BAG_TABLES[table].rows, n).tolist() for n in lengths]
        ids[5] = [2, 2, 2]  # out of vocabulary, three times
        return ids

    ragged = {"title": bags(0, 4), "body": bags(0, 6), "tiny": bags(2, 2)}
    for name in ("title", "tiny"):
        ragged[name][5] = ragged[name][5][:2]
    site = rng.integers(0, BAG_TABLES[1].rows, 13).astype(np.int32)
    tags = rng.integers(0, BAG_TABLES[3].rows, (13, 4)).astype(np.int32)
    tags[4] = 0  # all padding
    labels = rng.integers(0, 2, (13, 1)).astype(np.float32)
    part = slice(rows.start, rows.stop)
    features = {
        name: tf.RaggedTensor.from_row_lengths(
            tf.constant([i for bag in bags_of[part] for i in bag], tf.int32),
            tf.constant([len(bag) for bag in bags_of[part]], tf.int64),
        )
        for name, bags_of in ragged.items()
    }
    features |= {"site": tf.constant(site[part]), "tags": tf.constant(tags[part])}
    return features, tf.constant(labels[part])


def sim_schema(make_schema: Callable):
    """A schema with a table of three rows, bags and numbers."""
    domain = {"domain": {"min": 0, "max": 8, "name": "genres"}}
    genres = dataset_column(history_columns.category("genres", "item", bag=2), domain)
    typed = Schema([genres, dataset_column(history_columns.number("price", "item"), {})])
    return make_schema({"user_id": 7, "country": 3}, {"item_id": 40, "category_id": 6}) + typed


def sim_batch(rng: np.random.Generator, rows: range) -> tuple[dict, np.ndarray]:
    """Rows of a batch of 13 histories: empty ones, full ones, repeated events."""
    lengths = rng.integers(0, 10, 13)
    lengths[2], lengths[6] = 0, 9
    valid = np.arange(9) >= 9 - lengths[:, np.newaxis]
    item, events, drawn = (rng.integers(1, 40, shape) for shape in ((13, 2), (13, 9), (13, 4)))
    category_of = rng.integers(1, 6, 40)
    genres_of = rng.integers(0, 9, (40, 2))  # 0 is none
    price_of = rng.normal(size=40).astype(np.float32)
    features = {"user_id": rng.integers(1, 7, 13), "country": rng.integers(1, 3, 13)}
    for name, of in (
        ("item_id", np.arange(40)),
        ("category_id", category_of),
        ("genres", genres_of),
        ("price", price_of),
    ):
        exists = valid.reshape(*valid.shape, *[1] * (of.ndim - 1)).astype(of.dtype)
        features[name] = of[item]
        features[f"{name}_history"] = of[events] * exists
        features[f"{name}_negatives"] = of[drawn] * exists[:, 5:]
    labels = np.zeros((13, 2), np.float32)
    labels[:, 0] = 1
    part = slice(rows.start, rows.stop)
    types = {n: tf.float32 if v.dtype == np.float32 else tf.int32 for n, v in features.items()}
    return {n: tf.constant(v[part], types[n]) for n, v in features.items()}, tf.constant(
        labels[part]
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, how to make it, what it declares, and its batches."""

    tables: Callable[[], tuple[TableSpec, ...]]
    build: Callable[[Sharding], tf.keras.Model]
    contract: Callable[[tf.keras.Model], Contract]
    batch: Callable[[np.random.Generator, range], tuple[dict, np.ndarray]]
    optimizer: str


def cases(make_schema: Callable) -> dict[str, Case]:
    """The models by name."""
    schema = sim_schema(make_schema)

    def sim(options: SIMConfig) -> Case:
        return Case(
            lambda: tuple(MODELS["sim"].tables(schema, options)),
            lambda sharding: MODELS["sim"](schema, options, sharding),
            contract_of,
            sim_batch,
            optimizer="adagrad",
        )

    return {
        "bags": Case(
            lambda: BAG_TABLES, BagModel, lambda model: model.contract, bag_batch, optimizer="adam"
        ),
        "sim": sim(SIM_OPTIONS),
        "fused": sim(FUSED_OPTIONS),
    }


def optimizer(case: Case, name: str) -> str:
    """The optimizer of a run.

    After steps of plain descent, parameters tell the size of gradients; Adam and Adagrad hide it.
    """
    if name in STRATEGIES:
        return "sgd"
    if name.startswith("full_adam"):
        return "full_adam"
    return "adam" if name == "parts" else case.optimizer


def sharding(case: Case, name: str, ranks: int) -> Sharding:
    """The sharding of a run."""
    made = plan(case.tables(), name if name in STRATEGIES else "mixed", ranks)
    return Sharding("horovod", made, wire_dtype="bfloat16" if name == "bfloat16" else "float32")


def plan(tables: tuple[TableSpec, ...], mix: str, ranks: int) -> ShardingPlan:
    """Every table by one strategy, or each by another."""
    names = list(STRATEGIES)
    placements = []
    for number, table in enumerate(tables):
        strategy = names[(number + 1) % len(names)] if mix == "mixed" else mix
        owners: tuple[int, ...] = ()
        if strategy == "table_wise":
            owners = (number % ranks,)
        elif strategy == "column_wise":
            pieces = min(ranks, table.dim)
            owners = tuple((number + piece) % ranks for piece in range(pieces))
        placements.append(Placement(table.name, strategy, owners))
    return ShardingPlan(ranks, tables, tuple(placements))


class Batches:
    """One rank's part of a few batches, as a source."""

    grouped = False
    id_features = ()

    def __init__(self, case: Case, rank: int, ranks: int, steps: int = STEPS) -> None:
        bounds = np.concatenate([[0], np.cumsum(ROWS_A_RANK[ranks])])
        self.rows = range(int(bounds[rank]), int(bounds[rank + 1]))
        self._batches = [case.batch(np.random.default_rng(n), self.rows) for n in range(steps)]

    def train_feeds(self, epoch: int = 0, first_step: int = 0) -> Iterator:
        del epoch
        yield from self._batches[first_step:]

    def train_batch(self, feed):
        return feed

    def eval_batch(self, split, feed):
        del split
        return feed


class BatchesInParts(Batches):
    """The same batches, each cut into as many parts on every number of ranks that divides them."""

    PARTS = 4

    def __init__(self, case: Case, rank: int, ranks: int, steps: int = STEPS) -> None:
        super().__init__(case, rank, ranks, steps)
        own = self.PARTS // ranks
        bounds = [13 * part // self.PARTS for part in range(self.PARTS + 1)]
        parts = range(rank * own, (rank + 1) * own)
        self._batches = [
            [
                case.batch(np.random.default_rng(n), range(bounds[part], bounds[part + 1]))
                for part in parts
            ]
            for n in range(steps)
        ]

    def parts_of(self, feed):
        return feed

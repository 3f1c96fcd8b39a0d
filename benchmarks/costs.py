"""What a sample needs of a machine, counted by hand: what `roofline` holds speed against.

A sample is one candidate. What depends on the history alone is done once for its C candidates, so
each has 1 / C of it: a model that repeats it for every candidate does more than is counted here.

FLOPs are those of products of matrices, two a multiplication. Training needs three times the
forward pass: each product has two more in the backward pass. Bytes and rows are what no cache can
keep: ids, rows of tables, their gradients, and the optimizer's state of the rows that it updates.
Activations are not among them, for they can stay in a cache (tile by tile), nor are dense weights,
which a batch shares.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from lookback.models.config import DIENConfig, DINConfig, HistoryModelConfig, SIMConfig
from lookback.models.neumf_config import NeuMFConfig
from lookback.models.tabular_config import DCNv2Config, DLRMConfig, TabularModelConfig

_FLOAT = _ID = 4  # bytes
_GRU_FACTOR = 6  # units per embedding dimension (`models.blocks.evolution.UNITS_PER_DIM`)
_ATTENTION = (80, 40)  # widths of DIN's activation unit (`models.blocks.attention`)

ACCESSES = {"sgd": 2, "adam": 6}
"""Reads and writes of a row in an update: of the weights, and with Adam of both moments."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a sample.

    Attributes:
      flops: of products.
      streamed_bytes: read or written one after another.
      rows: read or written at random places, by their width.
    """

    flops: float
    streamed_bytes: float
    rows: Mapping[int, float]

    @property
    def bytes(self) -> float:
        """All of them, those of rows too."""
        return self.streamed_bytes + sum(_FLOAT * dim * n for dim, n in self.rows.items())


def history_cost(
    config: HistoryModelConfig,
    *,
    training: bool,
    candidates: int = 2,
    updated: float = 0.0,
    item_features: int = 2,
    user_features: int = 1,
) -> Cost:
    """Of SIM, DIEN and DIN over categorical features, with Adam of the rows that occur.

    Args:
      config: of the model; soft search.
      training: whether with the backward pass and the update.
      candidates: C that share a history.
      updated: distinct rows of a step, a sample.
      item_features: of an item, which are those of an event too.
      user_features: of a user.
    """
    reads_all = not isinstance(config, DIENConfig)
    slots = config.max_seq_length if reads_all else config.short_seq_length
    negatives = config.short_seq_length if training and config.auxiliary_negatives else 0
    by_history = item_features * (slots + negatives) + user_features
    lookups = by_history / candidates + item_features
    flops = history_flops(
        config,
        training=training,
        candidates=candidates,
        item_width=item_features * config.embedding_dim,
        user_width=user_features * config.embedding_dim,
    )
    return _with_tables(flops, {config.embedding_dim: lookups}, training, updated, "adam")


def history_flops(
    config: HistoryModelConfig,
    *,
    training: bool,
    candidates: int,
    item_width: int,
    user_width: int,
) -> float:
    """FLOPs of a sample; arguments as of `history_cost`, widths E of an item and E_u of a user."""
    representation = item_width + user_width  # [e_a, e_user]
    history = candidate = 0.0
    if isinstance(config, DINConfig):
        slots = config.max_seq_length
        if config.interaction == "dot":
            candidate += 2 * slots * item_width
        else:
            by_history, by_candidate = _activation_unit(slots, item_width)
            history, candidate = history + by_history, candidate + by_candidate
        candidate += 2 * slots * item_width  # the weighted sum
        representation += item_width
    else:
        history, candidate = _evolution(config, item_width, training)
        representation += _GRU_FACTOR * config.embedding_dim
    if isinstance(config, SIMConfig):
        # The search scores all long events; training sums them three times (stage one, attention,
        # mean), inference twice those that were found.
        found = min(config.k, config.long_seq_length)
        sums = 3 * config.long_seq_length if training else 2 * found
        candidate += 2 * item_width * (config.long_seq_length + sums)
        if training:
            stage_one = (2 * item_width + user_width, *config.stage_one_mlp_dims, 1)
            candidate += _mlp(stage_one)
        representation += 2 * item_width
    candidate += _mlp((representation, *config.stage_two_mlp_dims, 1))
    return (history / candidates + candidate) * (3 if training else 1)


def tabular_cost(
    config: TabularModelConfig,
    tables: int,
    numerical: int,
    *,
    training: bool,
    updated: float = 0.0,
    optimizer: str = "sgd",
) -> Cost:
    """Of DLRM and DCNv2.

    Args:
      config: of the model.
      tables: M.
      numerical: N.
      training: whether with the backward pass and the update.
      updated: distinct rows of a step, a sample.
      optimizer: of the tables, a key of `ACCESSES`.
    """
    flops = tabular_flops(config, tables, numerical) * (3 if training else 1)
    cost = _with_tables(flops, {config.embedding_dim: tables}, training, updated, optimizer)
    return dataclasses.replace(cost, streamed_bytes=cost.streamed_bytes + _FLOAT * numerical)


def tabular_flops(config: TabularModelConfig, tables: int, numerical: int) -> float:
    """FLOPs of a row's forward pass; arguments as of `tabular_cost`."""
    bottom, dim = (numerical, *config.bottom_mlp_sizes), config.embedding_dim
    width, flops = bottom[-1] + tables * dim, _mlp(bottom)
    top_input = width
    if isinstance(config, DLRMConfig) and config.interaction_op == "dot":
        pairs = (tables + 1) * tables // 2
        top_input = bottom[-1] + pairs
        flops += 2 * pairs * dim
    if isinstance(config, DCNv2Config):
        rank = config.cross_layer_projection_dim
        layer = 2 * width * width if rank is None else 2 * 2 * width * rank
        flops += config.num_cross_layers * layer
        if config.structure == "parallel":  # the logit reads the crosses, too
            flops += 2 * width
    return flops + _mlp((top_input, *config.top_mlp_sizes))


def neumf_cost(config: NeuMFConfig, *, training: bool, all_rows: float = 0.0) -> Cost:
    """Of NeuMF's pairs, each by itself, with Adam of every row.

    Args:
      config: of the model.
      training: whether with the backward pass and the update.
      all_rows: rows of users and items, a sample: all of them are updated in each step.
    """
    widths = {config.factors: 2.0, config.layers[0] // 2: 2.0}
    flops = neumf_flops(config) * (3 if training else 1)
    cost = _with_tables(flops, widths, training, 0.0, "adam")
    # The gradient of all rows is written and read beside weights and moments.
    update = (ACCESSES["adam"] + 2) * _FLOAT * (config.factors + config.layers[0] // 2) * all_rows
    return dataclasses.replace(cost, streamed_bytes=cost.streamed_bytes + training * update)


def neumf_flops(config: NeuMFConfig) -> float:
    """FLOPs of a pair's forward pass: nothing that pairs share is done once for all of them."""
    return _mlp(config.layers) + 2.0 * (config.layers[-1] + config.factors)


def _with_tables(
    flops: float, lookups: Mapping[int, float], training: bool, updated: float, optimizer: str
) -> Cost:
    """With ids, rows read, and in training gradients of rows (written, read) and the update."""
    streamed = sum(lookups.values()) * _ID
    rows = dict(lookups)
    if training:
        streamed += sum(2 * _FLOAT * dim * n for dim, n in lookups.items())
        if updated:
            (dim,) = rows
            rows[dim] += ACCESSES[optimizer] * updated
    return Cost(flops, streamed, rows)


def _evolution(config: HistoryModelConfig, item_width: int, training: bool) -> tuple[float, float]:
    """FLOPs of GRU, attention and AUGRU, of a history and of a candidate."""
    steps, units = config.short_seq_length, _GRU_FACTOR * config.embedding_dim
    gates = 3 * units
    history = 2.0 * steps * gates * (item_width + units)  # GRU
    history += 2 * steps * gates * units  # the AUGRU's inputs
    by_history, by_candidate = _activation_unit(steps, units)
    candidate = 2 * item_width * units + by_candidate + 2 * steps * gates * units
    if training and isinstance(config, SIMConfig | DIENConfig):
        first, *others = config.aux_mlp_dims
        by_state = 2 * units * first
        by_item = 2 * item_width * first + _mlp((first, *others, 1))  # of a click, of a negative
        history += (steps - 1) * (by_state + 2 * by_item)
    return history + by_history, candidate


def _activation_unit(steps: int, units: int) -> tuple[float, float]:
    """FLOPs of a history and of a candidate, with the first layer split as in the model."""
    first, second = _ATTENTION
    step = 2.0 * units * first
    return steps * step, step + steps * (step + _mlp((first, second, 1)))


def _mlp(widths: Sequence[int]) -> float:
    return 2.0 * sum(a * b for a, b in itertools.pairwise(widths))

"""SIM: search a long history for what matters to the candidate, then look at it closely.

Pi et al. 2020, "Search-based User Interest Modeling with Lifelong Sequential Behavior Data for
Click-Through Rate Prediction"; NVIDIA's SIM for defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from merlin.schema import Schema

from lookback.core.errors import UserError
from lookback.embeddings.config import LOCAL, Sharding
from lookback.formats.features import HistoryFeatures
from lookback.kernels.loader import cpu_kernels
from lookback.models.blocks.attention import masked_softmax
from lookback.models.blocks.auxiliary import count_steps
from lookback.models.blocks.click_loss import click_cross_entropy
from lookback.models.blocks.evolution import UNITS_PER_DIM, InterestEvolution
from lookback.models.blocks.linear import linear
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.blocks.mlp import dropout_masks, mlp_weights, prelu_mlp
from lookback.models.blocks.top_k_search import latest_k_mask, mean_weights, top_k_mask
from lookback.models.click_body import Attended
from lookback.models.click_model import ClickModel
from lookback.models.config import SIMConfig
from lookback.models.history_body import Embedded, HistoryBody, build_history, by_candidate
from lookback.models.history_inputs import column, history
from lookback.models.history_tables import history_tables
from lookback.models.stored_names import stored_as

STAGE_WEIGHT = 0.5
"""Share of each stage's cross entropy in the loss (section 3.3 of the paper; NVIDIA's code)."""


class _Found(NamedTuple):
    """What the search finds, each ``[B, C, L]``.

    Attributes:
      scores: of stage one.
      exact: of the ESU.
      candidates: bool, which events may be found.
      selected: bool, which are.
    """

    scores: tf.Tensor
    exact: tf.Tensor
    candidates: tf.Tensor
    selected: tf.Tensor


@stored_as("SIMBody", "SIMBlock")
class SIMBody(HistoryBody):
    """General search unit over the long sequence, exact search unit over what it found.

    With candidate a and events e_j of the long sequence, r_j = e_a . e_j:

    - stage one (GSU, soft): ``s = sum_j softmax(r)_j e_j``; logits = MLP([e_a, s, e_user]);
    - search: the k events of largest r_j (soft), or the k latest of the candidate's category
      (hard; stage one then attends to that category's events alone);
    - stage two (ESU): attention ``softmax(r)`` over the k events, their mean, and DIEN on the
      short sequence; representation = MLP([attention, mean, e_a, DIEN, e_user]).

    Loss: (cross entropy of stage one + cross entropy of stage two) / 2 + auxiliary loss (section
    3.3 of the paper; weights 1 as in NVIDIA's code). With time features, an event is its embedding
    and that of its time gap, and the ESU's scores gain a learned term of the gap (section 3.2.2).

    Different from NVIDIA's recipe: the mean divides by the number of events found, not by one
    more; padding weighs nothing, where there it is a zero vector.
    """

    config_class = SIMConfig
    scopes = ("history_model", "sim_block")
    fused_operation = "sim"
    _config: SIMConfig
    added_losses = ("gsu_loss", "aux_loss")
    added_weights: ClassVar[Mapping[str, float]] = {"gsu_loss": STAGE_WEIGHT}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Creates the layers; arguments as of `ClickBody`, with a `SIMConfig`."""
        super().__init__(*args, **kwargs)
        config = self._config
        self._category = _category_feature(config, self._features)
        self._stage_one = prelu_mlp(config.stage_one_mlp_dims, config.dropout_rate, "stage_one")
        self._stage_one_head = LogitHead(name="stage_one_head")
        self._stage_two = prelu_mlp(config.stage_two_mlp_dims, config.dropout_rate, "stage_two")
        self._evolution = InterestEvolution(
            UNITS_PER_DIM * config.embedding_dim, config.aux_mlp_dims, name="evolution"
        )

    @property
    def slots(self) -> tuple[slice | None, slice | None]:
        """The long sequence is searched, the short one read."""
        # From the end: a batch of requests is as wide as its longest history.
        split = -self._config.short_seq_length
        return slice(None, split), slice(split, None)

    def loss_counts(
        self, inputs: Mapping[str, tf.Tensor], labels: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The auxiliary loss is a mean over steps; see `ClickBody`."""
        short = self.mask(inputs)[:, self._config.long_seq_length :]  # [B, S]
        steps = count_steps(tf.transpose(short))
        return super().loss_counts(inputs, labels) | {"aux_loss": steps}

    def build(self, input_shape: Any) -> None:
        """Creates what a call without targets or negatives would not reach."""
        # By a call: building Merlin's dense layer leaves the one inside it without weights
        # (merlin/models/tf/blocks/mlp.py, _Dense has no `build`).
        width = 2 * self.item_width + self.user_width
        hidden = self._stage_one(tf.zeros([1, width], self.compute_dtype))
        self._stage_one_head(tf.expand_dims(hidden, 0))
        self._evolution.build_auxiliary(self.event_width)
        if self._config.time_features:
            self._gap_score = self.add_weight(
                "gap_score", shape=[self._config.embedding_dim, 1], initializer="zeros"
            )
        super().build(input_shape)

    def call(
        self,
        inputs: Mapping[str, tf.Tensor],
        targets: tf.Tensor | None = None,
        training: bool = False,
        testing: bool = False,
    ) -> tf.Tensor:
        """Represents every candidate.

        Args:
          inputs: a batch, see `formats.features.sample_schema`.
          targets: labels ``[B, C]``; needed for stage one's loss in training and testing.
          training: whether to apply dropout and add losses.
          testing: whether to add stage one's loss.

        Returns:
          ``[B, C, stage_two_mlp_dims[-1]]``.
        """
        batch = self.embed(inputs)
        if not training and targets is None:
            attended, mean = self._read(batch, inputs)
        else:
            searched, attended, mean = self._search(batch, inputs)
        if (training or testing) and targets is not None:
            stage_one = tf.concat([batch.target, searched, batch.user], -1)
            logits = self._stage_one_head(by_candidate(self._stage_one, stage_one, training))
            losses = STAGE_WEIGHT * click_cross_entropy(targets, logits)  # [B, C]
            # Not reduce_mean, which makes NaN of a process's empty part of a batch.
            rows = tf.cast(tf.size(losses), tf.float32)
            self.add_loss(tf.math.divide_no_nan(tf.reduce_sum(losses), rows))
        final, auxiliary = self._evolution(
            batch.target, batch.short, batch.short_mask, self.auxiliary_input(batch, training)
        )
        if auxiliary is not None:
            self.add_loss(auxiliary)
        stage_two = tf.concat([attended, mean, batch.target, final, batch.user], -1)
        return by_candidate(self._stage_two, stage_two, training)

    def attended(self, inputs: Mapping[str, tf.Tensor]) -> Attended:
        """The ESU's attention over what the search finds in the long sequence."""
        found = self._find(self.embed(inputs), inputs)
        slots = slice(None, -self._config.short_seq_length)
        return Attended(slots, masked_softmax(found.exact, found.selected), found.selected)

    def fused_arguments(
        self, inputs: Mapping[str, tf.Tensor], head: LogitHead, training: bool
    ) -> dict[str, Any]:
        """Both sequences, categories where they are searched, and the weights of all layers."""
        config = self._config
        long, short = self.slots
        mask, category = self.mask(inputs), self._category
        none = tf.zeros([0, 0], tf.int32)
        found = {
            "long_mask": mask[:, long],
            "short_mask": tf.transpose(mask[:, short]),
            "target_category": none if category is None else column(inputs, category),
            "long_category": none if category is None else history(inputs, category)[:, long],
            "k": config.k,
            "hard": category is not None,
            "time_features": config.time_features,
            "stage_two_layers": len(config.stage_two_mlp_dims),
        }
        weights = self._evolution.weights_in_order(auxiliary=training)
        if training:
            found |= {
                "auxiliary_layers": len(config.aux_mlp_dims),
                "stage_one_layers": len(config.stage_one_mlp_dims),
                "dropout": dropout_masks([self._stage_one, self._stage_two], self.rows_of(inputs)),
            }
            weights += [*mlp_weights(self._stage_one), *self._stage_one_head.weights]
        weights += [*mlp_weights(self._stage_two), *head.weights]
        return found | {"weights": weights + ([self._gap_score] if config.time_features else [])}

    def _search(
        self, batch: Embedded, inputs: Mapping[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Sums the long sequence up.

        Args:
          batch: embedded.
          inputs: the batch's ids, for the categories of hard search.

        Returns:
          Stage one's sum ``[B, C, E]``, the ESU's attention ``[B, C, E']`` and the mean of the
          events found ``[B, C, E']``.
        """
        found = self._find(batch, inputs)
        # Three weighted sums over the same events: one product of [B, 3C, L] and [B, L, E'].
        weights = tf.concat(
            [
                masked_softmax(found.scores, found.candidates),
                masked_softmax(found.exact, found.selected),
                mean_weights(found.selected),
            ],
            axis=1,
        )
        sums = tf.matmul(tf.cast(weights, self.compute_dtype), batch.long)  # [B, 3C, E']
        searched, attended, mean = tf.split(sums, 3, axis=1)
        return self.split_event(searched)[0], attended, mean

    def _read(
        self, batch: Embedded, inputs: Mapping[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What scoring needs of `_search`, without stage one.

        The events found are gathered: there is no gradient that would have to be scattered, and of
        990 events with k = 50 all that follows the search is a twentieth of the work (27 against 6
        ms of a core for 256 candidates, search included; of 90 events they take the same). Our
        kernel, which has no gradient either, does all of it in 2 ms where the search is soft.

        Args:
          batch: embedded.
          inputs: the batch's ids, for the categories of hard search.

        Returns:
          The ESU's attention and the mean of the events found, ``[B, C, E']`` each.
        """
        items, gaps = self.split_event(batch.long)  # [B, L, E], [B, L, D]
        by_gap = tf.zeros_like(batch.long_mask, tf.float32)  # [B, L]
        if gaps is not None:
            by_gap = tf.cast(tf.squeeze(linear(gaps, self._gap_score), -1), tf.float32)
        category = self._category  # None: soft search
        if category is None and self.compute_dtype == "float32":
            kernels = cpu_kernels()
            if kernels is not None:
                return kernels.lookback_top_k_attention(
                    batch.target, batch.long, batch.long_mask, by_gap, k=self._config.k
                )
        scores = tf.matmul(batch.target, items, transpose_b=True)  # [B, C, L]
        valid = tf.expand_dims(batch.long_mask, 1)  # [B, 1, L]
        k = tf.minimum(self._config.k, tf.shape(scores)[-1])
        if category is None:
            best, places = tf.math.top_k(_where(valid, tf.cast(scores, tf.float32)), k)
            exact = best
        else:
            valid &= self._same_category(inputs, category)
            latest = tf.range(tf.cast(tf.shape(scores)[-1], tf.float32))
            best, places = tf.math.top_k(_where(valid, latest), k)
            exact = tf.cast(tf.gather(scores, places, batch_dims=2), tf.float32)
        selected = best > -float("inf")  # [B, C, k]
        if gaps is not None:
            exact += tf.gather(by_gap, places, batch_dims=1)
        weights = tf.stack([masked_softmax(exact, selected), mean_weights(selected)], 2)
        events = tf.gather(batch.long, places, batch_dims=1)  # [B, C, k, E']
        sums = tf.matmul(tf.cast(weights, self.compute_dtype), events)  # [B, C, 2, E']
        attended, mean = tf.unstack(sums, axis=2)
        return attended, mean

    def _find(self, batch: Embedded, inputs: Mapping[str, tf.Tensor]) -> _Found:
        """Searches the long sequence; arguments as of `_search`."""
        items, gaps = self.split_event(batch.long)  # [B, L, E], [B, L, D]
        scores = tf.matmul(batch.target, items, transpose_b=True)  # [B, C, L]
        valid = tf.expand_dims(batch.long_mask, 1)  # [B, 1, L]
        if self._category is None:
            candidates = tf.broadcast_to(valid, tf.shape(scores))
            selected = top_k_mask(scores, candidates, self._config.k)
        else:
            candidates = valid & self._same_category(inputs, self._category)
            selected = latest_k_mask(candidates, self._config.k)
        exact = scores
        if gaps is not None:
            # `attended` is no call of the layer, in which Keras would cast the weight.
            kernel = tf.cast(self._gap_score, gaps.dtype)
            exact += tf.transpose(linear(gaps, kernel), [0, 2, 1])
        return _Found(scores, exact, candidates, selected)

    def _same_category(self, inputs: Mapping[str, tf.Tensor], feature: str) -> tf.Tensor:
        """Which long events share each candidate's category: bool ``[B, C, L]``."""
        target = column(inputs, feature)  # [B, C]
        events = history(inputs, feature)[:, self.slots[0]]  # [B, L]
        return tf.expand_dims(target, 2) == tf.expand_dims(events, 1)


def _where(allowed: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Keys of a search, below all others where an event may not be found: ``[B, C, L]``."""
    return tf.where(allowed, keys, -float("inf"))


tables = history_tables


def build(schema: Schema, config: SIMConfig, sharding: Sharding = LOCAL) -> ClickModel:
    """Builds SIM for a dataset.

    Args:
      schema: of the dataset, see `formats.features`.
      config: of the model.
      sharding: where the tables' rows live.

    Returns:
      A model from a batch to float32 logits ``[B, C]``.

    Raises:
      UserError: if hard search is wanted and there is no such category feature.
    """
    return build_history(SIMBody, schema, config, sharding, head_weight=STAGE_WEIGHT)


def _category_feature(config: SIMConfig, features: HistoryFeatures) -> str | None:
    if config.gsu == "soft":
        return None
    others = [name for name in features.item[1:] if name not in features.bags]
    if config.category_feature is None and others:
        return others[0]
    if config.category_feature in others:
        return config.category_feature
    raise UserError(
        "gsu hard needs an item feature to match that is one category, asked for "
        f"{config.category_feature or 'the first one'!r}; the model reads {others or 'none'}."
        " Use --category_feature, or --gsu soft."
    )

"""SIM, DIN and DIEN as a Keras user would write them straight from the papers: no optimisation.

One row is one sample (target `[B]`, history `[B, T]`, negatives `[B, S]`). Every use of a feature
(target, long history, short history, negatives) is its own `tf.keras.layers.Embedding` lookup, the
padded history is sliced, the k best events are gathered, the target is tiled over time in the
attention unit, both recurrences are `tf.keras.layers.RNN` with a custom cell, and the auxiliary
net runs twice. These models are the oracle for the ones in `models/`, and the baseline in
`python -m benchmarks sim_train` and `sim_inference`.

Notation: B samples, T history slots, L long slots, S = T - L short slots, D the width of one
feature's embedding, E the width of an item (D times item features), U that of a user (D times user
features), H = 6 D the recurrent units, K the events that the soft or hard search keeps.

Sources:
  SIM: Pi et al. 2020, https://arxiv.org/abs/2006.05639
  DIEN: Zhou et al. 2019, https://arxiv.org/abs/1809.03672
  DIN: Zhou et al. 2018, https://arxiv.org/abs/1706.06978
Deliberate differences from NVIDIA's recipe for SIM: the recurrence keeps its state over padding,
AUGRU is the paper's (section 4.3), an empty history attends to nothing (zeros) instead of to
padding, the mean of the k best divides by their number, and the auxiliary loss averages over valid
steps only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

# GRU units per embedding dimension: the factor in DIEN's published TF1 code, kept by NVIDIA's SIM.
UNITS_PER_EMBEDDING_DIM = 6


def masked_softmax(scores: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Softmax over the last axis, restricted to `mask`; all zeros where nothing is valid.

    Args:
      scores: `[B, T]` floats.
      mask: `[B, T]` bool, true where the step counts.

    Returns:
      `[B, T]` weights: 0 outside the mask; each row sums to 1, or to 0 if its mask is empty.
    """
    weights = tf.nn.softmax(tf.where(mask, scores, scores.dtype.min), axis=-1)
    return weights * tf.cast(mask, weights.dtype)


def dot_attention(
    target: tf.Tensor, sequence: tf.Tensor, mask: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """DIN attention with the inner product as its score: `s = sum_t softmax(<e, e_t>) e_t`.

    Args:
      target: `[B, E]`.
      sequence: `[B, T, E]`.
      mask: `[B, T]` bool.

    Returns:
      The attended vector `[B, E]` and the raw scores `[B, T]`.
    """
    scores = tf.reduce_sum(target[:, tf.newaxis, :] * sequence, axis=-1)  # [B, T]
    weights = masked_softmax(scores, mask)
    return tf.reduce_sum(weights[:, :, tf.newaxis] * sequence, axis=1), scores


def select_top_k(
    sequence: tf.Tensor, priority: tf.Tensor, mask: tf.Tensor, k: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gathers the k valid steps of highest priority; ties go to the lower index.

    Args:
      sequence: `[B, L, E]`.
      priority: `[B, L]` floats.
      mask: `[B, L]` bool; only these steps can be selected.
      k: how many, at most L of them.

    Returns:
      The steps `[B, K, E]` and a bool mask `[B, K]`, false where fewer than k were valid.
    """
    k = min(k, sequence.shape[1])
    indices = tf.math.top_k(tf.where(mask, priority, priority.dtype.min), k=k).indices  # [B, K]
    selected = tf.gather(sequence, indices, batch_dims=1)  # [B, K, E]
    return selected, tf.gather(mask, indices, batch_dims=1)


def masked_mean(sequence: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mean over the valid steps of `[B, K, E]`; zeros `[B, E]` where none is valid."""
    mask = tf.cast(mask, sequence.dtype)
    total = tf.reduce_sum(sequence * mask[:, :, tf.newaxis], axis=1)
    return total / tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1)


def binary_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Mean binary cross-entropy over all elements, computed from logits (a scalar)."""
    logits = tf.cast(logits, tf.float32)
    labels = tf.cast(tf.reshape(labels, tf.shape(logits)), tf.float32)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))


def auxiliary_loss(click: tf.Tensor, noclick: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """DIEN's auxiliary loss (section 4.2, eq. 6) over the valid steps; 0 if there is none.

    Args:
      click: `[B, S - 1]` logits of (state at t, event at t + 1).
      noclick: `[B, S - 1]` logits of (state at t, negative at t + 1).
      mask: `[B, S - 1]` bool, true where both steps are real events.
    """
    click, noclick = tf.cast(click, tf.float32), tf.cast(noclick, tf.float32)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.ones_like(click), click)
    losses += tf.nn.sigmoid_cross_entropy_with_logits(tf.zeros_like(noclick), noclick)
    mask = tf.cast(mask, tf.float32)
    return tf.reduce_sum(losses * mask) / tf.maximum(tf.reduce_sum(mask), 1.0)


def one_row_per_candidate(
    features: Mapping[str, tf.Tensor], labels: tf.Tensor
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Turns a batch of B histories with C candidates each into B * C rows, as NVIDIA's SIM does.

    Args:
      features: `[B]` user features, `[B, C]` item features, `[B, T]` histories and `[B, S]`
        negatives; histories and negatives are those whose names end so.
      labels: `[B, C]`.

    Returns:
      The same features with B * C rows (user features and item features `[B * C]`), and labels
      `[B * C]`.
    """
    candidates = labels.shape[1]
    rows = {}
    for name, value in features.items():
        if name.endswith(("_history", "_negatives")) or len(value.shape) == 1:
            rows[name] = tf.repeat(value, candidates, axis=0)
        else:
            rows[name] = tf.reshape(value, [-1])
    return rows, tf.reshape(labels, [-1])


class MLP(tf.keras.layers.Layer):
    """Dense layers, each with its activation, optional dropout, then a `Dense(1)` logit.

    Args:
      dims: hidden units of each layer.
      activation: "prelu" (one slope a unit, starting at 0.1 as in the seed) or a Keras activation.
      dropout_rate: dropout between the last hidden layer and the logit; 0 or less disables it.

    Attributes:
      hidden: the Dense layers.
      activations: as many activation layers.
      logit: the last Dense layer.
    """

    def __init__(
        self,
        dims: Sequence[int],
        activation: str = "prelu",
        dropout_rate: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.hidden = [tf.keras.layers.Dense(units) for units in dims]
        self.activations = [_activation(activation) for _ in dims]
        self.dropout = tf.keras.layers.Dropout(max(dropout_rate, 0.0))
        self.logit = tf.keras.layers.Dense(1, dtype="float32")

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps `[..., N]` to logits `[...]`."""
        outputs = inputs
        for index, dense in enumerate(self.hidden):  # AutoGraph's zip knows no `strict`
            outputs = self.activations[index](dense(outputs))
        outputs = self.dropout(outputs, training=training)
        return tf.squeeze(self.logit(outputs), axis=-1)


class AttentionUnit(tf.keras.layers.Layer):
    """DIEN's attention: an MLP on `[i, s, i - s, i * s]`, with `i = PReLU(target W + b)`.

    Args:
      units: width of the sequence, which the target is projected to.
      dims: hidden units; sigmoid activations.
    """

    def __init__(self, units: int, dims: Sequence[int] = (80, 40), name: str | None = None) -> None:
        super().__init__(name=name)
        self.projection = tf.keras.layers.Dense(units)
        self.prelu = _activation("prelu")
        self.mlp = MLP(dims, activation="sigmoid", name="mlp")

    def call(self, target: tf.Tensor, sequence: tf.Tensor) -> tf.Tensor:
        """Scores `[B, S]` of `sequence` `[B, S, H]` for `target` `[B, E]`."""
        item = self.prelu(self.projection(target))  # [B, H]
        items = tf.tile(item[:, tf.newaxis, :], [1, sequence.shape[1], 1])  # [B, S, H]
        return self.mlp(tf.concat([items, sequence, items - sequence, items * sequence], axis=-1))


class GRUCell(tf.keras.layers.Layer):
    """The GRU step as the DIEN paper writes it (eq. 2 to 5).

    `u = sigmoid(x W_u + h U_u + b_u)`, `r = sigmoid(x W_r + h U_r + b_r)`,
    `c = tanh(x W_c + r * (h U_c) + b_c)`, `h' = (1 - u) * h + u * c`.
    (Keras' own GRU names `1 - u` the update gate.)

    Attributes:
      kernel: `[N, 3 H]`, the columns of u, r and c in this order.
      recurrent_kernel: `[H, 3 H]`, likewise.
      bias: `[3 H]`, likewise.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.state_size = units
        self.output_size = units

    def build(self, input_shape: Any) -> None:
        """Creates the weights for inputs `[B, N]`."""
        self._add_weights(int(input_shape[-1]))

    def call(self, inputs: tf.Tensor, states: Sequence[tf.Tensor]) -> tuple[tf.Tensor, Any]:
        """One step: inputs `[B, N]` and state `[B, H]` to the next state, twice."""
        update, candidate = self._gates(inputs, states[0])
        state = (1 - update) * states[0] + update * candidate
        return state, [state]

    def _add_weights(self, inputs: int) -> None:
        self.kernel = self.add_weight(
            "kernel", (inputs, 3 * self.units), initializer="glorot_uniform"
        )
        self.recurrent_kernel = self.add_weight(
            "recurrent_kernel", (self.units, 3 * self.units), initializer="orthogonal"
        )
        self.bias = self.add_weight("bias", (3 * self.units,), initializer="zeros")

    def _gates(self, inputs: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The update gate u and the candidate c, each `[B, H]`."""
        input_u, input_r, input_c = tf.split(tf.matmul(inputs, self.kernel) + self.bias, 3, axis=-1)
        state_u, state_r, state_c = tf.split(tf.matmul(state, self.recurrent_kernel), 3, axis=-1)
        update = tf.sigmoid(input_u + state_u)
        reset = tf.sigmoid(input_r + state_r)
        return update, tf.tanh(input_c + reset * state_c)


class AUGRUCell(GRUCell):
    """GRU with attentional update gate (DIEN section 4.3): `u~ = a_t * u` takes u's place."""

    def build(self, input_shape: Any) -> None:
        """Creates the weights for inputs `([B, N], [B, 1])`."""
        self._add_weights(int(input_shape[0][-1]))

    def call(
        self, inputs: tuple[tf.Tensor, tf.Tensor], states: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, Any]:
        """One step: inputs `[B, N]` with attention `[B, 1]`, state `[B, H]`, to the next state."""
        steps, attention = inputs
        update, candidate = self._gates(steps, states[0])
        update = attention * update
        state = (1 - update) * states[0] + update * candidate
        return state, [state]


class InterestEvolution(tf.keras.layers.Layer):
    """DIEN's two recurrences: GRU over the events, attention, AUGRU over the GRU's states.

    Both start from zeros and keep their state over padded steps.

    Args:
      units: H, of both recurrences.
      attention_dims: hidden units of the attention unit.
    """

    def __init__(
        self, units: int, attention_dims: Sequence[int] = (80, 40), name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.gru = tf.keras.layers.RNN(GRUCell(units), return_sequences=True)
        self.attention_unit = AttentionUnit(units, attention_dims, name="attention_unit")
        self.augru = tf.keras.layers.RNN(AUGRUCell(units))

    def call(
        self, target: tf.Tensor, sequence: tf.Tensor, mask: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs both recurrences.

        Args:
          target: `[B, E]`.
          sequence: `[B, S, E]`.
          mask: `[B, S]` bool.

        Returns:
          The last AUGRU state `[B, H]` and the GRU states `[B, S, H]`.
        """
        states = self.gru(sequence, mask=mask)  # [B, S, H]
        attention = masked_softmax(self.attention_unit(target, states), mask)
        attention = tf.cast(attention, states.dtype)
        final = self.augru((states, attention[:, :, tf.newaxis]), mask=mask)
        return final, states


class PlainModel(tf.keras.Model):
    """What the three models share: the tables, and cutting the batch into its parts.

    Args:
      user_features: table rows of each user feature, by name.
      item_features: table rows of each item feature, by name; the first one is the id whose
        history says which slots are events (`> 0`).
      embedding_dim: D.
      long_seq_length: L; the first L history slots are the long sequence.

    Attributes:
      tables: `tf.keras.layers.Embedding` `[rows, D]` by feature name.

    Inputs of all three models, a dict: each user feature `[B]`; each item feature `[B]` or
    `[B, 1]`; `<item feature>_history` `[B, T]`; and, when the auxiliary loss is wanted,
    `<item feature>_negatives` `[B, S]`. Extra keys are ignored.
    Outputs, a dict: `logits` `[B]` and what the model adds to it. `compile` needs an optimizer
    only: the loss is the model's own.
    """

    def __init__(
        self,
        user_features: Mapping[str, int],
        item_features: Mapping[str, int],
        *,
        embedding_dim: int = 16,
        long_seq_length: int = 90,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.user_features = tuple(user_features)
        self.item_features = tuple(item_features)
        self.long_seq_length = long_seq_length
        self.tables = {
            feature: tf.keras.layers.Embedding(
                rows, embedding_dim, embeddings_initializer=_table_initializer(rows), name=feature
            )
            for feature, rows in {**user_features, **item_features}.items()
        }
        # Keras reports no loss of its own where `compile` got none; it does report this metric.
        self._loss = tf.keras.metrics.Mean(name="loss")

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None
    ) -> tf.Tensor:
        """The loss of a batch, a scalar.

        Args:
          x: unused; the outputs hold everything.
          y: labels `[B]` or `[B, 1]`.
          y_pred: this model's outputs.
          sample_weight: unsupported, must be None.
        """
        del x, sample_weight
        loss = binary_cross_entropy(y, y_pred["logits"])
        if "gsu_logits" in y_pred:
            loss = 0.5 * (binary_cross_entropy(y, y_pred["gsu_logits"]) + loss)
        if "aux_mask" in y_pred:
            loss += auxiliary_loss(
                y_pred["aux_click_logits"], y_pred["aux_noclick_logits"], y_pred["aux_mask"]
            )
        self._loss.update_state(loss)
        return loss

    def _embed_user(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Concatenated user embeddings `[B, U]`."""
        return tf.concat(
            [self.tables[name](tf.reshape(inputs[name], [-1])) for name in self.user_features], -1
        )

    def _embed_target(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Concatenated target embeddings `[B, E]`."""
        return tf.concat(
            [self.tables[name](tf.reshape(inputs[name], [-1])) for name in self.item_features], -1
        )

    def _embed_sequence(
        self, inputs: Mapping[str, tf.Tensor], suffix: str, slots: slice, mask: tf.Tensor
    ) -> tf.Tensor:
        """Concatenated event embeddings `[B, slots, E]`, zero where `mask` is false."""
        embedded = tf.concat(
            [self.tables[name](inputs[name + suffix][:, slots]) for name in self.item_features], -1
        )
        return embedded * tf.cast(mask, embedded.dtype)[:, :, tf.newaxis]

    def _mask(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """True where a history slot holds an event, `[B, T]`."""
        return inputs[self.item_features[0] + "_history"] > 0

    def _auxiliary_outputs(
        self,
        inputs: Mapping[str, tf.Tensor],
        net: MLP,
        states: tf.Tensor,
        events: tf.Tensor,
        mask: tf.Tensor,
        training: bool,
    ) -> dict[str, tf.Tensor]:
        """The auxiliary net's outputs, empty when the inputs hold no negatives.

        Args:
          inputs: the batch.
          net: the auxiliary net.
          states: GRU states `[B, S, H]`.
          events: short history embeddings `[B, S, E]`.
          mask: `[B, S]` bool.
          training: whether dropout is on.
        """
        if self.item_features[0] + "_negatives" not in inputs:
            return {}
        negatives = self._embed_sequence(inputs, "_negatives", slice(None), mask)
        click = tf.concat([states[:, :-1], events[:, 1:]], axis=-1)
        noclick = tf.concat([states[:, :-1], negatives[:, 1:]], axis=-1)
        return {
            "aux_click_logits": net(click, training=training),
            "aux_noclick_logits": net(noclick, training=training),
            "aux_mask": mask[:, :-1] & mask[:, 1:],
        }


class PlainSIM(PlainModel):
    """SIM: a search over the long history (GSU), then attention, DIEN and an MLP (ESU).

    Stage one scores the long history against the target, and its k best events go to stage two.
    Loss: half the sum of both stages' cross-entropies, plus DIEN's auxiliary loss.

    Args:
      user_features: table rows of each user feature, by name.
      item_features: table rows of each item feature, by name.
      embedding_dim: D; the parameter `embedding_dim` of NVIDIA's SIM.
      long_seq_length: L.
      k: events that stage one hands to stage two (SIM paper, section 4.2, and NVIDIA's recipe).
      stage_one_mlp_dims: hidden units of the stage-one classifier.
      stage_two_mlp_dims: hidden units of the stage-two classifier.
      aux_mlp_dims: hidden units of the auxiliary net.
      attention_dims: hidden units of DIEN's attention unit.
      dropout_rate: of all three MLPs; 0 or less disables it.
      category_feature: None for the soft search (inner product). The name of an item feature
        turns on the hard search: stage one attends to events of the target's category only, and
        the k latest of them are kept.

    Outputs: `logits` and `gsu_logits` `[B]`; with negatives also `aux_click_logits`,
    `aux_noclick_logits` and `aux_mask`, `[B, S - 1]`.
    """

    def __init__(
        self,
        user_features: Mapping[str, int],
        item_features: Mapping[str, int],
        *,
        embedding_dim: int = 16,
        long_seq_length: int = 90,
        k: int = 50,
        stage_one_mlp_dims: Sequence[int] = (200,),
        stage_two_mlp_dims: Sequence[int] = (200, 80),
        aux_mlp_dims: Sequence[int] = (100, 50),
        attention_dims: Sequence[int] = (80, 40),
        dropout_rate: float = 0.0,
        category_feature: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            user_features,
            item_features,
            embedding_dim=embedding_dim,
            long_seq_length=long_seq_length,
            name=name,
        )
        self.k = k
        self.category_feature = category_feature
        self.stage_one = MLP(stage_one_mlp_dims, dropout_rate=dropout_rate, name="stage_one")
        self.stage_two = MLP(stage_two_mlp_dims, dropout_rate=dropout_rate, name="stage_two")
        self.auxiliary_net = MLP(aux_mlp_dims, "sigmoid", dropout_rate, name="auxiliary_net")
        self.interest_evolution = InterestEvolution(
            UNITS_PER_EMBEDDING_DIM * embedding_dim, attention_dims, name="interest_evolution"
        )

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Scores a batch; see `PlainModel` for inputs, the class for outputs."""
        user = self._embed_user(inputs)
        target = self._embed_target(inputs)
        mask = self._mask(inputs)
        long_slots, short_slots = slice(0, self.long_seq_length), slice(self.long_seq_length, None)
        long_mask, short_mask = mask[:, long_slots], mask[:, short_slots]

        # Stage one: general search unit.
        long = self._embed_sequence(inputs, "_history", long_slots, long_mask)  # [B, L, E]
        searched = self._searched(inputs, long_mask)  # [B, L]
        interest, scores = dot_attention(target, long, searched)
        gsu_logits = self.stage_one(tf.concat([target, interest, user], -1), training=training)

        # Stage two: exact search unit.
        best, best_mask = select_top_k(long, self._priority(scores), searched, self.k)
        attended, _ = dot_attention(target, best, best_mask)
        mean = masked_mean(best, best_mask)
        short = self._embed_sequence(inputs, "_history", short_slots, short_mask)  # [B, S, E]
        evolved, states = self.interest_evolution(target, short, short_mask)
        logits = self.stage_two(
            tf.concat([attended, mean, target, evolved, user], -1), training=training
        )
        auxiliary = self._auxiliary_outputs(
            inputs, self.auxiliary_net, states, short, short_mask, training
        )
        return {"gsu_logits": gsu_logits, "logits": logits, **auxiliary}

    def _searched(self, inputs: Mapping[str, tf.Tensor], long_mask: tf.Tensor) -> tf.Tensor:
        """The long slots that the search may use, `[B, L]` bool."""
        if self.category_feature is None:
            return long_mask
        history = inputs[self.category_feature + "_history"][:, : self.long_seq_length]
        return long_mask & (history == tf.reshape(inputs[self.category_feature], [-1, 1]))

    def _priority(self, scores: tf.Tensor) -> tf.Tensor:
        """What decides which k slots are kept, `[B, L]`: the score, or how late the event is."""
        if self.category_feature is None:
            return scores
        return tf.cast(tf.range(tf.shape(scores)[1]), tf.float32) * tf.ones_like(scores, tf.float32)


class PlainDIN(PlainModel):
    """DIN: inner-product attention over the whole history, then an MLP.

    Args:
      user_features: table rows of each user feature, by name.
      item_features: table rows of each item feature, by name.
      embedding_dim: D.
      mlp_dims: hidden units of the classifier.
      dropout_rate: of the classifier; 0 or less disables it.
    """

    def __init__(
        self,
        user_features: Mapping[str, int],
        item_features: Mapping[str, int],
        *,
        embedding_dim: int = 16,
        mlp_dims: Sequence[int] = (200, 80),
        dropout_rate: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(user_features, item_features, embedding_dim=embedding_dim, name=name)
        self.classifier = MLP(mlp_dims, dropout_rate=dropout_rate, name="classifier")

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Scores a batch: `{"logits": [B]}`."""
        user = self._embed_user(inputs)
        target = self._embed_target(inputs)
        mask = self._mask(inputs)
        history = self._embed_sequence(inputs, "_history", slice(None), mask)  # [B, T, E]
        interest, _ = dot_attention(target, history, mask)
        features = tf.concat([target, interest, user], -1)
        return {"logits": self.classifier(features, training=training)}


class PlainDIEN(PlainModel):
    """DIEN: interest evolution over the short history, then an MLP.

    Args:
      user_features: table rows of each user feature, by name.
      item_features: table rows of each item feature, by name.
      embedding_dim: D.
      long_seq_length: L; the slots before it are not looked at.
      mlp_dims: hidden units of the classifier.
      aux_mlp_dims: hidden units of the auxiliary net.
      attention_dims: hidden units of the attention unit.
      dropout_rate: of both MLPs; 0 or less disables it.

    Outputs: `logits` `[B]`; with negatives also `aux_click_logits`, `aux_noclick_logits` and
    `aux_mask`, `[B, S - 1]`.
    """

    def __init__(
        self,
        user_features: Mapping[str, int],
        item_features: Mapping[str, int],
        *,
        embedding_dim: int = 16,
        long_seq_length: int = 90,
        mlp_dims: Sequence[int] = (200, 80),
        aux_mlp_dims: Sequence[int] = (100, 50),
        attention_dims: Sequence[int] = (80, 40),
        dropout_rate: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(
            user_features,
            item_features,
            embedding_dim=embedding_dim,
            long_seq_length=long_seq_length,
            name=name,
        )
        self.classifier = MLP(mlp_dims, dropout_rate=dropout_rate, name="classifier")
        self.auxiliary_net = MLP(aux_mlp_dims, "sigmoid", dropout_rate, name="auxiliary_net")
        self.interest_evolution = InterestEvolution(
            UNITS_PER_EMBEDDING_DIM * embedding_dim, attention_dims, name="interest_evolution"
        )

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Scores a batch; see the class for outputs."""
        user = self._embed_user(inputs)
        target = self._embed_target(inputs)
        slots = slice(self.long_seq_length, None)
        mask = self._mask(inputs)[:, slots]
        short = self._embed_sequence(inputs, "_history", slots, mask)  # [B, S, E]
        evolved, states = self.interest_evolution(target, short, mask)
        logits = self.classifier(tf.concat([target, evolved, user], -1), training=training)
        auxiliary = self._auxiliary_outputs(
            inputs, self.auxiliary_net, states, short, mask, training
        )
        return {"logits": logits, **auxiliary}


def _activation(name: str) -> tf.keras.layers.Layer:
    if name == "prelu":
        return tf.keras.layers.PReLU(alpha_initializer=tf.keras.initializers.Constant(0.1))
    return tf.keras.layers.Activation(name)


def _table_initializer(rows: int) -> tf.keras.initializers.Initializer:
    limit = (1.0 / rows) ** 0.5
    return tf.keras.initializers.RandomUniform(-limit, limit)

"""Batches for the fused steps of SIM, DIEN and DIN, and the same in formulas of float64.

The formulas are the papers', written without our layers; TensorFlow differentiates them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Array = npt.NDArray[Any]

GROUPS = ("target", "long", "short", "negative", "user")
"""Whose parts there are, in the order of the operations' ids and vectors."""


@dataclasses.dataclass
class Case:
    """What a batch and a model are like; parts are numbers of tables, -1 for vectors."""

    model: str
    users: int = 5  # B
    candidates: int = 2
    long: int = 21
    short: int = 6
    width: int = 16
    k: int = 7
    hard: bool = False
    time_features: bool = False
    unit: bool = False
    target_parts: tuple[int, ...] = (0, 1)
    event_parts: tuple[int, ...] = (0, 1)  # the item's first
    user_parts: tuple[int, ...] = (2,)
    auxiliary: tuple[int, ...] = (20, 10)
    stage_one: tuple[int, ...] = (24,)
    stage_two: tuple[int, ...] = (24, 18)
    rate: float | None = None
    rows: int = 30  # of each table
    exist: float = 0.7  # of the events
    padding: str = ""  # "before" or "after" the events, of another length for each user
    seed: int = 0


class Batch:
    """Random inputs of a case, as the operations take them."""

    def __init__(self, case: Case) -> None:
        self.case = c = case
        self.random = np.random.default_rng(case.seed)
        self.lists = {"target": c.target_parts, "user": c.user_parts}
        if c.model != "dien":
            self.lists["long"] = c.event_parts
        if c.model != "din":
            self.lists |= {"short": c.event_parts, "negative": c.event_parts}
        count = 1 + max((0, *c.target_parts, *c.event_parts, *c.user_parts))
        self.tables = [tf.Variable(self._floats(c.rows, c.width)) for _ in range(count)]
        self.shapes = {
            "target": (c.users, c.candidates),
            "long": (c.users, c.long),
            "short": (c.short, c.users),
            "negative": (c.short, c.users),
            "user": (c.users,),
        }
        self.ids: list[Array] = []
        self.vectors: list[Array] = []
        for group in GROUPS:
            for table in self.lists.get(group, ()):
                shape = self.shapes[group]
                if table < 0:
                    self.vectors.append(self._floats(*shape, c.width))
                else:
                    self.ids.append(self.random.integers(0, c.rows, shape).astype(np.int32))
        self.long_mask = self._mask(c.long)
        self.short_mask = self._mask(c.short).T
        if c.users > 2:
            self.long_mask[1] = self.short_mask[:, 2] = False  # nothing there
        self.target_category = self.random.integers(0, 3, self.shapes["target"]).astype(np.int32)
        self.long_category = self.random.integers(0, 3, self.shapes["long"]).astype(np.int32)
        self.labels = self.random.integers(0, 2, self.shapes["target"]).astype(np.float32)
        self.scales = np.array([0.3, 0.2, 0.7], np.float32)
        self.weights = [self._floats(*shape) * scale for shape, scale in self._weights(True)]
        self.dropout: list[Array] = []
        if c.rate is not None:
            widths = [c.stage_one[-1]] * (c.model == "sim") + [c.stage_two[-1]]
            for width in widths:
                kept = self.random.random((c.users * c.candidates, width)) >= c.rate
                self.dropout.append((kept / (1 - c.rate)).astype(np.float32))

    def _mask(self, steps: int) -> Array:
        """Of ``[B, steps]``."""
        mask: Array = self.random.random((self.case.users, steps)) < self.case.exist
        padding = self.random.integers(0, steps + 1, (self.case.users, 1))
        if self.case.padding == "before":
            mask &= np.arange(steps) >= padding
        elif self.case.padding == "after":
            mask &= np.arange(steps) < padding
        return mask

    def _floats(self, *shape: int) -> Array:
        return self.random.normal(size=shape).astype(np.float32) * np.float32(0.5)

    def _weights(self, training: bool) -> Iterator[tuple[tuple[int, ...], float]]:
        """Shapes of the weights, in order, and how large they are beside 0.5."""
        c = self.case
        items, events, users = (
            c.width * len(parts) for parts in (c.target_parts, c.event_parts, c.user_parts)
        )

        def dense(inputs: int, outputs: int) -> Iterator[tuple[tuple[int, ...], float]]:
            yield (inputs, outputs), 2 / np.sqrt(inputs)
            yield (outputs,), 0.5

        def recurrent(inputs: int, units: int) -> Iterator[tuple[tuple[int, ...], float]]:
            yield (inputs, 3 * units), 2 / np.sqrt(inputs)
            yield (units, 3 * units), 2 / np.sqrt(units)
            yield (3 * units,), 0.5

        def attention(width: int) -> Iterator[tuple[tuple[int, ...], float]]:
            for inputs, outputs in ((4 * width, 80), (80, 40), (40, 1)):
                yield from dense(inputs, outputs)

        def mlp(inputs: int, widths: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], float]]:
            for width in widths:
                yield from dense(inputs, width)
                yield (width,), 0.5
                inputs = width
            yield from dense(inputs, 1)

        units = 6 * c.width
        if c.model != "din":
            yield from recurrent(events, units)
            yield from recurrent(units, units)
            yield from dense(items, units)
            yield (1, units), 0.5
            yield from attention(units)
            if training:
                inputs = units + events
                for width in (*c.auxiliary, 1):
                    yield from dense(inputs, width)
                    inputs = width
        elif c.unit:
            yield from attention(items)
        if c.model == "sim":
            if training:
                yield from mlp(2 * items + users, c.stage_one)
            yield from mlp(2 * events + items + units + users, c.stage_two)
            if c.time_features:
                yield (c.width, 1), 1.0
        else:
            yield from mlp(items + users + (units if c.model == "dien" else events), c.stage_two)

    def order(self, looked_up: bool = True) -> list[str]:
        """Of each of `ids`, or of `vectors`, whose it is."""
        parts = [(g, table) for g in GROUPS for table in self.lists.get(g, ())]
        return [group for group, table in parts if (table >= 0) == looked_up]

    def slopes(self) -> list[Array]:
        """PReLU's, which follow their layer's bias and are of its shape."""
        pairs = zip(self.weights, self.weights[1:], strict=False)
        return [w for b, w in pairs if w.size == b.size > 1 and 1 in (w.ndim, len(w))]

    def scoring_weights(self) -> list[Array]:
        """Those that scoring takes."""
        shapes, kept = [shape for shape, _ in self._weights(False)], []
        left = iter(self.weights)
        for shape in shapes:
            kept.append(next(weight for weight in left if weight.shape == shape))
        assert [weight.shape for weight in kept] == shapes
        return kept

    def arguments(self, training: bool, precision: str = "float32") -> dict[str, Any]:
        """What the operation is called with."""
        c = self.case
        lists = {
            f"{group}_parts": list(parts)
            for group, parts in self.lists.items()
            if training or group != "negative"
        }
        ids, vectors = list(self.ids), list(self.vectors)
        if not training:
            ids = [i for i, g in zip(ids, self.order(), strict=True) if g != "negative"]
            groups = self.order(looked_up=False)
            vectors = [v for v, g in zip(vectors, groups, strict=True) if g != "negative"]
        given: dict[str, Any] = {
            "tables": [table.handle for table in self.tables],
            "ids": [tf.constant(i) for i in ids],
            "vectors": [tf.constant(v) for v in vectors],
            "weights": [
                tf.constant(w) for w in (self.weights if training else self.scoring_weights())
            ],
            "stage_two_layers": len(c.stage_two),
            "precision": precision,
            **lists,
        }
        if c.model != "dien":
            given["long_mask"] = self.long_mask
        if c.model != "din":
            given["short_mask"] = self.short_mask
        if c.model == "din":
            given["interaction"] = "activation_unit" if c.unit else "dot"
        if c.model == "sim":
            given |= {"k": c.k, "hard": c.hard, "time_features": c.time_features}
            given["target_category"] = self.target_category if c.hard else np.zeros(0, np.int32)
            given["long_category"] = self.long_category if c.hard else np.zeros(0, np.int32)
        if training:
            given |= {"labels": self.labels, "scales": self.scales, "dropout": self.dropout}
            if c.model != "din":
                given["auxiliary_layers"] = len(c.auxiliary)
            if c.model == "sim":
                given["stage_one_layers"] = len(c.stage_one)
        return given


@dataclasses.dataclass
class Result:
    """What an operation gives, in NumPy; gradients as lists."""

    sums: Array
    total: Array
    logits: Array
    weights: list[Array]
    tables: list[Array]  # [rows, D], summed
    vectors: list[Array]


def by_formulas(batch: Batch) -> Result:
    """The same in float64."""
    double = [tf.Variable(tf.cast(table, tf.float64)) for table in batch.tables]
    vectors = [tf.Variable(v.astype(np.float64)) for v in batch.vectors]
    weights = [tf.Variable(w.astype(np.float64)) for w in batch.weights]
    with tf.GradientTape() as tape:
        sums, logits = _forward(batch, double, vectors, weights)
        total = tf.reduce_sum(sums * batch.scales.astype(np.float64))
    unconnected = tf.UnconnectedGradients.ZERO
    found = tape.gradient(total, [double, vectors, weights], unconnected_gradients=unconnected)
    of_tables = [tf.convert_to_tensor(g).numpy() for g in found[0]]
    return Result(
        sums.numpy(),
        total.numpy(),
        logits.numpy(),
        [g.numpy() for g in found[2]],
        of_tables,
        [g.numpy() for g in found[1]],
    )


def _softmax(scores: tf.Tensor, mask: tf.Tensor, axis: int) -> tf.Tensor:
    peak = tf.reduce_max(tf.where(mask, scores, tf.float64.min), axis, keepdims=True)
    exp = tf.where(mask, tf.exp(tf.where(mask, scores - peak, 0)), 0)
    return tf.math.divide_no_nan(exp, tf.reduce_sum(exp, axis, keepdims=True))


def _prelu(x: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    return tf.where(x < 0, x * slope, x)


def _recur(x: tf.Tensor, attention: tf.Tensor, w: Iterator[tf.Variable]) -> tf.Tensor:
    """States of ``x [S, ..., K]``, after each step; attention ``[S, ..., 1]``."""
    kernel, state_kernel, bias = next(w), next(w), next(w)
    units = state_kernel.shape[0]
    state, states = 0 * (attention[0] * tf.ones([units], tf.float64)), []
    for step, weight in zip(tf.unstack(x), tf.unstack(attention), strict=True):
        by_input = tf.split(step @ kernel + bias, 3, -1)
        by_state = tf.split(state @ state_kernel, 3, -1)
        update = weight * tf.sigmoid(by_input[0] + by_state[0])
        reset = tf.sigmoid(by_input[1] + by_state[1])
        proposal = tf.tanh(by_input[2] + reset * by_state[2])
        state = state + update * (proposal - state)
        states.append(state)
    return tf.stack(states)


def _attend(items: tf.Tensor, steps: tf.Tensor, w: Iterator[tf.Variable]) -> tf.Tensor:
    """Scores ``[S, C, B]`` of items ``[C, B, W]`` and steps ``[S, B, W]``."""
    shape = [steps.shape[0], *items.shape]
    i, s = tf.broadcast_to(items, shape), tf.broadcast_to(steps[:, tf.newaxis], shape)
    x = tf.concat([i, s, i - s, i * s], -1)
    for _ in range(2):
        x = tf.sigmoid(x @ next(w) + next(w))
    return (x @ next(w) + next(w))[..., 0]


def _mlp(x: tf.Tensor, layers: int, w: Iterator[tf.Variable], dropout: Array | None) -> tf.Tensor:
    for _ in range(layers):
        x = x @ next(w) + next(w)
        x = _prelu(x, next(w))
    if dropout is not None:
        x = x * tf.reshape(tf.cast(dropout, tf.float64), x.shape)
    return (x @ next(w) + next(w))[..., 0]


def _found(batch: Batch, scores: Array) -> tuple[Array, Array]:
    """Which events may be found, and which are: bool ``[B, C, L]``."""
    allowed = np.broadcast_to(batch.long_mask[:, np.newaxis], scores.shape).copy()
    keys = scores
    if batch.case.hard:
        allowed &= batch.target_category[:, :, np.newaxis] == batch.long_category[:, np.newaxis]
        keys = np.broadcast_to(np.arange(scores.shape[2]), scores.shape)
    order = np.argsort(-np.where(allowed, keys, -np.inf), axis=-1, kind="stable")
    found = np.zeros_like(allowed)
    np.put_along_axis(found, order[..., : batch.case.k], True, -1)
    return allowed, found & allowed


def _forward(
    batch: Batch, tables: list[tf.Variable], vectors: list[tf.Variable], weights: list[tf.Variable]
) -> tuple[tf.Tensor, tf.Tensor]:
    c, w = batch.case, iter(weights)
    ids, given, embedded = iter(batch.ids), iter(vectors), {}
    for group in GROUPS:
        parts = [
            tf.gather(tables[t], next(ids)) if t >= 0 else tf.identity(next(given))
            for t in batch.lists.get(group, ())
        ]
        empty = tf.zeros([*batch.shapes[group], 0], tf.float64)
        embedded[group] = tf.concat([*parts, empty], -1)
    target = embedded["target"]  # [B, C, E]
    items = target.shape[-1]
    user = tf.repeat(embedded["user"][:, tf.newaxis], c.candidates, 1)
    sums = [tf.zeros([], tf.float64)] * 3
    by_candidate = tf.transpose(target, [1, 0, 2])  # [C, B, E]
    if c.model != "din":
        valid = batch.short_mask.astype(np.float64)[..., np.newaxis]
        states, evolve, project, attend = _evolution_weights(w)
        hidden = _recur(embedded["short"], tf.constant(valid), iter(states))  # [S, B, H]
        projected = _prelu(by_candidate @ project[0] + project[1], project[2])
        scores = _attend(projected, hidden, iter(attend))
        attention = _softmax(scores, batch.short_mask[:, np.newaxis], 0)
        final = _recur(hidden[:, tf.newaxis], attention[..., tf.newaxis], iter(evolve))[-1]
        final = tf.transpose(final, [1, 0, 2])  # [B, C, H]
        sums[2] = _auxiliary(batch, hidden, embedded, w)
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits
    labels = batch.labels.astype(np.float64)
    dropout = iter(batch.dropout or [None, None])
    if c.model == "dien":
        x = tf.concat([target, final, user], -1)
    elif c.model == "din":
        events = embedded["long"]
        if c.unit:
            steps = tf.transpose(events[..., :items], [1, 0, 2])
            scores = tf.transpose(_attend(by_candidate, steps, w), [2, 1, 0])
        else:
            scores = tf.matmul(target, events[..., :items], transpose_b=True)
        attention = _softmax(scores, batch.long_mask[:, np.newaxis], -1)
        x = tf.concat([target, attention @ events, user], -1)
    else:
        events = embedded["long"]
        scores = tf.matmul(target, events[..., :items], transpose_b=True)
        allowed, found = _found(batch, scores.numpy())
        exact = scores
        if c.time_features:
            gap = events[..., -c.width :] @ weights[-1]  # [B, L, 1]
            exact = scores + tf.transpose(gap, [0, 2, 1])
        searched = _softmax(scores, allowed, -1) @ events[..., :items]
        attended = _softmax(exact, found, -1) @ events
        mean = found / np.maximum(1, found.sum(-1, keepdims=True))
        one = tf.concat([target, searched, user], -1)
        logits = _mlp(one, len(c.stage_one), w, next(dropout))
        sums[1] = tf.reduce_sum(cross_entropy(labels, logits))
        x = tf.concat([attended, tf.constant(mean) @ events, target, final, user], -1)
    logits = _mlp(x, len(c.stage_two), w, next(dropout))
    sums[0] = tf.reduce_sum(cross_entropy(labels, logits))
    return tf.stack(sums), logits


def _evolution_weights(w: Iterator[tf.Variable]) -> tuple[list[tf.Variable], ...]:
    """Of the GRU, the AUGRU, the projection and the activation unit."""
    return tuple([next(w) for _ in range(count)] for count in (3, 3, 3, 6))


def _auxiliary(
    batch: Batch, hidden: tf.Tensor, embedded: dict[str, tf.Tensor], w: Iterator[tf.Variable]
) -> tf.Tensor:
    weights = [next(w) for _ in range(2 * len(batch.case.auxiliary) + 2)]
    valid = (batch.short_mask[:-1] & batch.short_mask[1:]).astype(np.float64)
    loss = tf.zeros([], tf.float64)
    for group, sign in (("short", -1), ("negative", 1)):
        x = tf.concat([hidden[:-1], embedded[group][1:]], -1)
        for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            x = tf.sigmoid(x @ kernel + bias)
        logits = (x @ weights[-2] + weights[-1])[..., 0]
        loss += tf.reduce_sum(tf.nn.softplus(sign * logits) * valid)
    return loss

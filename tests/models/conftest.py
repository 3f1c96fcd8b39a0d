"""The papers' formulas in NumPy, one sample at a time in float64, and what compares with them."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from tensorflow.keras.layers import PReLU

from lookback.formats.features import HistoryFeatures
from lookback.formats.history_columns import ROLES

Array = np.ndarray

# --- formulas ---


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(scores: Array) -> Array:
    exp = np.exp(scores - scores.max())
    return exp / exp.sum()


def masked_softmax(scores: Array, mask: Array) -> Array:
    """Over one axis: zero where the mask is false, all zero if it is nowhere true."""
    weights = np.zeros(len(scores))
    if mask.any():
        weights[mask] = softmax(np.asarray(scores)[mask])
    return weights


def dense(x, kernel, bias):
    return x @ kernel + bias


def mlp(x: Array, weights: Sequence[Array], activation: Callable[[Array], Array]) -> float:
    """Hidden layers with kernel and bias, then one logit."""
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = activation(dense(x, kernel, bias))
    return float(dense(x, weights[-2], weights[-1])[0])


def prelu_layers(x: Array, weights: Sequence[Array]) -> Array:
    """Dense + PReLU, three weights a layer."""
    for kernel, bias, slope in zip(weights[::3], weights[1::3], weights[2::3], strict=True):
        x = dense(x, kernel, bias)
        x = np.where(x > 0, x, slope * x)
    return x


def activation_unit(item: Array, step: Array, weights: Sequence[Array]) -> float:
    """DIN, figure 2, on ``[i, s, i - s, i * s]`` with sigmoids."""
    return mlp(np.concatenate([item, step, item - step, item * step]), weights, sigmoid)


def gru_step(x: Array, h: Array, weights: Sequence[Array], attention: float = 1.0) -> Array:
    """DIEN, equations 2 to 5, and section 4.3 for attention other than 1."""
    kernel, recurrent, bias = weights
    w_u, w_r, w_c = np.split(kernel, 3, axis=1)
    u_u, u_r, u_c = np.split(recurrent, 3, axis=1)
    b_u, b_r, b_c = np.split(bias, 3)
    u = sigmoid(x @ w_u + h @ u_u + b_u)
    r = sigmoid(x @ w_r + h @ u_r + b_r)
    c = np.tanh(x @ w_c + r * (h @ u_c) + b_c)
    u = attention * u
    return (1 - u) * h + u * c


def gru_states(steps: Array, mask: Array, weights: Sequence[Array]) -> Array:
    """``[S, D]`` to ``[S, H]``; masked steps keep the state."""
    h, states = np.zeros(weights[1].shape[0]), []
    for x, valid in zip(steps, mask, strict=True):
        h = gru_step(x, h, weights) if valid else h
        states.append(h)
    return np.stack(states)


def augru_final(steps: Array, attention: Array, weights: Sequence[Array]) -> Array:
    h = np.zeros(weights[1].shape[0])
    for x, a in zip(steps, attention, strict=True):
        h = gru_step(x, h, weights, a)
    return h


def auxiliary_terms(
    states: Array, clicks: Array, negatives: Array, mask: Array, weights: Sequence[Array]
) -> list[float]:
    """DIEN, equation 6, one history: a term for each pair of valid neighbours."""
    terms = []
    for t in range(len(mask) - 1):
        if mask[t] and mask[t + 1]:
            click = mlp(np.concatenate([states[t], clicks[t + 1]]), weights, sigmoid)
            noclick = mlp(np.concatenate([states[t], negatives[t + 1]]), weights, sigmoid)
            terms.append(np.logaddexp(0, -click) + np.logaddexp(0, noclick))
    return terms


def evolve(
    target: Array, steps: Array, mask: Array, w: Mapping[str, Sequence[Array]]
) -> tuple[Array, Array]:
    """DIEN's two recurrences for one sample: final state ``[H]`` and GRU states ``[S, H]``."""
    states = gru_states(steps, mask, w["extractor"])
    item = dense(target, *w["project"])
    item = np.where(item > 0, item, w["slope"][0].reshape(-1) * item)
    scores = np.array([activation_unit(item, state, w["attention"]) for state in states])
    return augru_final(states, masked_softmax(scores, mask), w["evolution"]), states


def cross_entropy(labels, logits) -> float:
    sign = 1 - 2 * np.asarray(labels, np.float64)
    return float(np.mean(np.logaddexp(0, sign * np.asarray(logits, np.float64))))


# --- whole models ---


class NumpyModel:
    """A model's forward pass, one candidate of one history at a time.

    Args:
      kind: "sim", "din" or "dien".
      weights: float64 arrays by role, see `parts_of`.
      config: the model's.
      features: the dataset's columns by role.
    """

    def __init__(self, kind, weights, config, features) -> None:
        self.kind, self.w, self.config, self.features = kind, weights, config, features

    def __call__(self, batch: Mapping[str, Array], labels: Array) -> dict[str, Any]:
        """``logits`` and, in SIM, ``gsu_logits`` ``[B, C]``; the losses."""
        B, C = labels.shape
        outputs = {"logits": np.zeros((B, C)), "gsu_logits": np.zeros((B, C))}
        terms: list[float] = []
        for b in range(B):
            for c in range(C):
                logit, gsu_logit = getattr(self, f"_{self.kind}")(batch, b, c)
                outputs["logits"][b, c], outputs["gsu_logits"][b, c] = logit, gsu_logit
            if self.kind != "din":
                terms += self._auxiliary(batch, b)
        losses = {"head": cross_entropy(labels, outputs["logits"])}
        if self.kind == "sim":
            losses["head"] *= 0.5
            losses["gsu"] = 0.5 * cross_entropy(labels, outputs["gsu_logits"])
        if self.kind != "din":
            losses["aux"] = float(np.mean(terms)) if terms else 0.0
        return {**outputs, "losses": losses, "loss": sum(losses.values())}

    def _vectors(self, role, values_of):
        """Of a role's features, whose values ``[...]`` (bags ``[..., M]``) go by name."""
        vectors = []
        for name in getattr(self.features, role):
            ids, table = values_of(name), self.w["tables"][name]
            if name in self.features.bags:
                kept = [table[bag[bag > 0]] for bag in ids.reshape(-1, ids.shape[-1])]
                means = [rows.mean(0) if len(rows) else 0 * table[0] for rows in kept]
                vectors.append(np.reshape(means, (*ids.shape[:-1], -1)))
            else:
                vectors.append(table[ids])
        numbers = [values_of(name) for name in self.features.numbers_of(role)]
        if numbers:
            vectors.append(dense(np.stack(numbers, -1), *self.w[f"{role}_numbers"]))
        return vectors

    def _user(self, batch, b):
        own, context = (self._vectors(r, lambda n: batch[n][b]) for r in ("user", "context"))
        return np.concatenate([*own, *context])

    def _target(self, batch, b, c):
        return np.concatenate(self._vectors("item", lambda n: batch[n][b, c]))

    def _events(self, batch, b, slots, suffix="_history"):
        """``[slots, E']``, and which of them exist."""
        first = batch[f"{self.features.item[0]}_history"][b, slots]

        def past(n):
            return batch[f"{n}_history"][b, slots]

        parts = self._vectors(
            "item", past if suffix == "_history" else lambda n: batch[n + suffix][b]
        )
        parts += [*self._vectors("context", past), *self._vectors("event", past)]
        if self.config.time_features:
            parts.append(self.w["tables"]["time_gap"][past("time_gap")])
        return np.concatenate(parts, 1), first > 0

    def _short(self):
        return slice(self.config.long_seq_length, None)

    def _auxiliary(self, batch, b):
        steps, mask = self._events(batch, b, self._short())
        negatives, _ = self._events(batch, b, self._short(), "_negatives")
        states = gru_states(steps, mask, self.w["extractor"])
        return auxiliary_terms(states, steps, negatives, mask, self.w["auxiliary"])

    def _head(self, inputs):
        hidden = prelu_layers(inputs, self.w["stage_two"])
        return float(dense(hidden, *self.w["head"])[0])

    def _din(self, batch, b, c):
        target = self._target(batch, b, c)
        events, mask = self._events(batch, b, slice(None))
        items = events[:, : len(target)]
        if self.config.interaction == "dot":
            scores = items @ target
        else:
            scores = np.array([activation_unit(target, s, self.w["attention"]) for s in items])
        interest = masked_softmax(scores, mask) @ events
        return self._head(np.concatenate([target, interest, self._user(batch, b)])), 0.0

    def _dien(self, batch, b, c):
        target = self._target(batch, b, c)
        final, _ = evolve(target, *self._events(batch, b, self._short()), self.w)
        return self._head(np.concatenate([target, final, self._user(batch, b)])), 0.0

    def _sim(self, batch, b, c):
        target, user = self._target(batch, b, c), self._user(batch, b)
        long = slice(0, self.config.long_seq_length)
        events, mask = self._events(batch, b, long)
        items = events[:, : len(target)]
        scores = items @ target
        if self.config.gsu == "hard":
            category = self.config.category_feature or self.features.item[1]
            mask = mask & (batch[f"{category}_history"][b, long] == batch[category][b, c])
        interest = masked_softmax(scores, mask) @ items
        hidden = prelu_layers(np.concatenate([target, interest, user]), self.w["stage_one"])
        gsu_logit = float(dense(hidden, *self.w["stage_one_head"])[0])
        found = np.flatnonzero(mask)
        # Single precision, so that repeated events tie here too; among ties the earlier one wins.
        rank = -scores.astype(np.float32) if self.config.gsu == "soft" else -np.arange(len(scores))
        best = sorted(found, key=lambda t: (rank[t], t))[: self.config.k]
        attended = mean = np.zeros(events.shape[1])
        if best:
            exact = scores[best]
            if self.config.time_features:  # SIM, section 3.2.2
                gaps = events[best][:, -self.config.embedding_dim :]
                exact = exact + (gaps @ self.w["gap_score"][0])[:, 0]
            attended = softmax(exact) @ events[best]
            mean = events[best].mean(0)
        final, _ = evolve(target, *self._events(batch, b, self._short()), self.w)
        return self._head(np.concatenate([attended, mean, target, final, user])), gsu_logit


def parts_of(model) -> dict[str, Any]:
    """A built model's variables by role: the one place that knows where our models keep them."""
    body = model.body
    parts: dict[str, Any] = {"tables": dict(body.embeddings.table_variables)}
    parts["head"] = model.model_outputs[0].to_call.weights
    classifier = sublayer(body, "stage_two") or sublayer(body, "classifier")
    parts["stage_two"] = classifier.weights
    for name in (*(f"{role}_numbers" for role in ROLES), "stage_one", "stage_one_head"):
        if (layer := sublayer(body, name)) is not None:
            parts[name] = layer.weights
    if gaps := [weight for weight in body.weights if "gap_score" in weight.name]:
        parts["gap_score"] = gaps
    if (evolution := sublayer(body, "evolution")) is not None:
        parts |= evolution_parts(evolution)
    elif (unit := sublayer(body, "attention")) is not None:
        parts["attention"] = unit.weights
    return parts


def evolution_parts(layer) -> dict[str, list[Any]]:
    """The variables of an InterestEvolution by role."""
    names = ("extractor", "project", "attention", "evolution", "auxiliary")
    parts = {name: sublayer(layer, name).weights for name in names}
    # Its one layer without a name of ours; those of the auxiliary net have other activations.
    return parts | {"slope": next(x for x in layer.submodules if isinstance(x, PReLU)).weights}


def sublayer(layer, name: str):
    """The layer inside another that has a name, the outermost of several; None if there is none."""
    named = (x for x in layer.submodules if name in (x.name, getattr(x, "block_name", None)))
    return next(named, None)


def features_of(model) -> HistoryFeatures:
    """What a body says it reads."""
    return HistoryFeatures(**model.body.get_config()["features"])


def values_of(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The same as float64 arrays."""
    return {
        role: (
            {n: v.numpy().astype(np.float64) for n, v in value.items()}
            if isinstance(value, Mapping)
            else [v.numpy().astype(np.float64) for v in value]
        )
        for role, value in parts.items()
    }


# --- comparison ---


def randomise(variables, seed: int = 1, scale: float = 0.4) -> None:
    """Gives weights (biases too) sizeable values, so that no term hides behind a zero."""
    rng = np.random.default_rng(seed)
    for variable in variables:
        if variable.dtype.is_floating:
            variable.assign(rng.normal(0, scale, variable.shape))


def assert_equals_formula(
    function: Callable[..., Any],
    formula: Callable[..., Array],
    inputs: Sequence[Array],
    variables: Sequence[Any] = (),
    *,
    entries: int = 20,
    rtol: float = 2e-5,
    gradient_rtol: float = 2e-3,
) -> None:
    """Compares forward pass and gradients of ours with a formula in NumPy.

    Gradients are those of a random weighted sum of the outputs; the formula's are central
    differences in float64, at `entries` random entries of each array.

    Args:
      function: ours, of float32 tensors.
      formula: of float64 arrays: the inputs, then the variables' values.
      inputs: float arrays.
      variables: that `function` reads.
      entries: how many to differentiate of each array.
      rtol: of outputs, relative to the largest.
      gradient_rtol: of gradients, relative to the largest.
    """
    import tensorflow as tf

    rng = np.random.default_rng(7)
    arrays = [np.asarray(value, np.float64) for value in inputs]
    arrays += [variable.numpy().astype(np.float64) for variable in variables]
    expected = np.asarray(formula(*arrays))
    weights = rng.normal(size=expected.shape)
    tensors = [tf.constant(value, tf.float32) for value in inputs]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        found = function(*tensors)
        total = tf.reduce_sum(tf.cast(found, tf.float32) * tf.constant(weights, tf.float32))
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
    gradients = tape.gradient(total, [*tensors, *variables])
    for number, (array, gradient) in enumerate(zip(arrays, gradients, strict=True)):
        gradient = np.zeros(array.shape) if gradient is None else gradient.numpy()
        chosen = rng.permutation(array.size)[:entries]
        numeric = [_slope(formula, arrays, number, index, weights) for index in chosen]
        scale = max(np.abs(numeric).max(), 1e-3)
        np.testing.assert_allclose(
            gradient.reshape(-1)[chosen],
            numeric,
            rtol=gradient_rtol,
            atol=gradient_rtol * scale,
            err_msg=f"gradient of argument {number} {array.shape}",
        )


def _slope(formula, arrays, number, index, weights, step=1e-5):
    values = []
    for sign in (1, -1):
        moved = [array.copy() for array in arrays]
        moved[number].reshape(-1)[index] += sign * step
        values.append(np.sum(np.asarray(formula(*moved)) * weights))
    return (values[0] - values[1]) / (2 * step)


@pytest.fixture(scope="session")
def formulas() -> types.SimpleNamespace:
    """All of the above by name."""
    return types.SimpleNamespace(
        **{name: value for name, value in globals().items() if callable(value)}
    )

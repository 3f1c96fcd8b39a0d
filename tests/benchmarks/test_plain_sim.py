"""The plain Keras models against a NumPy transcription of the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.benchmarks.baselines.plain_sim import (
    AUGRUCell,
    GRUCell,
    PlainDIEN,
    PlainDIN,
    PlainSIM,
    masked_mean,
    masked_softmax,
    one_row_per_candidate,
    select_top_k,
)

USERS = {"user_id": 7, "country": 4}
ITEMS = {"item_id": 30, "category_id": 6}
T, L = 9, 5
S = T - L
D = 3
H = 6 * D
K = 3


def make_batch(
    batch: int, seed: int = 0, lengths: list[int] | None = None
) -> dict[str, np.ndarray]:
    """A batch with histories of every length from 0 to T unless `lengths` says otherwise."""
    rng = np.random.default_rng(seed)
    lengths = lengths or [(i * 3) % (T + 1) for i in range(batch)]
    valid = np.arange(T)[None, :] >= T - np.asarray(lengths)[:, None]
    short = valid[:, L:]
    features = {name: rng.integers(1, rows, batch) for name, rows in USERS.items()}
    for name, rows in ITEMS.items():
        # Few categories, so that the hard search finds matches.
        features[name] = rng.integers(1, min(rows, 5), batch)
        features[name + "_history"] = rng.integers(1, min(rows, 5), (batch, T)) * valid
        features[name + "_negatives"] = rng.integers(1, rows, (batch, S)) * short
    return {name: value.astype(np.int32) for name, value in features.items()}


def randomise(model: tf.keras.Model, seed: int = 1) -> None:
    """Gives every weight (biases too) sizeable values, so that no term hides."""
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))


# --- the NumPy transcription, one sample at a time, in float64 ---


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    exp = np.exp(x - x.max())
    return exp / exp.sum()


def weights_of(layer):
    return [w.numpy().astype(np.float64) for w in layer.weights]


def mlp(layer, x):
    for dense, activation in zip(layer.hidden, layer.activations, strict=True):
        kernel, bias = weights_of(dense)
        x = x @ kernel + bias
        if activation.weights:
            (alpha,) = weights_of(activation)
            x = np.where(x > 0, x, alpha * x)
        else:
            x = sigmoid(x)
    kernel, bias = weights_of(layer.logit)
    return (x @ kernel + bias).item()


def embed(model, batch, row, suffix="", slot=None):
    parts = []
    for name in ITEMS:
        ids = batch[name + suffix][row]
        index = ids if slot is None else ids[slot]
        parts.append(model.tables[name].embeddings.numpy()[index])
    return np.concatenate(parts).astype(np.float64)


def embed_user(model, batch, row):
    return np.concatenate(
        [model.tables[name].embeddings.numpy()[batch[name][row]] for name in USERS]
    ).astype(np.float64)


def attend(target, events):
    if not events:
        return np.zeros_like(target)
    events = np.stack(events)
    return softmax(events @ target) @ events


def gru_step(cell, x, h, attention=1.0):
    kernel, recurrent, bias = weights_of(cell)
    w_u, w_r, w_c = np.split(kernel, 3, axis=1)
    u_u, u_r, u_c = np.split(recurrent, 3, axis=1)
    b_u, b_r, b_c = np.split(bias, 3)
    u = sigmoid(x @ w_u + h @ u_u + b_u)
    r = sigmoid(x @ w_r + h @ u_r + b_r)
    c = np.tanh(x @ w_c + r * (h @ u_c) + b_c)
    u = attention * u
    return (1 - u) * h + u * c


def evolve(layer, target, events):
    """Final AUGRU state and the GRU states of the valid events, oldest first."""
    h, states = np.zeros(H), []
    for event in events:
        h = gru_step(layer.gru.cell, event, h)
        states.append(h)
    if not states:
        return np.zeros(H), []
    kernel, bias = weights_of(layer.attention_unit.projection)
    (alpha,) = weights_of(layer.attention_unit.prelu)
    i = target @ kernel + bias
    i = np.where(i > 0, i, alpha * i)
    scores = [mlp(layer.attention_unit.mlp, np.concatenate([i, s, i - s, i * s])) for s in states]
    h = np.zeros(H)
    for state, a in zip(states, softmax(np.array(scores)), strict=True):
        h = gru_step(layer.augru.cell, state, h, a)
    return h, states


def auxiliary_terms(model, batch, row, events, states):
    """One value per pair of consecutive valid short events."""
    first = S - len(events)
    terms = []
    for t in range(len(events) - 1):
        negative = embed(model, batch, row, "_negatives", first + t + 1)
        click = mlp(model.auxiliary_net, np.concatenate([states[t], events[t + 1]]))
        noclick = mlp(model.auxiliary_net, np.concatenate([states[t], negative]))
        terms.append(np.logaddexp(0, -click) + np.logaddexp(0, noclick))
    return terms


def short_events(model, batch, row):
    ids = batch["item_id_history"][row]
    return [embed(model, batch, row, "_history", t) for t in range(L, T) if ids[t] > 0]


def numpy_sim(model, batch, hard=False):
    outputs = {"gsu_logits": [], "logits": [], "terms": []}
    for row in range(len(batch["user_id"])):
        user, target = embed_user(model, batch, row), embed(model, batch, row)
        slots = [t for t in range(L) if batch["item_id_history"][row, t] > 0]
        if hard:
            category = batch["category_id"][row]
            slots = [t for t in slots if batch["category_id_history"][row, t] == category]
        events = {t: embed(model, batch, row, "_history", t) for t in slots}
        interest = attend(target, list(events.values()))
        outputs["gsu_logits"].append(mlp(model.stage_one, np.concatenate([target, interest, user])))
        if hard:
            best = slots[::-1][:K]
        else:
            # float32, because ties between repeated events must tie here too.
            best = sorted(slots, key=lambda t: (-np.float32(events[t] @ target), t))[:K]
        best = [events[t] for t in best]
        attended = attend(target, best)
        mean = np.sum(best, axis=0) / max(len(best), 1) if best else np.zeros_like(target)
        short = short_events(model, batch, row)
        evolved, states = evolve(model.interest_evolution, target, short)
        outputs["logits"].append(
            mlp(model.stage_two, np.concatenate([attended, mean, target, evolved, user]))
        )
        outputs["terms"] += auxiliary_terms(model, batch, row, short, states)
    return outputs


def bce(labels, logits):
    sign = 1 - 2 * np.asarray(labels, np.float64)  # -log sigmoid(x) for 1, -log sigmoid(-x) for 0
    return np.mean(np.logaddexp(0, sign * np.asarray(logits)))


def sim(**options):
    return PlainSIM(USERS, ITEMS, embedding_dim=D, long_seq_length=L, k=K, **options)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("batch_size", [1, 20])
def test_sim_equals_the_formulas(hard, batch_size):
    model = sim(category_feature="category_id" if hard else None)
    batch = make_batch(batch_size, lengths=[T] if batch_size == 1 else None)
    model(batch)
    randomise(model)
    outputs = model(batch)
    expected = numpy_sim(model, batch, hard)
    np.testing.assert_allclose(outputs["gsu_logits"], expected["gsu_logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["logits"], expected["logits"], rtol=1e-4, atol=1e-5)

    labels = (np.arange(batch_size) % 2).astype(np.float32)
    expected_loss = 0.5 * (bce(labels, expected["gsu_logits"]) + bce(labels, expected["logits"]))
    expected_loss += np.mean(expected["terms"])
    assert model.compute_loss(y=labels, y_pred=outputs).numpy() == pytest.approx(
        expected_loss, rel=1e-4
    )


@pytest.mark.parametrize("lengths", [[0], [0, 0, 0], [1, 0, 2]], ids=str)
def test_empty_and_short_histories(lengths):
    model = sim()
    batch = make_batch(len(lengths), lengths=lengths)
    model(batch)
    randomise(model)
    labels = np.ones(len(lengths), np.float32)
    with tf.GradientTape() as tape:
        outputs = model(batch)
        loss = model.compute_loss(y=labels, y_pred=outputs)
    expected = numpy_sim(model, batch)
    np.testing.assert_allclose(outputs["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
    auxiliary = np.mean(expected["terms"]) if expected["terms"] else 0.0
    half = 0.5 * (bce(labels, expected["gsu_logits"]) + bce(labels, expected["logits"]))
    assert loss.numpy() == pytest.approx(half + auxiliary, rel=1e-4)
    for gradient in tape.gradient(loss, model.trainable_weights):
        gradient = tf.convert_to_tensor(gradient)
        assert np.isfinite(gradient.numpy()).all()


def test_history_shorter_than_k_keeps_all_of_it():
    batch = make_batch(8)
    model = PlainSIM(USERS, ITEMS, embedding_dim=D, long_seq_length=L, k=50)
    model(batch)
    randomise(model)
    wide = PlainSIM(USERS, ITEMS, embedding_dim=D, long_seq_length=L, k=L)
    wide(batch)
    wide.set_weights(model.get_weights())
    np.testing.assert_array_equal(model(batch)["logits"], wide(batch)["logits"])


def test_dien_equals_the_formulas():
    model = PlainDIEN(USERS, ITEMS, embedding_dim=D, long_seq_length=L)
    batch = make_batch(13)
    model(batch)
    randomise(model)
    outputs = model(batch)
    logits, terms = [], []
    for row in range(13):
        user, target = embed_user(model, batch, row), embed(model, batch, row)
        short = short_events(model, batch, row)
        evolved, states = evolve(model.interest_evolution, target, short)
        logits.append(mlp(model.classifier, np.concatenate([target, evolved, user])))
        terms += auxiliary_terms(model, batch, row, short, states)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-5)
    labels = np.zeros((13, 1), np.float32)
    assert model.compute_loss(y=labels, y_pred=outputs).numpy() == pytest.approx(
        bce(labels[:, 0], logits) + np.mean(terms), rel=1e-4
    )


def test_din_equals_the_formulas():
    model = PlainDIN(USERS, ITEMS, embedding_dim=D)
    batch = make_batch(13)
    model(batch)
    randomise(model)
    logits = []
    for row in range(13):
        user, target = embed_user(model, batch, row), embed(model, batch, row)
        ids = batch["item_id_history"][row]
        events = [embed(model, batch, row, "_history", t) for t in range(T) if ids[t] > 0]
        logits.append(mlp(model.classifier, np.concatenate([target, attend(target, events), user])))
    outputs = model(batch)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-5)
    labels = np.ones(13, np.float32)
    assert model.compute_loss(y=labels, y_pred=outputs).numpy() == pytest.approx(
        bce(labels, logits), rel=1e-4
    )


def test_targets_may_keep_their_candidate_axis():
    model = sim()
    batch = make_batch(5)
    column = {**batch, **{name: batch[name][:, None] for name in ITEMS}}
    np.testing.assert_array_equal(model(batch)["logits"], model(column)["logits"])


def test_no_auxiliary_net_without_negatives():
    model = sim()
    batch = {k: v for k, v in make_batch(4).items() if not k.endswith("_negatives")}
    assert set(model(batch)) == {"logits", "gsu_logits"}


@pytest.mark.slow
def test_fit_and_predict_with_an_unknown_batch_size():
    model = sim()
    model.compile(tf.keras.optimizers.Adam(0.03), run_eagerly=True)
    batch = make_batch(20)
    labels = (np.arange(20) % 2).astype(np.float32)
    history = model.fit(batch, labels, batch_size=8, epochs=6, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0] - 0.1
    model.run_eagerly = False
    assert model.predict(batch, batch_size=8, verbose=0)["logits"].shape == (20,)


def test_dropout_acts_in_training_only():
    model = sim(dropout_rate=0.5)
    batch = make_batch(6)
    np.testing.assert_array_equal(model(batch)["logits"], model(batch)["logits"])
    first, second = (model(batch, training=True)["logits"].numpy() for _ in range(2))
    assert np.abs(first - second).max() > 0


def test_each_prelu_has_one_slope_a_unit_and_tables_start_in_bounds():
    model = sim()
    model(make_batch(2))
    for layer in (*model.stage_one.activations, *model.stage_two.activations):
        (alpha,) = layer.get_weights()
        assert alpha.ndim == 1
        np.testing.assert_allclose(alpha, 0.1)
    (alpha,) = model.interest_evolution.attention_unit.prelu.get_weights()
    assert alpha.shape == (H,)
    for name, rows in {**USERS, **ITEMS}.items():
        table = model.tables[name].embeddings.numpy()
        assert table.shape == (rows, D)
        assert np.abs(table).max() <= rows**-0.5


def test_masked_softmax_of_an_empty_row_is_zero():
    scores = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], np.float32)
    mask = np.array([[True, False, True], [False, False, False]])
    e = np.exp([1.0, 3.0])
    expected = [[e[0] / e.sum(), 0, e[1] / e.sum()], [0, 0, 0]]
    np.testing.assert_allclose(masked_softmax(tf.constant(scores), mask), expected, rtol=1e-6)


def test_select_top_k_breaks_ties_by_index_and_mean_ignores_padding():
    sequence = tf.reshape(tf.range(8, dtype=tf.float32), [2, 4, 1])
    priority = tf.constant([[5.0, 1.0, 5.0, 5.0], [9.0, 1.0, 2.0, 3.0]])
    mask = tf.constant([[True, True, True, True], [False, False, True, False]])
    best, best_mask = select_top_k(sequence, priority, mask, 2)
    np.testing.assert_array_equal(best[0, :, 0], [0, 2])
    np.testing.assert_array_equal(best_mask, [[True, True], [True, False]])
    np.testing.assert_allclose(masked_mean(best, best_mask)[:, 0], [1.0, 6.0])
    np.testing.assert_array_equal(masked_mean(best, tf.zeros_like(best_mask)), [[0.0], [0.0]])


def test_augru_with_full_attention_is_gru_and_without_keeps_its_state():
    gru, augru = GRUCell(4), AUGRUCell(4)
    x, h = tf.random.normal([2, 3]), tf.random.normal([2, 4])
    expected, _ = gru(x, [h])
    augru((x, tf.ones([2, 1])), [h])
    augru.set_weights(gru.get_weights())
    np.testing.assert_allclose(augru((x, tf.ones([2, 1])), [h])[0], expected, rtol=1e-6)
    np.testing.assert_allclose(augru((x, tf.zeros([2, 1])), [h])[0], h, rtol=1e-6)


def test_one_row_per_candidate_repeats_the_history_for_each():
    batch = make_batch(3)
    pairs = {**batch, **{name: np.stack([batch[name], batch[name] + 1], 1) for name in ITEMS}}
    rows, labels = one_row_per_candidate(pairs, np.array([[1, 0]] * 3, np.float32))
    np.testing.assert_array_equal(labels, [1, 0, 1, 0, 1, 0])
    for name in ITEMS:
        np.testing.assert_array_equal(rows[name], pairs[name].reshape(-1))
    for name in ("user_id", "item_id_history", "category_id_negatives"):
        np.testing.assert_array_equal(rows[name], batch[name][[0, 0, 1, 1, 2, 2]])

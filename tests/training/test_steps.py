"""The shares of ranks add up to the batch: losses, gradients and flags, against one process."""

from __future__ import annotations

import dataclasses
import types

import merlin.models.tf as mm
import numpy as np
import pytest
import tensorflow as tf
from merlin.models.utils.schema_utils import create_categorical_column
from merlin.schema import Schema, Tags

from lookback.core.errors import UserError
from lookback.dataloading.evaluations import EvaluationPass
from lookback.embeddings.merlin import ShardedTable
from lookback.models import MODELS
from lookback.models.click_model import Contract, contract_of
from lookback.training.evaluation.evaluator import BinaryEvaluator
from lookback.training.evaluation.steps import EvaluationSteps
from lookback.training.optimizers import Optimizer
from lookback.training.precision import LossScale
from lookback.training.steps import Steps
from tests.training.test_trainer import poison_gradients

LENGTHS = [9, 0, 3, 7, 1, 8, 2, 9, 5, 0, 6, 4, 9]
SPLITS = {2: [9, 4], 3: [7, 0, 6], 4: [1, 5, 0, 7]}  # rows by rank
EACH = pytest.mark.parametrize(
    "name", [name for name, entry in MODELS.items() if entry.config_class.layout == "histories"]
)
# One model where a rank has nothing and another one row; those with more losses on fewer.
MODELS_AND_RANKS = [("din", 4), ("dien", 2), ("sim", 3)]

# The layers alone take a width that is no multiple of 16.
BY = pytest.mark.parametrize("dim", [3, 16], ids=["layers", "operation"])

pytestmark = pytest.mark.usefixtures("eagerly")


class Batches:
    """A few batches, or some rows of each, as a source; its feeds are their numbers."""

    grouped = True
    id_features = ()

    def __init__(self, batches, rows=slice(None), parts=1):
        self._batches, self._rows, self.parts = batches, rows, parts

    def train_feeds(self):
        yield from range(len(self._batches))

    def train_batch(self, feed):
        number, part = feed if isinstance(feed, tuple) else (feed, None)
        features, labels = self._batches[number]
        rows = np.arange(len(labels))[self._rows]
        if part is not None:
            rows = np.array_split(rows, self.parts)[part]
        return {n: tf.constant(v[rows]) for n, v in features.items()}, tf.constant(labels[rows])

    def parts_of(self, feed):
        return [(feed, part) for part in range(self.parts)]

    def groups(self, split, feed):
        return self.eval_batch(split, feed)[0]["user_id"]

    def history_lengths(self, features):
        return None

    def eval_batch(self, split, feed):
        assert split == "test"
        features, labels = self.train_batch(feed)
        return {n: v for n, v in features.items() if not n.endswith("_negatives")}, labels


@pytest.fixture
def make(make_schema, make_batch):
    """Makes copies of a model, alike in every weight."""

    def model_of(name, copies, **options):
        config = MODELS[name].config_class(
            **{"embedding_dim": 3, "max_seq_length": 9, "long_seq_length": 5, **options}
        )
        batch, _ = make_batch([1])
        models = []
        for _ in range(copies):
            tf.keras.utils.set_random_seed(5)
            model = MODELS[name](make_schema(), config)
            model({n: v for n, v in batch.items() if not n.endswith("_negatives")})
            models.append(model)
        return models

    return model_of


def rows_of(ranks, rank):
    bounds = np.concatenate([[0], np.cumsum(SPLITS[ranks])])
    return slice(int(bounds[rank]), int(bounds[rank + 1]))


def recorded(optimizer):
    """Makes the optimizer keep what it is to apply, rather than to apply it."""
    kept = []
    optimizer.apply = kept.append
    return kept


def dense_of(gradients, variables):
    return [
        np.zeros(v.shape) if g is None else tf.convert_to_tensor(g).numpy()
        for g, v in zip(gradients, variables, strict=True)
    ]


def step(model, source, world=None, **options):
    """One step: its result, and the gradients it would apply, those of tables last."""
    more = {} if world is None else {"world": world}
    optimizer = Optimizer("sgd", 0.1, 0.0, model, **more)
    kept = recorded(optimizer)
    steps = Steps(model, optimizer, source, options.pop("loss_scale", None), **more, **options)
    ((_, result),) = steps.train(iter([0]))
    variables = optimizer.variables_to_differentiate
    return (
        {name: value.numpy() for name, value in result.items()},
        dense_of(kept[0], variables),
        len(optimizer.dense),
    )


def by_hand(model, batch):
    """Losses and gradients of a batch without Steps: what the model says, added up."""
    features, labels = ({n: tf.constant(v) for n, v in batch[0].items()}, tf.constant(batch[1]))
    (output,) = model.model_outputs
    with tf.GradientTape() as tape:
        logits = model(features, targets=labels, training=True)
        losses = [output.default_loss(labels, logits), *model.losses]
        total = tf.add_n(losses)
    names = ["head_loss", *model.body.added_losses]
    tables = list(model.body.embeddings.table_variables.values())
    held = {id(table) for table in tables}
    variables = [v for v in model.trainable_variables if id(v) not in held] + tables
    found = {name: float(loss) for name, loss in zip(names, losses, strict=True)}
    gradients = dense_of(tape.gradient(total, variables), variables)
    return {**found, "total_loss": float(total)}, gradients


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"in_parts": ["micro_batches"]}, {"prefetch_ids": True}])
@pytest.mark.parametrize("name", ["sim", "dien", "din"])
def test_xla_finds_the_losses_and_gradients_of_the_layers(make, make_batch, name, options):
    batch = make_batch(LENGTHS)
    compiled, whole = make(name, 2)
    losses, gradients = by_hand(whole, batch)
    result, found, _ = step(compiled, Batches([batch]), xla=True, **options)
    for loss, expected in losses.items():
        assert result[loss] == pytest.approx(expected, rel=1e-5), loss
    assert result["finite"]
    for values, expected in zip(found, gradients, strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_xla_scales_losses_and_sees_what_is_not_finite(make, make_batch):
    models, batch = make("din", 3), make_batch(LENGTHS)
    plain = step(models[0], Batches([batch]), xla=True)[1]
    scaled = step(models[1], Batches([batch]), xla=True, loss_scale=LossScale())[1]
    for values, expected in zip(scaled, plain, strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-8)
    overflow = LossScale(float("inf"), dynamic=False)
    optimizer = Optimizer("sgd", 0.1, 0.0, models[2])
    steps = Steps(models[2], optimizer, Batches([batch]), overflow, xla=True)
    before = [variable.numpy() for variable in optimizer.variables_to_differentiate]
    ((_, result),) = steps.train(iter([0]))
    assert not result["finite"]
    for variable, expected in zip(optimizer.variables_to_differentiate, before, strict=True):
        np.testing.assert_array_equal(variable, expected)


@BY
@pytest.mark.slow
@pytest.mark.parametrize(("name", "ranks"), MODELS_AND_RANKS)
def test_shares_add_up_to_the_losses_and_gradients_of_the_batch(
    make, make_batch, in_ranks, name, ranks, dim
):
    """Ranks' means differ in what they are means of: rows, and steps of the auxiliary loss."""
    batch = make_batch(LENGTHS)
    *models, whole = make(name, ranks + 1, embedding_dim=dim)
    losses, gradients = by_hand(whole, batch)

    def work(world):
        return step(models[world.rank], Batches([batch], rows_of(ranks, world.rank)), world)

    answers = in_ranks(ranks, work)
    for result, _, _ in answers:
        assert set(result) == {*losses, "rows", "finite", "adapts", "stop"}
        for loss, expected in losses.items():
            assert result[loss] == pytest.approx(expected, rel=1e-6), loss
        assert (result["rows"], result["finite"], result["stop"]) == (26, True, 0)
    for number, expected in enumerate(gradients):
        found = [gradients[number] for _, gradients, _ in answers]
        dense = answers[0][2]
        # Dense gradients are summed over the ranks; here, each rank has tables of its own.
        total = found[0] if number < dense else np.sum(found, 0)
        np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-7)
        if number < dense:
            assert all(np.array_equal(values, found[0]) for values in found)


SHARES = [slice(0, 1), slice(1, 1), slice(1, 5)]  # rows of a batch of 5, by rank


def merlin_models(count):
    """Alike Merlin models of somebody's own over our tables; one weight is regularised."""
    schema = Schema(
        [
            create_categorical_column("item", 8, tags=[Tags.CATEGORICAL]),
            create_categorical_column("user", 5, tags=[Tags.CATEGORICAL]),
        ]
    )
    ids = {"item": np.array([1, 2, 4, 4, 0]), "user": np.array([1, 0, 3, 1, 3])}
    features = {name: value.astype(np.int32)[:, np.newaxis] for name, value in ids.items()}
    models = []
    for _ in range(count):
        tf.keras.utils.set_random_seed(3)
        embeddings = mm.Embeddings(schema, dim=4, table_cls=ShardedTable, seed=1)
        logit = tf.keras.layers.Dense(1, kernel_regularizer=tf.keras.regularizers.L2(0.3))
        loss = tf.keras.losses.BinaryCrossentropy(from_logits=True)
        head = mm.BinaryOutput("click", to_call=logit, default_loss=loss)
        models.append(mm.Model(mm.InputBlockV2(schema, categorical=embeddings), head))
        models[-1]({name: tf.constant(value) for name, value in features.items()})
    return models, (features, np.array([[1], [0], [1], [0], [1]], np.float32))


def test_a_merlin_model_of_one_s_own_trains_in_shares_with_the_losses_that_are_named(in_ranks):
    models, batch = merlin_models(3)
    logits = models[0]({name: tf.constant(value) for name, value in batch[0].items()}).numpy()
    cross_entropy = np.mean(np.log1p(np.exp(logits)) - batch[1] * logits)
    (kernel,) = (v for v in models[0].trainable_variables if v.shape.as_list() == [8, 1])
    penalty = 0.3 * np.square(kernel.numpy()).sum()

    def work(world):
        model = models[world.rank]
        contract = dataclasses.replace(contract_of(model), added_losses=("l2",))
        return step(model, Batches([batch], SHARES[world.rank]), world, contract=contract)

    for result, _, _ in in_ranks(3, work):
        assert result["head_loss"] == pytest.approx(cross_entropy, rel=1e-5)
        assert result["l2"] == pytest.approx(penalty, rel=1e-5)
        assert result["total_loss"] == pytest.approx(cross_entropy + penalty, rel=1e-5)


def test_a_loss_that_the_model_does_not_declare_is_refused():
    (model,), batch = merlin_models(1)
    with pytest.raises(ValueError, match=r"declares losses \['head_loss'\].* and 1 added ones"):
        step(model, Batches([batch]))


def test_a_model_of_several_tasks_is_refused():
    tasks = {"click": None, "buy": None}
    with pytest.raises(UserError, match=r"one task, received one of \['buy', 'click'\]"):
        Steps(None, None, None, None, contract=Contract(tasks))


def test_every_rank_hears_how_many_want_to_stop(make, make_batch, in_ranks):
    models, batch = make("din", 3), make_batch(LENGTHS)

    def work(world):
        model = models[world.rank]
        optimizer = Optimizer("sgd", 0.0, 0.0, model, world=world)
        source = Batches([batch] * 3, rows_of(3, world.rank))
        steps = Steps(model, optimizer, source, None, world=world)
        asked = iter([False, world.rank == 1, world.rank != 1])
        return [int(r["stop"]) for _, r in steps.train(source.train_feeds(), lambda: next(asked))]

    assert in_ranks(3, work) == [[0, 1, 2]] * 3


@pytest.mark.parametrize("scaled", [False, True])
def test_a_gradient_that_is_not_finite_on_one_rank_is_so_for_all(
    make, make_batch, in_ranks, scaled
):
    """With loss scaling all skip the step and halve their scale; without, the trainer stops."""
    models, batch = make("din", 3), make_batch(LENGTHS)
    scales = [LossScale(initial=8.0) for _ in range(3)]
    kept = [model.get_weights() for model in models]

    def work(world):
        model, scale = models[world.rank], scales[world.rank] if scaled else None
        optimizer = Optimizer("sgd", 0.1, 0.0, model, world=world)
        source = Batches([batch] * 2, rows_of(3, world.rank))
        steps = Steps(model, optimizer, source, scale, world=world)
        poison_gradients(model, steps=int(world.rank == 2))
        results = steps.train(source.train_feeds())
        _, first = next(results)
        after_first = model.get_weights()
        second = next(results)[1] if scaled else None
        assert first["adapts"] == scaled
        return bool(first["finite"]), after_first, second and bool(second["finite"])

    for rank, (first, weights, second) in enumerate(in_ranks(3, work)):
        assert not first
        if scaled:
            assert second
            assert scales[rank].scale == 4.0
            for found, before in zip(weights, kept[rank], strict=True):
                np.testing.assert_array_equal(found, before)
            moved = zip(models[rank].get_weights(), kept[rank], strict=True)
            assert any((found != before).any() for found, before in moved)


def trained(model, batches, **options):
    optimizer = Optimizer("adagrad", 0.1, 0.0, model)
    source = Batches(batches, parts=options.pop("parts", 1))
    steps = Steps(model, optimizer, GraphBatches(source), None, **options)
    feeds, losses = [], []
    for feed, result in steps.train(source_feeds(source)):
        feeds.append(feed)
        losses.append({name: value.numpy() for name, value in result.items()})
    return feeds, losses, model.get_weights()


class GraphBatches:
    """Feeds that are the batches: a graph takes no number for one."""

    def __init__(self, source):
        self._source = source

    def train_batch(self, feed):
        return feed

    def parts_of(self, feed):
        features, labels = feed
        cuts = np.array_split(np.arange(len(labels)), self._source.parts)
        return [
            ({n: tf.gather(v, c) for n, v in features.items()}, labels[c[0] : c[-1] + 1])
            for c in cuts
        ]


def source_feeds(source):
    return (source.train_batch(number) for number in source.train_feeds())


@BY
@pytest.mark.slow
@pytest.mark.parametrize(("name", "eager"), [("din", False), ("sim", True)])
def test_ids_that_travel_ahead_and_batches_in_parts_change_nothing(
    make, make_batch, name, eager, dim
):
    """Without and with losses beside the head's; in one test, as each way is traced for seconds."""
    tf.config.run_functions_eagerly(eager)
    batches = [make_batch(LENGTHS, seed=seed) for seed in range(4)]
    plain, ahead, cut = make(name, 3, embedding_dim=dim)
    feeds, losses, weights = trained(plain, batches)
    ahead_feeds, ahead_losses, ahead_weights = trained(ahead, batches, prefetch_ids=True)
    assert len(feeds) == len(ahead_feeds) == 4
    for feed, ahead_feed in zip(feeds, ahead_feeds, strict=True):
        np.testing.assert_array_equal(ahead_feed[1], feed[1])
    for found, expected in zip(ahead_losses, losses, strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    for found, expected in zip(ahead_weights, weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)

    _, cut_losses, cut_weights = trained(cut, batches, in_parts=("micro_batches",), parts=3)
    for found, expected in zip(cut_losses, losses, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    for found, expected in zip(cut_weights, weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize(
    "how", [{"prefetch_ids": True}, {"in_parts": ("micro_batches",), "parts": 1}]
)
def test_of_few_batches_too(make, make_batch, count, how):
    batches = [make_batch(LENGTHS, seed=seed) for seed in range(count)]
    plain, other = make("din", 2)
    _, losses, weights = trained(plain, batches)
    feeds, found_losses, found_weights = trained(other, batches, **how)
    assert len(feeds) == len(losses) == count
    for found, expected in zip(found_losses, losses, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    for found, expected in zip(found_weights, weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@BY
@pytest.mark.parametrize("name", ["sim"])  # all kinds of losses
def test_in_parts_the_result_has_the_same_bits_on_any_number_of_ranks(
    make, make_batch, in_ranks, name, dim
):
    """Four parts in turn, on 1 or 2 ranks; tables are the backend's, see tests/distributed."""
    batch = make_batch(LENGTHS[:12])  # 3 histories a part
    found = []
    for ranks in (1, 2):
        models = make(name, ranks, embedding_dim=dim)

        def work(world, ranks=ranks, models=models):
            share = 12 // ranks
            rows = slice(world.rank * share, (world.rank + 1) * share)
            source = Batches([batch], rows, parts=4 // ranks)
            parts = {"in_parts": ("micro_batches",)}
            result, gradients, dense = step(models[world.rank], source, world, **parts)
            return result, gradients[:dense]

        found += in_ranks(ranks, work)
    first_result, first_gradients = found[0]
    assert len(first_gradients) > 4
    for result, gradients in found[1:]:
        assert result == first_result
        for gradient, expected in zip(gradients, first_gradients, strict=True):
            np.testing.assert_array_equal(gradient, expected)


def scored(model, source):
    steps = EvaluationSteps(model, source)
    return steps.run(EvaluationPass("test"), 0, [BinaryEvaluator])[0]


def test_evaluation_gives_labels_logits_and_groups(make, make_batch):
    (model,) = make("din", 1)
    batch = make_batch(LENGTHS)
    source = Batches([batch], slice(0, 4))
    labels, logits, groups = scored(model, source)
    features, _ = source.eval_batch("test", 0)
    np.testing.assert_array_equal(labels, batch[1][:4])
    np.testing.assert_allclose(logits, model(features), rtol=1e-6)
    np.testing.assert_array_equal(groups, batch[0]["user_id"][:4])
    source.grouped = False
    assert scored(model, source)[2] is None


def test_evaluation_of_a_rank_without_rows(make, make_batch):
    (model,) = make("sim", 1)
    source = Batches([make_batch(LENGTHS)], slice(0, 0))
    labels, logits, groups = scored(model, source)
    assert labels.shape == logits.shape == [0, 2]
    assert groups.shape == [0]


def test_training_needs_an_optimizer(make, make_batch):
    (model,) = make("din", 1)
    steps = Steps(model, None, Batches([make_batch(LENGTHS)]), None)
    with pytest.raises(ValueError, match="need an optimizer"):
        next(steps.train(iter([0])))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"prefetch_ids": True}, "prefetch_ids"),
        ({"xla": True}, "xla"),
        ({"in_parts": ["micro_batches"]}, "micro_batches"),
        ({"in_parts": ["grads_accumulated"]}, "grads_accumulated"),
    ],
)
def test_a_model_that_does_not_say_which_ids_it_looks_up_is_refused(make, asked, name):
    (model,) = make("din", 1)
    silent = types.SimpleNamespace(model_outputs=model.model_outputs)
    with pytest.raises(UserError, match=rf"{name}: .*\(`lookups`\).*Leave --{name} out"):
        Steps(silent, None, None, None, **asked)

"""The fused steps of SIM, DIEN and DIN: against the formulas in float64, gradients by a tape."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from lookback.kernels import loader
from tests.kernels.history_cases import GROUPS, Batch, Case, Result, by_formulas

Array = npt.NDArray[Any]

pytestmark = pytest.mark.skipif(
    loader.history_level("float32") is None, reason="a GPU, a CPU without AVX2, or nothing built"
)

CASES = {
    "sim": Case("sim"),
    "sim, one candidate, whole tiles": Case("sim", users=32, candidates=1, k=30),
    "sim, many tiles": Case("sim", users=37, candidates=3, short=4, long=16, k=1),
    "sim, more than are searched": Case("sim", users=3, long=40, k=40, short=1),
    "sim, hard": Case("sim", hard=True, k=3, users=19),
    "sim, time": Case(
        "sim", time_features=True, event_parts=(0, 1, 2, 3), user_parts=(2, 1), users=9
    ),
    "sim, hard, time, vectors": Case(
        "sim",
        time_features=True,
        hard=True,
        target_parts=(-1, 0, 1),
        event_parts=(-1, 0, 1, -1, 2),
        user_parts=(-1, 0),
        rate=0.4,
        k=2,
    ),
    "sim, deep": Case(
        "sim",
        stage_one=(100, 50, 17),
        stage_two=(200, 80, 40, 1),
        auxiliary=(100, 50, 33),
        rate=0.25,
        user_parts=(),
    ),
    "sim, wide": Case("sim", width=32, target_parts=(0,), event_parts=(0, 1), users=18),
    "sim, short histories": Case("sim", users=70, long=50, short=9, padding="before", exist=1),
    "sim, hard, time, gaps and padding": Case(
        "sim", time_features=True, hard=True, event_parts=(0, 1, 2), users=40, padding="after"
    ),
    "dien": Case("dien"),
    "dien, short histories": Case("dien", users=40, short=9, padding="after"),
    "dien, one layer, dropout": Case(
        "dien", auxiliary=(7,), stage_two=(12,), rate=0.5, users=33, candidates=1, short=9
    ),
    "dien, wide, vectors": Case("dien", width=48, target_parts=(-1,), event_parts=(-1, 0)),
    "din": Case("din", users=21, event_parts=(0, 1, 2)),
    "din, vectors, dropout": Case("din", event_parts=(0, 1, -1), rate=0.3, user_parts=()),
    "din, unit": Case("din", unit=True, users=11, event_parts=(0, 1, 2)),
    "din, short histories": Case("din", users=21, padding="before"),
    "din, unit, short histories": Case("din", unit=True, users=50, long=40, padding="before"),
    "din, unit, many events": Case("din", unit=True, long=130, candidates=3, target_parts=(1,)),
}


def step(batch: Batch, precision: str = "float32", **changes: Any) -> Result:
    """The operation's results; rows' gradients summed into tables."""
    operations = loader.cpu_kernels() if loader.history_level(precision) else None
    assert operations is not None
    function = getattr(operations, f"lookback_{batch.case.model}_step")
    found = function(**{**batch.arguments(True, precision), **changes})
    slots: list[list[Array]] = [[] for _ in batch.tables]
    looked_up = [t for group in GROUPS for t in batch.lists.get(group, ()) if t >= 0]
    for table, ids in zip(looked_up, batch.ids, strict=True):
        slots[table].append(ids.ravel())
    tables = []
    for rows, gradients in zip(slots, found.table_gradients, strict=True):
        summed = np.zeros((batch.case.rows, batch.case.width))
        np.add.at(summed, np.concatenate([*rows, np.zeros(0, int)]), gradients.numpy())
        tables.append(summed)
    return Result(
        found.sums.numpy(),
        found.total.numpy(),
        found.logits.numpy(),
        [gradient.numpy() for gradient in found.weight_gradients],
        tables,
        [gradient.numpy() for gradient in found.vector_gradients],
    )


def score(batch: Batch, precision: str = "float32") -> Array:
    operations = loader.cpu_kernels() if loader.history_level(precision) else None
    assert operations is not None
    function = getattr(operations, f"lookback_{batch.case.model}_score")
    logits: Array = function(**batch.arguments(False, precision)).numpy()
    return logits


def assert_close(found: Result, expected: Result, tolerance: float) -> None:
    """Each gradient to `tolerance` of the largest that its kind has; losses likewise."""
    np.testing.assert_allclose(found.sums, expected.sums, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.total, expected.total, rtol=tolerance)
    scale = max(1.0, float(np.abs(expected.logits).max(initial=0)))
    np.testing.assert_allclose(found.logits, expected.logits, atol=tolerance * scale)
    for kind in ("weights", "tables", "vectors"):
        for number, (one, other) in enumerate(
            zip(getattr(found, kind), getattr(expected, kind), strict=True)
        ):
            # A softmax does not change with its scores' bias: the gradient is a sum of errors.
            largest = max(float(np.abs(other).max(initial=0)), 1e-2)
            np.testing.assert_allclose(
                one, other, rtol=0, atol=tolerance * largest, err_msg=f"{kind} {number}"
            )


@pytest.fixture
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The level that alone may be taken; without it here, the test is skipped."""
    monkeypatch.setenv("LOOKBACK_CPU_LEVEL", request.param)
    if request.param not in (loader.history_level("float32"), loader.history_level("bfloat16")):
        pytest.skip(f"this CPU is no {request.param}")
    name: str = request.param
    return name


@pytest.mark.parametrize("level", ["avx2", "avx512"], indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_it_equals_the_formulas(name: str, level: str) -> None:
    batch = Batch(CASES[name])
    expected = by_formulas(batch)
    assert_close(step(batch), expected, 1e-4)
    if batch.case.rate is None:
        np.testing.assert_allclose(score(batch), expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", ["avx512_bf16", "amx"], indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_products_in_bfloat16_are_close(name: str, level: str) -> None:
    batch = Batch(CASES[name])
    # Slopes of 1: an input beside 0 that is rounded to its other side would change its slope.
    for weight in batch.slopes():
        weight[...] = 1
    expected = by_formulas(batch)
    # 8 bits of a factor are right: 2^-8 is 4e-3, and there are ten products one after another.
    assert_close(step(batch, "bfloat16"), expected, 4e-2)
    if batch.case.rate is None:
        np.testing.assert_allclose(score(batch, "bfloat16"), expected.logits, atol=2e-2)


def test_among_equal_scores_the_earlier_events_are_found() -> None:
    for k in (1, 4, 11):
        batch = Batch(Case("sim", long=40, k=k, users=7, seed=k, target_parts=(0,)))
        for table in batch.tables:  # products of few whole numbers: most are equal
            table.assign(tf.cast(batch.random.integers(-1, 2, table.shape), tf.float32))
        batch.tables[0].assign(tf.concat([batch.tables[0][:, :2], 0 * batch.tables[0][:, 2:]], 1))
        assert_close(step(batch), by_formulas(batch), 1e-4)


@pytest.mark.parametrize("model", ["sim", "dien", "din"])
def test_of_no_history_there_is_nothing(model: str) -> None:
    batch = Batch(Case(model, users=0))
    found = step(batch)
    assert found.total == 0 and not found.sums.any() and found.logits.shape == (0, 2)
    assert not any(gradient.any() for gradient in (*found.weights, *found.tables))
    assert score(batch).shape == (0, 2)


@pytest.mark.parametrize("model", ["sim", "dien", "din"])
def test_one_user_of_many_candidates_is_scored_as_they_are_one_by_one(model: str) -> None:
    whole = Batch(Case(model, users=3, candidates=150, unit=True))
    logits = score(whole)
    np.testing.assert_allclose(logits, by_formulas(whole).logits, rtol=1e-4, atol=1e-4)
    for user, candidate in ((0, 0), (1, 63), (1, 64), (2, 149)):
        one = Batch(dataclasses.replace(whole.case, users=1, candidates=1))
        one.tables, one.weights = whole.tables, whole.weights
        one.long_mask = whole.long_mask[user : user + 1]
        one.short_mask = whole.short_mask[:, user : user + 1]
        of = {}
        for number, (group, ids) in enumerate(zip(whole.order(), whole.ids, strict=True)):
            if group == "target":
                of[number] = ids[user : user + 1, candidate : candidate + 1]
            elif group in ("short", "negative"):
                of[number] = ids[:, user : user + 1]
            else:
                of[number] = ids[user : user + 1]
        one.ids = list(of.values())
        np.testing.assert_array_equal(score(one)[0, 0], logits[user, candidate])


def test_histories_of_no_slots_are_scored() -> None:
    batch = Batch(Case("sim", long=0, short=0))
    assert np.isfinite(score(batch)).all()


def test_large_scores_do_not_overflow() -> None:
    batch = Batch(Case("sim", users=3))
    for table in batch.tables:
        table.assign(table * 1e4)
    found = step(batch)
    expected = by_formulas(batch)
    np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-3)
    assert all(np.isfinite(g).all() for g in (*found.weights, *found.tables))


def test_ids_outside_of_their_table_are_refused_before_anything_is_read() -> None:
    for model, group, part, wrong in (
        ("sim", "long", 1, 30),
        ("din", "target", 0, -1),
        ("dien", "negative", 1, 2**31 - 1),
    ):
        batch = Batch(Case(model))
        place = [n for n, name in enumerate(batch.order()) if name == group][part]
        batch.ids[place].flat[-1] = wrong
        said = rf"ids of {group} part {part} in \[0, 30\), received {wrong}"
        with pytest.raises(tf.errors.InvalidArgumentError, match=said):
            step(batch)


def test_what_does_not_fit_is_refused() -> None:
    batch = Batch(Case("sim"))
    weights = [tf.constant(weight) for weight in batch.weights]
    ids = [tf.constant(i) for i in batch.ids]
    for changes, said in (
        ({"weights": weights[:-1]}, "Expected more than 33 weights"),
        ({"weights": [*weights, weights[0]]}, "Expected 34 weights, received 35"),
        ({"weights": [weights[1], *weights[1:]]}, r"weight 0 to be \[32, 288\], received \[96"),
        ({"short_mask": batch.short_mask.T}, "Expected short_mask of shape"),
        ({"short_mask": batch.short_mask[1:]}, "Expected ids of shape"),
        ({"long_mask": batch.long_mask[1:]}, "Expected long_mask of shape"),
        ({"labels": batch.labels[:, :1]}, "Expected labels of shape"),
        ({"scales": batch.scales[:2]}, "Expected scales of shape"),
        ({"ids": ids[:-1]}, "user part 0"),
        ({"ids": [*ids, ids[0]]}, "Expected 9 ids and 0 vectors, received 10 and 0"),
        ({"user_parts": [3]}, "user part 0"),
        ({"negative_parts": [0]}, "negatives of as many parts"),
        ({"long_parts": [0]}, "events of at least 2 parts"),
        ({"dropout": [np.ones((10, 24), np.float32)]}, "dropout of none or 2 MLPs"),
        ({"dropout": [np.ones((10, 24), np.float32)] * 2}, "dropout of 18 columns"),
        ({"stage_two_layers": 9}, "Expected stage_two_layers up to 8, received 9"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=said):
            step(batch, **changes)
    narrow = Batch(Case("din", width=8))
    with pytest.raises(tf.errors.InvalidArgumentError, match="a multiple of 16, received 8"):
        step(narrow)


def test_no_level_is_taken_that_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(Case("din"))
    monkeypatch.setenv("LOOKBACK_CPU_LEVEL", "avx,none")
    assert loader.history_level("float32") is None
    operations = loader.cpu_kernels()
    assert operations is not None
    with pytest.raises(tf.errors.UnimplementedError, match="a CPU with AVX2"):
        operations.lookback_din_score(**batch.arguments(False))


PROGRAM = """
import hashlib, os, sys
import numpy as np
import tensorflow as tf
threads = 5
for other in (1, 2):
    pid = os.fork()  # before TensorFlow has threads, of which a fork has none
    if pid == 0:
        threads = other
        break
    os.waitpid(pid, 0)
tf.config.threading.set_intra_op_parallelism_threads(threads)
from tests.kernels.history_cases import Batch, Case
from tests.kernels.test_history_step import score, step
for model in ("sim", "dien", "din"):
    batch = Batch(Case(model, users=331, unit=True, short=3, long=17, k=4))
    found = step(batch)
    digest = hashlib.sha256(score(batch).tobytes())
    for array in (found.sums, found.logits, *found.weights, *found.tables):
        digest.update(np.ascontiguousarray(array).tobytes())
    print(digest.hexdigest(), flush=True)
"""


@pytest.mark.slow
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True
    )
    said = done.stdout.split()
    assert len(said) == 9
    assert said[:3] == said[3:6] == said[6:]
    assert len(set(said)) == 3

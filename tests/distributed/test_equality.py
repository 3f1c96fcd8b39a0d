"""Sharded equals local: forward, parameters, losses; any strategy, any number of ranks.

Real processes, with uneven parts of each batch (one rank has none), empty bags, repeated and
reserved ids, and a table with fewer rows than there are ranks. The same four processes do it in
worlds of four, three, two and one; `cases.RUNS` says what each does.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from lookback.core.world import SOLO
from lookback.embeddings.config import LOCAL
from lookback.embeddings.sharding import STRATEGIES

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def load_module(name):
    """A module beside this one, which is no package."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


cases, worker = (load_module(name) for name in ("cases", "worker"))


def runs(*names):
    """Ranks, model and name of the runs of these names, or of all that local tables do alike."""
    return [
        (ranks, model, name)
        for ranks, of_world in cases.RUNS.items()
        for model, name in of_world
        if (name in names if names else not name.endswith("parts") and name != "bfloat16")
    ]


@pytest.fixture(scope="module")
def oracle(make_schema):
    """What one process with whole tables finds, by model and name of a run."""
    made = cases.cases(make_schema)

    @functools.cache
    def train(model, name):
        return worker.train(made[model], cases, name, LOCAL, SOLO)

    def get(model, name):
        # Whole tables know no strategy, and send nothing; graphs only round otherwise.
        if name in STRATEGIES:
            return train(model, "table_wise")
        return train(model, name if name == "parts" or "full_adam" in name else "mixed")

    return get


@pytest.fixture(scope="module")
def results(launch, forked, tmp_path_factory):
    """What the runs of so many processes find, by model and name, and quantity."""
    directory = tmp_path_factory.mktemp("equality")
    with forked.rendezvous(cases.RUNS) as words:
        command = (sys.executable, HERE / "worker.py", ROOT, directory, *words)
        with launch.Started(*command) as started:
            done = started.finish(600)
    assert done.status == 0, (done.stdout + done.stderr)[-4000:]
    found = {}
    for ranks in cases.RUNS:
        with np.load(directory / f"{ranks}.npz") as file:
            for key, value in file.items():
                model, name, quantity = key.split("/", 2)
                found.setdefault((ranks, model, name), {})[quantity] = value
    return found


@pytest.mark.parametrize(("ranks", "model", "name"), runs())
@pytest.mark.parametrize("quantity", ["forward", "parameter", "loss"])
def test_sharded_equals_local(results, oracle, ranks, model, name, quantity):
    expected = {n: v for n, v in oracle(model, name).items() if n.startswith(f"{quantity}:")}
    assert expected
    for key, value in expected.items():
        found = results[ranks, model, name][key]
        np.testing.assert_allclose(found, value, rtol=1e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(("ranks", "model", "name"), runs("parts", "full_adam_parts"))
def test_in_parts_it_is_the_same_to_the_bit(results, oracle, ranks, model, name):
    expected = oracle(model, name)
    assert expected
    for key, value in expected.items():
        np.testing.assert_array_equal(results[ranks, model, name][key], value, err_msg=key)


def test_bfloat16_on_the_wire_is_close_and_half_as_large(results, oracle):
    rounded, plain = (results[4, "bags", name] for name in ("bfloat16", "mixed"))
    exact = oracle("bags", "mixed")
    for key in ("forward:logits", "loss:curve"):
        np.testing.assert_allclose(rounded[key], exact[key], rtol=0.02, atol=5e-3)
    assert np.any(rounded["forward:logits"] != exact["forward:logits"])
    for kind in ("vectors", "gradients"):
        np.testing.assert_array_equal(plain[f"sent:{kind}"], 2 * rounded[f"sent:{kind}"])


@pytest.mark.parametrize(("ranks", "model", "mix"), runs("table_wise", "row_wise", "column_wise"))
def test_no_more_is_sent_than_must_be(make_schema, results, ranks, model, mix):
    """Each distinct id that another rank holds, once; its vector, and its gradient, once."""
    case = cases.cases(make_schema)[model]
    plan = cases.plan(case.tables(), mix, ranks)
    expected = {kind: np.zeros(ranks, int) for kind in ("ids", "vectors", "gradients")}
    for rank in range(ranks):
        for features, _ in cases.Batches(case, rank, ranks).train_feeds():
            for table, ids in ids_by_table(case, features).items():
                spec = next(t for t in plan.tables if t.name == table)
                placement, strategy = plan.placement(table), STRATEGIES[mix]
                legs = strategy.input_dist(placement, np.unique(ids), ranks)
                shards = strategy.shards(spec, placement, ranks)  # column-wise: one a leg
                for number, leg in enumerate(legs):
                    vector = 4 * (len(shards[number].columns) if len(legs) > 1 else spec.dim)
                    for owner in set(range(ranks)) - {rank}:
                        wanted = int(np.sum(leg.owner == owner))
                        expected["ids"][rank] += 4 * wanted
                        expected["gradients"][rank] += vector * wanted
                        expected["vectors"][owner] += vector * wanted
    for kind, sent in expected.items():
        np.testing.assert_array_equal(results[ranks, model, mix][f"sent:{kind}"], sent)


def ids_by_table(case, features):
    """All ids that a step looks up, by table."""
    model = case.build(LOCAL)
    by_table: dict[str, list] = {}
    lookups = case.contract(model).lookups
    for name, ids in lookups.ids(features).items():
        flat = ids.flat_values if hasattr(ids, "flat_values") else ids
        table = lookups.embeddings.get_config()["feature_tables"][name]
        by_table.setdefault(table, []).append(np.asarray(flat).reshape(-1))
    return {table: np.concatenate(ids) for table, ids in by_table.items()}

"""The shardings of one process, over which the tests of the collection run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest

from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.sharding import STRATEGIES
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec

# The names of the backends stand here, since importing BACKENDS would import TensorFlow;
# test_collection.py says that none is missing.
SHARDINGS = (
    *("local", "local/joint"),
    *(f"horovod/{mix}" for mix in (*STRATEGIES, "mixed", "mixed/separate")),
    "sok",
)


def plan_of(tables: Sequence[TableSpec], mix: str, ranks: int) -> ShardingPlan:
    """Every table by one strategy, or ("mixed") each by another; owners take turns."""
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
    return ShardingPlan(ranks, tuple(tables), tuple(placements))


@pytest.fixture(scope="session")
def make_plan() -> Callable[[Sequence[TableSpec], str, int], ShardingPlan]:
    return plan_of


@pytest.fixture(scope="session", params=SHARDINGS)
def sharding_of(request: pytest.FixtureRequest) -> Callable[[Sequence[TableSpec]], Sharding]:
    """Makes the sharding of tables in one process; `backend` and `strategy` are its attributes."""
    backend, mix, how = (*request.param.split("/"), "", "")[:3]
    joint = {"joint": True, "separate": False}.get(how or mix)
    if backend == "sok":
        pytest.skip("sok needs a GPU and Sparse Operation Kit; tests/embeddings/test_sok.py")
    if backend == "horovod":
        pytest.importorskip("horovod.tensorflow").init()

    def make(tables: Sequence[TableSpec]) -> Sharding:
        if backend == "local":
            return dataclasses.replace(LOCAL, joint=joint)
        return Sharding(backend, plan_of(tables, mix, ranks=1), joint=joint)

    make.backend, make.strategy = backend, mix
    return make


@pytest.fixture(scope="session")
def all_shardings() -> tuple[str, ...]:
    return SHARDINGS

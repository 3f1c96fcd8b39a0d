"""The model of scaling against arithmetic, and against what NVIDIA published."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from lookback.benchmarks.scaling_model import (
    FABRICS,
    Fabric,
    Link,
    Work,
    all_reduce,
    all_to_all,
    step_time,
)
from lookback.benchmarks.scaling_prediction import add_arguments, compare, predictions
from lookback.benchmarks.scaling_published import PUBLISHED, TOLERANCE, compared
from lookback.embeddings.types import TableSpec

FABRIC = Fabric(Link(100.0, 1.0, 0.5), Link(10.0, 2.0, 0.25), 4)


def test_an_all_to_all_is_logps():
    # 30 bytes to 3 others: a latency, two gaps, and the bytes.
    assert all_to_all(30, 4, FABRIC) == pytest.approx(1 + 2 * 0.5 + 30 / 100)
    # 70 bytes to 7 others, of whom 4 are on the other node: 40 bytes over the slower link.
    assert all_to_all(70, 8, FABRIC) == pytest.approx(2 + 3 * 0.25 + 40 / 10)
    assert all_to_all(70, 1, FABRIC) == 0


def test_an_all_reduce_is_a_ring():
    assert all_reduce(80, 4, FABRIC) == pytest.approx(2 * 3 / 4 * 80 / 100 + 2 * 2 * 1)
    # Four adapters of 10 bytes/s each carry a ring between two nodes.
    ring = 2 * 7 / 8 * 80 / (4 * 10)
    assert all_reduce(80, 8, FABRIC) == pytest.approx(ring + 2 * 2 * 1 + 2 * 1 * 2)
    assert all_reduce(80, 1, FABRIC) == 0


def test_a_step_is_the_sum_of_its_parts():
    table = TableSpec("t", rows=10**9, dim=8, hotness=(1,))
    work = Work(fixed=3.0, row=0.5, dense_bytes=80, tables=(table,))
    alone = step_time(work, 1, 100, FABRIC)
    assert dataclasses.astuple(alone) == (3.0, 50.0, 0.0, 0.0)
    found = step_time(work, 4, 100, FABRIC)
    assert found.fixed == 3.0
    assert found.rows == 12.5
    # 25 rows a rank, all different; three quarters of what they ask for lies elsewhere.
    ids, vectors = 25 * 3 / 4 * 4, 25 * 3 / 4 * 8 * 4
    expected = all_to_all(ids, 4, FABRIC) + 2 * all_to_all(vectors, 4, FABRIC)
    assert found.exchange == pytest.approx(expected, rel=1e-6)
    assert found.total == pytest.approx(3 + 12.5 + expected + all_reduce(80, 4, FABRIC), rel=1e-6)
    assert (alone.longest, found.longest) == ("rows", "exchange")


def test_the_row_that_is_fitted_is_met_and_most_others_are():
    fitted = {id(program.rows[0]) for program in PUBLISHED}
    errors = []
    for program, row, error in compared():
        if id(row) in fitted:
            assert error == pytest.approx(0, abs=1e-9)
            continue
        errors.append(abs(error))
        if abs(error) > TOLERANCE:  # then it says which term is missing
            assert program.missing[row.machine]
    assert len(errors) == 30
    assert sum(error <= TOLERANCE for error in errors) >= 26
    sim = [abs(error) for program, _, error in compared() if program is PUBLISHED[0]]
    assert max(sim) < 0.1


def test_two_and_four_ranks_here_follow_from_one():
    found = compare(
        step={"half": 4.0, "quarter": 2.5, "2": 5.0, "4": 8.0},
        lookup={"half": 1.0, "quarter": 0.5, "2": 2.0, "4": 3.0},
        sent={"2": 10.0, "4": 15.0},
    )
    # 10 bytes take 2 - 1 s, so that 15 take 1.5.
    assert found["2"]["predicted"] == pytest.approx(4 + 1)
    assert found["4"]["predicted"] == pytest.approx(2 * 2.5 + 1.5)
    assert found["4"]["error"] == pytest.approx(6.5 / 8 - 1)
    assert "wait for each other" in found["4"]["missing"]


def test_a_faster_fabric_predicts_no_less():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    rows = predictions(parser.parse_args([]))
    assert {row["fabric"] for row in rows} == set(FABRICS)
    by = {(row["fabric"], row["ranks"]): row for row in rows}
    for ranks in (16, 1024):
        assert by["nvlink_ib", ranks]["weak"] > by["nvlink_ethernet", ranks]["weak"]
        assert by["nvlink_ib", ranks]["strong"] > by["pcie_ethernet", ranks]["strong"]
    assert all(0 < row["weak_efficiency"] <= 1 for row in rows)
    with pytest.raises(ValueError, match="fixed_ms: expected less than"):
        predictions(parser.parse_args(["--fixed_ms", "1000"]))

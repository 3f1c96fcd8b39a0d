from __future__ import annotations

import random

import numpy as np
import pytest

from lookback.checkpoints.ranges import Fault, contains, intersect, partition_fault, place


def any_range(rng: random.Random, below: int = 60) -> range:
    step = rng.choice([1, 1, 2, 3, 4, 6, 7, 12, 64])
    rows = range(rng.randrange(below), rng.randrange(below + 1), step)
    return rows[::-1] if rng.random() < 0.3 else rows


def test_the_intersection_is_that_of_the_sets():
    rng = random.Random(0)
    for _ in range(20_000):
        a, b = any_range(rng), any_range(rng)
        common = intersect(a, b)
        assert list(common) == sorted(set(a) & set(b)), (a, b)
        assert contains(a, b) == (set(b) <= set(a)), (a, b)


def test_every_pair_of_small_ranges_meets_where_the_sets_do():
    some = [range(a, b, s) for a in range(7) for b in range(a, 13) for s in range(1, 6)]
    for a in some[::3]:
        for b in some:
            assert list(intersect(a, b)) == sorted(set(a) & set(b)), (a, b)


def test_huge_ranges_cost_no_more():
    rows = 10**15
    a, b = range(5, rows, 128), range(rows // 3, rows, 3)
    common = intersect(a, b)
    assert common.step == 384
    assert common[0] in a and common[0] in b and common[0] - 384 < b.start
    assert common[-1] in a and common[-1] in b
    assert not intersect(range(0, rows, 2), range(1, rows, 2))
    assert partition_fault(rows, [range(rank, rows, 1000) for rank in range(1000)]) is None
    assert partition_fault(rows, [range(rows // 2), range(rows // 2, rows)]) is None


def test_a_place_is_where_the_values_stand():
    rng = random.Random(1)
    for _ in range(5000):
        whole = any_range(rng)
        part = intersect(whole, any_range(rng))
        np.testing.assert_array_equal(np.array(whole, int)[place(part, whole)], list(part))


@pytest.mark.parametrize(
    ("total", "ranges"),
    [
        (0, []),
        (0, [range(0)]),
        (5, [range(5)]),
        (5, [range(r, 5, 3) for r in range(3)]),
        (2, [range(r, max(r, 2), 4) for r in range(4)]),
        (10, [range(0, 10, 2), range(1, 10, 4), range(3, 10, 4)]),
        (6, [range(3, 6), range(0, 3, 2), range(1, 2)]),
    ],
)
def test_partitions_have_no_fault(total, ranges):
    assert partition_fault(total, ranges) is None


def test_the_first_fault_is_named_and_all_are_counted():
    assert partition_fault(6, []) == Fault(0, 0, 6, 0)
    assert partition_fault(6, [range(4), range(3, 6)]) == Fault(3, 2, 0, 1)
    assert partition_fault(6, [range(0, 6, 2), range(0, 6, 2)]) == Fault(0, 2, 3, 3)
    assert partition_fault(6, [range(0, 6, 2), range(1, 4, 2)]) == Fault(5, 0, 1, 0)
    assert partition_fault(6, [range(3), range(3)]) == Fault(0, 2, 3, 3)
    million = 1 << 20
    assert partition_fault(3 * million, [range(million), range(million + 5, 3 * million)]) == (
        Fault(million, 0, 5, 0)
    )


def test_faults_of_random_ranges_equal_a_count():
    rng = random.Random(2)
    for _ in range(3000):
        total = rng.randrange(1, 30)
        ranges = [intersect(any_range(rng, total), range(total)) for _ in range(rng.randrange(5))]
        held = [sum(row in rows for rows in ranges) for row in range(total)]
        wrong = [row for row in range(total) if held[row] != 1]
        expected = (
            Fault(wrong[0], held[wrong[0]], held.count(0), sum(count > 1 for count in held))
            if wrong
            else None
        )
        assert partition_fault(total, ranges) == expected, (total, ranges)

"""What a server refuses because it would wait for too long, by a clock that the tests hold."""

from __future__ import annotations

import numpy as np
import pytest

from lookback.serving.server.backlog import Backlog, OverloadedError


class Clock:
    """Seconds, as the test has them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def score(backlog: Backlog, clock: Clock, name: str, rows: int, seconds: float) -> None:
    """A batch from its arrival to its end."""
    backlog.add(name, rows)
    backlog.begin(name, rows)
    clock.now += seconds
    backlog.end()


def test_the_wait_is_what_is_left_of_the_batch_and_all_that_waits():
    clock = Clock()
    backlog = Backlog(10.0, clock)
    assert backlog.seconds == 0
    score(backlog, clock, "a", 10, 1.0)  # 0.1 s a row
    score(backlog, clock, "b", 2, 1.0)  # 0.5 s a row
    backlog.add("a", 10)
    backlog.begin("a", 10)
    clock.now += 0.25
    assert (backlog.seconds, backlog.rows) == (pytest.approx(1 - 0.25), 0)
    backlog.add("a", 5)
    backlog.add("b", 3)
    assert (backlog.seconds, backlog.rows) == (pytest.approx(0.75 + 0.5 + 1.5), 8)
    clock.now += 0.75 + 2  # two seconds overdue: two more are expected
    assert backlog.seconds == pytest.approx(2 + 2)
    backlog.end()
    # 10 rows in 1 s, then 10 in 3 s, of which the newer weighs more.
    row = (0.8 * 1 + 3) / (0.8 * 10 + 10)
    assert backlog.seconds == pytest.approx(5 * row + 1.5)


def test_a_small_batch_says_little_of_a_row_once_there_are_large_ones():
    clock = Clock()
    backlog = Backlog(1.0, clock)
    for _ in range(20):
        score(backlog, clock, "a", 1, 0.01)  # nearly all of it is not the row's
    for _ in range(10):
        score(backlog, clock, "a", 100, 0.1)
    backlog.add("a", 100)
    weights = 0.8 ** np.arange(30)[::-1]
    seconds, rows = np.repeat([0.01, 0.1], [20, 10]), np.repeat([1, 100], [20, 10])
    assert backlog.seconds == pytest.approx(100 * (weights @ seconds) / (weights @ rows))
    assert backlog.seconds < 0.11


def test_who_comes_first_is_taken_however_slow_the_model():
    clock = Clock()
    backlog = Backlog(0.02, clock)
    score(backlog, clock, "slow", 1, 5.0)
    score(backlog, clock, "slow", 1, 5.0)  # alone
    backlog.add("slow", 1)
    backlog.begin("slow", 1)
    clock.now += 1
    backlog.add("slow", 1)  # behind the batch, and nobody else
    with pytest.raises(OverloadedError) as refused:
        backlog.add("slow", 1)
    assert refused.value.seconds == pytest.approx(4 + 5)
    assert (refused.value.retry_seconds, backlog.rows) == (9, 1)


def test_nothing_piles_up_behind_a_first_batch_that_hangs():
    clock = Clock()
    backlog = Backlog(0.02, clock)
    backlog.add("new", 1)
    backlog.begin("new", 1)
    clock.now += 0.01
    backlog.add("new", 1)
    backlog.add("new", 1)  # nobody knows yet how long that takes
    clock.now += 0.02
    with pytest.raises(OverloadedError) as refused:
        backlog.add("new", 1)
    assert refused.value.retry_seconds == 1


@pytest.mark.parametrize("load", [0.5, 3.0])
def test_what_is_taken_waits_as_long_as_is_allowed_and_the_rest_is_refused(load):
    """Calls that take 8 ms each, scored one by one, come at random at `load` times that."""
    service, most = 0.008, 0.02
    clock = Clock()
    backlog = Backlog(most, clock)
    score(backlog, clock, "sim", 256, service)
    waiting: list[float] = []
    waits, ends, calls = [], np.inf, 4000

    def begin() -> None:
        nonlocal ends
        waits.append(clock.now - waiting.pop(0))
        backlog.begin("sim", 256)
        ends = clock.now + service

    gaps = np.random.default_rng(7).exponential(service / load, calls)
    for arrival in clock.now + np.cumsum(gaps):
        while ends <= arrival:
            clock.now, ends = ends, np.inf
            backlog.end()
            if waiting:
                begin()
        clock.now = float(arrival)
        try:
            backlog.add("sim", 256)
        except OverloadedError as refused:
            assert refused.seconds is not None and refused.seconds > most
            continue
        waiting.append(clock.now)
        if np.isinf(ends):
            begin()
    assert max(waits) <= most + 1e-9
    # The server works all the time at three times its load: a third is taken. Hardly any else.
    taken = len(waits) / calls
    assert taken == pytest.approx(1 / 3, abs=0.03) if load > 1 else taken > 0.95

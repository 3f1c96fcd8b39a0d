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
    row = (0.9 * 1 + 3) / (0.9 * 10 + 10)
    assert backlog.seconds == pytest.approx(5 * row + 1.5)


def test_what_a_batch_takes_is_learned_as_least_squares_have_it():
    clock, random = Clock(), np.random.default_rng(0)
    backlog = Backlog(1e9, clock)
    rows = random.integers(1, 500, 30)
    seconds = 0.004 + 0.00003 * rows + random.exponential(0.001, 30)
    for n, s in zip(rows.tolist(), seconds.tolist(), strict=True):
        score(backlog, clock, "a", n, s)
    # np.polyfit takes roots of weights.
    slope, intercept = np.polyfit(rows, seconds, 1, w=np.sqrt(0.9 ** np.arange(30)[::-1]))
    for n in (1, 100, 1000):
        waiting = Backlog(1e9, clock)
        waiting._learned = backlog._learned
        waiting.add("a", n)
        assert waiting.seconds == pytest.approx(intercept + slope * n)


@pytest.mark.parametrize(("first", "second"), [(0.3, 0.1), (0.1, 0.9)])
def test_neither_part_is_negative_whatever_was_measured(first, second):
    clock = Clock()
    backlog = Backlog(1e9, clock)
    score(backlog, clock, "a", 10, first)  # smaller took longer, or nearly no time
    score(backlog, clock, "a", 20, second)
    seconds = []
    for n in (0, 10):
        backlog.add("a", n or 10**-9)
        seconds.append(backlog.seconds)
    assert 0 <= seconds[0] <= seconds[1]


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


class Load:
    """Calls of `rows` that come at random; t = a + b n seconds a batch of up to 1,024 rows."""

    def __init__(self, most: float | None, load: float, calls: int = 4000, rows: int = 256) -> None:
        self.clock = Clock()
        self.backlog = Backlog(most, self.clock)
        self.rows, self.alone = rows, self.seconds(rows)
        self.arrived: list[float] = []  # of those that wait
        self.begun: list[float] = []  # of those of the batch
        self.ends = np.inf
        self.waits: list[float] = []
        self.latencies: list[float] = []
        score(self.backlog, self.clock, "sim", rows, self.alone)
        score(self.backlog, self.clock, "sim", 2 * rows, self.seconds(2 * rows))
        gaps = np.random.default_rng(7).exponential(self.alone / load, calls)
        for arrival in self.clock.now + np.cumsum(gaps):
            self.until(float(arrival))
            try:
                self.backlog.require_room("sim")
                self.backlog.add("sim", rows)
            except OverloadedError:
                continue
            self.arrived.append(self.clock.now)
            if np.isinf(self.ends):
                self.begin()
        self.taken = len(self.latencies) / calls

    @staticmethod
    def seconds(rows: int) -> float:
        return 0.004 + 0.007 * rows / 256  # as SIM on two cores

    def until(self, moment: float) -> None:
        while self.ends <= moment:
            self.clock.now, self.ends = self.ends, np.inf
            self.backlog.end()
            self.latencies += [self.clock.now - arrived for arrived in self.begun]
            if self.arrived:
                self.begin()
        self.clock.now = moment

    def begin(self) -> None:
        calls = max(1, 1024 // self.rows)
        self.begun, self.arrived = self.arrived[:calls], self.arrived[calls:]
        self.waits += [self.clock.now - arrived for arrived in self.begun]
        rows = len(self.begun) * self.rows
        self.backlog.begin("sim", rows, len(self.begun))
        self.ends = self.clock.now + self.seconds(rows)


@pytest.mark.parametrize("load", [0.5, 3.0])
def test_who_says_how_long_one_may_wait_is_obeyed(load):
    most = 0.04
    found = Load(most, load)
    # The first behind a batch is taken in any case: the largest batch takes less.
    assert Load.seconds(1024) < most
    # Five calls are two batches, but foretold as one.
    assert max(found.waits) <= most + Load.seconds(0)
    assert found.taken > (0.3 if load > 1 else 0.98)


def test_under_three_times_the_load_who_is_taken_is_answered_in_twice_the_time():
    found = Load(None, 3.0)
    late = found.latencies[100:]  # the beginning might be a burst
    assert np.quantile(late, 0.9) <= 2.05 * found.alone
    assert np.quantile(late, 0.99) <= 2.5 * found.alone  # where it was idle for a moment
    # The server works all the time; in batches of one that would be a third.
    assert found.taken > 0.3


def test_at_half_the_load_hardly_anybody_is_refused():
    assert Load(None, 0.5).taken > 0.97


def test_small_requests_of_many_wait_for_each_other():
    """Sixteen of 20 rows make one batch: nobody minds 20 ms, though alone they take 5."""
    clock = Clock()
    backlog = Backlog(None, clock)
    score(backlog, clock, "sim", 20, Load.seconds(20))
    score(backlog, clock, "sim", 320, Load.seconds(320))
    for number in range(100):  # the server is never idle
        score(backlog, clock, "sim", rows := (20, 160)[number % 2], Load.seconds(rows))
    backlog.add("sim", 160)
    backlog.begin("sim", 160, 8)
    for _ in range(8):
        backlog.add("sim", 20)
    assert backlog.rows == 160


def test_a_burst_is_no_overload():
    clock = Clock()
    backlog = Backlog(None, clock)
    score(backlog, clock, "sim", 256, Load.seconds(256))
    score(backlog, clock, "sim", 512, Load.seconds(512))
    clock.now += 10  # idle
    taken = 0
    with pytest.raises(OverloadedError):
        for taken in range(100):
            backlog.add("sim", 256)
            if not taken:
                backlog.begin("sim", 256)
    # What is left of the first, then a batch of all others: in 2 x 11 + 50 ms, the newest too.
    assert taken == 1 + int((0.072 - 0.011 - 0.004) / 0.007)

"""What a server refuses because it would wait for too long, by a clock that the tests hold."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from lookback.serving.server.backlog import (
    CLIENT_SECONDS,
    MOST_CLIENTS,
    PATIENCE,
    TIMES,
    Backlog,
    OverloadedError,
)


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
    """Calls of 256 rows that come at random from many clients, in batches of up to 1,024 rows.

    A batch of n rows takes a + b n seconds, times what chance has it. Where more is asked for than
    can be done, it takes half as long again: what is refused takes its share of the cores.

    Args:
      most: see `Backlog`.
      load: what is asked for, as a share of what can be done in batches of one call.
      clients: that call in turn.
      spread: of the logarithm of a batch's seconds.
    """

    ROWS = 256

    def __init__(
        self, most: float | None, load: float, clients: int = 64, spread: float = 0.0
    ) -> None:
        calls, self.random = 4000, np.random.default_rng(7)
        self.slowness, self.spread = 1.5 if load > 1 else 1.0, spread
        self.clock = Clock()
        self.backlog = Backlog(most, self.clock)
        self.waiting: list[float] = []  # when they came
        self.begun: list[float] = []  # of those of the batch, likewise
        self.ends = np.inf
        self.waits: list[float] = []
        self.latencies: list[float] = []
        for _ in range(20):  # one after another
            score(self.backlog, self.clock, "sim", self.ROWS, self.seconds(self.ROWS, 1.0))
        gaps = self.random.exponential(self.mean(self.ROWS) / load, calls)
        for number, arrival in enumerate(self.clock.now + np.cumsum(gaps)):
            self.until(float(arrival))
            try:
                self.backlog.arrive("sim", number % clients)
                self.waiting.append(self.backlog.add("sim", self.ROWS))
            except OverloadedError:
                continue
            if np.isinf(self.ends):
                self.begin()
        self.taken = len(self.latencies) / calls

    @staticmethod
    def mean(rows: int) -> float:
        return 0.004 + 0.007 * rows / 256  # as SIM on two cores

    def seconds(self, rows: int, slowness: float) -> float:
        return self.mean(rows) * slowness * float(np.exp(self.random.normal(0, self.spread)))

    def until(self, moment: float) -> None:
        while self.ends <= moment:
            self.clock.now, self.ends = self.ends, np.inf
            self.backlog.end()
            self.latencies += [self.clock.now - came for came in self.begun]
            self.begin()
        self.clock.now = moment

    def begin(self) -> None:
        kept = [came for came in self.waiting if not self.backlog.drop("sim", self.ROWS, came)]
        self.begun, self.waiting = kept[:4], kept[4:]
        if not self.begun:
            return
        self.waits += [self.clock.now - came for came in self.begun]
        rows = len(self.begun) * self.ROWS
        self.backlog.begin("sim", rows, len(self.begun))
        self.ends = self.clock.now + self.seconds(rows, self.slowness)


@pytest.mark.parametrize("load", [0.5, 3.0])
def test_who_says_how_long_one_may_wait_is_obeyed(load):
    most = 0.06
    found = Load(most, load)
    # The first behind a batch is taken in any case: the largest batch takes less.
    assert found.slowness * Load.mean(1024) < most
    # Five calls are two batches, but foretold as one.
    assert max(found.waits) <= most + found.slowness * Load.mean(0)
    assert found.taken > (0.3 if load > 1 else 0.98)


@pytest.mark.parametrize("spread", [0.0, 0.25])
def test_under_three_times_the_load_who_is_taken_is_answered_in_twice_the_time(spread):
    found = Load(None, 3.0, spread=spread)
    alone = np.random.default_rng(1).normal(0, spread, 10_000)
    unloaded = np.quantile(Load.mean(Load.ROWS) * np.exp(alone), 0.99)
    # At first they are no crowd yet.
    assert np.quantile(found.latencies[100:], 0.99) <= 2.001 * unloaded
    # All that can be done, one call at a time, is a third over the slowness.
    assert found.taken > 0.7 * (1 / 3) / found.slowness
    assert Load(None, 3.0, clients=MOST_CLIENTS, spread=spread).taken > 1.2 * found.taken


def test_at_half_the_load_hardly_anybody_is_refused():
    assert Load(None, 0.5).taken > 0.98


def test_a_closed_loop_of_sixteen_is_served():
    """Each calls again as soon as it is answered; so does who was refused, if anybody was."""
    clock = Clock()
    backlog = Backlog(None, clock)
    score(backlog, clock, "sim", 256, Load.mean(256))
    ready, answered = list(range(16)), 0
    for _ in range(100):
        for client in ready:
            backlog.arrive("sim", client)
            backlog.add("sim", 256)
        waiting = backlog.rows // 256
        batch = min(4, waiting)
        backlog.begin("sim", 256 * batch, batch)
        clock.now += Load.mean(256 * batch)
        backlog.end()
        ready, answered = [(answered + n) % 16 for n in range(batch)], answered + batch
    assert answered == 400 and waiting == 16


def test_clients_that_have_gone_or_call_no_more_are_no_crowd():
    def refused(backlog: Backlog) -> bool:
        try:
            backlog.arrive("sim", "another")
        except OverloadedError:
            return True
        return False

    def crowd() -> tuple[Backlog, Clock]:
        clock = Clock()
        backlog = Backlog(None, clock)
        score(backlog, clock, "sim", 256, 1.0)
        for client in range(MOST_CLIENTS):
            backlog.arrive("sim", client)
        for _ in range(3):  # behind one call, too many
            backlog.add("sim", 256)
        backlog.begin("sim", 256)
        return backlog, clock

    backlog, _ = crowd()
    assert refused(backlog)
    backlog.leave(3)
    assert not refused(backlog)
    backlog, clock = crowd()
    clock.now += CLIENT_SECONDS + 0.1
    assert refused(backlog)  # they may be waiting
    backlog.end()
    backlog.begin("sim", 512)
    clock.now += 2
    backlog.end()
    clock.now += CLIENT_SECONDS + 0.1
    for _ in range(3):
        backlog.add("sim", 256)
    backlog.begin("sim", 256)
    assert not refused(backlog)


def test_a_burst_of_a_crowd_is_no_overload():
    clock = Clock()
    backlog = Backlog(None, clock)
    score(backlog, clock, "sim", 256, Load.mean(256))
    score(backlog, clock, "sim", 512, Load.mean(512))
    for client in range(MOST_CLIENTS + 1):
        backlog.arrive("sim", client)
    clock.now += 0.9  # idle
    taken = 0
    with pytest.raises(OverloadedError):
        for taken in range(100):
            backlog.add("sim", 256)
            if not taken:
                backlog.begin("sim", 256)
    # What is left of the first, then a batch of all others: in TIMES x 11 + 60 ms, the newest too.
    assert taken == 1 + int((TIMES * 0.011 + PATIENCE - 0.011 - 0.004) / 0.007)


def test_what_waited_for_too_long_after_all_is_dropped_where_a_crowd_calls():
    clock = Clock()
    backlog = Backlog(None, clock)
    score(backlog, clock, "sim", 256, 0.01)
    for client in range(MOST_CLIENTS + 1):
        backlog.arrive("sim", client)
    clock.now += 0.4  # what they asked for is forgotten, they are not
    backlog.add("sim", 256)
    backlog.begin("sim", 256)
    since = backlog.add("sim", 256)
    clock.now += 0.01
    backlog.end()
    assert not backlog.drop("sim", 256, since)
    backlog.begin("sim", 256)
    since = backlog.add("sim", 256)
    clock.now += 0.2  # nobody could foretell that
    backlog.end()
    assert backlog.drop("sim", 256, since)
    assert backlog.rows == 0
    since = backlog.add("sim", 256)
    clock.now += 0.2
    assert not backlog.drop("sim", 256, since)  # it has waited for no batch
    patient = Backlog(10.0, clock)
    assert not patient.drop("sim", 256, clock.now - 9)


def test_one_call_that_was_interrupted_does_not_stretch_the_limit():
    def waits(interrupted: float) -> int:
        """How many calls of a crowd may wait behind one, after one that took so long."""
        clock = Clock()
        backlog = Backlog(None, clock)
        for number in range(30):
            clock.now += 1
            score(backlog, clock, "sim", 256, 0.01 if number != 25 else interrupted)
        for _ in range(30):  # what is foretold forgets it
            clock.now += 1
            backlog.add("sim", 256)
            backlog.add("sim", 1)  # not alone
            backlog.begin("sim", 257, 2)
            clock.now += 0.01
            backlog.end()
        for client in range(10 * MOST_CLIENTS):  # more than can be done
            with contextlib.suppress(OverloadedError):
                backlog.arrive("sim", client)
        backlog.add("sim", 256)
        backlog.begin("sim", 256)
        taken = 0
        with pytest.raises(OverloadedError):
            while taken < 100:
                backlog.add("sim", 256)
                taken += 1
        return taken

    assert waits(5.0) <= waits(0.01) + 1


@pytest.mark.parametrize("seconds", [0.5, 1.2, 2.0])
def test_a_crowd_stays_one_while_its_calls_take_long(seconds: float) -> None:
    """Who waits cannot call again, and is no less there."""
    clock = Clock()
    backlog = Backlog(None, clock)
    for _ in range(3):
        score(backlog, clock, "a", 10, seconds)
    waiting: list[int] = []
    most = 0
    for _ in range(200):
        for client in range(100):
            if client in waiting:
                continue
            try:
                backlog.arrive("a", client)
                backlog.add("a", 10)
            except OverloadedError:
                continue
            waiting.append(client)
        most = max(most, len(waiting))
        backlog.begin("a", 10)
        clock.now += seconds
        backlog.end()
        waiting.pop(0)
    assert most <= MOST_CLIENTS + 1

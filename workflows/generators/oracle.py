"""The best AUC that any model can reach on generated data, measured on its own test pairs.

A test pair is a user's last item and one drawn from the negatives' distribution q. The score that
separates the two best is the likelihood ratio ``p(i | what is known) / q(i)`` (Neyman-Pearson), so
its AUC bounds that of every model:

- the *oracle* knows the user's interests and the session's after the event before;
- the *history oracle* knows what a model knows, the last `window` events, and the generator's
  parameters: its p is the posterior predictive, by Gibbs sampling over interests and sessions.

q is either what the data say about popularity, the events of an item over all events (the test's
events too, as in NVIDIA's recipe), or uniform over the items that occur.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lookback.core.options import check_options, option

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

DISTRIBUTIONS = ("popularity", "uniform")
# Users whose posteriors are sampled at a time: [users, window, shelves of a history] fits in cache.
_GIBBS_USERS = 256
_STREAM_KEY = 0x6F7261636C65  # keeps these streams apart from the generator's


@dataclasses.dataclass(frozen=True)
class OracleOptions:
    """How much is spent on the oracle."""

    scope = "the best possible AUC"

    oracle_users: int = option(
        200_000, help="most users whose last event the oracle ranks", at_least=1
    )
    oracle_negatives: int = option(4, help="negatives for each of them", at_least=1)
    history_users: int = option(
        2_000, help="most users of the history oracle; 0 leaves it out", at_least=0
    )
    history_window: int = option(
        100, help="last events that the history oracle looks at", at_least=1
    )
    history_sweeps: int = option(
        30, help="Gibbs sweeps of the history oracle, a third to warm up", at_least=3
    )

    def __post_init__(self) -> None:
        check_options(self)


class Model(Protocol):
    """The likelihood of events; `synthetic.ShelfModel` is one and explains the names."""

    shelf_share: Floats
    shelf_of: npt.NDArray[np.int32]
    weights: Floats
    within: Floats
    long: float
    session: float
    noise: float
    explore: float
    stay: float

    def event_probability(self, slot: Ints, interests: Ints, session: Ints) -> Floats:
        """Probability of items ``[N, ...]`` given interests ``[N, K]`` and session ``[N]``."""
        ...


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Test events and what led to them.

    Attributes:
      positive: ``[N]`` the last item of a user.
      interests: ``[N, K]`` the user's shelves.
      session: ``[N]`` the session's shelf after the event before.
      with_history: ``[M]`` which of the N users have their history below.
      histories: M arrays, the last events before the positive, oldest first.
    """

    positive: Ints
    interests: Ints
    session: Ints
    with_history: Ints
    histories: tuple[Ints, ...]


class EvidenceBuffer:
    """Collects the evidence of every so many-th user while a dataset is written."""

    def __init__(self, users: int, options: OracleOptions) -> None:
        """Decides which users.

        Args:
          users: users of the dataset.
          options: how many to take at most.
        """
        self._options = options
        self._stride = -(-users // options.oracle_users)
        taken = -(-users // self._stride)
        self._history_stride = (
            self._stride * -(-taken // options.history_users) if options.history_users else 0
        )
        self._parts: list[tuple[Ints, Ints, Ints]] = []
        self._with_history: list[int] = []
        self._histories: list[Ints] = []
        self._count = 0

    def add(
        self, first_user: int, offset: Ints, slot: Ints, session: Ints, interests: Ints
    ) -> None:
        """Takes what it wants of a block of users.

        Args:
          first_user: number of the first of U users.
          offset: ``[U + 1]`` events of user u are ``offset[u] : offset[u + 1]``, at least 2.
          slot: ``[E]`` items.
          session: ``[E]`` shelves.
          interests: ``[U, K]`` shelves.
        """
        chosen = np.arange(-first_user % self._stride, len(offset) - 1, self._stride)
        last = offset[chosen + 1] - 1
        self._parts.append((slot[last], interests[chosen], session[last - 1]))
        if self._history_stride:
            for row in np.flatnonzero((first_user + chosen) % self._history_stride == 0):
                start = max(offset[chosen[row]], last[row] - self._options.history_window)
                self._with_history.append(self._count + int(row))
                self._histories.append(slot[start : last[row]].copy())
        self._count += len(chosen)

    def collect(self) -> Evidence:
        """All that was added."""
        positive, interests, session = (
            np.concatenate(part) for part in zip(*self._parts, strict=True)
        )
        return Evidence(
            positive, interests, session, np.array(self._with_history, int), tuple(self._histories)
        )


def compute_oracle(
    model: Model, counts: Ints, evidence: Evidence, options: OracleOptions, seed: int
) -> dict[str, Any]:
    """Measures both oracles with both distributions of negatives.

    Args:
      model: the likelihood.
      counts: ``[items]`` events of each item.
      evidence: the test events.
      options: how much to spend.
      seed: of the negatives and the sampler.

    Returns:
      Plain values for JSON: ``oracle_auc`` and ``standard_error`` by distribution, ``pairs``, and
      ``history_oracle`` with the same and, for the same users, ``oracle_auc``; None if left out.
    """
    random = np.random.Generator(np.random.Philox(key=np.array([seed, _STREAM_KEY], np.uint64)))
    positive = evidence.positive
    rows = evidence.with_history
    users, draws = len(positive), options.oracle_negatives
    negatives = {
        name: draw_negatives(counts, name, random.random((users, draws))) for name in DISTRIBUTIONS
    }
    # One call for all candidates of a user with a history: [M, 1 + draws * distributions]
    predictive = (
        history_probability(
            model,
            evidence.histories,
            np.concatenate([positive[:, None], *negatives.values()], axis=1)[rows],
            options.history_sweeps,
            random,
        )
        if len(rows)
        else None
    )
    all_users: dict[str, tuple[float, float]] = {}
    some_users: dict[str, tuple[float, float]] = {}
    by_history: dict[str, tuple[float, float]] = {}
    for at, (name, negative) in enumerate(negatives.items()):
        share = counts / counts.sum() if name == "popularity" else np.ones(len(counts))
        interests, session = evidence.interests, evidence.session
        of_positive = model.event_probability(positive, interests, session) / share[positive]
        of_negative = model.event_probability(negative, interests, session) / share[negative]
        all_users[name] = auc(of_positive, of_negative)
        if predictive is not None:
            some_users[name] = auc(of_positive[rows], of_negative[rows])
            columns = predictive[:, 1 + at * draws : 1 + (at + 1) * draws]
            by_history[name] = auc(
                predictive[:, 0] / share[positive[rows]], columns / share[negative[rows]]
            )
    report: dict[str, Any] = {
        "oracle_auc": {name: value for name, (value, _) in all_users.items()},
        "standard_error": {name: error for name, (_, error) in all_users.items()},
        "pairs": {"users": users, "negatives": draws},
        "history_oracle": None,
    }
    if predictive is not None:
        report["history_oracle"] = {
            "auc": {name: value for name, (value, _) in by_history.items()},
            "standard_error": {name: error for name, (_, error) in by_history.items()},
            "oracle_auc": {name: value for name, (value, _) in some_users.items()},
            "pairs": {"users": len(rows), "negatives": draws},
            "window": options.history_window,
            "sweeps": options.history_sweeps,
        }
    return report


def draw_negatives(counts: Ints, distribution: str, uniform: Floats) -> Ints:
    """Items as the training draws its negatives.

    Args:
      counts: ``[items]`` events of each item.
      distribution: "popularity" (an item in proportion to its events) or "uniform" (over the items
        with events).
      uniform: numbers in [0, 1) of any shape; one item is drawn for each.

    Returns:
      Item slots in the shape of `uniform`.
    """
    weight = counts if distribution == "popularity" else (counts > 0).astype(np.int64)
    cumulative = np.cumsum(weight)
    event = (uniform * cumulative[-1]).astype(np.int64)
    return np.searchsorted(cumulative, event, side="right")


def auc(positive: Floats, negative: Floats) -> tuple[float, float]:
    """Area under the ROC curve of all positives against all negatives, and its standard error.

    The error takes users as the independent units (DeLong et al. 1988, with both scores of a user
    in one term), since a user's positive and negatives share their history.

    Args:
      positive: ``[N]`` scores, one positive a user.
      negative: ``[N, R]`` scores of the user's negatives.

    Returns:
      AUC with ties counted half, and its standard error.
    """
    below = _placement(positive, np.sort(negative, axis=None))
    above = 1.0 - _placement(negative, np.sort(positive)).mean(axis=1)
    value = float(below.mean())
    if len(positive) < 2:
        return value, float("nan")
    return value, float(np.std(below + above, ddof=1) / np.sqrt(len(positive)))


def _placement(scores: Floats, others: Floats) -> Floats:
    """Share of sorted `others` below each score, ties counted half."""
    left = np.searchsorted(others, scores, side="left")
    right = np.searchsorted(others, scores, side="right")
    return (left + right) / (2.0 * len(others))


def history_probability(
    model: Model,
    histories: Sequence[Ints],
    candidates: Ints,
    sweeps: int,
    random: np.random.Generator,
) -> Floats:
    """p(candidate | history): the posterior predictive over interests and sessions.

    Gibbs sampling: the sessions of all events given the interests (forward filtering, backward
    sampling), then each interest given the others and the sessions, which event came from which
    source summed out. Predictions average conditional probabilities, not samples. Shelves that a
    history does not show are alike but for b, so they are one state.

    Args:
      model: the likelihood.
      histories: N arrays of item slots, oldest first, none empty.
      candidates: ``[N, C]`` item slots.
      sweeps: sweeps of the sampler; the first third is not used.
      random: the source of randomness.

    Returns:
      ``[N, C]`` probabilities.
    """
    parts = [
        _gibbs(
            model,
            histories[start : start + _GIBBS_USERS],
            candidates[start : start + _GIBBS_USERS],
            sweeps,
            random,
        )
        for start in range(0, len(histories), _GIBBS_USERS)
    ]
    return np.concatenate(parts)


def _gibbs(
    model: Model,
    histories: Sequence[Ints],
    candidates: Ints,
    sweeps: int,
    random: np.random.Generator,
) -> Floats:
    """`history_probability` for a few users at a time.

    Below: B users; T events, left-padded; U states, of which the last is "any shelf that the
    history does not show" and those before are the shelves that it does.
    """
    shelves, state, valid, share = _index_shelves(model, histories)
    B, T = state.shape
    U = share.shape[1]
    user = np.arange(B)
    at = (user[:, None], state)  # picks [B, T] of [B, U]
    explored = np.zeros((B, T))
    for row, history in enumerate(histories):
        explored[row, T - len(history) :] = 1.0 / model.within[history]
    explored *= model.explore / len(model.shelf_of)
    floor = model.noise * share[at] + explored  # [B, T]
    weights = model.weights
    K = len(weights)
    interests = _draw(np.cumsum(share, axis=1), random.random((K, B))).T  # [B, K]
    liked = np.zeros((B, U))
    for k in range(K):
        liked[user, interests[:, k]] += weights[k]
    # "Unseen" is many shelves: an interest there explains no event of the history.
    expected_liked = np.zeros((B, U))
    expected_current = np.zeros((B, U))
    used = 0
    for sweep in range(sweeps):
        base = model.long * liked[at] + floor
        free, by_session, filtered = _sample_sessions(
            share, state, valid, base, model.session, model.stay, random
        )
        conditional_liked = np.zeros((B, U))
        for k in range(K):
            liked[user, interests[:, k]] -= weights[k]
            without = model.long * liked[at] + floor + by_session
            gain = np.where(free, np.log1p(model.long * weights[k] / without), 0.0)
            logit = np.bincount(
                (user[:, None] * U + state).ravel(), gain.ravel(), minlength=B * U
            ).reshape(B, U)
            logit[:, -1] = 0.0
            posterior = share * np.exp(logit - logit.max(axis=1, keepdims=True))
            posterior /= posterior.sum(axis=1, keepdims=True)
            interests[:, k] = _draw(np.cumsum(posterior, axis=1), random.random((1, B)))[0]
            liked[user, interests[:, k]] += weights[k]
            conditional_liked += weights[k] * posterior
        liked = np.maximum(liked, 0.0)
        if sweep >= sweeps // 3:
            expected_liked += conditional_liked
            expected_current += model.stay * filtered + (1 - model.stay) * share
            used += 1

    shelf = model.shelf_of[candidates]
    column = np.full(candidates.shape, U - 1)
    for row in range(B):
        known = shelves[row]
        found = np.minimum(np.searchsorted(known, shelf[row]), len(known) - 1)
        column[row] = np.where(known[found] == shelf[row], found, U - 1)
    # Of the unseen shelves' mass, each has its part of b.
    part = model.shelf_share[shelf] / np.maximum(share[user[:, None], column], 1e-300)
    part = np.where(column == U - 1, part, 1.0)
    pick = (user[:, None], column)
    mixture = (
        model.long * expected_liked[pick] + model.session * expected_current[pick]
    ) * part / used + model.noise * model.shelf_share[shelf]
    return model.within[candidates] * mixture + model.explore / len(model.shelf_of)


def _index_shelves(
    model: Model, histories: Sequence[Ints]
) -> tuple[list[Ints], Ints, npt.NDArray[np.bool_], Floats]:
    """Numbers the shelves of each history.

    Returns:
      The sorted shelves of each user; ``[B, T]`` state of each event (left-padded with 0);
      ``[B, T]`` whether it is an event; ``[B, U]`` b of each state.
    """
    indexed = [np.unique(model.shelf_of[history], return_inverse=True) for history in histories]
    shelves = [known.astype(np.int64) for known, _ in indexed]
    B, T = len(histories), max(len(history) for history in histories)
    U = max(len(known) for known in shelves) + 1
    state = np.zeros((B, T), np.int64)
    valid = np.zeros((B, T), bool)
    share = np.zeros((B, U))
    for row, (known, inverse) in enumerate(indexed):
        state[row, T - len(inverse) :] = inverse
        valid[row, T - len(inverse) :] = True
        share[row, : len(known)] = model.shelf_share[known]
    share[:, -1] = np.maximum(0.0, 1.0 - share.sum(axis=1))
    return shelves, state, valid, share


def _sample_sessions(
    share: Floats,
    state: Ints,
    valid: npt.NDArray[np.bool_],
    base: Floats,
    session: float,
    stay: float,
    random: np.random.Generator,
) -> tuple[npt.NDArray[np.bool_], Floats, Floats]:
    """Samples the session of every event given its other sources' probability.

    Args:
      share: ``[B, U]`` b of each state.
      state: ``[B, T]`` state of each event.
      valid: ``[B, T]`` False for padding.
      base: ``[B, T]`` probability of the event's shelf by other sources, per pi.
      session: share of events from the session.
      stay: rho.
      random: the source of randomness.

    Returns:
      ``[B, T]`` whether the interests may explain the event (False where the session was redrawn
      by it); ``[B, T]`` the probability, per pi, that the session explains it; and ``[B, U]`` the
      filtered distribution of the session after the last event.
    """
    B, T = state.shape
    user = np.arange(B)
    at = (user[:, None], state)
    by_redrawing = session * (1 - stay) * share[at]  # [B, T]
    # Over the events so far: given the events, the session after the last of them. An event of
    # another source leaves the session; one of the session is of its shelf, kept or redrawn.
    filtered = np.empty((T + 1, *share.shape))
    filtered[0] = current = share
    for t in range(T):
        here = (user, state[:, t])
        before = current[here]
        current = current * base[:, t, None]
        current[here] += session * stay * before + by_redrawing[:, t]
        current /= current.sum(axis=1, keepdims=True)
        current = np.where(valid[:, t, None], current, share)
        filtered[t + 1] = current

    uniform = random.random((T + 1, 2, B))
    sampled = _draw(np.cumsum(filtered[T], axis=1), uniform[T, :1])[0]
    free = np.zeros((B, T), bool)
    by_session = np.zeros((B, T))
    for t in range(T - 1, -1, -1):
        is_here = sampled == state[:, t]
        kept = (base[:, t] + session * stay) * filtered[t][user, sampled]
        redrawn = is_here & (uniform[t, 0] * (kept + by_redrawing[:, t]) >= kept)
        free[:, t] = ~redrawn
        by_session[:, t] = np.where(is_here, session * stay, 0.0)
        rows = np.flatnonzero(redrawn)
        if len(rows):
            sampled[rows] = _draw(np.cumsum(filtered[t][rows], axis=1), uniform[t, 1:][:, rows])[0]
    return free & valid, by_session, filtered[T]


def _draw(cumulative: Floats, uniform: Floats) -> Ints:
    """Draws from B distributions.

    Args:
      cumulative: ``[B, U]`` cumulative weights.
      uniform: ``[S, B]`` numbers in [0, 1).

    Returns:
      ``[S, B]`` states.
    """
    return (uniform[:, :, None] * cumulative[:, -1:] >= cumulative).sum(axis=2)

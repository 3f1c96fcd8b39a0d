"""Synthetic reviews in the Amazon format, with planted preferences whose likelihood is known.

The model. A category has `shelves`, and a shelf has items; an item's category is in the metadata,
its shelf only in what is consumed together. ``b(g)``, the popularity of shelf g, and ``pi(i | g)``,
that of item i within its shelf, are Zipf. A user has

- long-term interests: K shelves drawn from b, the k-th of weight ``w_k``, for life:
  ``v(g) = sum_k w_k [g = L_k]``;
- a session interest ``s``, a shelf drawn from b: each event of the session stays with it with
  probability ``rho = 1 - 1 / session_length``, or is the first of a session drawn anew.

An event is of the long-term interests with probability ``long_share``, of the session with
`session_share`; else it is noise: the next item of the catalogue, so that every item occurs
(``explore = items / events``), or anything by popularity. What a user does next, given the
interests and the session after the event before, has the probability

    p(i) = pi(i | g) (long v(g) + session (rho [g = s] + (1 - rho) b(g)) + noise b(g))
           + explore / items

(g the shelf of i), which `ShelfModel.event_probability` computes and `oracle` ranks by.
Ratings and times are independent of the interests, so the time features carry no signal here and
the oracle stays a bound for every model.

Everything is drawn from Philox streams keyed by (seed, stream, block of 1,024 users): the bytes do
not depend on how many blocks are written at a time. Memory holds one block of events and a few
numbers an item and a user.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lookback.core.errors import UserError
from lookback.core.options import changed, changes, check_options, option
from lookback.workflows.generators.oracle import EvidenceBuffer, OracleOptions, compute_oracle
from lookback.workflows.output import RAW, Output

BLOCK_USERS = 1024
"""Users that share a random stream: part of the format, for another value gives other bytes."""

REVIEWS = "reviews_Synthetic.json"
METADATA = "meta_Synthetic.json"
ORACLE = "oracle.json"

# The ids are as wide as Amazon's, so that a file of n events is about as large as theirs without
# the texts: "A" and 13 characters for a reviewer, "B" and 9 for an item.
_USER_DIGITS = 13
_ITEM_DIGITS = 9
_CATEGORY_DIGITS = 5
# The 2014 set ends in July 2014; times before 2001-09-09 have nine digits, the lines have ten.
_FIRST_TIME = 1_000_000_000
_LAST_TIME = 1_406_000_000
# Shares of 1 to 5 stars: mostly high, as reviews are.
_RATING_SHARES = (0.05, 0.06, 0.12, 0.25, 0.52)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """What is generated; the defaults are the preset `1m`."""

    scope = "what to change of the preset"

    users: int = option(10_000, help="users", at_least=1)
    items: int = option(20_000, help="items of the catalogue", at_least=1, below=10**_ITEM_DIGITS)
    categories: int = option(
        100, help="categories of the catalogue", at_least=1, below=10**_CATEGORY_DIGITS
    )
    events: int = option(1_000_000, help="events of all users together, exact", at_least=1)
    min_events: int = option(
        20, help="fewest events of a user: a history and a test event", at_least=2
    )
    max_events: int = option(200, help="most events of a user", at_least=1)
    shelves: int = option(
        2, help="shelves of a category: what only co-consumption shows", at_least=1
    )
    interest_weights: tuple[float, ...] = option(
        (0.4, 0.3, 0.3),
        help="weights of a user's long-term interests, such as 0.6,0.4",
        above=0,
        nonempty=True,
    )
    long_share: float = option(
        0.3, help="share of events from the long-term interests", at_least=0, at_most=1
    )
    session_share: float = option(
        0.6, help="share of events from the session's interest", at_least=0
    )
    session_length: float = option(6.0, help="mean events of one session", at_least=1)
    shelf_exponent: float = option(0.6, help="Zipf exponent of the shelves' popularity", at_least=0)
    item_exponent: float = option(
        0.8, help="Zipf exponent of the items' popularity within a shelf", at_least=0
    )
    seed: int = option(0, help="random seed", at_least=0, below=2**63)

    def __post_init__(self) -> None:
        """Validates what bounds of single options cannot say.

        Raises:
          UserError: naming the option, what it may be and what came.
        """
        check_options(self)
        expectations = (
            (
                "items",
                self.categories * self.shelves <= self.items,
                f"at least categories x shelves = {self.categories * self.shelves:,}",
            ),
            (
                "max_events",
                self.max_events >= self.min_events,
                f"at least min_events = {self.min_events:,}",
            ),
            (
                "events",
                self.users * self.min_events <= self.events <= self.users * self.max_events,
                f"from users x min_events = {self.users * self.min_events:,} "
                f"to users x max_events = {self.users * self.max_events:,} (or change those)",
            ),
            (
                "interest_weights",
                abs(sum(self.interest_weights) - 1) < 1e-6,
                "positive numbers with the sum 1",
            ),
            (
                "session_share",
                self.noise_share > -1e-9,
                f"from 0 to 1 - long_share = {1 - self.long_share:g}",
            ),
        )
        for name, met, expected in expectations:
            if not met:
                raise UserError(f"{name} must be {expected}, received {getattr(self, name)}.")

    @property
    def noise_share(self) -> float:
        """Share of events that neither interest explains, exploration included."""
        return 1.0 - self.long_share - self.session_share

    @property
    def explored(self) -> int:
        """Events that walk through the catalogue: one an item, as far as the noise suffices."""
        return min(self.items, int(max(0.0, self.noise_share) * self.events))

    @property
    def stay(self) -> float:
        """The probability rho that the session's interest outlasts an event."""
        return 1.0 - 1.0 / self.session_length


PRESETS: dict[str, SyntheticConfig] = {
    "tiny": SyntheticConfig(users=300, items=500, categories=25, events=12_000, max_events=100),
    "demo": SyntheticConfig(
        users=2_000, items=3_000, categories=50, events=120_000, max_events=200
    ),
    "1m": SyntheticConfig(),
    # Amazon Books 2014 as NVIDIA's SIM has it: users with at least 20 reviews, their items
    # and categories, 12 M samples.
    "amazon_books": SyntheticConfig(
        users=105_925, items=1_209_081, categories=2_330, events=12_200_000, max_events=2_000
    ),
}


def scaled(config: SyntheticConfig, factor: float) -> SyntheticConfig:
    """The same population, `factor` times as large (users, items, events; categories by its root).

    Args:
      config: the configuration to scale.
      factor: above 0.

    Raises:
      UserError: if the factor is not positive.
    """
    if not 0 < factor < math.inf:
        raise UserError(f"scale must be above 0, received {factor}.")
    categories = max(1, round(config.categories * factor**0.5))
    users = max(1, round(config.users * factor))
    events = round(config.events * factor)
    return dataclasses.replace(
        config,
        users=users,
        items=max(categories * config.shelves, round(config.items * factor)),
        categories=categories,
        events=min(max(events, users * config.min_events), users * config.max_events),
    )


_SIZES = "; ".join(
    f"{name}: {config.users:,} users, {config.items:,} items, {config.categories:,} categories, "
    f"{config.events:,} events"
    for name, config in PRESETS.items()
)


@dataclasses.dataclass(frozen=True)
class SyntheticOptions:
    """How the command line says what to generate."""

    scope = "synthetic"

    preset: str = option("1m", choices=tuple(PRESETS), help=f"sizes to start from ({_SIZES})")
    scale: float = option(
        1.0, help="shrink or grow the preset's users, items and events by this factor", above=0
    )
    gzip: bool = option(False, help="compress the two files")

    def __post_init__(self) -> None:
        check_options(self)


OPTIONS = (SyntheticOptions, changes(SyntheticConfig, "the preset's"), OracleOptions)
"""What `generate` is given of."""


def generate(
    output: Path, overwrite: bool, options: SyntheticOptions, chosen: Any, oracle: OracleOptions
) -> None:
    """Generates what the command line asks for.

    Args:
      output: the directory to create.
      overwrite: replace generated files of ours there.
      options: the preset.
      chosen: what to change of it, None where nothing.
      oracle: how the oracle is measured.

    Raises:
      UserError: for values that cannot be met, or an output that exists.
    """
    config = scaled(PRESETS[options.preset], options.scale)
    report = generate_synthetic(
        dataclasses.replace(config, **changed(chosen)),
        output,
        compress=options.gzip,
        overwrite=overwrite,
        oracle=oracle,
        progress=sys.stderr.isatty(),
    )
    counts = report["counts"]
    print(
        f"{output}: {counts['events']:,} events of {counts['users']:,} users, "
        f"{counts['items_seen']:,} of {counts['items']:,} items seen, "
        f"{counts['categories']:,} categories"
    )
    for name, auc in report["oracle_auc"].items():
        print(f"oracle AUC, {name} negatives: {auc:.4f} ± {report['standard_error'][name]:.4f}")
    if (history := report["history_oracle"]) is not None:
        for name, auc in history["auc"].items():
            print(
                f"from the last {history['window']} events alone: {auc:.4f} "
                f"± {history['standard_error'][name]:.4f}, {name} negatives"
            )


def generate_synthetic(
    config: SyntheticConfig,
    output_dir: str | Path,
    *,
    compress: bool = False,
    overwrite: bool = False,
    blocks_per_write: int = 1,
    oracle: OracleOptions | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Writes reviews, metadata and oracle.json; the directory appears when all is done.

    Args:
      config: what to generate.
      output_dir: the directory to create.
      compress: write `.json.gz`.
      overwrite: replace generated files of ours at `output_dir`.
      blocks_per_write: blocks of `BLOCK_USERS` users held at a time; does not show in the bytes.
      oracle: how the oracle is measured; None for the defaults.
      progress: show a progress bar on standard error.

    Returns:
      The content of oracle.json.

    Raises:
      UserError: if `output_dir` exists and `overwrite` is false.
    """
    if blocks_per_write < 1:
        raise UserError(f"blocks_per_write must be at least 1, received {blocks_per_write}.")
    options = oracle or OracleOptions()
    with Output(Path(output_dir), RAW, overwrite, ()).create() as directory:
        population = Population(config)
        catalogue = population.catalogue
        buffer = EvidenceBuffer(config.users, options)
        counts = np.zeros(config.items, np.int64)
        with _progress(config.events, progress) as advance:
            with _writer(directory / METADATA, compress) as out:
                for first in range(0, config.items, 1 << 18):
                    out.write(
                        _metadata_lines(catalogue, first, min(first + (1 << 18), config.items))
                    )
            with _writer(directory / REVIEWS, compress) as out:
                blocks = range(0, config.users, BLOCK_USERS)
                for start in range(0, len(blocks), blocks_per_write):
                    lines = []
                    for first_user in blocks[start : start + blocks_per_write]:
                        block = population.block(first_user)
                        lines.append(review_lines(block, catalogue))
                        counts += np.bincount(block.slot, minlength=config.items)
                        buffer.add(
                            block.first_user,
                            block.offset,
                            block.slot,
                            block.session,
                            block.interests,
                        )
                        advance(len(block.slot))
                    out.writelines(lines)
        report = {
            "format": "lookback-oracle",
            "format_version": 1,
            **compute_oracle(
                ShelfModel(config, catalogue), counts, buffer.collect(), options, config.seed
            ),
            "counts": {
                "users": config.users,
                "events": config.events,
                "items": config.items,
                "items_seen": int((counts > 0).sum()),
                "categories": config.categories,
            },
            "config": dataclasses.asdict(config),
            "seed": config.seed,
        }
        (directory / ORACLE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


class GeneratedItems:
    """Shelves and items, and how popular they are.

    Items are numbered twice: a *slot* orders them by shelf and, within it, by popularity; an item
    *number*, a random permutation of the slots, is what is written, so that ids tell nothing.

    Attributes:
      shelf_share: ``[G]`` b(g).
      shelf_start: ``[G + 1]`` the slots of shelf g are ``shelf_start[g] : shelf_start[g + 1]``.
      cumulative: ``[items + 1]`` popularity of all slots before one; ``cumulative[-1] = 1``.
      shelf_of: ``[items]`` shelf of a slot.
      number: ``[items]`` item number of a slot.
      slot: ``[items]`` slot of an item number.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        """Draws the catalogue of a configuration."""
        random = _stream(config.seed, _CATALOGUE, 0)
        self.shelves_per_category = config.shelves
        shelves = config.categories * config.shelves
        share = np.arange(1, shelves + 1) ** -config.shelf_exponent
        share = (share / share.sum())[np.argsort(random.random(shelves), kind="stable")]
        sizes = 1 + _apportion(share, config.items - shelves)
        self.shelf_start = np.concatenate([[0], np.cumsum(sizes)])
        self.shelf_of = np.repeat(np.arange(shelves, dtype=np.int32), sizes)
        rank = np.arange(config.items) - self.shelf_start[self.shelf_of] + 1
        weight = rank**-config.item_exponent
        total = np.add.reduceat(weight, self.shelf_start[:-1])
        weight *= (share / total)[self.shelf_of]
        self.cumulative = np.concatenate([[0.0], np.cumsum(weight)])
        self.cumulative /= self.cumulative[-1]
        # The shares that the draws obey, to the last digit.
        self.shelf_share = np.diff(self.cumulative[self.shelf_start])
        self.number = np.argsort(random.random(config.items), kind="stable").astype(np.int32)
        self.slot = np.empty_like(self.number)
        self.slot[self.number] = np.arange(config.items, dtype=np.int32)

    def draw_shelves(self, uniform: Floats) -> Ints:
        """Shelves from b, one for each number of `uniform`, in [0, 1)."""
        at = np.searchsorted(self.cumulative[self.shelf_start], uniform, side="right") - 1
        return np.minimum(at, len(self.shelf_share) - 1)

    def draw_items(self, shelf: Ints, uniform: Floats) -> Ints:
        """Slots from pi(. | shelf)."""
        start = self.shelf_start[shelf]
        at = self.cumulative[start] + uniform * self.shelf_share[shelf]
        slot = np.searchsorted(self.cumulative, at, side="right") - 1
        return np.clip(slot, start, self.shelf_start[shelf + 1] - 1)

    def category(self, number: Ints) -> Ints:
        """Category of item numbers."""
        return self.shelf_of[self.slot[number]].astype(np.int64) // self.shelves_per_category


class ShelfModel:
    """The likelihood of an event; what `workflows.generators.oracle` needs of a generator.

    Attributes:
      shelf_share: ``[G]`` b(g).
      shelf_of: ``[items]`` shelf of a slot.
      weights: ``[K]`` of the long-term interests.
      long, session, noise: shares of the events; `noise` without exploration.
      explored: ``[items]`` probability of a slot by exploration, over its pi(i | g).
      within: ``[items]`` pi(i | g) of a slot.
      stay: rho.
    """

    def __init__(self, config: SyntheticConfig, catalogue: GeneratedItems) -> None:
        """Tabulates the model of a configuration."""
        self.shelf_share = catalogue.shelf_share
        self.shelf_of = catalogue.shelf_of
        self.weights = np.asarray(config.interest_weights)
        self.explore = config.explored / config.events
        # The events that do not explore are divided by the shares as they are configured; the
        # rates below are those among all events.
        others = 1.0 - self.explore
        interests = config.long_share + config.session_share
        scale = min(1.0, others / interests) if interests > 0 else 1.0
        self.long = config.long_share * scale
        self.session = config.session_share * scale
        self.noise = max(0.0, others - self.long - self.session)
        self.within = np.diff(catalogue.cumulative) / catalogue.shelf_share[catalogue.shelf_of]
        self.stay = config.stay

    def event_probability(self, slot: Ints, interests: Ints, session: Ints) -> Floats:
        """p(i) of the next event.

        Args:
          slot: ``[N, ...]`` the item.
          interests: ``[N, K]`` the user's long-term shelves.
          session: ``[N]`` the session's shelf after the event before.

        Returns:
          ``[N, ...]`` probabilities.
        """
        extra = (1,) * (slot.ndim - 1)
        shelf = self.shelf_of[slot]
        share = self.shelf_share[shelf]
        liked = sum(
            weight * (shelf == interests[:, k].reshape(-1, *extra))
            for k, weight in enumerate(self.weights)
        )
        current = self.stay * (shelf == session.reshape(-1, *extra)) + (1 - self.stay) * share
        mixture = self.long * liked + self.session * current + self.noise * share
        return self.within[slot] * mixture + self.explore / len(self.shelf_of)


@dataclasses.dataclass(frozen=True)
class EventBlock:
    """The events of consecutive users, in the order of users and time.

    Attributes:
      first_user: number of the first user.
      users: number of users.
      user: ``[E]`` user, from 0 within the block.
      offset: ``[users + 1]`` user u's events are ``offset[u] : offset[u + 1]``.
      slot: ``[E]`` item slots.
      session: ``[E]`` the session's shelf.
      interests: ``[users, K]`` long-term shelves.
      time: ``[E]`` seconds, increasing for each user.
      rating: ``[E]`` 1 to 5.
    """

    first_user: int
    users: int
    user: Ints
    offset: Ints
    slot: Ints
    session: Ints
    interests: Ints
    time: Ints
    rating: Ints


class Population:
    """Draws the users of a configuration, a block at a time.

    Attributes:
      catalogue: what they choose from.
      lengths: ``[users]`` events of each user.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        """Draws the catalogue, the lengths of all histories and the events that explore."""
        self._config = config
        self.catalogue = GeneratedItems(config)
        self._model = ShelfModel(config, self.catalogue)
        self.lengths = _history_lengths(config)
        self._offset = np.concatenate([[0], np.cumsum(self.lengths)])
        # One event in each of `explored` equal stretches of all events.
        bound = np.arange(config.explored + 1) * config.events // max(1, config.explored)
        uniform = _stream(config.seed, _EXPLORATION, 0).random(config.explored)
        self._explored_at = bound[:-1] + (uniform * np.diff(bound)).astype(np.int64)

    def block(self, first_user: int) -> EventBlock:
        """The block that starts at a user, a multiple of BLOCK_USERS."""
        config, catalogue, model = self._config, self.catalogue, self._model
        users = min(BLOCK_USERS, config.users - first_user)
        first, end = self._offset[first_user], self._offset[first_user + users]
        offset = self._offset[first_user : first_user + users + 1] - first
        events = int(end - first)
        user = np.repeat(np.arange(users), np.diff(offset))
        number = first_user // BLOCK_USERS
        interests = catalogue.draw_shelves(
            _stream(config.seed, _INTERESTS, number).random((users, len(model.weights)))
        )
        random = _stream(config.seed, _EVENTS, number)

        low, high = np.searchsorted(self._explored_at, [first, end])
        explored_at = self._explored_at[low:high] - first
        source = random.random(events) * (1.0 - model.explore)
        source[explored_at] = 1.0
        of_interests = source < model.long
        of_session = ~of_interests & (source < model.long + model.session)

        # The session's shelf: that of the last event at or before this one where it was redrawn.
        redrawn = of_session & (random.random(events) >= model.stay)
        redrawn[offset[:-1]] = True
        at = np.maximum.accumulate(np.where(redrawn, np.arange(events), 0))
        session = catalogue.draw_shelves(random.random(events))[at]

        rank = np.searchsorted(np.cumsum(model.weights)[:-1], random.random(events), side="right")
        shelf = np.where(of_session, session, catalogue.draw_shelves(random.random(events)))
        shelf = np.where(of_interests, interests[user, rank], shelf)
        slot = catalogue.draw_items(shelf, random.random(events))
        slot[explored_at] = catalogue.slot[low:high]

        return EventBlock(
            first_user=first_user,
            users=users,
            user=user,
            offset=offset,
            slot=slot,
            session=session,
            interests=interests,
            time=_times(user, offset, random),
            rating=1
            + np.searchsorted(np.cumsum(_RATING_SHARES)[:-1], random.random(events), side="right"),
        )


_CATALOGUE, _LENGTHS, _EXPLORATION, _INTERESTS, _EVENTS = range(5)


def _stream(seed: int, stream: int, block: int) -> np.random.Generator:
    """The random numbers of one block of one stream, whatever was drawn before."""
    key = np.array([seed, stream << 48 | block], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _apportion(share: Floats, total: int) -> Ints:
    """Divides `total` by shares into whole numbers with exactly that sum (largest remainders)."""
    exact = share / share.sum() * total
    whole = np.floor(exact).astype(np.int64)
    missing = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    return whole


def _history_lengths(config: SyntheticConfig) -> Ints:
    """Events of each user: min_events and a log-logistic tail, exactly `events` together."""
    uniform = _stream(config.seed, _LENGTHS, 0).random(config.users)
    tail = np.sqrt(np.maximum(uniform, 1e-12) / (1.0 - uniform))
    room = config.max_events - config.min_events
    wanted = config.events - config.users * config.min_events
    low, high = 0.0, config.events / tail.min() + 1.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if np.minimum(np.floor(tail * middle), room).sum() <= wanted:
            low = middle
        else:
            high = middle
    extra = np.minimum(np.floor(tail * low), room).astype(np.int64)
    while (missing := wanted - int(extra.sum())) > 0:
        extra[np.flatnonzero(extra < room)[:missing]] += 1
    return config.min_events + extra


def _times(user: Ints, offset: Ints, random: np.random.Generator) -> Ints:
    """Increasing seconds: bursts and long gaps, within the years of the 2014 set."""
    gap = np.square(np.log1p(-random.random(len(user))))
    elapsed = np.cumsum(gap)
    elapsed -= elapsed[offset[:-1]][user]
    total = elapsed[offset[1:] - 1]
    window = (_LAST_TIME - _FIRST_TIME) - np.diff(offset)
    # A user is active for a tenth of the window to all of it.
    span = window * (0.1 + 0.9 * random.random(len(total)))
    start = _FIRST_TIME + (window - span) * random.random(len(total))
    exact = start[user] + elapsed * (span / np.maximum(total, 1e-9))[user]
    # One second more for each event keeps the order strict where the gaps round to nothing.
    return exact.astype(np.int64) + (np.arange(len(user)) - offset[:-1][user])


def review_lines(block: EventBlock, catalogue: GeneratedItems) -> bytes:
    """The events of a block as JSON lines in the order of time, as a log has them."""
    order = np.argsort(block.time, kind="stable")
    return formatted_lines(
        '{"reviewerID": "A%s", "asin": "B%s", "overall": %s.0, "unixReviewTime": %s}\n',
        (block.first_user + block.user[order], _USER_DIGITS),
        (catalogue.number[block.slot[order]], _ITEM_DIGITS),
        (block.rating[order], 1),
        (block.time[order], 10),
    )


def _metadata_lines(catalogue: GeneratedItems, first: int, end: int) -> bytes:
    """The items numbered `first` to `end` - 1 as JSON lines."""
    number = np.arange(first, end)
    return formatted_lines(
        '{"asin": "B%s", "categories": [["Synthetic", "Category %s"]]}\n',
        (number, _ITEM_DIGITS),
        (catalogue.category(number), _CATEGORY_DIGITS),
    )


def formatted_lines(template: str, *columns: tuple[npt.NDArray[np.integer[Any]], int]) -> bytes:
    """Lines of equal width: a byte matrix of the template, its digits written column by column.

    About 20 times as fast as formatting each line, which is why ids have a fixed width.

    Args:
      template: a line with one %s for each column.
      *columns: non-negative numbers and the digits they are padded to.
    """
    parts = template.encode("ascii").split(b"%s")
    line = parts[0] + b"".join(
        b"0" * digits + part for (_, digits), part in zip(columns, parts[1:], strict=True)
    )
    matrix = np.empty((len(columns[0][0]), len(line)), np.uint8)
    matrix[:] = np.frombuffer(line, np.uint8)
    end = 0
    for part, (number, digits) in zip(parts, columns, strict=False):
        end += len(part) + digits
        rest = number.astype(np.uint64)
        for place in range(digits):
            if not rest.any():
                break
            matrix[:, end - 1 - place] += (rest % 10).astype(np.uint8)
            rest //= 10
    return matrix.tobytes()


@contextlib.contextmanager
def _writer(path: Path, compress: bool) -> Iterator[IO[bytes]]:
    """Opens a file, compressed or not; a compressed one has no name or time in its header."""
    if not compress:
        with path.open("wb") as out:
            yield out
        return
    with (
        path.with_name(path.name + ".gz").open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=3, fileobj=raw, mtime=0) as out,
    ):
        yield out  # type: ignore[misc]


@contextlib.contextmanager
def _progress(events: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; yields what to call with the events just written."""
    if not show:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("generating", BarColumn(), MofNCompleteColumn(), "events", TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("generating", total=events)
        yield lambda done: bar.advance(task, done)

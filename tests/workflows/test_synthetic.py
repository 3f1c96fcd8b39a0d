from __future__ import annotations

import collections
import dataclasses
import gzip
import hashlib
import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lookback.core.errors import UserError
from lookback.core.outputs import RECORD
from lookback.workflows.commands import PROGRAM
from lookback.workflows.generators import synthetic
from lookback.workflows.generators.oracle import (
    OracleOptions,
    auc,
    draw_negatives,
    history_probability,
)
from lookback.workflows.generators.synthetic import (
    METADATA,
    PRESETS,
    REVIEWS,
    Population,
    ShelfModel,
    SyntheticConfig,
    generate_synthetic,
    scaled,
)

TINY = PRESETS["tiny"]
# More than two blocks of users, cheap otherwise.
BLOCKS = SyntheticConfig(
    users=2_500, items=600, categories=30, events=60_000, min_events=20, max_events=60
)
NO_HISTORY = OracleOptions(history_users=0)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digests(directory: Path) -> dict[str, str]:
    """Of the files, but for the list of their names."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
        if path.name != RECORD
    }


def test_the_files_have_the_cardinalities_that_were_asked_for(tmp_path: Path) -> None:
    report = generate_synthetic(TINY, tmp_path / "raw", oracle=NO_HISTORY)
    events = read(tmp_path / "raw" / REVIEWS)
    metadata = read(tmp_path / "raw" / METADATA)
    assert len(events) == TINY.events
    lengths = collections.Counter(event["reviewerID"] for event in events)
    assert len(lengths) == TINY.users
    assert min(lengths.values()) == TINY.min_events
    assert max(lengths.values()) <= TINY.max_events
    # Exploration walks through the whole catalogue, so each item and category occurs.
    items = {entry["asin"] for entry in metadata}
    assert len(metadata) == len(items) == TINY.items
    assert {event["asin"] for event in events} == items
    assert len({entry["categories"][0][-1] for entry in metadata}) == TINY.categories
    assert report["counts"] == {
        "users": TINY.users, "events": TINY.events, "items": TINY.items,
        "items_seen": TINY.items, "categories": TINY.categories,
    }  # fmt: skip


def test_events_have_amazon_s_fields_and_increasing_times(tmp_path: Path) -> None:
    generate_synthetic(TINY, tmp_path / "raw", oracle=NO_HISTORY)
    times = collections.defaultdict(list)
    ratings = collections.Counter()
    for event in read(tmp_path / "raw" / REVIEWS):
        assert set(event) == {"reviewerID", "asin", "overall", "unixReviewTime"}
        assert isinstance(event["unixReviewTime"], int)
        times[event["reviewerID"]].append(event["unixReviewTime"])
        ratings[event["overall"]] += 1
    assert set(ratings) == {1.0, 2.0, 3.0, 4.0, 5.0}
    for of_user in times.values():
        assert of_user[0] >= 1_000_000_000
        assert of_user[-1] < 1_406_000_000
        assert all(a < b for a, b in itertools.pairwise(of_user))


def test_lines_are_those_that_formatting_gives() -> None:
    numbers = np.array([0, 7, 12_345, 99_999])
    ratings = np.array([1, 2, 3, 5])
    expected = "".join(
        f'{{"a": "A{number:05d}", "b": {rating}.0}}\n'
        for number, rating in zip(numbers, ratings, strict=True)
    )
    lines = synthetic.formatted_lines('{"a": "A%s", "b": %s.0}\n', (numbers, 5), (ratings, 1))
    assert lines.decode() == expected


def test_the_same_seed_gives_the_same_bytes_however_many_blocks_are_written(tmp_path: Path) -> None:
    options = OracleOptions(history_users=50, history_sweeps=3)
    for name, blocks in (("one", 1), ("two", 2), ("all", 99)):
        generate_synthetic(BLOCKS, tmp_path / name, blocks_per_write=blocks, oracle=options)
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "all")
    other = dataclasses.replace(BLOCKS, seed=1)
    generate_synthetic(other, tmp_path / "other", oracle=options)
    assert not set(digests(tmp_path / "one").values()) & set(digests(tmp_path / "other").values())


def test_a_block_does_not_depend_on_the_blocks_before_it() -> None:
    population = Population(BLOCKS)
    population.block(0)
    after, alone = population.block(1024), Population(BLOCKS).block(1024)
    for field in dataclasses.fields(after):
        np.testing.assert_array_equal(getattr(after, field.name), getattr(alone, field.name))


def test_compressed_files_hold_the_same_lines(tmp_path: Path) -> None:
    generate_synthetic(TINY, tmp_path / "plain", oracle=NO_HISTORY)
    for name in ("a", "b"):
        generate_synthetic(TINY, tmp_path / name, compress=True, oracle=NO_HISTORY)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    for name in (REVIEWS, METADATA):
        plain = (tmp_path / "plain" / name).read_bytes()
        assert gzip.decompress((tmp_path / "a" / f"{name}.gz").read_bytes()) == plain


def test_memory_does_not_grow_with_the_users(tmp_path: Path) -> None:
    peaks = []
    for users in (2_048, 8_192):
        config = dataclasses.replace(BLOCKS, users=users, events=users * 30)
        tracemalloc.start()
        generate_synthetic(config, tmp_path / str(users), oracle=NO_HISTORY)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Four times the events, and a few numbers more for each user.
    assert peaks[1] < 1.25 * peaks[0] + 200 * (8_192 - 2_048)
    assert peaks[1] < (tmp_path / "8192" / REVIEWS).stat().st_size


@pytest.mark.parametrize("events", [40, 57, 200, 399, 400])
def test_history_lengths_sum_to_the_events(events: int) -> None:
    config = SyntheticConfig(
        users=20, items=10, categories=2, events=events, min_events=2, max_events=20
    )
    lengths = Population(config).lengths
    assert lengths.sum() == events
    assert lengths.min() >= 2 and lengths.max() <= 20


def test_probabilities_of_all_items_sum_to_one() -> None:
    population = Population(TINY)
    block = population.block(0)
    model = ShelfModel(TINY, population.catalogue)
    users = 5
    everything = np.tile(np.arange(TINY.items), (users, 1))
    probability = model.event_probability(
        everything, block.interests[:users], block.session[:users]
    )
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, rtol=1e-12)


def test_events_occur_as_often_as_the_model_says() -> None:
    """Calibration: shelves of the session and of the interests, and items within a shelf."""
    config = dataclasses.replace(BLOCKS, events=2_500 * 50)
    population = Population(config)
    model = ShelfModel(config, population.catalogue)
    sizes = np.diff(population.catalogue.shelf_start)
    predicted, observed = collections.defaultdict(list), collections.defaultdict(list)
    for first in range(0, config.users, 1024):
        block = population.block(first)
        # Every event but a user's first, given the session after the one before.
        at = np.delete(np.arange(len(block.slot)), block.offset[:-1])
        session, interests = block.session[at - 1], block.interests[block.user[at]]
        for name, wanted in (("session", session), ("interest", interests[:, 0])):
            share = model.shelf_share[wanted]
            liked = (interests == wanted[:, None]) @ model.weights
            current = model.stay * (wanted == session) + (1 - model.stay) * share
            predicted[name].append(
                model.long * liked
                + model.session * current
                + model.noise * share
                + model.explore * sizes[wanted] / config.items
            )
            observed[name].append(model.shelf_of[block.slot[at]] == wanted)
    for name in ("session", "interest"):
        p, happened = np.concatenate(predicted[name]), np.concatenate(observed[name])
        error = np.sqrt((p * (1 - p)).sum()) / len(p)
        assert error < 0.003
        assert abs(p.mean() - happened.mean()) < 4 * error, name

    catalogue = population.catalogue
    shelf = np.full(200_000, 3)
    drawn = catalogue.draw_items(shelf, np.random.default_rng(0).random(len(shelf)))
    slots = np.arange(catalogue.shelf_start[3], catalogue.shelf_start[4])
    frequency = np.bincount(drawn, minlength=config.items)[slots] / len(shelf)
    expected = np.arange(1, len(slots) + 1.0) ** -config.item_exponent
    np.testing.assert_allclose(frequency, expected / expected.sum(), atol=0.005)


def test_the_oracle_is_the_auc_of_the_likelihood_ratio(tmp_path: Path) -> None:
    """Brute force: the formula written out, from the files, over all pairs and no sampling."""
    config = SyntheticConfig(
        users=60, items=30, categories=5, events=1_800, min_events=20, max_events=60,
        session_length=4.0, seed=3,
    )  # fmt: skip
    options = OracleOptions(oracle_negatives=400, history_users=0)
    report = generate_synthetic(config, tmp_path / "raw", oracle=options)

    population = Population(config)
    catalogue, block = population.catalogue, population.block(0)
    explore = config.explored / config.events
    number_of = {f"B{number:09d}": slot for slot, number in enumerate(catalogue.number)}
    counts = collections.Counter()
    last: dict[str, int] = {}
    for event in read(tmp_path / "raw" / REVIEWS):
        slot = number_of[event["asin"]]
        counts[slot] += 1
        last[event["reviewerID"]] = slot

    def probability(slot: int, user: int) -> float:
        shelf = int(catalogue.shelf_of[slot])
        first, end = catalogue.shelf_start[shelf : shelf + 2]
        zipf = [(rank + 1) ** -config.item_exponent for rank in range(end - first)]
        b = catalogue.shelf_share[shelf]
        liked = sum(
            weight
            for weight, interest in zip(config.interest_weights, block.interests[user], strict=True)
            if interest == shelf
        )
        session = block.session[block.offset[user + 1] - 2]
        current = (1 - 1 / 4.0) * (session == shelf) + b / 4.0
        noise = 1 - config.long_share - config.session_share - explore
        mixture = config.long_share * liked + config.session_share * current + noise * b
        return zipf[slot - first] / sum(zipf) * mixture + explore / config.items

    for name in ("popularity", "uniform"):
        q = {
            slot: counts[slot] / config.events if name == "popularity" else 1 / len(counts)
            for slot in counts
        }
        scores, labels, weights = [], [], []
        for user in range(config.users):
            positive = last[f"A{user:013d}"]
            scores.append(probability(positive, user) / q[positive])
            labels.append(1)
            weights.append(1.0)
            for slot in counts:
                scores.append(probability(slot, user) / q[slot])
                labels.append(0)
                weights.append(q[slot])
        # Rounded, so that what is equal but for the order of additions ties here, too.
        expected = roc_auc_score(labels, np.round(scores, 9), sample_weight=weights)
        assert report["oracle_auc"][name] == pytest.approx(expected, abs=0.004), name
        assert 0.5 < expected < 1


def test_auc_equals_scikit_learn_with_ties() -> None:
    random = np.random.default_rng(0)
    positive = random.integers(0, 8, 200) / 8
    negative = random.integers(-2, 6, (200, 3)) / 8
    value, error = auc(positive, negative)
    labels = np.r_[np.ones(200), np.zeros(600)]
    assert value == pytest.approx(roc_auc_score(labels, np.r_[positive, negative.ravel()]))
    # The error against the spread over resampled users.
    resampled = []
    for _ in range(300):
        rows = random.integers(0, 200, 200)
        resampled.append(auc(positive[rows], negative[rows])[0])
    assert error == pytest.approx(np.std(resampled), rel=0.2)


def test_negatives_follow_their_distribution() -> None:
    counts = np.array([0, 3, 0, 1, 6])
    uniform = np.random.default_rng(0).random((1_000, 100))
    for name, expected in (
        ("popularity", [0, 0.3, 0, 0.1, 0.6]),
        ("uniform", [0, 1 / 3, 0, 1 / 3, 1 / 3]),
    ):
        negatives = draw_negatives(counts, name, uniform)
        assert negatives.shape == uniform.shape
        share = np.bincount(negatives.ravel(), minlength=5) / uniform.size
        np.testing.assert_allclose(share, expected, atol=0.01)


@pytest.mark.slow
def test_the_history_oracle_is_the_exact_posterior_predictive() -> None:
    """Against an enumeration of all interests and all sources of all events."""
    config = SyntheticConfig(
        users=30, items=8, categories=2, events=240, min_events=6, max_events=12,
        interest_weights=(0.6, 0.4), long_share=0.35, session_share=0.45, session_length=3.0,
        seed=5,
    )  # fmt: skip
    population = Population(config)
    catalogue = population.catalogue
    model = ShelfModel(config, catalogue)
    b = model.shelf_share
    shelves = len(b)
    histories = [np.array([0, 5, 5, 1, 0]), np.array([7, 2]), np.array([3, 3, 3, 6])]
    candidates = np.tile(np.arange(config.items), (3, 1))

    def predictive(history: np.ndarray) -> np.ndarray:
        total, answer = 0.0, np.zeros(config.items)
        for interests in itertools.product(range(shelves), repeat=2):
            liked = np.zeros(shelves)
            for weight, shelf in zip((0.6, 0.4), interests, strict=True):
                liked[shelf] += weight
            # The session before each event, with the joint probability of what was seen.
            alpha = b * b[interests[0]] * b[interests[1]]
            for slot in history:
                shelf = model.shelf_of[slot]
                within = model.within[slot]
                elsewhere = within * (model.long * liked[shelf] + model.noise * b[shelf])
                elsewhere += model.explore / config.items
                after = alpha * elsewhere
                started = alpha.sum() * (1 - model.stay) * b[shelf]
                after[shelf] += within * model.session * (model.stay * alpha[shelf] + started)
                alpha = after
            total += alpha.sum()
            for session in range(shelves):
                answer += (
                    alpha[session]
                    * model.event_probability(
                        np.arange(config.items)[None], np.array([interests]), np.array([session])
                    )[0]
                )
        return answer / total

    result = history_probability(
        model, histories, candidates, 6_000, np.random.Generator(np.random.Philox(1))
    )
    expected = np.stack([predictive(history) for history in histories])
    np.testing.assert_allclose(expected.sum(axis=1), 1.0, rtol=1e-9)
    np.testing.assert_allclose(result.sum(axis=1), 1.0, rtol=1e-9)
    np.testing.assert_allclose(result, expected, rtol=0.04)


def test_the_history_reveals_nearly_all_that_the_oracle_knows(tmp_path: Path) -> None:
    """The demo preset: oracle, then history oracle, then what shows that history is needed."""
    config = PRESETS["demo"]
    report = generate_synthetic(config, tmp_path / "raw", oracle=OracleOptions(history_sweeps=15))
    oracle = report["oracle_auc"]["popularity"]
    history = report["history_oracle"]["auc"]["popularity"]
    assert 0.85 < oracle < 0.93
    assert oracle - 0.015 < history <= oracle + 0.003

    category = {
        entry["asin"]: entry["categories"][0][-1] for entry in read(tmp_path / "raw" / METADATA)
    }
    histories = collections.defaultdict(list)
    for event in read(tmp_path / "raw" / REVIEWS):
        histories[event["reviewerID"]].append(event["asin"])
    everything = [item for items in histories.values() for item in items]
    popularity = collections.Counter(everything)
    random = np.random.default_rng(0)
    positives, negatives = [], []
    for items in histories.values():
        seen = collections.Counter(category[item] for item in items[:-1])
        negative = everything[random.integers(len(everything))]
        positives.append((popularity[items[-1]], seen[category[items[-1]]] / (len(items) - 1)))
        negatives.append((popularity[negative], seen[category[negative]] / (len(items) - 1)))
    by_popularity, by_affinity = (
        auc(np.array(positives)[:, column], np.array(negatives)[:, [column]])[0]
        for column in (0, 1)
    )
    assert abs(by_popularity - 0.5) < 0.04
    assert 0.75 < by_affinity < oracle - 0.03


def test_the_presets_keep_every_user_and_show_every_item() -> None:
    for config in PRESETS.values():
        assert config.min_events >= 20
        assert config.explored == config.items
    books = PRESETS["amazon_books"]
    assert (books.users, books.items, books.categories) == (105_925, 1_209_081, 2_330)
    assert books.events >= 12_000_000
    assert PRESETS["1m"].events == 1_000_000


@pytest.mark.parametrize("factor", [0.001, 0.05, 2.0])
def test_a_scaled_preset_is_valid_and_as_large_as_asked(factor: float) -> None:
    books = PRESETS["amazon_books"]
    small = scaled(books, factor)
    assert small.users == round(books.users * factor)
    assert small.events == pytest.approx(books.events * factor, rel=0.02)
    assert small.items == pytest.approx(books.items * factor, rel=0.02)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"users": 0}, "users: expected an integer, 1 or more, received 0"),
        ({"events": 10}, "events must be from users x min_events = 6,000 to .* received 10"),
        ({"items": 49}, "items must be at least categories x shelves = 50, received 49"),
        ({"min_events": 1}, "min_events: expected an integer, 2 or more, received 1"),
        ({"max_events": 5}, "max_events must be at least min_events = 20, received 5"),
        ({"interest_weights": (0.5, 0.4)}, "positive numbers with the sum 1"),
        ({"interest_weights": ()}, "interest_weights: expected a number, or several"),
        ({"session_share": 0.8}, "session_share must be from 0 to 1 - long_share = 0.7"),
        ({"session_length": 0.5}, "session_length: expected a number, 1 or more, received 0.5"),
        ({"seed": -1}, "seed: expected an integer, 0 or more"),
    ],
)
def test_impossible_configurations_are_refused_by_name(change: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        dataclasses.replace(TINY, **change)


def test_impossible_options_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="oracle_negatives: expected an integer, 1 or more, received 0"
    ):
        OracleOptions(oracle_negatives=0)
    with pytest.raises(UserError, match="scale must be above 0, received -1"):
        scaled(TINY, -1)
    with pytest.raises(UserError, match="blocks_per_write must be at least 1"):
        generate_synthetic(TINY, tmp_path / "raw", blocks_per_write=0)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine").touch()
    with pytest.raises(UserError, match="already exists"):
        generate_synthetic(TINY, tmp_path / "raw")


def test_a_generation_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> bytes:
        raise OSError("No space left on device")

    monkeypatch.setattr(synthetic, "review_lines", full_disk)
    with pytest.raises(OSError, match="No space left"):
        generate_synthetic(TINY, tmp_path / "raw")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_changes_what_it_names_of_a_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--preset", "tiny", "--scale", "0.5", "--seed", "7", "--interest_weights", "0.6,0.4",
        "--history_users", "20", "--oracle_negatives", "1", "--output", str(tmp_path / "raw"),
    ]  # fmt: skip
    assert PROGRAM.main(["generate", *arguments]) == 0
    report = json.loads((tmp_path / "raw" / "oracle.json").read_text())
    assert report["seed"] == 7
    assert report["config"]["interest_weights"] == [0.6, 0.4]
    assert report["counts"]["users"] == 150
    assert report["pairs"] == {"users": 150, "negatives": 1}
    # 150 users, every eighth of them.
    assert report["history_oracle"]["pairs"] == {"users": 19, "negatives": 1}
    assert "6,000 events of 150 users" in capsys.readouterr().out


def test_the_command_line_refuses_what_is_not_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "--output", "raw", "--interest_weights", "many"]
    assert PROGRAM.main(arguments) == 2
    assert "expected a number, or several separated by commas" in capsys.readouterr().err

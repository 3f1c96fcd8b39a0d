"""Training on what is new alone, and with ids hidden: against plain NumPy, on any ranks."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from merlin.schema import Schema

from lookback.core.errors import UserError
from lookback.core.options import parse
from lookback.dataloading import LAYOUTS
from lookback.dataloading.histories.layout import HistoriesOptions
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.sources import ResidentSource
from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig
from lookback.dataloading.interactions.layout import InteractionsOptions
from lookback.dataloading.interactions.source import InteractionSource
from lookback.dataloading.parts import WHOLE, Part
from lookback.dataloading.sampling import new_events
from lookback.formats.features import dataset_column
from lookback.formats.history_columns import NEW, typed_columns
from lookback.formats.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY
from lookback.training.data import open_source
from lookback.training.run import command_line
from tests.typed_data import typed_histories

pytestmark = pytest.mark.usefixtures("eagerly")

LENGTHS = (20, 7, 3, 3, 12)
CONFIG = WindowConfig(max_seq_length=9, long_seq_length=5)


@pytest.fixture(scope="module")
def updated(make_histories) -> Histories:
    """Of some events it is known that they are new; some of them are no item."""
    histories = make_histories(LENGTHS)
    rng = np.random.default_rng(4)
    new = (rng.random(histories.num_events) < 0.4).astype(np.int8)
    new[[0, 20, 27, 30, 33]] = 1  # what comes first of a user has no history
    histories.item_features["item_id"][[5, 6]] = OUT_OF_VOCABULARY
    new[[5, 6]] = 1
    column = typed_columns([], new=True)[-1]
    schema = Schema([*histories.schema, dataset_column(column, {})])
    return dataclasses.replace(histories, schema=schema, event_features={NEW: new})


@pytest.fixture(scope="module")
def directory(updated, write_dataset, tmp_path_factory) -> Path:
    return write_dataset(updated, tmp_path_factory.mktemp("updated") / "data")


def wanted(histories: Histories, *, first: int) -> list[tuple[int, int]]:
    """User and event of what is new, known, not held out and not before `first`."""
    found = []
    for user, (begin, end) in enumerate(itertools.pairwise(histories.offsets)):
        for event in range(begin + first, end - 1):
            known = histories.item_features["item_id"][event] >= FIRST_KNOWN
            if histories.event_features[NEW][event] and known:
                found.append((user, event))
    return found


def test_only_what_is_new_is_trained_on_and_evaluation_is_as_it_was(updated, directory):
    chosen = Histories.load(directory, only_new=True)
    windows, before = (
        WindowBuilder(histories, CONFIG) for histories in (chosen, Histories.load(directory))
    )
    expected = wanted(updated, first=1)
    users, events = windows.target_events("train")
    assert list(zip(users.tolist(), events.tolist(), strict=True)) == expected
    assert windows.left_out("train").unknown_targets == 2
    for rows in (4, 6):
        seen = []
        for step in range(windows.train_steps(rows)):
            numbers = windows.train_numbers(1, 0, step, rows)
            features, _ = windows.train_batch(1, 0, step, rows)
            for number, positive, history in zip(
                numbers.numpy(),
                features["item_id"].numpy()[:, 0],
                features["item_id_history"].numpy(),
                strict=True,
            ):
                user, event = expected[number]
                items = updated.item_features["item_id"][: event + 1]
                past = items[updated.offsets[user] : event][-9:]
                assert positive == items[-1] and history[9 - len(past) :].tolist() == past.tolist()
                seen.append((user, event))
        assert sorted(seen) == expected
    found, was = windows.eval_batch("test", 1, 0, 10), before.eval_batch("test", 1, 0, 10)
    for name, values in was[0].items():
        np.testing.assert_array_equal(found[0][name], values, err_msg=name)
    # Evaluated on what was trained on, too: negatives are the same in every epoch.
    one, other = (windows.eval_batch("train", 1, 0, 10)[0]["item_id"] for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_pairs_of_users_and_items_are_new_as_well(updated, directory):
    pairs = InteractionSource(
        Histories.load(directory, only_new=True), seed=1, batch_size=20, test_negatives=3
    )
    found = []
    for feed in pairs.train_feeds(0, 0):
        features, _ = pairs.train_batch(feed)
        users, items = features["user_id"].numpy(), features["item_id"].numpy()[:, 0]
        found += zip(users.tolist(), items.tolist(), strict=True)
    items = updated.item_features["item_id"]
    expected = Counter((user + 1, int(items[event])) for user, event in wanted(updated, first=0))
    assert Counter(found) == expected


@pytest.mark.parametrize("model_type", ["sim", "neumf"])
def test_a_run_is_told_so_by_options(updated, directory, model_type):
    run = ("--train_on", "new", "--oov_rate", "0.5", "--global_batch_size", "30", "--seed", "1")
    lengths = ("--max_seq_length", "9", "--long_seq_length", "5") * (model_type == "sim")
    words = ["--model_type", model_type, "--dataset_dir", str(directory), *run, *lengths]
    source = open_source(*parse(words, command_line()))
    features = epoch_of(source)
    first = 1 if model_type == "sim" else 0
    assert len(features["user_id"]) == len(wanted(updated, first=first))
    assert 0.2 < (features["user_id"] == OUT_OF_VOCABULARY).mean() < 0.8
    kept = (features["item_id"] != OUT_OF_VOCABULARY).any(1)
    assert 0 < kept.sum() <= len(kept)


def test_ranks_that_have_their_own_users_train_on_what_is_new_of_them(updated, directory):
    found = []
    for rank in range(3):
        part = Histories.load(directory, Part(rank, 3), only_new=True)
        counts = updated.item_counts()
        users, events = WindowBuilder(part, CONFIG, counts).target_events("train")
        for user, event in zip(users.tolist(), events.tolist(), strict=True):
            whose = user * 3 + rank
            found.append((whose, event - part.offsets[user] + updated.offsets[whose]))
    assert sorted(found) == wanted(updated, first=1)


def test_impressions_are_chosen_too(write_dataset, tmp_path):
    histories = typed_histories(LENGTHS, impressions=(30, 8, 9))
    shown = histories.impressions
    assert shown is not None
    rng = np.random.default_rng(1)
    new = {split: rng.integers(0, 2, len(of.users)).astype(np.int8) for split, of in shown.items()}
    column = typed_columns([], new=True)[-1]
    written = dataclasses.replace(
        histories,
        schema=Schema([*histories.schema, dataset_column(column, {})]),
        event_features={**histories.event_features, NEW: np.zeros(sum(LENGTHS), np.int8)},
        impressions={
            split: dataclasses.replace(of, features={**of.features, NEW: new[split]})
            for split, of in shown.items()
        },
    )
    directory = write_dataset(written, tmp_path / "shown")
    chosen = new["train"] == 1
    assert new_events(directory) == chosen.sum() > 0
    loaded = Histories.load(directory, only_new=True)
    assert loaded.impressions is not None
    found, was = loaded.impressions["train"], shown["train"]
    np.testing.assert_array_equal(found.labels, was.labels[chosen])
    np.testing.assert_array_equal(found.users, was.users[chosen])
    np.testing.assert_array_equal(found.positions, was.positions[chosen])
    assert NEW not in found.features
    for name, values in found.features.items():
        np.testing.assert_array_equal(values, was.features[name][chosen])
    np.testing.assert_array_equal(loaded.impressions["test"].labels, shown["test"].labels)


def test_what_is_not_known_to_be_new_is_refused(
    updated, directory, make_histories, write_dataset, tmp_path
):
    info = {
        "format": "lookback-histories",
        "format_version": 1,
        "split": {"rule": "leave_last_out", "test": 1, "validation": 0},
        "counts": {"users": len(LENGTHS), "events": sum(LENGTHS)},
    }
    plain = write_dataset(make_histories(LENGTHS), tmp_path / "plain", info=info)
    counted = write_dataset(updated, tmp_path / "counted", info=info)
    message = "train_on: new needs a dataset that `python -m workflows update` wrote"
    with pytest.raises(UserError, match=message):
        Histories.load(plain, only_new=True)
    for layout, options in (("histories", HistoriesOptions), ("interactions", InteractionsOptions)):
        model: Any = None
        given = options(train_on="new")
        with pytest.raises(UserError, match=message):
            LAYOUTS[layout].training_rows(plain, given, model)
        rows = LAYOUTS[layout].training_rows(counted, given, model)
        rows_a_target = 2 if layout == "histories" else 5
        assert rows == rows_a_target * int(updated.event_features[NEW].sum())
    old = dataclasses.replace(updated, event_features={NEW: np.zeros(updated.num_events, np.int8)})
    loaded = Histories.load(write_dataset(old, tmp_path / "old"), only_new=True)
    with pytest.raises(UserError, match="no target that is new"):
        WindowBuilder(loaded, CONFIG).train_steps(4)
    with pytest.raises(UserError, match="no target that is new"):
        InteractionSource(loaded, seed=1, batch_size=20)


# --- ids hidden


def epoch_of(source: Any, epoch: int = 0) -> dict[str, np.ndarray]:
    """All samples of an epoch, in their order."""
    batches = [source.train_batch(feed)[0] for feed in source.train_feeds(epoch, 0)]
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def sources(histories: Histories, rate: float, **more: Any) -> Any:
    config = dataclasses.replace(CONFIG, oov_rate=rate)
    return ResidentSource(histories, config, **{"seed": 3, "batch_size": 256, **more})


@pytest.fixture(scope="module")
def many(make_histories) -> Histories:
    return make_histories([40] * 9, items=60)


def test_ids_are_hidden_at_the_rate_in_all_places_of_a_sample_or_in_none(many):
    rate = 0.25
    plain, hidden = epoch_of(sources(many, 0.0)), epoch_of(sources(many, rate))
    assert set(plain) == set(hidden)
    draws = 0
    total = 0
    for row in range(len(plain["item_id"])):
        fate: dict[int, set[bool]] = {}
        for name in ("item_id", "item_id_history", "item_id_negatives"):
            was, now = plain[name][row], hidden[name][row]
            gone = now != was
            assert (now[gone] == OUT_OF_VOCABULARY).all() and not gone[was < FIRST_KNOWN].any()
            for item, state in zip(was.tolist(), gone.tolist(), strict=True):
                fate.setdefault(item, set()).add(state)
        fate.pop(0, None)  # padding
        assert all(len(states) == 1 for states in fate.values())
        draws += sum(states == {True} for states in fate.values())
        total += len(fate)
    error = np.sqrt(rate * (1 - rate) / total)
    assert abs(draws / total - rate) < 4 * error
    users = hidden["user_id"] != plain["user_id"]
    known = plain["user_id"] >= FIRST_KNOWN
    assert not users[~known].any()
    assert abs(users[known].mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / known.sum())
    for name in plain:
        if name.startswith(("category", "country")):
            np.testing.assert_array_equal(plain[name], hidden[name])


def test_what_is_hidden_does_not_depend_on_batches_or_ranks_but_on_the_epoch(many):
    def by_sample(epoch: int, **more: Any) -> dict[int, list[int]]:
        found = {}
        source = sources(many, 0.3, **more)
        for feed in source.train_feeds(epoch, 0):
            items = source.train_batch(feed)[0]["item_id_history"].numpy()
            numbers = source.describe(feed)["sample"]
            found |= dict(zip(numbers, items.tolist(), strict=True))
        return found

    whole = by_sample(0)
    assert by_sample(0, batch_size=300) == whole
    parts = [by_sample(0, part=Part(rank, 3)) for rank in range(3)]
    assert {n: items for part in parts for n, items in part.items()} == whole
    assert by_sample(1) != whole and by_sample(0, seed=4) != whole


def test_pairs_are_hidden_too_and_evaluation_hides_nothing(many):
    def pairs(rate: float, part: Part = WHOLE) -> InteractionSource:
        return InteractionSource(
            many, seed=1, batch_size=900, test_negatives=3, oov_rate=rate, part=part
        )

    rate, plain, hidden = 0.25, epoch_of(pairs(0.0)), epoch_of(pairs(0.25))
    for name in ("user_id", "item_id"):
        known, gone = plain[name] >= FIRST_KNOWN, plain[name] != hidden[name]
        assert (hidden[name][gone] == OUT_OF_VOCABULARY).all() and not gone[~known].any()
        assert abs(gone[known].mean() - rate) < 0.03
    halves = [epoch_of(pairs(rate, Part(rank, 2)))["item_id"] for rank in range(2)]
    assert sorted(np.concatenate(halves).tolist()) == sorted(hidden["item_id"].tolist())
    step = tf.constant(0, tf.int64)
    for one, other in ((sources(many, 0.0), sources(many, rate)), (pairs(0.0), pairs(rate))):
        for source in (one, other):
            source.eval_steps("test")
        was, now = one.eval_batch("test", step)[0], other.eval_batch("test", step)[0]
        for name, values in was.items():
            np.testing.assert_array_equal(now[name], values, err_msg=name)

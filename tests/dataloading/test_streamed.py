"""Histories that stream in blocks, against those that are resident, sample by sample."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from merlin.schema import Schema

from lookback.core.errors import UserError
from lookback.core.manifests import WHOLLY
from lookback.core.world import SOLO
from lookback.dataloading.histories import streamed as streaming
from lookback.dataloading.histories.blocks import Blocks
from lookback.dataloading.histories.resident import Histories, HistoriesReader
from lookback.dataloading.histories.sources import ResidentSource
from lookback.dataloading.histories.splits import ByTime, ByUsers, LeaveLastOut
from lookback.dataloading.histories.streamed import StreamedSource
from lookback.dataloading.histories.streams import (
    HeldStretches,
    Room,
    Stream,
    Stretch,
    owners_of,
    room_of,
    stretches_of,
)
from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig
from lookback.dataloading.parts import WHOLE, Part
from lookback.formats.dataset_info import SPLITS
from lookback.formats.features import dataset_column
from lookback.formats.history_columns import NEW, typed_columns
from lookback.formats.vocabulary import OUT_OF_VOCABULARY
from tests.typed_data import typed_histories

CONFIG = WindowConfig(max_seq_length=5, long_seq_length=3)
TYPED = dataclasses.replace(CONFIG, time_features=True)
LENGTHS = (20, 7, 3, 3, 12, 9, 4, 30, 6, 5, 3, 14, 8)
BLOCK = 3
"""Users of a block: five blocks, the last of one user."""
PLENTY = 10**9
BATCH = 16


@pytest.fixture
def written(write_dataset, tmp_path, eagerly):
    """Writes histories in blocks of `BLOCK` users, in two files."""

    def write(histories: Histories) -> Path:
        return write_dataset(histories, tmp_path / "data", row_group_users=BLOCK)

    return write


def blocks_of(directory, config=CONFIG, **options):
    return Blocks(HistoriesReader.open(directory, WHOLLY, None, **options), config)


def some_of(sizes):
    """Memory for two windows of about two blocks."""
    return int(sizes.max()) * 3 + int(sizes.sum() * 0.9)


def streamed(directory, memory=PLENTY, config=CONFIG, world=SOLO, *, only_new=False, **options):
    blocks = options.pop("blocks", None) or blocks_of(directory, config, only_new=only_new)
    table = blocks.survey(world)
    memory = some_of(table.bytes) if memory is None else memory
    given = {"seed": 3, "batch_size": BATCH, "part": Part(world.rank, world.size), **options}
    return StreamedSource(blocks, table, config, memory, **given)


def resident(directory, config=CONFIG, *, only_new=False, **options):
    """The same with everything in memory, its negatives drawn as where users are divided."""
    whole = Histories.load(directory, only_new=only_new)
    given = {"seed": 3, "batch_size": BATCH, "counts": whole.item_counts(), **options}
    return ResidentSource(whole, config, **given)


def batches(source, split=None, epoch=1, first=0):
    """Of an epoch of training, or of a split."""
    if split is None:
        return [source.train_batch(feed) for feed in source.train_feeds(epoch, first)]
    return [source.eval_batch(split, feed) for feed in source.eval_feeds(split)]


def numbers(source, split=None, epoch=1):
    """Of the samples, batch by batch."""
    feeds = source.eval_feeds(split) if split else source.train_feeds(epoch, 0)
    return [feed.numbers[feed.rows[0] : feed.rows[1]].numpy().tolist() for feed in feeds]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one[0]) == set(other[0])
        for name, values in other[0].items():
            np.testing.assert_array_equal(one[0][name], values, err_msg=name)
            assert one[0][name].dtype == values.dtype, name
        for values, others in zip(one[1:], other[1:], strict=True):
            np.testing.assert_array_equal(values, others)


def by_number(source, split=None, epoch=1):
    """What each sample has, as bytes; and the numbers of the samples, batch by batch."""
    found, steps = {}, []
    feeds = source.eval_feeds(split) if split else source.train_feeds(epoch, 0)
    for feed in feeds:
        features, *others = source.eval_batch(split, feed) if split else source.train_batch(feed)
        values = [np.asarray(v) for v in (*(features[n] for n in sorted(features)), *others)]
        steps.append(feed.numbers[feed.rows[0] : feed.rows[1]].numpy().tolist())
        for row, number in enumerate(steps[-1]):
            assert number not in found, "a sample twice"
            found[number] = b"".join(value[row].tobytes() for value in values)
    return found, steps


EVERY_SPLIT = [
    LeaveLastOut(),
    LeaveLastOut(validation=1),
    ByTime(500, 800),
    ByUsers(np.arange(len(LENGTHS), dtype=np.int8) % 3),
]


@pytest.mark.parametrize(
    ("split", "negatives"),
    [*((split, "popularity") for split in EVERY_SPLIT), (EVERY_SPLIT[1], "uniform")],
    ids=str,
)
def test_where_everything_fits_batches_are_those_of_resident_histories(written, split, negatives):
    histories = typed_histories(LENGTHS, split=split)
    histories.item_features["item_id"][[2, 5, 19, 26, 40]] = OUT_OF_VOCABULARY
    directory = written(histories)
    config = dataclasses.replace(TYPED, negatives=negatives)
    given = {"config": config, "batch_size": 60, "eval_batch_size": 160, "test_negatives": 3}
    few, many = (make(directory, **given) for make in (streamed, resident))
    assert few.train_steps() == many.train_steps()
    assert_same(batches(few), batches(many))
    assert few.held_out == many.held_out
    assert few.left_out("train") == many.left_out("train")
    np.testing.assert_array_equal(few.item_counts(), many.item_counts())
    for name in ("train", *few.held_out):
        assert few.eval_steps(name) == many.eval_steps(name)
        assert few.left_out(name) == many.left_out(name)
        assert_same(batches(few, name), batches(many, name))
        groups = zip(few.eval_feeds(name), many.eval_feeds(name), strict=True)
        for one, other in groups:
            np.testing.assert_array_equal(few.groups(name, one), many.groups(name, other))


SHOWN = {"split": ByTime(500, 800), "impressions": (90, 19, 24)}


def in_order(histories, more=lambda _: {}):
    """Histories whose impressions are in the order of users, with `more` features."""
    shown = {}
    for name, of in histories.impressions.items():
        order = np.argsort(of.users, kind="stable")
        own = {n: getattr(of, n)[order] for n in ("users", "positions", "timestamps", "labels")}
        features = {n: v[order] for n, v in of.features.items()} | more(len(order))
        shown[name] = dataclasses.replace(of, **own, features=features)
    return dataclasses.replace(histories, impressions=shown)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_impressions_stream_with_their_users(written, auxiliary):
    empty = [0 if n == 5 else length for n, length in enumerate(LENGTHS)]
    directory = written(in_order(typed_histories(empty, **SHOWN)))
    config = dataclasses.replace(TYPED, auxiliary_negatives=auxiliary)
    many = resident(directory, config=config)
    few = streamed(directory, config=config)
    assert_same(batches(few), batches(many))
    for name in SPLITS:
        assert_same(batches(few, name), batches(many, name))
        assert few.both_classes(name) == many.both_classes(name)
    some = streamed(directory, memory=None, config=config)
    for name in (None, "test"):
        assert by_number(some, name)[0] == by_number(few, name)[0]


def test_impressions_in_another_order_are_refused(written):
    directory = written(typed_histories(LENGTHS, **SHOWN))
    with pytest.raises(UserError, match="impressions of 'train' are not in the order of users"):
        streamed(directory, config=TYPED)


def test_impressions_of_users_who_are_not_there_are_refused(written):
    histories = in_order(typed_histories(LENGTHS, **SHOWN))
    of = histories.impressions["test"]
    beyond = dataclasses.replace(of, users=np.where(np.arange(24) == 23, 13, of.users))
    shown = {**histories.impressions, "test": beyond}
    directory = written(dataclasses.replace(histories, impressions=shown))
    with pytest.raises(UserError, match="'user' of the impressions of 'test' must be numbers of"):
        streamed(directory, config=TYPED)


@pytest.mark.parametrize("explicit", [False, True])
def test_what_is_new_streams_and_ids_are_hidden(written, explicit):
    def new(size):
        return {NEW: np.random.default_rng(size).integers(0, 2, size).astype(np.int8)}

    histories = typed_histories(LENGTHS, **(SHOWN if explicit else {}))
    if explicit:
        histories = in_order(histories, new)
    column = dataset_column(typed_columns([], new=True)[-1], {})
    directory = written(
        dataclasses.replace(
            histories,
            schema=Schema([*histories.schema, column]),
            event_features=histories.event_features | new(histories.num_events),
        )
    )
    given = {"config": dataclasses.replace(TYPED, oov_rate=0.3), "only_new": True}
    few, many = (make(directory, **given) for make in (streamed, resident))
    every = len(by_number(streamed(directory, config=TYPED))[0])
    assert 0 < len(by_number(few)[0]) < every
    assert_same(batches(few), batches(many))
    assert_same(batches(few, "train"), batches(many, "train"))
    assert by_number(streamed(directory, memory=None, **given))[0] == by_number(few)[0]


@pytest.fixture
def directory(written, make_histories):
    return written(make_histories(LENGTHS, validation=0))


def test_windows_have_every_sample_once_and_as_resident_histories_have_it(directory):
    some, whole = streamed(directory, memory=None), streamed(directory)
    sizes = blocks_of(directory).survey(SOLO).bytes
    assert len(stretches_of(np.arange(5), sizes, room_of(sizes, some_of(sizes)).stretch)) > 2
    (expected, steps), (found, others) = by_number(whole), by_number(some)
    assert found == expected
    assert sorted(expected) == list(range(sum(LENGTHS) - 2 * len(LENGTHS)))
    assert [len(n) for n in steps] == [len(n) for n in others]
    assert steps != others
    assert numbers(some, epoch=2) != others
    assert numbers(some, "test") == numbers(whole, "test")


def test_order_follows_from_seed_and_epoch_alone(directory):
    first = batches(streamed(directory, memory=None), epoch=4)
    assert_same(batches(streamed(directory, memory=None), epoch=4), first)
    other = streamed(directory, memory=None, seed=4)
    assert numbers(other, epoch=4) != numbers(streamed(directory, memory=None), epoch=4)


@pytest.mark.parametrize("first_step", [0, 1, 6, 13, 25, 26])
def test_feeds_continue_in_the_middle_to_the_bit(directory, first_step):
    source = streamed(directory, memory=None, repeat_count=2)
    assert source.train_steps() == 26
    every = batches(source)
    assert_same(
        batches(streamed(directory, memory=None, repeat_count=2), first=first_step),
        every[first_step:],
    )


def test_few_users_of_a_window_are_said(directory):
    """Four stretches of 13 users, of which two make a window: some 6 at a time."""
    assert streamed(directory, memory=None, batch_size=24).notes == ()  # 12 targets
    (note,) = streamed(directory, memory=None, batch_size=64).notes
    assert "among some 6 of 13 users at a time, and a batch has 32 targets" in note
    assert streamed(directory, memory=PLENTY, batch_size=64).notes == ()


@pytest.mark.parametrize("together", [1, 2, 5])
def test_batches_do_not_depend_on_how_many_are_gathered_together(directory, monkeypatch, together):
    targets = BATCH // 2
    monkeypatch.setattr(streaming, "_TOGETHER", 1)
    source = streamed(directory, memory=None, repeat_count=2)
    feeds = list(source.train_feeds(1, 0))
    assert {len(feed.numbers) for feed in feeds} == {targets}
    expected = batches(source), batches(source, "test"), batches(source, first=14)
    monkeypatch.setattr(streaming, "_TOGETHER", together * targets + 1)
    source = streamed(directory, memory=None, repeat_count=2)
    feeds = list(source.train_feeds(1, 0))
    assert {len(feed.numbers) for feed in feeds} == {together * targets}
    of_pass = -(-source.train_steps() // 2 // together)
    assert len({id(feed.labels) for feed in feeds}) == 2 * of_pass  # no run spans two passes
    found = batches(source), batches(source, "test"), batches(source, first=14)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("ranks", [2, 3])
def test_batches_have_the_same_samples_on_any_number_of_ranks(
    written, make_histories, in_ranks, ranks
):
    """Each rank has the samples of its blocks, and reads no others but to count them."""
    directory = written(make_histories([5, 7, 4, 6, 9] * 9))  # 16 blocks
    sizes = blocks_of(directory).survey(SOLO).bytes
    memory = int(sizes.sum() + 3 * sizes.max()) * 9 // 10
    given = {"batch_size": 60, "eval_batch_size": 60}
    alone = streamed(directory, memory, **given)
    room = room_of(sizes, memory)
    assert room.window == 4
    assert len(stretches_of(np.arange(16), sizes, room.stretch)) == 8

    def work(world):
        blocks = blocks_of(directory)
        source = streamed(directory, memory, world=world, blocks=blocks, **given)
        joined, found = blocks.joined, []
        blocks.joined = lambda of, table: found.extend(of) or joined(of, table)
        return by_number(source), by_number(source, "test"), source.eval_steps("test"), found

    found = in_ranks(ranks, work)
    for place, name in enumerate((None, "test")):
        expected, whole = by_number(alone, name)
        joined = {}
        for of_rank in found:
            assert not set(joined) & set(of_rank[place][0])
            joined |= of_rank[place][0]
        assert joined == expected
        if name is None:
            for step, batch in enumerate(whole):
                assert sorted(n for of, *_ in found for n in of[1][step]) == sorted(batch)
    assert len({steps for *_, steps, _ in found}) == 1
    # The pass over training, whose first windows have the last stretches, too, and over the test.
    read = [set(blocks) for *_, blocks in found]
    assert set.union(*read) == set(range(16))
    assert all(0 < len(of) < 16 for of in read)
    assert sum(len(blocks) for *_, blocks in found) < 16 * 3


def test_what_is_held_is_bounded():
    """Windows that are alive, whoever asks for them: two go over the same ones."""

    class Window:
        """What can be seen to be alive."""

        def __init__(self, size):
            self.size = size

    alive, taken = weakref.WeakSet(), []

    def load(blocks):
        window = Window(10 + blocks[0])
        alive.add(window)
        taken.append(sum(held.size for held in alive))
        return {"window": window}

    held = HeldStretches(load, most=30)
    stretches = [Stretch((number,), 10 + number) for number in range(5)]
    following = itertools.cycle([*stretches[1:], None])
    for stretch, after in zip([*stretches, *stretches[::2]] * 3, following, strict=False):
        assert held.get(stretch, after)["window"].size == stretch.size
    assert 10 < len(taken) < 3 * 2 * 8  # of what was asked for, some was there
    assert 20 <= max(taken) <= 30


def test_micro_batches_are_the_batch_in_parts(directory):
    source = streamed(directory, memory=None, micro_batches=4)
    for feed, whole in zip(source.train_feeds(1, 0), batches(source), strict=True):
        parts = [source.train_batch(part) for part in source.parts_of(feed)]
        assert len(parts) == 4
        joined = [
            {n: tf.concat([f[n] for f, _ in parts], 0) for n in parts[0][0]},
            tf.concat([labels for _, labels in parts], 0),
        ]
        assert_same([joined], [whole])


def test_one_graph_makes_all_batches_and_one_takes_them(directory, monkeypatch):
    tf.config.run_functions_eagerly(False)
    source, whole = streamed(directory, memory=None), resident(directory)
    traced, users = [], WindowBuilder.users

    def noted(self, split, numbers):  # once a graph that makes batches
        traced.append(split)
        return users(self, split, numbers)

    monkeypatch.setattr(WindowBuilder, "users", noted)
    take, make = (tf.function(of.train_batch, autograph=False) for of in (source, whole))
    expected = {}
    for feed in whole.train_feeds(2, 0):
        features, _ = make(feed)
        told = whole.describe(feed)["sample"]
        expected |= zip(told, features["item_id_negatives"].numpy().tolist(), strict=True)
    found = {}
    for epoch in (1, 2):
        for feed in source.train_feeds(epoch, 0):
            features, _ = take(feed)
            told = source.describe(feed)["sample"]
            found |= zip(told, features["item_id_negatives"].numpy().tolist(), strict=True)
    assert found == expected
    test = tf.function(lambda feed: source.eval_batch("test", feed), autograph=False)
    for feed in source.eval_feeds("test"):
        test(feed)
    assert [graph.experimental_get_tracing_count() for graph in (take, test)] == [1, 1]
    assert traced == ["train", "test"]


def test_a_batch_says_whose_samples_it_has(directory):
    source = streamed(directory, memory=None)
    feed = next(source.train_feeds(0, 0))
    features, _ = source.train_batch(feed)
    told = source.describe(feed)
    assert told["user_id"] == features["user_id"].numpy().tolist()
    assert told["user"] == (features["user_id"].numpy() - 1).tolist()
    assert told["item_id"] == features["item_id"].numpy()[:, 0].tolist()
    assert len(told["sample"]) == BATCH // 2


# --- what cannot be ---


def test_too_little_memory_is_refused_with_what_would_do(directory):
    with pytest.raises(UserError, match=r"history_memory: expected ([\d.]+ kB) or more") as error:
        streamed(directory, memory=100)
    text = str(error.value).split("expected ")[1].split(" kB")[0]
    needed = float(text) * 1000
    source = streamed(directory, memory=int(needed))
    assert len(by_number(source)[0]) == sum(LENGTHS) - 2 * len(LENGTHS)
    with pytest.raises(UserError, match="history_memory"):
        streamed(directory, memory=int(needed * 0.98))


def test_more_ranks_than_blocks_are_refused(directory, in_ranks):
    def work(world):
        with pytest.raises(UserError, match=r"a dataset of 6 blocks of users or more, .* one of 5"):
            streamed(directory, world=world)

    in_ranks(6, work)


def test_a_damaged_block_is_refused_before_training(directory):
    file = sorted((directory / "histories").glob("*.parquet"))[1]
    content = bytearray(file.read_bytes())
    content[100:160] = b"\0" * 60
    file.write_bytes(content)
    (directory / "dataset.json").write_text(
        (directory / "dataset.json").read_text().replace('"files"', '"old"')
    )
    with pytest.raises(UserError, match=r"cannot be read|damaged|digest"):
        streamed(directory)


def test_a_block_that_changes_under_a_run_is_refused(directory, written, make_histories):
    source = streamed(directory, memory=None)
    other = make_histories([n + 1 for n in LENGTHS])
    shutil.rmtree(directory)
    written(other)
    with pytest.raises(UserError, match="is another than it was when the run began"):
        list(source.train_feeds(0, 0))


# --- the order of blocks ---


def test_windows_are_balanced_and_within_their_capacity():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(1, 100, rng.integers(1, 60))
        capacity = int(sizes.max() + rng.integers(0, sizes.sum()))
        order = rng.permutation(len(sizes))
        windows = stretches_of(order, sizes, capacity)
        taken = [int(sizes[w].sum()) for w in windows]
        assert max(taken) <= capacity
        assert sorted(np.concatenate(windows).tolist()) == list(range(len(sizes)))
        assert len(windows) <= 2 * (-(-int(sizes.sum()) // capacity)) + 1
        place = {block: n for n, w in enumerate(windows) for block in w.tolist()}
        assert [place[b] for b in order.tolist()] == sorted(place.values())
    assert stretches_of(np.zeros(0, np.int64), np.zeros(0, np.int64), 1) == []


def test_owners_have_about_as_much():
    sizes = np.array([5, 9, 4, 4, 8, 1, 7, 2])
    stretches = [np.array([2, 5]), np.array([1]), np.array([0, 3, 7]), np.array([4, 6])]
    order = np.concatenate(stretches)
    owners = owners_of(stretches, sizes, 3)
    assert [len(of) for of in owners] == [2, 1, 3, 2]
    loads = np.bincount(np.concatenate(owners), sizes[order])
    assert loads.sum() == sizes.sum()
    assert loads.max() - loads.min() <= sizes.max()
    assert np.concatenate(owners_of(stretches, sizes, 1)).tolist() == [0] * 8


def test_memory_is_for_everything_or_for_a_window_and_a_stretch_more():
    sizes, even = np.array([10, 20, 10]), np.array([10] * 20)
    assert room_of(sizes, 3 * 20 + 40) == Room(40, 1)
    assert room_of(even, 3 * 10 + 25) == Room(12, 1)
    assert room_of(even, 3 * 10 + 30) == Room(10, 2)
    assert room_of(even, 3 * 10 + 150) == Room(30, 4)
    assert room_of(even, 3 * 10 + 150, ranks=4) == Room(30, 4)
    with pytest.raises(UserError, match="expected 100 B or more"):
        room_of(sizes, 99)
    with pytest.raises(UserError, match=r"expected 90 B or more, .* two for each process"):
        room_of(even, 3 * 10 + 50, ranks=3)


def test_windows_move_over_a_ring_of_stretches():
    """By brute force: a stretch is drawn from for V windows, of each window in a random order."""
    samples = np.array([7, 4, 0, 9, 5, 3])
    stretches = [np.array([2, 3]), np.array([0]), np.array([5]), np.array([1, 4])]
    firsts = np.cumsum(samples) - samples
    numbers = [np.concatenate([firsts[b] + np.arange(samples[b]) for b in s]) for s in stretches]
    stream = Stream(stretches, np.full(6, 5), samples, WHOLE, (3, 2), window=3)
    assert stream.count == samples.sum()
    begin = 0
    for w in range(4):
        expected = np.concatenate([numbers[(w - lag) % 4][lag::3] for lag in range(3)])
        pieces = list(stream.pieces(begin, begin + len(expected)))
        assert {of.stretch.blocks for of in pieces} <= {
            tuple(stretches[(w - lag) % 4].tolist()) for lag in range(3)
        }
        found = np.concatenate([of.numbers for of in pieces])
        order = np.concatenate([of.order for of in pieces])
        assert sorted(found) == sorted(expected)
        assert sorted(order) == list(range(begin, begin + len(expected)))
        assert found[np.argsort(order)].tolist() != expected.tolist()
        begin += len(expected)
    whole = {
        n: o for of in stream.pieces(0, begin) for n, o in zip(of.numbers, of.order, strict=True)
    }
    some = {n: o for of in stream.pieces(9, 20) for n, o in zip(of.numbers, of.order, strict=True)}
    assert some == {n: o for n, o in whole.items() if 9 <= o < 20}
    assert [of.stretch for of in stream.pieces(0, begin)][:3] == [
        Stretch(blocks, size) for blocks, size in (((5,), 5), ((1, 4), 10), ((2, 3), 10))
    ]


def test_a_stream_of_no_sample_has_no_piece():
    stream = Stream([np.array([0, 1])], np.array([5, 5]), np.array([0, 0]), WHOLE, (0, 0))
    assert stream.count == 0
    assert list(stream.pieces(0, 10)) == []

"""Both kinds of source give the trainer the same interface."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.dataloading.histories.materialised import MaterialisedDataset
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.sources import MaterialisedSource, ResidentSource
from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig
from lookback.dataloading.parts import Part
from lookback.formats.description import is_materialised

CONFIG = WindowConfig(max_seq_length=5, long_seq_length=3)
TRAIN_ROWS, TEST_ROWS = 23, 7


@pytest.fixture
def resident(make_histories):
    def make(**options):
        return ResidentSource(make_histories(), CONFIG, **{"seed": 3, "batch_size": 16, **options})

    return make


@pytest.fixture
def materialised(tmp_path):
    """Rows whose user ids are their numbers."""
    path = tmp_path / "materialised"
    for split, rows in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        (path / split).mkdir(parents=True)
        lists = pa.array([[1, 2, 3, 4]] * rows, pa.list_(pa.int32()))
        columns = {
            "label": pa.array(np.arange(rows) % 2),
            "uid": pa.array(np.arange(1, rows + 1)),
            "item": pa.array(np.ones(rows, np.int64)),
            "item_sequence": lists,
            "neg_item_sequence": lists,
        }
        pq.write_table(pa.table(columns), path / split / "part.0.parquet", row_group_size=5)
    sizes = [{"name": "uid", "value": 50}, {"name": "item", "value": 9}]
    (path / "metadata.json").write_text(json.dumps({"cardinalities": sizes}))

    def make(**options):
        dataset = MaterialisedDataset(path, max_seq_length=4, long_seq_length=2)
        return MaterialisedSource(dataset, **{"seed": 3, "batch_size": 8, **options})

    make.path = path
    return make


def assert_same(found, expected):
    assert set(found[0]) == set(expected[0])
    for name, values in expected[0].items():
        np.testing.assert_array_equal(found[0][name], values, err_msg=name)
    for values, others in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(values, others)


def test_resident_batches_are_those_of_the_windows(resident, make_histories):
    source, windows = resident(), WindowBuilder(make_histories(), CONFIG)
    assert source.train_steps() == windows.train_steps(16) == 5
    for epoch in (0, 2):
        feeds = list(source.train_feeds(epoch, first_step=0))
        assert len(feeds) == 5
        for step, feed in enumerate(feeds):
            assert_same(source.train_batch(feed), windows.train_batch(3, epoch, step, 16))


def test_resident_epochs_may_have_several_passes(resident, make_histories):
    source, windows = resident(repeat_count=3), WindowBuilder(make_histories(), CONFIG)
    assert source.train_steps() == 15
    feeds = list(source.train_feeds(2, first_step=0))
    for step, feed in enumerate(feeds):
        expected = windows.train_batch(3, 2 * 3 + step // 5, step % 5, 16)
        assert_same(source.train_batch(feed), expected)
    # Every pass covers the training set, in an order of its own.
    users = [
        np.concatenate([source.train_batch(f)[0]["user_id"] for f in feeds[p : p + 5]])
        for p in (0, 5, 10)
    ]
    assert sorted(users[0]) == sorted(users[1]) == sorted(users[2])
    assert list(users[0]) != list(users[1])


@pytest.mark.parametrize("first_step", [0, 4, 5, 7, 15])
def test_resident_feeds_continue_in_the_middle(resident, first_step):
    source = resident(repeat_count=3)
    every = [feed.numpy().tolist() for feed in source.train_feeds(1, 0)]
    rest = [feed.numpy().tolist() for feed in source.train_feeds(1, first_step)]
    assert rest == every[first_step:]


def test_resident_drop_remainder(resident):
    assert resident(drop_remainder=True).train_steps() == 4
    with pytest.raises(UserError, match="has 70 rows, fewer than one batch of 100"):
        resident(drop_remainder=True, batch_size=100)


def test_resident_batches_are_built_in_the_graph(resident):
    source = resident()
    train = tf.function(source.train_batch, autograph=False)
    test = tf.function(lambda feed: source.eval_batch("test", feed), autograph=False)
    for feed in source.train_feeds(0, 3):
        assert_same(train(feed), source.train_batch(feed))
    for feed in source.eval_feeds("test"):
        assert_same(test(feed), source.eval_batch("test", feed))
    assert train.experimental_get_tracing_count() == 1
    assert test.experimental_get_tracing_count() == 1


def test_resident_evaluation_has_its_own_seed(resident):
    def scored(**options):
        source = resident(test_negatives=3, batch_size=8, **options)
        assert source.eval_steps("test") == 3
        parts = [source.eval_batch("test", feed) for feed in source.eval_feeds("test")]
        return np.concatenate([features["item_id"] for features, *_ in parts])

    assert scored().shape == (5, 4)
    np.testing.assert_array_equal(scored(seed=1), scored(seed=2))
    assert (scored(eval_seed=1) != scored(eval_seed=2)).any()


def test_resident_description(resident):
    source = resident(batch_size=4)
    (feed, *_) = source.train_feeds(0, 0)
    users = source.train_batch(feed)[0]["user_id"].numpy()
    assert source.describe(feed)["user_id"] == users.tolist()


@pytest.mark.parametrize("split", ["test", "train"])
def test_resident_groups_are_users_by_their_number(resident, make_histories, split):
    """Of whatever ids: all users that a workflow does not know have one."""
    strange = {"user_id": np.full(5, 2, np.int32)}
    histories = dataclasses.replace(make_histories(), user_features=strange)
    source = ResidentSource(histories, CONFIG, seed=3, batch_size=16, test_negatives=3)
    known = resident(test_negatives=3)
    for feed in source.eval_feeds(split):
        features, *_ = known.eval_batch(split, feed)
        np.testing.assert_array_equal(source.groups(split, feed), features["user_id"] - 1)


def users_of(batches):
    return [np.ravel(features["uid"]).tolist() for features, _ in batches]


def test_materialised_feeds_are_the_batches(materialised):
    source = materialised()
    assert source.train_steps() == 3
    assert source.eval_steps("test") == 1
    assert source.grouped
    feeds = list(source.train_feeds(0, 0))
    assert [len(u) for u in users_of(feeds)] == [8, 8, 7]
    assert sorted(np.concatenate(users_of(feeds))) == list(range(1, TRAIN_ROWS + 1))
    assert source.train_batch(feeds[0]) is feeds[0]
    assert "item_negatives" in feeds[0][0]
    described = source.describe(feeds[0])
    assert described["uid"] == feeds[0][0]["uid"].tolist()
    assert described["item"] == feeds[0][0]["item"].ravel().tolist()
    assert described["label"] == feeds[0][1].ravel().tolist()
    (test,) = source.eval_feeds("test")
    assert list(source.groups("test", test)) == list(range(1, TEST_ROWS + 1))
    assert users_of([test]) == [list(range(1, TEST_ROWS + 1))]
    assert source.eval_batch("test", test) is test
    assert "item_negatives" not in test[0]


def test_materialised_order_differs_by_epoch_and_seed_only(materialised):
    first = users_of(materialised().train_feeds(0, 0))
    assert users_of(materialised().train_feeds(0, 0)) == first
    assert users_of(materialised().train_feeds(1, 0)) != first
    assert users_of(materialised(seed=4).train_feeds(0, 0)) != first


@pytest.mark.parametrize("first_step", [0, 2, 3, 5])
def test_materialised_feeds_continue_in_the_middle(materialised, first_step):
    source = materialised(repeat_count=2)
    assert source.train_steps() == 6
    every = users_of(source.train_feeds(1, 0))
    assert users_of(source.train_feeds(1, first_step)) == every[first_step:]
    assert every[:3] != every[3:]


def test_materialised_drop_remainder_and_too_large_a_batch(materialised):
    source = materialised(drop_remainder=True)
    assert source.train_steps() == 2
    assert [len(u) for u in users_of(source.train_feeds(0, 0))] == [8, 8]
    with pytest.raises(UserError, match="has 23 rows, fewer than one batch of 24"):
        materialised(drop_remainder=True, batch_size=24)


def test_materialised_without_auxiliary_negatives(materialised):
    source = materialised(auxiliary_negatives=False, prefetch_train=None, prefetch_test=None)
    (feed, *_) = source.train_feeds(0, 0)
    assert "item_negatives" not in feed[0]


def test_materialised_samples_have_no_validation_split(materialised):
    with pytest.raises(UserError, match="eval_split: materialised samples have train and test"):
        materialised().eval_steps("validation")


def test_kind_of_a_directory(materialised, make_histories, write_dataset, tmp_path):
    assert is_materialised(materialised.path)
    assert not is_materialised(write_dataset(make_histories(), tmp_path / "histories"))
    assert not is_materialised(tmp_path / "nowhere")


# --- several processes ---


def joined(batches):
    """Batches one after another, as one."""
    features = {n: np.concatenate([f[n] for f, *_ in batches]) for n in batches[0][0]}
    others = zip(*(batch[1:] for batch in batches), strict=True)
    return features, *map(np.concatenate, others)


def steps_of(source, split):
    """Feeds of an epoch, or of a split, and how each becomes a batch."""
    if split is None:
        return [source.train_batch(feed) for feed in source.train_feeds(1, 0)]
    return [source.eval_batch(split, feed) for feed in source.eval_feeds(split)]


@pytest.mark.parametrize("ranks", [2, 9])
@pytest.mark.parametrize("split", [None, "train", "test"])
def test_resident_ranks_share_every_batch(resident, ranks, split):
    """Of the 5 users tested and of the last batch of 3, not every rank of 9 has one."""
    whole = steps_of(resident(repeat_count=2), split)
    by_rank = [
        steps_of(resident(repeat_count=2, part=Part(rank, ranks)), split) for rank in range(ranks)
    ]
    assert {len(batches) for batches in by_rank} == {len(whole)}
    for step, expected in enumerate(whole):
        assert_same(joined([batches[step] for batches in by_rank]), expected)


@pytest.mark.parametrize("ranks", [2, 9])
@pytest.mark.parametrize("split", [None, "test"])
def test_materialised_ranks_share_every_batch(materialised, ranks, split):
    whole = steps_of(materialised(), split)
    by_rank = [steps_of(materialised(part=Part(rank, ranks)), split) for rank in range(ranks)]
    assert {len(batches) for batches in by_rank} == {len(whole)}
    for step, expected in enumerate(whole):
        assert_same(joined([batches[step] for batches in by_rank]), expected)
        rows = [len(batches[step][1]) for batches in by_rank]
        assert max(rows) - min(rows) <= 1


@pytest.mark.parametrize("kind", ["resident", "materialised"])
@pytest.mark.parametrize("ranks", [2, 6])
def test_micro_batches_are_the_same_whoever_has_them(request, kind, ranks):
    """Six parts a batch, shared by any number of ranks: also by as many as there are parts."""
    make = request.getfixturevalue(kind)
    expected = [step_parts(make(micro_batches=6), step) for step in range(make().train_steps())]
    whole = steps_of(make(), None)
    for step, parts in enumerate(expected):
        found = []
        for rank in range(ranks):
            source = make(part=Part(rank, ranks), micro_batches=6 // ranks)
            own = step_parts(source, step)
            assert len(own) == 6 // ranks
            found += own
        for part, same in zip(found, parts, strict=True):
            assert_same(part, same)
        assert_same(joined(found), whole[step])


def step_parts(source, step):
    feed = list(source.train_feeds(1, 0))[step]
    return [source.train_batch(part) for part in source.parts_of(feed)]


def test_a_shared_batch_is_described_by_those_who_have_it(resident, materialised):
    for make, name in ((resident, "user_id"), (materialised, "uid")):
        for rank in range(3):
            source = make(part=Part(rank, 3))
            (feed, *_) = source.train_feeds(0, 0)
            users = np.ravel(source.train_batch(feed)[0][name]).tolist()
            assert source.describe(feed)[name] == users


LENGTHS = (20, 7, 3, 3, 12, 9, 4, 30)


@pytest.fixture
def sharded(make_histories, write_dataset, tmp_path, in_ranks):
    """The sources of all ranks, each with the histories of its users only."""
    whole = make_histories(lengths=LENGTHS)
    directory = write_dataset(whole, tmp_path / "data")

    def make(ranks, **options):
        def source(world):
            part = Part(world.rank, ranks)
            return ResidentSource(
                Histories.load(directory, part),
                CONFIG,
                **{"seed": 3, "batch_size": 16, **options},
                part=part,
                counts=whole.item_counts(),
                gather=world.gather,
            )

        return in_ranks(ranks, lambda world: evaluated(source(world)))

    def evaluated(source):
        source.eval_steps("test")  # a collective, so that the tests can ask each rank alone later
        return source

    make.whole = whole
    return make


@pytest.mark.parametrize(("ranks", "repeats"), [(2, 2), (5, 1)])
def test_sharded_ranks_agree_on_steps_and_visit_all_they_have_once(sharded, ranks, repeats):
    sources = sharded(ranks, repeat_count=repeats)
    users = [range(rank, len(LENGTHS), ranks) for rank in range(ranks)]
    samples = [sum(LENGTHS[u] - 2 for u in of_rank) for of_rank in users]
    rows = [8 * (rank + 1) // ranks - 8 * rank // ranks for rank in range(ranks)]
    most = max(-(-n // size) for n, size in zip(samples, rows, strict=True))
    for source, of_rank, n, size in zip(sources, users, samples, rows, strict=True):
        assert source.train_steps() == most * repeats
        batches = steps_of(source, None)
        assert len(batches) == most * repeats
        for one_pass in range(repeats):
            part = batches[one_pass * most : (one_pass + 1) * most]
            lengths = [len(labels) for _, labels in part]
            assert sum(lengths) == n
            assert max(lengths) <= size
            assert lengths == sorted(lengths, reverse=True)  # empty ones at the end
            seen = np.concatenate([features["user_id"] for features, _ in part])
            expected = np.repeat([u + 1 for u in of_rank], [LENGTHS[u] - 2 for u in of_rank])
            np.testing.assert_array_equal(np.sort(seen), np.sort(expected))


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_sharded_ranks_test_every_user_once(sharded, ranks):
    sources = sharded(ranks, test_negatives=2)
    assert len({source.eval_steps("test") for source in sources}) == 1
    seen = []
    for source in sources:
        batches = steps_of(source, "test")
        assert len(batches) == source.eval_steps("test")
        seen += np.concatenate([features["user_id"] for features, *_ in batches]).tolist()
    assert sorted(seen) == list(range(1, len(LENGTHS) + 1))


def test_a_sharded_rank_without_users_has_as_many_steps_as_the_others(
    make_histories, write_dataset, tmp_path, in_ranks
):
    whole = make_histories(lengths=[20, 9])
    directory = write_dataset(whole, tmp_path / "data")

    def work(world):
        part = Part(world.rank, world.size)
        source = ResidentSource(
            Histories.load(directory, part),
            CONFIG,
            seed=3,
            batch_size=8,
            part=part,
            counts=whole.item_counts(),
            gather=world.gather,
        )
        trained = [len(labels) for _, labels in steps_of(source, None)]
        return trained, [len(labels) for _, labels, _ in steps_of(source, "test")]

    (first, tested), (second, _), (third, none) = in_ranks(3, work)
    assert len(first) == len(second) == len(third)
    assert (sum(first), sum(second), sum(third)) == (18, 7, 0)
    assert (sum(tested), sum(none)) == (1, 0)
    assert len(tested) == len(none) == 1


def test_sharded_drop_remainder_is_agreed_on(sharded):
    """Some ranks have less than one batch; the steps are those of the rank that has most."""
    sources = sharded(5, drop_remainder=True, batch_size=40)
    users = [range(rank, len(LENGTHS), 5) for rank in range(5)]
    whole = max(sum(LENGTHS[u] - 2 for u in of_rank) // 4 for of_rank in users)
    assert {source.train_steps() for source in sources} == {whole}
    with pytest.raises(UserError, match="fewer than one batch"):
        sharded(2, drop_remainder=True, batch_size=400)


def test_a_sharded_batch_has_room_for_every_rank(sharded):
    text = "expected at least 10 rows, a positive and its negative for each process, received 8"
    with pytest.raises(UserError, match=text):
        sharded(5, batch_size=8)
    assert len(sharded(5, batch_size=10)) == 5

"""What a run may ask of its data, and how several processes open it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lookback.core.errors import UserError
from lookback.core.options import from_values, parse
from lookback.core.world import SOLO
from lookback.formats.dataset_info import SPLITS, TABULAR, write_info
from lookback.training.data import compare_vocabularies, open_source, run_identity
from lookback.training.run import command_line

LENGTHS = (20, 7, 3, 3, 12, 9)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"time_features": True}, "time_features: materialised samples have no timestamps"),
        ({"negatives": "uniform"}, "negatives: materialised samples bring their negatives"),
        ({"test_negatives": 5}, "test_negatives: materialised samples bring"),
        ({"full_catalogue": True}, "full_catalogue: materialised samples hold no catalogue"),
        ({"repeatable": True}, "repeatable: materialised samples bring"),
        ({"shard_histories": True}, "shard_histories: materialised samples hold no histories"),
        ({"history_memory": 10**9}, "history_memory: materialised samples are read from disk"),
    ],
)
def test_what_only_histories_can_serve_is_refused(tmp_path: Path, options, text):
    (tmp_path / "metadata.json").write_text("{}")
    (name,) = options
    with pytest.raises(UserError, match=rf"{text}.*\. Leave --{name} out"):
        open_with(tmp_path, SOLO, max_seq_length=100, long_seq_length=90, **options)


@pytest.mark.parametrize(
    ("model_type", "text"),
    [
        ("sim", "sim reads histories, and .* holds rows of numbers and ids"),
        ("neumf", "neumf reads histories, and .* holds rows of numbers and ids"),
    ],
)
def test_another_layouts_data_is_refused(tmp_path: Path, model_type, text):
    (tmp_path / "dataset.json").write_text('{"format": "lookback-tabular"}')
    with pytest.raises(UserError, match=f"model_type: {text}.*Choose another model or dataset"):
        open_source(*configs(tmp_path, model_type=model_type))


def test_nvidia_s_samples_are_to_be_imported(tmp_path: Path):
    (tmp_path / "feature_spec.yaml").write_text("channel_spec: {}")
    with pytest.raises(UserError, match=r"sim reads histories.*`python -m workflows import-feat"):
        open_source(*configs(tmp_path, model_type="sim"))


def test_rows_cannot_be_made_of_histories(dataset):
    with pytest.raises(UserError, match=r"dlrm reads rows of .* and .* holds histories\. Choose"):
        open_source(*configs(dataset[1], model_type="dlrm"))


@pytest.mark.parametrize("model_type", ["sim", "neumf", "dlrm"])
def test_a_directory_of_nothing_is_no_dataset(tmp_path: Path, model_type):
    with pytest.raises(UserError, match=rf"{tmp_path}.*dataset\.json"):
        open_source(*configs(tmp_path, model_type=model_type))


@pytest.mark.parametrize("option", [{"train_on": "new"}, {"oov_rate": 0.1}])
def test_samples_that_others_materialised_are_trained_on_as_they_are(tmp_path: Path, option):
    (tmp_path / "metadata.json").write_text("{}")
    (name,) = option
    with pytest.raises(UserError, match=rf"{name}: materialised samples .*\. Leave --{name} out"):
        open_with(tmp_path, SOLO, max_seq_length=100, long_seq_length=90, **option)


def test_histories_of_own_users_are_not_cut(dataset):
    for cut in ({"micro_batches": 2}, {"grads_accumulated": 2}):
        with pytest.raises(UserError, match="shard_histories: expected without --micro_batches"):
            open_with(dataset[1], SOLO, shard_histories=True, **cut)


@pytest.fixture
def dataset(make_histories, write_dataset, tmp_path):
    histories = make_histories(lengths=LENGTHS, items=30)
    return histories, write_dataset(histories, tmp_path / "data")


def configs(dataset_dir: Path, **options):
    given = {"model_type": "sim", "seed": 0, "global_batch_size": 16, **options}
    return from_values(command_line(), dataset_dir=dataset_dir, **given)


def open_with(dataset_dir: Path, world, **options):
    lengths = {"max_seq_length": 5, "long_seq_length": 3}
    return open_source(*configs(dataset_dir, **{**lengths, **options}), world)


def users_of(source) -> list[list[int]]:
    """Users of an epoch's batches."""
    feeds = source.train_feeds(0, 0)
    return [source.train_batch(feed)[0]["user_id"].numpy().tolist() for feed in feeds]


def test_histories_that_stream_are_not_divided_otherwise(dataset, in_ranks):
    for other in ("shard_histories", "full_catalogue"):
        with pytest.raises(UserError, match=f"history_memory: .*{other}"):
            configs(dataset[1], history_memory=10**9, **{other: True})
    with pytest.raises(UserError, match="history_memory: expected a size above 0"):
        parse(
            ["--model_type", "sim", "--dataset_dir", "d", "--history_memory", "0GB"], command_line()
        )

    def work(world):
        with pytest.raises(UserError, match="history_memory: expected without --micro_batches"):
            open_with(dataset[1], world, history_memory=10**9, micro_batches=2)

    in_ranks(2, work)


def test_memory_of_histories_is_what_a_continued_run_repeats(dataset):
    given = configs(dataset[1], history_memory=10**9)
    alone, shared = (run_identity(*given, ranks=ranks) for ranks in (1, 2))
    streams = {"history_memory": 10**9, "history_order": "ring"}
    assert alone == shared == {**run_identity(*configs(dataset[1])), **streams}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_batches_of_everybodys_histories(dataset, in_ranks, ranks):
    histories, directory = dataset
    whole = users_of(open_with(directory, SOLO))
    by_rank = in_ranks(ranks, lambda world: users_of(open_with(directory, world)))
    for step, expected in enumerate(whole):
        assert [user for batches in by_rank for user in batches[step]] == expected
    assert sum(map(len, whole)) == histories.num_events - 2 * len(LENGTHS)


@pytest.mark.slow
def test_ranks_load_their_own_users_and_draw_from_everybodys_items(dataset, in_ranks):
    histories, directory = dataset
    ranks = 3  # of which none has as many users as another
    held_out = histories.offsets[1:] - 1
    training = set(np.delete(histories.item_features["item_id"], held_out).tolist())

    def work(world):
        source = open_with(directory, world, shard_histories=True)
        drawn, epoch = set(), 0
        while epoch < 3 or (drawn < training and epoch < 30):
            epoch += 1
            for feed in source.train_feeds(epoch, 0):
                drawn |= set(source.train_batch(feed)[0]["item_id"].numpy()[:, 1].tolist())
        return users_of(source), drawn

    answers = in_ranks(ranks, work)
    assert len({len(batches) for batches, _ in answers}) == 1
    for rank, (batches, drawn) in enumerate(answers):
        seen = [user for batch in batches for user in batch]
        own = range(rank, len(LENGTHS), ranks)
        assert sorted(seen) == sorted(u + 1 for u in own for _ in range(LENGTHS[u] - 2))
        assert drawn == training


def test_what_one_rank_finds_damaged_no_rank_trains_on(dataset, in_ranks, tmp_path):
    """Each file is verified by one of them."""
    damaged = shutil.copytree(dataset[1], tmp_path / "damaged")
    for name in ("items.parquet", "schema.pbtxt", "histories/part-00001.parquet"):
        content = (damaged / name).read_bytes()
        middle = len(content) // 2
        (damaged / name).write_bytes(content[:middle] + b"?" + content[middle + 1 :])

        def work(world, name=name):
            with pytest.raises(UserError) as error:
                open_with(damaged, world)
            assert f"the content of {name} is not what was written" in str(error.value)
            return str(error.value).startswith("rank ")

        assert sorted(in_ranks(3, work)) == [False, True, True]  # one saw it, and told the others
        (damaged / name).write_bytes(content)
    assert in_ranks(2, lambda world: open_with(damaged, world).train_steps())


def test_digests_alone_may_be_left_out(dataset, tmp_path):
    damaged = shutil.copytree(dataset[1], tmp_path / "damaged")
    schema = damaged / "schema.pbtxt"
    text = schema.read_text()
    schema.write_text(text.replace("  ", "\t\t", 1))  # the same to whoever reads it
    with pytest.raises(UserError, match=r"the content of schema\.pbtxt is not what was written"):
        open_with(damaged, SOLO)
    assert open_with(damaged, SOLO, no_verify=True).train_steps()
    schema.write_text(text + "\n")
    with pytest.raises(UserError, match=r"schema\.pbtxt has \d+ bytes instead of"):
        open_with(damaged, SOLO, no_verify=True)


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({}, {"train", "validation", "test"}),
        ({"eval_split": "test"}, {"train", "test"}),
        ({"benchmark": True, "benchmark_steps": 5}, {"train"}),
        ({"mode": "evaluate"}, {"test"}),
        ({"mode": "evaluate", "eval_train": True}, {"train", "test"}),
        ({"mode": "inference", "eval_split": "validation"}, {"validation"}),
    ],
)
def test_digests_of_the_splits_that_a_run_reads_are_compared(tmp_path, options, read):
    """Of all, names and sizes."""
    if "mode" in options:
        options = {**options, "load_checkpoint_path": tmp_path}
    for split in SPLITS:
        (tmp_path / split).mkdir()
        (tmp_path / split / "a").write_bytes(b"12")
    write_info(tmp_path, TABULAR, {"counts": {}, "cardinalities": {}})
    compared = set()
    for split in SPLITS:
        (tmp_path / split / "a").write_bytes(b"13")
        with pytest.raises(UserError) as error:  # if not for that, as there is no schema
            open_source(*configs(tmp_path, model_type="dlrm", **options))
        if f"the content of {split}/a is not what was written" in str(error.value):
            compared.add(split)
        (tmp_path / split / "a").write_bytes(b"1")
        with pytest.raises(UserError, match=f"{split}/a has 1 bytes instead of 2"):
            open_source(*configs(tmp_path, model_type="dlrm", **options))
        (tmp_path / split / "a").write_bytes(b"12")
    assert compared == read


@pytest.mark.parametrize(
    ("own", "trained", "said"),
    [
        ({"a": "1", "b": "2"}, {"a": "1", "b": "2"}, None),
        ({}, {}, None),
        (
            {"a": "1"},
            None,
            "warning: the checkpoint c does not say which values the ids of a",
        ),
        ({}, {"a": "1"}, "warning: d does not say which values the ids of a stand for"),
    ],
)
def test_vocabularies_are_compared_where_both_are_known(own, trained, said):
    checkpoint = SimpleNamespace(path="c", meta={"model": {}, "vocabularies": trained})
    if trained is None:  # as an earlier version saved it
        del checkpoint.meta["vocabularies"]
    found = compare_vocabularies(Path("d"), own, checkpoint)
    assert found is said or (found is not None and said is not None and found.startswith(said))


def test_other_vocabularies_are_refused_by_column():
    checkpoint = SimpleNamespace(path="c", meta={"vocabularies": {"a": "1", "b": "2", "c": "3"}})
    with pytest.raises(UserError, match=r"ids of b, c in d stand for .* checkpoint c"):
        compare_vocabularies(Path("d"), {"a": "1", "b": "3", "c": "4"}, checkpoint)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (3, 3), (1, 5)])
def test_micro_batches_are_shared_evenly(dataset, in_ranks, ranks, micro_batches):
    _, directory = dataset

    def parts(world):
        source = open_with(directory, world, micro_batches=micro_batches)
        (feed, *_) = source.train_feeds(0, 0)
        return [source.train_batch(p)[0]["user_id"].numpy().tolist() for p in source.parts_of(feed)]

    found = in_ranks(ranks, parts)
    assert [len(own) for own in found] == [micro_batches // ranks] * ranks
    joined = [user for own in found for part in own for user in part]
    assert joined == users_of(open_with(directory, SOLO))[0]


def test_micro_batches_that_ranks_cannot_share_evenly_are_refused(dataset, in_ranks):
    def work(world):
        with pytest.raises(UserError, match="expected a multiple of the 3 processes, received 4"):
            open_with(dataset[1], world, micro_batches=4)

    in_ranks(3, work)

"""Which split is watched in training, and that test is looked at once."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from lookback.core.errors import UserError
from lookback.formats.dataset_info import HISTORIES, read_info, write_info
from lookback.training.config import RunConfig
from lookback.training.evaluation.splits import Splits, choose_splits, note_on_splits
from lookback.training.output.logging import read_log
from lookback.training.output.warnings import LossTrend, warnings_of
from tests.training.test_trainer import quiet, trainer

BOTH, TEST = ("validation", "test"), ("test",)
LOADED = {"load_checkpoint_path": Path("c")}


def config(**options):
    return RunConfig(model_type="sim", dataset_dir=Path("d"), **options)


@pytest.mark.parametrize(
    ("options", "held_out", "expected"),
    [
        ({}, BOTH, Splits("validation", ("test",))),
        ({}, TEST, Splits(None, ("test",))),
        ({}, ("validation",), Splits("validation", ())),
        ({}, (), Splits(None, ("test",))),  # which then is refused as one that is not there
        ({"eval_split": "test"}, BOTH, Splits("test", ())),
        ({"eval_split": "validation"}, BOTH, Splits("validation", ("test",))),
        ({"mode": "evaluate", **LOADED}, BOTH, Splits(None, ("test",))),
        (
            {"mode": "inference", "eval_split": "validation", **LOADED},
            BOTH,
            Splits(None, ("validation",)),
        ),
    ],
)
def test_training_watches_validation_and_ends_with_test(options, held_out, expected):
    assert choose_splits(config(**options), held_out, {}) == expected


def test_to_stop_by_the_test_split_must_be_asked_for():
    with pytest.raises(UserError, match=r"auc would look at the test split.*--eval_split test"):
        choose_splits(config(), TEST, {"auc": 0.7})
    with pytest.raises(UserError, match="test_freq would look at the test split"):
        choose_splits(config(test_freq=5), TEST, {})
    asked = choose_splits(config(eval_split="test"), TEST, {"auc": 0.7})
    run = config()
    assert "auc chooses by the test split" in (note_on_splits(run, asked, {"auc": 0.7}) or "")
    stops = config(early_stopping="mrr")
    assert "early_stopping chooses by the test" in (note_on_splits(stops, asked, {}) or "")
    assert note_on_splits(run, asked, {}) is None
    assert "no validation split" in (note_on_splits(run, Splits(None, TEST), {}) or "")
    assert note_on_splits(run, Splits("validation", TEST), {"auc": 0.7}) is None


@pytest.fixture(scope="module")
def dataset(make_histories, write_dataset, tmp_path_factory) -> Path:
    """With a validation split, and its counts."""
    histories = make_histories(lengths=[20, 7, 4, 4, 12, 15, 30], items=40, validation=1)
    directory = write_dataset(histories, tmp_path_factory.mktemp("data") / "dataset")
    counts = {"users": 7, "events": 92}
    write_info(directory, HISTORIES, {**read_info(directory), "counts": counts})
    return directory


@pytest.mark.slow
def test_the_test_split_is_evaluated_once_when_training_is_done(dataset, tmp_path):
    trained = trainer(dataset, epochs=3, test_freq=4)
    seen: collections.Counter[str] = collections.Counter()
    original = trained.source.eval_feeds

    def eval_feeds(split):
        seen[split] += 1
        return original(split)

    trained.source.eval_feeds = eval_feeds
    with quiet(tmp_path) as log:
        outcome = trained.train(log)
    assert seen["test"] == 1
    assert seen["validation"] >= 3
    records = read_log(tmp_path / "log.json")
    by_epoch = [record.data for record in records if len(record.step) == 1]
    assert ["validation_auc" in data for data in by_epoch] == [True] * 3
    assert ["test_auc" in data for data in by_epoch] == [False, False, True]
    assert {"validation_auc", "test_auc"} <= set(outcome.summary)
    assert set(outcome.curves) == {"validation", "test"}
    # 92 events but 7 test, 7 validation and 7 first ones are 71 targets: 142 rows in 5 steps.
    assert any("5 steps of 32 rows" in warning for warning in outcome.warnings)


def test_the_batch_follows_from_the_rows_or_from_the_checkpoint(dataset):
    from lookback.core.options import from_values
    from lookback.training.batch_size import batch_size_for, choose_batch_size, most_rows
    from lookback.training.run import command_line

    line = command_line()
    for model, rows in (("sim", 142), ("neumf", 5 * (92 - 2 * 7))):
        run, data, options = from_values(line, model_type=model, dataset_dir=dataset)
        assert choose_batch_size(run, data, options, None) == (
            64,
            f"global_batch_size 64 chosen from {rows:,} rows; --global_batch_size N",
        )
        given = from_values(line, model_type=model, dataset_dir=dataset, global_batch_size=6)
        assert choose_batch_size(*given, None) == (6, "")
    assert batch_size_for(200 * 1024, 1 << 17) == 1024
    assert batch_size_for(200 * 1024 - 1, 1 << 17) == 512
    assert batch_size_for(4_000_000_000, most_rows(options)) == 1 << 20
    assert batch_size_for(0, 1 << 17) == 64


def losses(*values: float) -> LossTrend:
    trend = LossTrend()
    for value in values:
        trend.add(value)
    return trend


def test_a_run_that_learnt_little_says_so_with_a_remedy():
    run = config(global_batch_size=4096)
    good = {"validation_auc": 0.7, "test_auc": 0.71}
    falling = losses(*(1 - step / 200 for step in range(100)))
    assert warnings_of(good, BOTH, 200, falling, run) == []
    (few,) = warnings_of(good, BOTH, 12, falling, run)
    assert "12 steps of 4,096 rows" in few and "Lower --global_batch_size" in few
    (chance,) = warnings_of({**good, "test_auc": 0.51}, BOTH, 200, falling, run)
    assert chance.startswith("test_auc is 0.5100") and "--lr (0.001)" in chance
    (flat,) = warnings_of(good, BOTH, 200, losses(*[0.693] * 300), run)
    assert "did not fall: 0.6930 in the first steps, 0.6930 in the last" in flat
    # Of one class there is no AUC; of a continued run, or one of a step, no trend.
    assert warnings_of({"test_auc": None}, BOTH, 200, None, run) == []
    assert warnings_of(good, BOTH, 200, losses(0.7), run) == []

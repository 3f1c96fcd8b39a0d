"""`train.py --init_from` as users call it: from a bundle, from a checkpoint, on other data."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback import cli
from lookback.checkpoints.store import open_checkpoint
from lookback.core.digests import digest_of
from lookback.core.errors import UserError
from lookback.formats.raw_ids import ID_DIRECTORY
from lookback.training.ids import Ids

pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.fixture(scope="module")
def other_data(raw: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of later days: some of the users and items, and one new item that many bought."""
    from lookback.workflows.pipeline import run_dataset

    directory = tmp_path_factory.mktemp("other")
    (directory / "raw").mkdir()
    items = [*sorted(raw.categories)[::2], "NEW"]
    users = sorted(raw.events["user"].unique())[::2]
    lines = [
        {"reviewerID": user, "asin": item, "unixReviewTime": 1_700_000_000 + place}
        for user in users
        for place, item in enumerate(items[-8:])
    ]
    (directory / "raw" / "reviews_Test.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    meta = [{"asin": item, "categories": [["All", "others"]]} for item in items]
    (directory / "raw" / "meta_Test.json").write_text("\n".join(map(json.dumps, meta)) + "\n")
    run_dataset("amazon", directory / "raw", directory / "dataset", min_interactions=5, workers=0)
    return directory / "dataset"


def train(*words: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli.train([str(word) for word in words])


def raw_ids(checkpoint: Any, feature: str) -> list[str]:
    from lookback.checkpoints.raw_ids import raw_ids_in

    found = raw_ids_in(checkpoint, feature)
    assert found is not None
    return [*found.special, *found.known.to_pylist()]


def test_a_bundle_has_the_weights_of_its_checkpoint_by_the_same_names(
    train_sim: Callable[[bool], Any],
) -> None:
    from lookback.serving.export import load_origin
    from lookback.training.start import CheckpointOrigin

    trained = train_sim(False)
    bundle = load_origin(trained.bundle)
    checkpoint = CheckpointOrigin(open_checkpoint(trained.checkpoints))
    tables = [name for name in checkpoint.specs if name.startswith("table/")]
    dense = [name for name in checkpoint.specs if name.startswith("model/")]
    assert {n: checkpoint.specs[n] for n in (*tables, *dense)} == bundle.specs
    for name in dense:
        np.testing.assert_array_equal(bundle.whole(name), checkpoint.whole(name), err_msg=name)
    for name in tables:
        rows = np.array([5, 0, 2])
        found = bundle.take(name, rows, range(1, 3))
        np.testing.assert_array_equal(found, checkpoint.take(name, rows, range(1, 3)))
    assert list(bundle.columns or ()) == list(checkpoint.columns or ())
    assert bundle.ids.vocabularies == checkpoint.ids.vocabularies
    same = {name for name in bundle.model if name in checkpoint.model}
    assert {n: bundle.model[n] for n in same} == {n: checkpoint.model[n] for n in same}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["bundle", "checkpoints"])
def test_rows_of_ids_that_both_know_are_kept(
    train_sim: Callable[[bool], Any],
    other_data: Path,
    tmp_path: Path,
    source: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """But for the step that the run takes with them."""
    trained = train_sim(False)
    path = getattr(trained, source)
    digest = digest_of(path / "bundle.json") if source == "bundle" else None
    arguments: list[object] = list(trained.arguments)
    arguments[arguments.index("--dataset_dir") + 1] = other_data
    train(
        *(*arguments, "--init_from", path, "--lr", 0.01, "--max_steps", 1, "--seed", 9),
        *("--save_checkpoint_path", tmp_path / "saved", "--results_dir", tmp_path / "results"),
        *([] if digest is None else ["--trusted_digest", digest]),
    )
    was, found = open_checkpoint(trained.checkpoints), open_checkpoint(tmp_path / "saved")
    ours, theirs = raw_ids(found, "item_id"), raw_ids(was, "item_id")
    assert "NEW" in ours and "NEW" not in theirs
    common = [item for item in ours if item in theirs]
    here, there = ([ids.index(item) for item in common] for ids in (ours, theirs))
    moved = (found["table/item_id"][here] != was["table/item_id"][there]).any(1)
    assert moved.sum() > 0 and not moved[:2].any()  # padding and null are no item's
    close = np.abs(found["table/item_id"][here] - was["table/item_id"][there])
    assert close.max() <= 0.0101  # a step of Adam
    said = capsys.readouterr().out
    kept = len(common)
    assert f"table item_id: {kept} rows kept, 1 new, {len(theirs) - kept} dropped" in said
    assert ("has weights only" in said) == (source == "bundle")


def test_vocabularies_are_compared_with_their_digests_before_they_are_believed(
    other_data: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(other_data, tmp_path / "data")
    assert Ids.of(directory).tensors(["item_id", "user_id"])
    path = directory / ID_DIRECTORY / "unique.item_id.parquet"
    table = pq.read_table(path)
    items = table["item_id"].to_pylist()
    column = pa.array([items[1], items[0], *items[2:]])
    pq.write_table(table.set_column(0, "item_id", column), path)
    with pytest.raises(UserError, match=r"unique\.item_id\.parquet"):
        Ids.of(directory).tensors(["item_id"])
    assert Ids.of(directory, verified=False).tensors(["item_id"])
    shutil.rmtree(directory / "workflow")
    assert Ids.of(directory).tensors(["item_id"]) == {}


def test_what_cannot_be_started_from_is_refused(
    train_sim: Callable[[bool], Any], dataset_dir: Path, tmp_path: Path
) -> None:
    trained = train_sim(False)
    begun = ["--model_type", "sim", "--dataset_dir", dataset_dir, "--init_from"]
    for words, message in (
        ([tmp_path / "nothing"], "expected a checkpoint, or a directory of checkpoints"),
        ([trained.bundle, "--trusted_digest", "0" * 64], "trusted_digest"),
        (
            [trained.bundle, "--load_checkpoint_path", trained.checkpoints],
            "init_from: expected .*without --load_checkpoint_path",
        ),
        ([trained.bundle, "--mode", "evaluate"], "init_from: expected with --mode train"),
    ):
        with pytest.raises(UserError, match=message):
            train(*begun, *words, "--results_dir", tmp_path / "results")
    assert not (tmp_path / "results" / "config.yaml").exists()

"""`--init_from`: rows by raw id, the rest by name, on other data, other ranks, from a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from lookback.checkpoints.store import CheckpointStore, RowBlocks, TensorSpec, open_checkpoint
from lookback.core.errors import UserError
from lookback.core.options import from_values
from lookback.formats.raw_ids import OF_HISTORIES, OF_ROWS, RawIds
from lookback.training.run import command_line

pytestmark = pytest.mark.usefixtures("eagerly")

SMALL = {
    "model_type": "din",
    "embedding_dim": 4,
    "max_seq_length": 9,
    "long_seq_length": 5,
    "stage_two_mlp_dims": (8,),
    "global_batch_size": 32,
    "epochs": 1,
}
ITEMS = [f"item {n}" for n in range(37)]
USERS = [f"user {n}" for n in range(6)]
LENGTHS = [20, 7, 3, 3, 12, 15]
STEPS = 3  # of an epoch: 48 targets with one event before and one after, 16 a batch


@pytest.fixture(scope="module")
def make_dataset(make_histories, write_dataset, tmp_path_factory) -> Any:
    """Histories of users and items with raw ids, whose vocabularies lie beside them."""
    from lookback.formats.raw_ids import ID_DIRECTORY
    from lookback.formats.vocabulary import id_file, ids_digest

    def make(items: Sequence[Any], categories: Sequence[int] = range(3), **more: Any) -> Path:
        directory = tmp_path_factory.mktemp("data") / "dataset"
        known = {
            "item_id": items,
            "category_id": categories,
            "user_id": USERS,
            "country": [44],
        }
        digests = {}
        for name, ids in known.items():
            path = directory / ID_DIRECTORY / id_file(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            frame = pd.DataFrame({name: ids, f"{name}_size": 1})
            frame.set_index(pd.RangeIndex(3, 3 + len(ids))).to_parquet(path)
            digests[name] = ids_digest(path, name)
        histories = make_histories(
            LENGTHS, items=3 + len(items), categories=3 + len(categories), **more
        )
        for users, name in ((9, "user_id"), (4, "country")):
            histories.schema[name].properties["domain"]["max"] = users - 1
        info = {
            "format": "lookback-histories",
            "format_version": 1,
            "content_hash": f"sha256:{len(items)}",
            "split": {"rule": "leave_last_out", "test": 1, "validation": 0},
            "vocabularies": digests,
        }
        return write_dataset(histories, directory, info=info)

    return make


@pytest.fixture(scope="module")
def dataset(make_dataset) -> Path:
    return make_dataset(ITEMS)


def trainer(dataset: Path, origin: Any = None, **more: Any) -> Any:
    """A trainer as train.py makes it."""
    import dataclasses

    import tensorflow as tf

    from lookback.models import MODELS
    from lookback.training.data import model_identity, open_source, run_identity
    from lookback.training.ids import Ids
    from lookback.training.trainer import Trainer

    run, data, options = from_values(
        command_line(), dataset_dir=dataset, **{**SMALL, "seed": 3, **more}
    )
    tf.keras.utils.set_random_seed(run.seed)
    source = open_source(run, data, options)
    model = MODELS[run.model_type](source.schema, options)
    plain = dataclasses.asdict(options)
    checkpoint = more.get("load_checkpoint_path")
    made = Trainer(
        model,
        source,
        run,
        model_identity=model_identity(run, plain, source),
        run_identity=run_identity(run, data, options),
        ids=Ids.of(dataset),
        checkpoint=None if checkpoint is None else open_checkpoint(checkpoint),
        origin=origin,
    )
    made.model = model
    return made


def state(trained: Any) -> dict[str, np.ndarray]:
    """Every tensor of a run in one process, as it would be saved."""
    tensors = {}
    for name, pieces in trained.contents.pieces.items():
        if isinstance(pieces, np.ndarray):
            continue
        blocks = [np.atleast_1d(block) for block in pieces[0].blocks()]
        tensors[name] = np.concatenate(blocks).reshape(pieces[0].shape)
    return tensors


def quiet(directory: Path) -> Any:
    from lookback.training.output.logging import RunLogger

    directory.mkdir(exist_ok=True)
    return RunLogger(directory, tensorboard=False, terminal=(directory / "out.txt").open("a"))


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory, running_eagerly) -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint, and what is in it."""
    directory = tmp_path_factory.mktemp("trained")
    with running_eagerly():
        made = trainer(dataset, save_checkpoint_path=directory / "saved")
        made.train(quiet(directory / "log"))
    return directory / "saved", state(made)


def origin_of(path: Path) -> Any:
    from lookback.training.start import CheckpointOrigin

    return CheckpointOrigin(open_checkpoint(path))


def test_on_equal_data_it_is_the_checkpoint_to_the_bit(dataset, trained):
    started = trainer(dataset, origin_of(trained[0]), seed=8, lr=0.5)
    found = state(started)
    assert set(found) == set(trained[1])
    for name, value in trained[1].items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert "table item_id: 40 rows kept, 0 new, 0 dropped" in started.notes
    assert started.position.total_steps == 0 and started.position.updates_before == STEPS


OTHERS = {
    "permuted": ITEMS[::-1],
    "grown": [*(f"new {n}" for n in range(5)), *ITEMS],
    "shrunk": ITEMS[10:20],
    "both": ["another", *ITEMS[5::3]],
}


@pytest.mark.parametrize("items", OTHERS.values(), ids=OTHERS)
def test_rows_follow_their_raw_ids(make_dataset, trained, items):
    directory = make_dataset(items)
    fresh, started = trainer(directory, seed=8), trainer(directory, origin_of(trained[0]), seed=8)
    was, found, new = trained[1], state(started), state(fresh)
    for name in ("table/item_id", "optimizer/item_id/m", "optimizer/item_id/v"):
        expected = new[name].copy()
        expected[:3] = was[name][:3]  # padding, null, unknown
        for row, item in enumerate(items, 3):
            if item in ITEMS:
                expected[row] = was[name][3 + ITEMS.index(item)]
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    for name in found:
        if "item_id" not in name:
            np.testing.assert_array_equal(found[name], was[name], err_msg=name)
    kept = 3 + len(set(items) & set(ITEMS))
    assert (
        f"table item_id: {kept} rows kept, {len(items) + 3 - kept} new, {40 - kept} dropped"
        in started.notes
    )


def test_hidden_ids_teach_the_row_of_unknown_ones(dataset, trained, tmp_path):
    """Which no sample of these data has otherwise; the rows of padding and null stay."""
    fresh = state(trainer(dataset))
    np.testing.assert_array_equal(trained[1]["table/item_id"][:3], fresh["table/item_id"][:3])
    hiding = trainer(dataset, oov_rate=0.3, max_steps=1)
    hiding.train(quiet(tmp_path / "log"))
    moved = (state(hiding)["table/item_id"] != fresh["table/item_id"]).any(1)
    assert moved[:3].tolist() == [False, False, True]


def test_another_optimizer_starts_anew(dataset, trained):
    started = trainer(dataset, origin_of(trained[0]), optimizer="adagrad")
    fresh = state(trainer(dataset, optimizer="adagrad"))
    found = state(started)
    for name, value in found.items():
        expected = fresh if name.startswith("optimizer/") else trained[1]
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert started.position.updates_before == 0
    assert any("had adam; the state of adagrad starts anew" in line for line in started.notes)


def test_the_schedule_counts_from_the_start_and_goes_on_after_a_break(dataset, trained, tmp_path):
    """Adam's count of updates goes on, as its moments do; the warm-up does not."""
    more = {"lr": 0.1, "warmup_steps": 8, "epochs": 2}

    def begun(name: str, steps: int) -> Any:
        made = trainer(
            dataset,
            origin_of(trained[0]),
            max_steps=steps,
            save_checkpoint_path=tmp_path / name,
            **more,
        )
        made.train(quiet(tmp_path / "log"))
        return made

    started = begun("saved", 3)
    assert float(started.optimizer.learning_rate) == pytest.approx(0.1 * 3 / 8)
    assert int(started.optimizer.iterations) == STEPS + 3
    again = trainer(dataset, load_checkpoint_path=tmp_path / "saved", max_steps=4, **more)
    again.train(quiet(tmp_path / "log"))
    assert float(again.optimizer.learning_rate) == pytest.approx(0.1 * 4 / 8)
    found = state(again)
    for name, value in state(begun("straight", 4)).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


# --- what does not depend on a model: shards, refusals, special rows


class Known:
    """An origin whose tensors are arrays."""

    where, model, columns = "the checkpoint C", {"model_type": "din", "k": 5}, ["item", "price"]

    def __init__(self, tensors: dict[str, np.ndarray], optimizer: str | None = "adam", **ids: Any):
        self.tensors, self.optimizer = tensors, optimizer
        self.specs = {n: TensorSpec(v.shape, v.dtype) for n, v in tensors.items()}
        self.ids = made_ids(**ids)

    def take(self, name: str, rows: Any, columns: range | None) -> np.ndarray:
        found = self.tensors[name][rows]
        return found if columns is None else found[:, columns.start : columns.stop]

    def whole(self, name: str) -> np.ndarray:
        return self.tensors[name]


def made_ids(raw: Any = None, special: tuple[str, ...] = OF_HISTORIES, **more: Any) -> Any:
    from lookback.training.ids import Ids

    known = {name: RawIds(special, pa.array(ids)) for name, ids in (raw or {}).items()}
    return Ids(raw=known.get, **more)


def here(columns: Sequence[str] = ("item", "price"), optimizer: str = "adam", **ids: Any) -> Any:
    from lookback.training.start import Here

    return Here({"model_type": "din", "k": 5}, columns, made_ids(**ids), optimizer)


def states_of(tensors: dict[str, np.ndarray], shards: Any = None) -> dict[str, Any]:
    """Tensors as a rank holds them: whole, or of tables the parts that `shards` names."""
    import tensorflow as tf

    from lookback.training.state import State, TensorShard

    states = {}
    for name, value in tensors.items():
        cuts = [(range(len(value)), None)]
        if shards is not None and not name.startswith(("model/", "optimizer/dense/")):
            cuts = shards(name.split("/")[1])
        parts = []
        for rows, columns in cuts:
            part = value[rows.start : rows.stop : rows.step]
            part = part if columns is None else part[:, columns.start : columns.stop]
            before = np.full((2, *part.shape[1:]), 77, np.float32)  # of another table
            variable = tf.Variable(np.concatenate([before, part]))
            if name.startswith(("model/", "optimizer/dense/")):
                variable, before = tf.Variable(value), before[:0]
            parts.append(TensorShard(variable, rows, columns, len(before)))
        states[name] = State(value.shape, value.dtype, tuple(parts), replicated=shards is None)
    return states


def tensors_of(rows: int, dim: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "table/item": (rows, dim),
        "optimizer/item/m": (rows, dim),
        "table/tag": (9, dim),
        "optimizer/tag/m": (9, dim),
        "model/w": (4, 3),
        "optimizer/dense/m/w": (4, 3),
    }
    return {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}


OLD, NEW = [30, 31, 32, 33, 34, 35, 36], [36, 99, 32, 30, 98, 31, 97, 96]
TAGS = {"vocabularies": {"tag": "a digest"}}


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_start_from_shards_of_other_ranks_as_one_does(in_ranks, ranks, tmp_path):
    """Saved by so many ranks, started on so many and one more, each strategy among the tables."""
    from lookback.embeddings.sharding import shards_of
    from lookback.embeddings.types import Placement, ShardingPlan, TableSpec
    from lookback.training.start import CheckpointOrigin, start_from

    was, new = tensors_of(3 + len(OLD)), tensors_of(3 + len(NEW), seed=1)

    def cut(world: Any, rows: int, strategies: tuple[str, str]) -> Any:
        tables = (TableSpec("item", rows, 6), TableSpec("tag", 9, 6))
        owners = {"row_wise": (), "table_wise": (world.size - 1,)}
        placed = tuple(
            Placement(t.name, s, owners.get(s, tuple(range(world.size))))
            for t, s in zip(tables, strategies, strict=True)
        )
        shards = list(shards_of(ShardingPlan(world.size, tables, placed)))
        return lambda table: [
            (s.rows, s.columns) for s in shards if s.rank == world.rank and s.table == table
        ]

    def save(world: Any) -> None:
        shards = cut(world, 3 + len(OLD), ("column_wise", "row_wise"))
        pieces: dict[str, Any] = {"raw_ids/item/integers": np.array(OLD)} if not world.rank else {}
        for name, value in was.items():
            of_table = shards(name.split("/")[1])
            if name in ("model/w", "optimizer/dense/m/w"):
                pieces |= {name: value} if not world.rank else {}
                continue
            pieces[name] = [
                RowBlocks(
                    value.shape,
                    value.dtype,
                    lambda v=value, r=r, c=c: [v[r.start : r.stop : r.step, c.start : c.stop]],
                    r,
                    c,
                )
                for r, c in of_table
            ]
        meta = {"model": here().model, "run": {"optimizer": "adam"}, **TAGS}
        CheckpointStore(tmp_path, world=world).save(1, pieces, meta)

    def start(world: Any, strategies: tuple[str, str]) -> tuple[list[str], dict[str, np.ndarray]]:
        shards = cut(world, 3 + len(NEW), strategies)
        states = states_of(new, shards)
        origin = CheckpointOrigin(open_checkpoint(tmp_path, world=world))
        said = start_from(origin, here(raw={"item": NEW}, **TAGS), states)
        put = {n: np.full(v.shape, np.nan, np.float32) for n, v in new.items()}
        for name, held in states.items():
            for part in held.parts:
                values = part.variable.numpy()[part.start :]
                columns = part.columns or range(values.shape[1])
                into = (slice(part.rows.start, part.rows.stop, part.rows.step),)
                put[name][(*into, slice(columns.start, columns.stop))] = values
                assert (part.variable.numpy()[: part.start] == 77).all()
        return said, put

    expected = dict(was)
    for name in ("table/item", "optimizer/item/m"):
        expected[name] = new[name].copy()
        expected[name][:3] = was[name][:3]
        for row, item in enumerate(NEW, 3):
            if item in OLD:
                expected[name][row] = was[name][3 + OLD.index(item)]
    in_ranks(ranks, save)
    for strategies in (("row_wise", "table_wise"), ("column_wise", "row_wise")):
        for many in (ranks, ranks + 1):
            answers = in_ranks(many, lambda world, s=strategies: start(world, s))
            for name, value in expected.items():
                found = np.stack([put[name] for _, put in answers])
                assert not np.isnan(found).all(0).any(), name
                for rank in found:  # what a rank holds is as it should be
                    held = ~np.isnan(rank)
                    np.testing.assert_array_equal(rank[held], value[held], err_msg=name)
            assert len({tuple(said) for said, _ in answers}) == 1
            assert "table item: 7 rows kept, 4 new, 3 dropped" in answers[0][0]


def test_a_table_may_be_called_dense():
    from lookback.training.start import start_from

    names = {"table/dense": (10, 6), "optimizer/dense/m": (10, 6), "optimizer/dense/m/w": (4, 3)}
    was, new = (
        {n: np.random.default_rng(seed).random(s, np.float32) for n, s in names.items()}
        for seed in range(2)
    )
    states = states_of(new)
    start_from(Known(was, raw={"dense": OLD}), here(raw={"dense": OLD[::-1]}), states)
    for name in ("table/dense", "optimizer/dense/m"):
        (part,) = states[name].parts
        expected = np.concatenate([was[name][:3], was[name][:2:-1]])
        np.testing.assert_array_equal(part.variable.numpy()[part.start :], expected)
    np.testing.assert_array_equal(
        states["optimizer/dense/m/w"].parts[0].variable, was["optimizer/dense/m/w"]
    )


def test_features_that_come_and_go_are_said():
    from lookback.training.start import start_from

    was, new = tensors_of(10), tensors_of(10, seed=1)
    del new["table/tag"], new["optimizer/tag/m"]
    new |= {"table/brand": np.ones((5, 6), np.float32), "model/w": np.ones((5, 3), np.float32)}
    states = states_of(new)
    said = start_from(
        Known(was, raw={"item": OLD}), here(("item", "brand"), raw={"item": OLD}), states
    )
    assert said[0] == "table item: 10 rows kept, 0 new, 0 dropped"
    assert "table brand: new, all 5 rows" in said
    assert "tables of the checkpoint C that this model has not: tag" in said
    assert any("weights start anew: model/w float32 [5, 3] (was float32 [4, 3])" in s for s in said)
    for name in ("table/brand", "model/w"):
        (part,) = states[name].parts
        np.testing.assert_array_equal(part.variable.numpy()[part.start :], new[name])


HASHED = {"type": "hash", "buckets": 7, "of": "item"}


@pytest.mark.parametrize(
    ("ours", "theirs", "kept"),
    [
        ({"features": {"item": HASHED}}, {"features": {"item": {**HASHED, "of": "event"}}}, 10),
        ({}, {}, 10),  # nobody knows, and there are as many
        ({"vocabularies": {"item": "a"}}, {"vocabularies": {"item": "a"}}, 10),
        ({"raw": {"item": []}}, {"raw": {"item": ["x"] * 7}}, 3),
        ({"raw": {"item": OLD}, "special": OF_ROWS}, {"raw": {"item": OLD}, "special": OF_ROWS}, 8),
    ],
)
def test_how_rows_are_known(ours, theirs, kept):
    from lookback.training.start import start_from

    def rows(ids: Any) -> int:
        known = ids.get("raw", {}).get("item")
        return 10 if known is None else len(known) + len(ids.get("special", OF_HISTORIES))

    was, new = tensors_of(rows(theirs)), tensors_of(rows(ours), seed=1)
    said = start_from(Known(was, **theirs), here(**ours), states_of(new))
    assert f"table item: {kept} rows kept" in said[0]
    assert ("by number" in said[0]) == (not ours)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"raw": {"item": OLD}}, {}, "the checkpoint C does not say which values .*'item'"),
        ({}, {"raw": {"item": OLD}}, "the dataset does not say which values .*'item'"),
        ({"raw": {"item": OLD}}, {"raw": {"item": ["x"] * 7}}, "numbers after .* and text after"),
        ({"raw": {"item": OLD}}, {"raw": {"item": OLD[1:]}}, "numbers 9 values of 'item', and"),
        (
            {"features": {"item": HASHED}},
            {"features": {"item": {**HASHED, "buckets": 8}}},
            "'item' are made otherwise here .*'buckets': 7.*'buckets': 8",
        ),
        ({"features": {"item": HASHED}}, {"raw": {"item": OLD}}, "and by a vocabulary"),
    ],
)
def test_ids_whose_meaning_is_not_known_are_refused(ours, theirs, message):
    from lookback.training.start import start_from

    states = states_of(tensors_of(10, seed=1))
    with pytest.raises(UserError, match=message):
        start_from(Known(tensors_of(10), **theirs), here(**ours), states)


def test_other_models_are_refused_and_nothing_is_touched():
    from lookback.training.start import start_from

    same = {"raw": {"item": OLD}}

    def refused(message: str, new: dict[str, np.ndarray], **more: Any) -> None:
        states = states_of(new)
        with pytest.raises(UserError, match=message):
            start_from(Known(tensors_of(10), **same), here(**same, **more), states)
        for name, value in new.items():
            (part,) = states[name].parts
            np.testing.assert_array_equal(part.variable.numpy()[part.start :], value)

    refused("vectors of 4 numbers here, and of 6", tensors_of(10, dim=4, seed=1))
    wide = tensors_of(10, seed=1) | {"model/w": np.ones((4, 8), np.float32)}
    refused(r"other dimensions: model/w float32 \[4, 8\] \(was float32 \[4, 3\]\)", wide)
    more = tensors_of(10, seed=1) | {"model/w2": np.ones((4, 8), np.float32)}
    refused(r"model/w2 float32 \[4, 8\] \(was not there\)", more)
    refused(
        "weights would be taken for other features",
        tensors_of(10, seed=1),
        columns=("price", "item"),
    )
    origin, states = Known(tensors_of(10), **same), states_of(tensors_of(10, seed=1))
    origin.model = {"model_type": "sim"}
    with pytest.raises(UserError, match=r"expected a trained din, received .* of sim"):
        start_from(origin, here(**same), states)


def test_what_differs_and_is_no_obstacle_is_said():
    from lookback.training.start import start_from

    price = {"type": "number", "mean": 1.0}
    origin = Known(
        tensors_of(10), raw={"item": [40 + n for n in range(7)]}, features={"price": price}
    )
    origin.model = {"model_type": "din", "k": 6}
    ours = {"raw": {"item": OLD}, "features": {"price": {**price, "mean": 2.0}}}
    said = start_from(origin, here(**ours), states_of(tensors_of(10, seed=1)))
    assert said[0] == "options of the model that differ: k 5 (was 6)"
    assert said[1].endswith("3 rows kept, 7 new, 7 dropped; warning: no value is known there")
    assert said[-1].startswith("warning: price: transformed otherwise")

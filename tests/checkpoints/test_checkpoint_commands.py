"""`python -m embeddings inspect|reshard|export-table`, on checkpoints made here."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lookback.checkpoints.commands import PROGRAM
from lookback.checkpoints.data_file import RowBlocks
from lookback.checkpoints.format import Checkpoint
from lookback.checkpoints.manifest import MANIFEST
from lookback.checkpoints.reshard import reshard, row_wise_plan, tables_of
from lookback.checkpoints.store import CheckpointStore, find_checkpoint
from lookback.core.errors import UserError
from lookback.embeddings.plans import save_plan
from lookback.embeddings.sharding import STRATEGIES, shards_of
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec

ROOT = Path(__file__).parents[2]
main = PROGRAM.main
TABLES = (TableSpec("item", 31, 8), TableSpec("item/category", 5, 4), TableSpec("user", 3, 6))


def state(slot: str = "m") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {}
    for table in TABLES:
        shape = (table.rows, table.dim)
        tensors[f"table/{table.name}"] = rng.normal(size=shape).astype(np.float32)
        width = table.dim if slot == "m" else 1
        slots = rng.normal(size=(table.rows, width)).astype(np.float32)
        tensors[f"optimizer/{table.name}/{slot}"] = slots
    tensors["optimizer/dense/kernel/m"] = rng.normal(size=(3, 5))
    return {**tensors, "model/kernel": rng.normal(size=(3, 5)), "optimizer/step": np.array(12)}


META = {"model": {"model_type": "some", "k": 50, "tables": {"item": 31}}, "position": {"epoch": 2}}


@pytest.fixture
def saved(tmp_path) -> Path:
    CheckpointStore(tmp_path / "saved").save(12, state(), META)
    return tmp_path / "saved"


def assert_same(checkpoint: Checkpoint, tensors: dict[str, np.ndarray]) -> None:
    assert set(checkpoint) == set(tensors)
    for name, array in tensors.items():
        assert checkpoint[name].dtype == array.dtype
        np.testing.assert_array_equal(checkpoint[name], array)


def plan(ranks: int, *placements: Placement) -> ShardingPlan:
    return ShardingPlan(ranks, TABLES, placements)


def mixed(ranks: int) -> ShardingPlan:
    """Every strategy but row-wise, which needs no plan."""
    return plan(
        ranks,
        Placement("item", "column_wise", tuple(range(min(3, ranks)))[::-1]),
        Placement("item/category", "data_parallel"),
        Placement("user", "table_wise", (ranks - 1,)),
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 40])
def test_rows_are_dealt_out_over_any_number_of_ranks(saved, tmp_path, capsys, ranks):
    output = tmp_path / "new"
    arguments = ["reshard", str(saved), "--output", str(output), "--ranks", str(ranks)]
    assert main(arguments) == 0
    assert f"for {ranks} ranks" in capsys.readouterr().out
    path = find_checkpoint(output)
    assert path == output / "step-00000012"
    assert [entry.name for entry in output.iterdir()] == ["step-00000012"]
    checkpoint = Checkpoint(path)
    assert (checkpoint.step, checkpoint.meta) == (12, META)
    assert list(checkpoint) == list(Checkpoint(find_checkpoint(saved)))
    assert_same(checkpoint, state())
    assert len(checkpoint.files) == ranks
    for name in ("table/item", "optimizer/item/m"):
        held = {piece.file: piece.region.rows for piece in checkpoint.pieces[name]}
        assert held == {
            f"data-{rank:05d}.bin": range(rank, 31, ranks) for rank in range(min(31, ranks))
        }
    for name in ("model/kernel", "optimizer/step", "optimizer/dense/kernel/m"):
        assert [piece.file for piece in checkpoint.pieces[name]] == ["data-00000.bin"]


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_a_plan_says_what_each_file_holds(saved, tmp_path, ranks):
    save_plan(mixed(ranks), tmp_path / "plan.yaml")
    output = tmp_path / "new"
    options = ["--output", str(output), "--plan", str(tmp_path / "plan.yaml")]
    assert main(["reshard", str(saved), *options]) == 0
    checkpoint = Checkpoint(find_checkpoint(output))
    assert_same(checkpoint, state())
    for shard in shards_of(mixed(ranks)):
        for tensor in (f"table/{shard.table}", f"optimizer/{shard.table}/m"):
            held = {piece.file: piece.region for piece in checkpoint.pieces[tensor]}
            region = held.get(f"data-{shard.rank:05d}.bin")
            if shard.table == "item/category" and shard.rank > 0:
                assert region is None  # all ranks hold it alike: stored once
            else:
                assert region is not None
                assert (region.rows, region.columns) == (shard.rows, shard.columns)


def test_from_one_layout_to_another_and_back(saved, tmp_path):
    plans = [mixed(4), row_wise_plan(Checkpoint(find_checkpoint(saved)), 3), mixed(2)]
    path = find_checkpoint(saved)
    for number, wanted in enumerate(plans):
        path = reshard(Checkpoint(path), wanted, tmp_path / f"{number}")
        assert_same(Checkpoint(path), state())


def test_state_of_a_whole_row_goes_with_the_rows(tmp_path):
    CheckpointStore(tmp_path / "saved").save(1, state("accumulator"), {})
    checkpoint = Checkpoint(tmp_path / "saved" / "step-00000001")
    path = reshard(checkpoint, row_wise_plan(checkpoint, 4), tmp_path / "new")
    assert_same(Checkpoint(path), state("accumulator"))
    pieces = Checkpoint(path).pieces["optimizer/item/accumulator"]
    assert [piece.region.rows for piece in pieces] == [range(rank, 31, 4) for rank in range(4)]
    with pytest.raises(UserError) as error:
        reshard(checkpoint, mixed(2), tmp_path / "other")
    assert "table 'item': the plan cuts its columns" in str(error.value)
    assert "optimizer/item/accumulator (float32 [31, 1])" in str(error.value)
    assert not (tmp_path / "other").exists()
    reshard(checkpoint, mixed(1), tmp_path / "one")  # one owner of all columns cuts none


def test_every_strategy_can_be_written(saved, tmp_path):
    checkpoint = Checkpoint(find_checkpoint(saved))
    for name, strategy in STRATEGIES.items():
        wanted = plan(3, *(strategy.placements(table, 3)[-1] for table in TABLES))
        assert_same(Checkpoint(reshard(checkpoint, wanted, tmp_path / name)), state())


def test_a_plan_of_other_tables_is_refused_by_name(saved, tmp_path):
    tables = (TableSpec("item", 31, 4), TableSpec("user", 3, 6), TableSpec("shop", 2, 2))
    other = ShardingPlan(2, tables, tuple(Placement(table.name, "row_wise") for table in tables))
    with pytest.raises(UserError) as error:
        reshard(Checkpoint(find_checkpoint(saved)), other, tmp_path / "new")
    text = str(error.value)
    assert "missing from the plan: item/category" in text
    assert "not in the checkpoint: shop" in text
    assert "item: the plan has [31, 4], the checkpoint [31, 8]" in text
    assert not (tmp_path / "new").exists()


def fails(capsys: Any, *arguments: Any) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_nothing_is_overwritten_and_damage_is_not_copied(saved, tmp_path, capsys):
    command = ("reshard", saved, "--ranks", 2, "--output")
    assert "is the input itself" in fails(capsys, *command, saved)
    inside = saved / "step-00000012"
    for place in (inside, inside / "new", saved / "new"):
        assert f"lies in the input {saved}" in fails(capsys, *command, place)
    (tmp_path / "file").touch()
    assert "file is not a directory" in fails(capsys, *command, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    assert "already exists and is not empty" in fails(capsys, *command, tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    assert main([*map(str, command), str(tmp_path / "empty")]) == 0
    assert "--ranks: expected an integer, 1 or more" in fails(
        capsys, "reshard", saved, "--ranks", 0, "--output", tmp_path / "new"
    )
    both = ("--ranks", 2, "--plan", "p.yaml", "--output", tmp_path / "new")
    assert "received --ranks and --plan" in fails(capsys, "reshard", saved, *both)
    data = saved / "step-00000012" / "data-00000.bin"
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    assert "'table/item' has changed" in fails(capsys, *command, tmp_path / "new")
    export = ("export-table", saved, "--table", "item", "--output", tmp_path / "item.npy")
    assert "'table/item' has changed" in fails(capsys, *export)
    assert "'table/item' has changed" in fails(capsys, "inspect", saved, "--verify")
    assert main(["inspect", str(saved)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "mine", "saved"]


def test_a_full_disk_is_one_clear_error(saved, tmp_path, monkeypatch, capsys):
    usage = type("Usage", (), {"free": 100})()
    monkeypatch.setattr("lookback.checkpoints.data_file.shutil.disk_usage", lambda path: usage)
    text = fails(capsys, "reshard", saved, "--ranks", 2, "--output", tmp_path / "new")
    assert "no space left in" in text and "--output" in text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("ranks", [1, 3])
def test_inspect_says_what_is_there(saved, tmp_path, capsys, ranks):
    main(["reshard", str(saved), "--output", str(tmp_path / "new"), "--ranks", str(ranks)])
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "new"), "--verify"]) == 0
    text = capsys.readouterr().out
    assert "step 12, format 3" in text
    assert "model: model_type=some, k=50\n" in text
    assert "position: epoch=2\n" in text
    where = "whole in data-00000.bin" if ranks == 1 else "rows over 3 files"
    lines = [line.split() for line in text.splitlines()]
    assert ["item", "31", "8", "float32", "992", "B", *where.split(), "m", "992", "B"] in lines
    assert "model: 1 other tensors, 120 B" in text
    assert "optimizer: 2 other tensors, 128 B" in text
    assert text.count(".bin: ") == ranks
    assert "verified" in text
    digest = hashlib.sha256((find_checkpoint(tmp_path / "new") / MANIFEST).read_bytes()).hexdigest()
    assert f"digest {digest} (of manifest.json, for --trusted_digest)" in text

    assert main(["inspect", str(tmp_path / "new"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["step"], content["meta"], content["verified"]) == (12, META, False)
    assert content["digest"] == digest
    item = content["tables"][0]
    assert (item["name"], item["rows"], item["dim"], item["bytes"]) == ("item", 31, 8, 992)
    assert item["slots"]["m"]["bytes"] == 992
    assert [piece["rows"] for piece in item["pieces"]] == [[r, 31, ranks] for r in range(ranks)]
    assert content["others"]["optimizer"] == {"tensors": 2, "bytes": 128}
    files = content["files"]
    assert sum(file["pieces"] for file in files.values()) == 3 + sum(
        2 * min(ranks, table.rows) for table in TABLES
    )


def forge(path: Path) -> None:
    """Changes a number of a checkpoint, and its manifest to what would have been saved with it."""
    tensors = state()
    tensors["table/item"][0, 0] += 1
    shutil.rmtree(path)
    CheckpointStore(path.parent).save(12, tensors, META)


def test_only_what_is_trusted_is_opened(saved, tmp_path, capsys):
    path = find_checkpoint(saved)
    digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    commands = [
        ("inspect", saved),
        ("reshard", saved, "--ranks", 2, "--output", tmp_path / "new"),
        ("export-table", saved, "--table", "item", "--output", tmp_path / "item.npy"),
    ]
    for command in commands:
        assert main([*map(str, command), "--trusted_digest", digest]) == 0
    resharded = hashlib.sha256((find_checkpoint(tmp_path / "new") / MANIFEST).read_bytes())
    assert f"digest {resharded.hexdigest()}" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "new")
    (tmp_path / "item.npy").unlink()
    forge(path)
    Checkpoint(path)  # as sound as the other
    forged = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    for command in commands:
        text = fails(capsys, *command, "--trusted_digest", digest)
        assert f"expected the SHA-256 {digest}, as trusted_digest says, found {forged}" in text
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["saved"]


def test_inspect_of_a_small_or_empty_checkpoint(tmp_path, capsys):
    CheckpointStore(tmp_path).save(0, {}, {})
    assert main(["inspect", str(tmp_path)]) == 0
    assert "step 0" in capsys.readouterr().out
    assert "there is nothing" in fails(capsys, "inspect", tmp_path / "nowhere")


def test_slots_belong_to_the_table_with_the_longest_name(saved):
    tables = tables_of(Checkpoint(find_checkpoint(saved)))
    assert tables["item"].slots == {"m": "optimizer/item/m"}
    assert tables["item/category"].slots == {"m": "optimizer/item/category/m"}


def test_a_table_is_exported_whole(saved, tmp_path, capsys):
    save_plan(mixed(3), tmp_path / "plan.yaml")
    main(["reshard", str(saved), "--output", f"{tmp_path}/new", "--plan", f"{tmp_path}/plan.yaml"])
    for source in (saved, tmp_path / "new"):
        for table in TABLES:
            expected = state()[f"table/{table.name}"]
            stem = tmp_path / "out" / source.name / table.name.replace("/", "-")
            for suffix in (".npy", ".parquet"):
                output = f"{stem}{suffix}"
                options = ["--table", table.name, "--output", output]
                assert main(["export-table", str(source), *options]) == 0
            np.testing.assert_array_equal(np.load(f"{stem}.npy"), expected)
            found = pq.read_table(f"{stem}.parquet")
            assert found.column_names == ["row", "vector"]
            assert str(found.schema.field("row").type) == "int64"
            vector = found.schema.field("vector").type
            assert (str(vector.value_type), vector.list_size) == ("float", table.dim)
            np.testing.assert_array_equal(found["row"].to_numpy(), np.arange(table.rows))
            np.testing.assert_array_equal(np.stack(found["vector"].to_numpy()), expected)


def test_exports_that_cannot_be_are_refused(saved, tmp_path, capsys):
    command = ("export-table", saved, "--output")
    text = fails(capsys, *command, tmp_path / "x.npy", "--table", "shop")
    assert "no table 'shop'. It has: item, item/category, user." in text
    text = fails(capsys, *command, tmp_path / "x.csv", "--table", "user")
    assert "expected .npy or .parquet, received 'x.csv'" in text
    (tmp_path / "there.npy").touch()
    assert "already exists" in fails(capsys, *command, tmp_path / "there.npy", "--table", "user")
    (tmp_path / "link.npy").symlink_to("there.npy")
    (tmp_path / "directory.npy").mkdir()
    for name, says in (
        ("link.npy", "is a symbolic link"),
        ("directory.npy", "is a directory"),
        ("there.npy/x.npy", "is not a directory"),
        ("saved/step-00000012/x.npy", "lies in the input"),
    ):
        assert says in fails(capsys, *command, tmp_path / name, "--table", "user")
    names = ["directory.npy", "link.npy", "saved", "there.npy"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "there.npy").read_bytes() == b""


def test_help_answers_without_tensorflow():
    for command in ("inspect", "reshard", "export-table"):
        code = (
            "import sys\nfrom lookback.checkpoints.commands import PROGRAM\n"
            f"assert PROGRAM.main(['{command}', '--help']) == 0\n"
            "assert not {'tensorflow', 'pyarrow', 'merlin'} & set(sys.modules), 'heavy import'"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "CHECKPOINT" in done.stdout


@pytest.mark.slow
def test_large_tables_need_the_memory_of_a_block(tmp_path):
    """A table of 128 MiB with its state: resharded and exported with less than 40 MiB.

    Arrow's encoder and allocator take more than a block, but not with the size of the table.
    """
    rows = 2 << 20
    block = np.ones((1 << 15, 16), np.float32)
    blocks = RowBlocks((rows, 16), block.dtype, lambda: (block for _ in range(64)))
    store = CheckpointStore(tmp_path / "saved")
    store.save(0, {"table/item": blocks, "optimizer/item/m": blocks}, {})
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import numpy, pyarrow.parquet
        from lookback.checkpoints.commands import PROGRAM

        def peak():
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) >> 10

        before = peak()
        assert PROGRAM.main(sys.argv[1:]) == 0
        print(peak() - before)
        """
    )
    table = TableSpec("item", rows, 16)
    placement = Placement("item", "column_wise", (3, 0, 2))
    save_plan(ShardingPlan(4, (table,), (placement,)), tmp_path / "plan.yaml")
    for command in (
        ("reshard", "saved", "--ranks", "3", "--output", "a"),
        ("reshard", "a", "--plan", "plan.yaml", "--output", "b"),
        ("reshard", "b", "--ranks", "16", "--output", "c"),
        ("export-table", "c", "--table", "item", "--output", "item.npy"),
        ("export-table", "b", "--table", "item", "--output", "item.parquet"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *command],
            cwd=tmp_path,
            env={},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[-1]) < (96 if "item.parquet" in command else 40), command
    assert np.load(tmp_path / "item.npy", mmap_mode="r").shape == (rows, 16)

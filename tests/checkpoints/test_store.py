from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from lookback.checkpoints.store import (
    MANIFEST,
    Checkpoint,
    CheckpointStore,
    RowBlocks,
    TensorSpec,
    find_checkpoint,
)
from lookback.core.errors import UserError

ROOT = Path(__file__).parents[2]


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "table/item_id": rng.normal(size=(1000, 16)).astype(np.float32),
        "table/item_id/adam_m": rng.normal(size=(1000, 16)).astype(np.float32),
        "dense/kernel:0": rng.normal(size=(7, 3)),
        "mask": rng.integers(0, 2, (5, 2, 2)).astype(bool),
        "half": rng.normal(size=9).astype(np.float16),
        "optimizer/step": np.array(123, np.int64),
        "rng": rng.integers(0, 256, 33).astype(np.uint8),
        "empty": np.zeros((0, 16), np.float32),
    }


def assert_holds(checkpoint: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    assert list(checkpoint) == list(expected)
    for name, array in expected.items():
        stored = checkpoint[name]
        assert (stored.shape, stored.dtype) == (array.shape, array.dtype), name
        np.testing.assert_array_equal(stored, array)


def saved(directory: Path, step: int = 3) -> Path:
    meta = {"model": {"k": 50, "dims": (200, 80)}, "epoch": 1}
    return CheckpointStore(directory).save(step, tensors(), meta)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    path = saved(tmp_path / "store")
    assert path.name == "step-00000003"
    checkpoint = CheckpointStore(tmp_path / "store").load()
    assert_holds(checkpoint, tensors())
    assert checkpoint.step == 3
    assert checkpoint.meta == {"model": {"k": 50, "dims": [200, 80]}, "epoch": 1}
    assert checkpoint.specs["table/item_id"] == TensorSpec((1000, 16), np.dtype(np.float32))
    assert sorted(p.name for p in path.iterdir()) == ["data-00000.bin", MANIFEST]


def test_special_values_and_layouts_survive(tmp_path):
    array = np.array([[np.nan, -0.0], [np.inf, 5e-324]])
    given = {"special": array, "columns": np.asfortranarray(array), "big": array.astype(">f8")}
    CheckpointStore(tmp_path).save(0, given, {})
    checkpoint = CheckpointStore(tmp_path).load()
    for name in given:
        assert np.ascontiguousarray(checkpoint[name], "<f8").tobytes() == array.tobytes()


def test_tensors_are_read_only_memory_maps(tmp_path):
    stored = Checkpoint(saved(tmp_path))["table/item_id"]
    assert not stored.flags.writeable
    assert not stored.flags.owndata
    assert stored.ctypes.data % 64 == 0


def test_a_table_in_blocks_equals_the_whole_array(tmp_path):
    table = tensors()["table/item_id"]
    calls = []

    def blocks():
        calls.append(1)
        for start in range(0, 1000, 300):
            yield table[start : start + 300]

    given = {"table": RowBlocks(table.shape, table.dtype, blocks)}
    CheckpointStore(tmp_path).save(0, given, {})
    np.testing.assert_array_equal(CheckpointStore(tmp_path).load()["table"], table)
    assert calls == [1]


def sharded(table: np.ndarray, shards: list[range]) -> list[RowBlocks]:
    def piece(rows: range) -> RowBlocks:
        mine = table[rows.start : rows.stop : rows.step]
        return RowBlocks(table.shape, table.dtype, lambda: [mine[:2], mine[2:]], rows)

    return [piece(rows) for rows in shards]


@pytest.mark.parametrize(
    "shards",
    [
        [range(0, 13)],
        [range(0, 5), range(5, 6), range(6, 13)],
        [range(0, 13, 3), range(1, 13, 3), range(2, 13, 3)],
        [range(0, 10, 2), range(1, 10, 2), range(10, 13)],
    ],
)
@pytest.mark.parametrize("world_size", [1, 2, 5, 20])
def test_pieces_are_readable_by_any_number_of_processes(tmp_path, shards, world_size):
    table = np.arange(13 * 4, dtype=np.float32).reshape(13, 4)
    CheckpointStore(tmp_path).save(0, {"table": sharded(table, shards)}, {})
    checkpoint = CheckpointStore(tmp_path).load()
    np.testing.assert_array_equal(checkpoint["table"], table)
    for rank in range(world_size):
        np.testing.assert_array_equal(
            checkpoint.rows("table", range(rank, 13, world_size)) if rank < 13 else table[13:],
            table[rank::world_size],
        )
    np.testing.assert_array_equal(checkpoint.rows("table", range(12, -1, -4)), table[12::-4])
    assert checkpoint.rows("table", range(0)).shape == (0, 4)
    with pytest.raises(ValueError, match=r"rows of \[0, 13\)"):
        checkpoint.rows("table", range(10, 14))


def test_wrong_blocks_pieces_and_types_are_refused_and_leave_nothing(tmp_path):
    store = CheckpointStore(tmp_path)
    table = np.zeros((6, 2), np.float32)

    def blocks(*arrays):
        return RowBlocks((6, 2), np.dtype(np.float32), lambda: arrays)

    for wrong, text in [
        (blocks(table[:5]), r"expected 6 rows"),
        (blocks(table, table), r"expected 6 rows"),
        (blocks(table[:, :1]), r"expected blocks float32 \[n, 2\], received float32 \[6, 1\]"),
        (blocks(table.astype(np.float64)), r"received float64"),
        (sharded(table, [range(3)]), "row 3 is in 0 pieces"),
        (sharded(table, [range(4), range(3, 6)]), "row 3 is in 2 pieces"),
        (sharded(table, [range(7)]), r"rows of \[0, 6\)"),
        (np.array(["text"]), "expected bool, integers or floats"),
    ]:
        with pytest.raises(ValueError, match=text):
            store.save(0, {"table": wrong}, {})
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save(0, {"table": table}, {"when": object()})
    assert not list(tmp_path.iterdir())


def test_the_last_k_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (5, 10, 99, 100_000_000_000):
        store.save(step, {"step": np.array(step)}, {})
    assert [p.name for p in store.checkpoints()] == ["step-00000099", "step-100000000000"]
    assert store.latest() == tmp_path / "step-100000000000"
    assert store.load()["step"] == 100_000_000_000
    assert len(list(tmp_path.iterdir())) == 2


def test_a_step_saved_again_replaces_the_first(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for value in range(3):
        store.save(7, {"value": np.array(value)}, {})
        assert store.load()["value"] == value
        assert len(list(tmp_path.iterdir())) == 1
    store.save(8, {"value": np.array(8)}, {})
    assert [Checkpoint(p)["value"] for p in store.checkpoints()] == [2, 8]


def test_keep_one_never_leaves_none(tmp_path):
    """The old one goes only after the new one is in place: seen from inside the save."""
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, {"table": np.zeros((4, 1))}, {})

    def blocks():
        assert [p.name for p in store.checkpoints()] == ["step-00000001"]
        yield np.ones((4, 1))

    store.save(2, {"table": RowBlocks((4, 1), np.dtype(float), blocks)}, {})
    assert [p.name for p in store.checkpoints()] == ["step-00000002"]


def test_a_failed_save_leaves_the_earlier_ones(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, tensors(), {})

    def blocks():
        yield np.zeros((1, 1))
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        store.save(2, {"table": RowBlocks((2, 1), np.dtype(float), blocks)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert_holds(store.load(), tensors())


def test_begin_refuses_to_mix_two_runs(tmp_path):
    store = CheckpointStore(tmp_path / "a")
    store.begin(resumed_from=None)
    for step in (1, 2):
        store.save(step, {}, {})
    with pytest.raises(UserError, match=r"already holds .*step-00000002.*--load_checkpoint_path"):
        store.begin(resumed_from=None)
    store.begin(resumed_from=store.load())
    with pytest.raises(UserError, match=r"step-00000002, which is later than step 1"):
        store.begin(resumed_from=Checkpoint(store.checkpoints()[0]))
    with pytest.raises(ValueError, match="call begin"):
        store.save(1, {}, {})
    CheckpointStore(tmp_path / "b").begin(resumed_from=store.load())


def test_leftovers_of_killed_saves_are_ignored_then_removed(tmp_path):
    store = CheckpointStore(tmp_path)
    saved(tmp_path)
    left = tmp_path / ".step-00000009.lookback"
    (left / "new").mkdir(parents=True)
    mark = {"format": "lookback-working", "target": "step-00000009"}
    (left / "owner.json").write_text(json.dumps(mark))
    (left / "new" / "data-00000.bin").write_bytes(b"half")
    (tmp_path / ".step-probe-abc").mkdir()
    mine = tmp_path / ".step-by-step"  # a name alone is no reason to delete it
    mine.mkdir()
    (mine / "notes.txt").write_text("precious")
    assert store.load().step == 3
    store.begin(resumed_from=store.load())
    assert not left.exists() and not (tmp_path / ".step-probe-abc").exists()
    assert (mine / "notes.txt").read_text() == "precious"
    assert store.load().step == 3


def test_retention_deletes_only_what_we_wrote(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    first = store.save(1, {}, {})
    (first / "notes.txt").write_text("precious")
    foreign = tmp_path / "step-00000002"
    foreign.mkdir()
    (foreign / "mine").write_text("precious")
    for step in (3, 4, 5):
        store.save(step, {}, {})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000001", "step-00000002", "step-00000005"]
    assert (first / "notes.txt").exists() and (foreign / "mine").exists()


@pytest.mark.parametrize("at", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("file", ["data-00000.bin", MANIFEST])
def test_a_changed_byte_anywhere_is_detected_or_harmless(tmp_path, file, at):
    path = saved(tmp_path)
    data = bytearray((path / file).read_bytes())
    place = min(int(at * len(data)), len(data) - 1)
    data[place] ^= 0x04
    (path / file).write_bytes(data)
    with pytest.raises(UserError) as error:
        checkpoint = Checkpoint(path)
        assert_holds(checkpoint, tensors())  # padding and white space carry nothing
        raise UserError(f"{path} {file}: not detected, and all content as saved")
    assert str(path) in str(error.value) and file in str(error.value)


def test_every_changed_byte_of_a_tensor_is_detected(tmp_path):
    path = CheckpointStore(tmp_path).save(0, {"a": np.arange(40.0), "b": np.arange(3)}, {})
    original = (path / "data-00000.bin").read_bytes()
    pieces = [*range(320), *range(320, 344)]
    for place in pieces:
        data = bytearray(original)
        data[place] ^= 0x80
        (path / "data-00000.bin").write_bytes(data)
        name = "'a'" if place < 320 else "'b'"
        with pytest.raises(UserError, match=rf"corrupt: data-00000.bin: .* tensor {name}"):
            Checkpoint(path)


def test_every_changed_letter_of_a_manifest_is_detected(tmp_path):
    path = CheckpointStore(tmp_path).save(5, {"a": np.arange(4)}, {"epoch": 1})
    original = (path / MANIFEST).read_bytes()
    for place in range(len(original)):
        if chr(original[place]).isspace():
            continue
        data = bytearray(original)
        data[place] ^= 0x01
        (path / MANIFEST).write_bytes(data)
        with pytest.raises(UserError, match=r"corrupt|not a checkpoint of ours|format version"):
            Checkpoint(path)


def test_without_verification_data_is_not_read_but_sizes_are_checked(tmp_path):
    path = saved(tmp_path)
    data = bytearray((path / "data-00000.bin").read_bytes())
    data[0] ^= 1
    (path / "data-00000.bin").write_bytes(data)
    checkpoint = Checkpoint(path, verify=False)
    with pytest.raises(UserError, match="'table/item_id' has changed"):
        checkpoint.verify()


def test_truncated_missing_and_longer_files_are_refused(tmp_path):
    path = saved(tmp_path, 4)
    file = path / "data-00000.bin"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"has {len(data) - 1} bytes, expected {len(data)}"):
        Checkpoint(path, verify=False)
    file.write_bytes(data + b"x")
    with pytest.raises(UserError, match="bytes, expected"):
        Checkpoint(path, verify=False)
    file.unlink()
    with pytest.raises(UserError, match=r"data-00000.bin is missing"):
        Checkpoint(path, verify=False)


def test_a_corrupt_checkpoint_names_the_one_before(tmp_path):
    first, second = saved(tmp_path, 4), saved(tmp_path, 5)
    (second / "data-00000.bin").write_bytes(b"")
    with pytest.raises(UserError, match=f"Use an earlier one, {first}"):
        CheckpointStore(tmp_path).load()


def test_foreign_directories_are_refused_by_name(tmp_path):
    path = saved(tmp_path)
    for text, message in [
        ('{"format": "other"}', r"expected the format 'lookback-checkpoint' .* received 'other'"),
        ('{"format": "lookback-checkpoint", "format_version": 9}', "version 9, expected 1"),
        ("[]", "expected a JSON object, found a list"),
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
    ]:
        (path / MANIFEST).write_text(text)
        with pytest.raises(UserError, match=message) as error:
            Checkpoint(path)
        assert str(path) in str(error.value)
    (path / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"is not a checkpoint: it has no manifest\.json"):
        CheckpointStore(tmp_path).load()
    with pytest.raises(UserError, match="there is no such directory"):
        Checkpoint(tmp_path / "step-00000009")


def test_find_checkpoint(tmp_path):
    first, second = saved(tmp_path / "store", 4), saved(tmp_path / "store", 5)
    assert find_checkpoint(tmp_path / "store") == second
    assert find_checkpoint(first) == first
    shutil.copytree(first, tmp_path / "best")
    assert find_checkpoint(tmp_path / "best") == tmp_path / "best"
    assert Checkpoint(tmp_path / "best").step == 4
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"other: expected a checkpoint.* but it is empty"):
        find_checkpoint(tmp_path / "other")
    (tmp_path / "other" / "saved_model.pb").touch()
    with pytest.raises(UserError, match=r"but it holds saved_model\.pb"):
        find_checkpoint(tmp_path / "other")
    with pytest.raises(UserError, match="but there is nothing"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="but it is a file"):
        find_checkpoint(second / MANIFEST)


def test_missing_surplus_and_reshaped_tensors_are_named(tmp_path):
    checkpoint = Checkpoint(saved(tmp_path))
    checkpoint.require_tensors(tensors())
    expected = tensors()
    expected["table/user_id"] = np.zeros((3, 16), np.float32)
    del expected["rng"]
    expected["half"] = expected["half"].astype(np.float32)
    expected["table/item_id"] = np.zeros((1001, 16), np.float32)
    with pytest.raises(UserError) as error:
        checkpoint.require_tensors(expected)
    text = str(error.value)
    assert "missing: table/user_id (float32 [3, 16])" in text
    assert "not part of this model: rng (uint8 [33])" in text
    assert "half (expected float32 [9], received float16 [9])" in text
    assert "table/item_id (expected float32 [1001, 16], received float32 [1000, 16])" in text


def test_another_configuration_is_named_option_by_option(tmp_path):
    checkpoint = Checkpoint(saved(tmp_path))
    checkpoint.require_meta({"model": {"k": 50, "dims": (200, 80)}})
    with pytest.raises(UserError) as error:
        checkpoint.require_meta({"model": {"k": 40, "dims": (200, 80), "gsu": "soft"}, "name": "x"})
    text = str(error.value)
    assert "model.k: expected 40, received 50" in text
    assert "model.gsu: expected 'soft', received 'nothing'" in text
    assert "name: expected 'x', received 'nothing'" in text
    assert "the options that it was trained with (here: --k 50), or" in text
    with pytest.raises(UserError, match=r"model\.dims: expected 'nothing', received \[200, 80\]"):
        checkpoint.require_meta({"model": {"k": 50}})
    with pytest.raises(UserError, match=r"trained with \(here: --k 50 --dims 200,80\), or start"):
        checkpoint.require_meta({"model": {}})
    with pytest.raises(UserError, match=r"trained with, or start"):
        checkpoint.require_meta({"model": {"dims": [200, 80]}}, no_options=["k"])


SAVER = textwrap.dedent(
    """
    import sys
    import numpy as np
    from lookback.checkpoints.store import CheckpointStore

    store = CheckpointStore(sys.argv[1], keep=2)
    resumed = store.load() if store.latest() else None
    store.begin(resumed)
    step = resumed.step + 1 if resumed else 0
    while True:
        table = np.full((40_000, 16), step, np.float32)  # 2.5 MB
        store.save(step, {"table": table, "step": np.array(step)}, {"step": step})
        print(step, flush=True)
        step += 1
    """
)


def test_sigkill_at_any_point_leaves_the_last_checkpoint_loadable(tmp_path):
    store = CheckpointStore(tmp_path / "store", keep=2)
    rng = random.Random(0)
    half_done = 0
    last = -1
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", SAVER, str(store.directory)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first == f"{last + 1}\n"
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            reported = [int(line) for line in (first + process.stdout.read()).split()]
        checkpoint = store.load()
        # Killed between the rename and the print, it is one step further than it said.
        assert checkpoint.step in (reported[-1], reported[-1] + 1)
        assert checkpoint["step"] == checkpoint.meta["step"] == checkpoint.step
        assert np.all(checkpoint["table"] == checkpoint.step)
        for path in store.checkpoints():
            Checkpoint(path)
        half_done += any(p.name.startswith(".") for p in store.directory.iterdir())
        last = checkpoint.step
    assert half_done > 0  # else the kills came at the wrong moments, and nothing was tested
    store.begin(store.load())
    assert all(p.name.startswith("step-") for p in store.directory.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True
    )
    if not done or done.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_clear_error_and_harms_nothing(small_disk):
    store = CheckpointStore(small_disk / "store", keep=1)
    table = np.ones((1 << 16, 16), np.float32)  # 4 MiB
    store.save(1, {"table": table}, {})
    with pytest.raises(UserError, match=r"no space left for the checkpoint of step 2 in .*store"):
        store.save(2, {"table": np.ones((1 << 17, 16), np.float32)}, {})

    def blocks():  # something else fills the disk while the table is written
        yield table[:100]
        filler = small_disk / "filler"
        with filler.open("wb") as file, pytest.raises(OSError) as full:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        assert full.value.errno == errno.ENOSPC
        yield table[100 : 1 << 15]

    half = RowBlocks((1 << 15, 16), np.dtype(np.float32), blocks)
    with pytest.raises(UserError, match="the earlier ones are unharmed"):
        store.save(2, {"table": half}, {})
    assert [p.name for p in store.directory.iterdir()] == ["step-00000001"]
    np.testing.assert_array_equal(store.load()["table"], table)
    (small_disk / "filler").unlink()
    store.save(2, {"table": table[: 1 << 14]}, {})
    assert store.load().step == 2


def test_a_store_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a directory"):
        CheckpointStore(tmp_path / "file" / "store").save(0, {}, {})


def test_a_large_table_needs_little_memory(tmp_path):
    """256 MiB in blocks, saved and verified, with less than 100 MiB of extra memory."""
    code = textwrap.dedent(
        """
        import sys
        import numpy as np
        from lookback.checkpoints.store import CheckpointStore, RowBlocks
        from lookback.core.processes import resident_peak

        block = np.ones((1 << 15, 16), np.float32)  # 2 MiB
        blocks = RowBlocks((1 << 22, 16), block.dtype, lambda: (block for _ in range(128)))
        before = resident_peak()
        CheckpointStore(sys.argv[1]).save(0, {"table": blocks}, {})
        print((resident_peak() - before) >> 20)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 100
    manifest = json.loads((tmp_path / "step-00000000" / MANIFEST).read_text())
    assert manifest["content"]["files"]["data-00000.bin"] == 1 << 28
    assert (tmp_path / "step-00000000" / "data-00000.bin").stat().st_size == 1 << 28


def test_a_store_of_another_run_is_left_alone(tmp_path):
    mine, other = CheckpointStore(tmp_path / "mine"), CheckpointStore(tmp_path / "other")
    resumed = Checkpoint(mine.save(600, {"x": np.zeros(3)}, {}))
    other.save(100, {"x": np.ones(3)}, {})
    with pytest.raises(UserError, match=r"other holds the checkpoints of another run.*mine"):
        other.begin(resumed)
    assert len(other.checkpoints()) == 1
    mine.begin(resumed)

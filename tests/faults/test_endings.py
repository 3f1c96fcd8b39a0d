"""How runs end: what was done is kept, and what is only looked at costs no run."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lookback import cli
from lookback.checkpoints.commands import PROGRAM
from lookback.checkpoints.manifest import checkpoints_in
from lookback.checkpoints.store import CheckpointStore, find_checkpoint, open_checkpoint
from lookback.core.caches import provide_caches
from lookback.core.devices import require_shared_locks
from lookback.core.errors import UserError
from lookback.core.faults import INTERRUPTED, guarded
from lookback.core.files import held
from lookback.core.world import SOLO
from lookback.formats.raw_ids import ID_DIRECTORY
from lookback.formats.vocabulary import id_file
from lookback.training import run
from lookback.training.output.results import new_results
from lookback.training.output.scores import write_scores

ROOT = Path(__file__).parents[2]
DIN = (
    *("--model_type", "din", "--embedding_dim", "4", "--max_seq_length", "9"),
    *("--long_seq_length", "5", "--global_batch_size", "16", "--seed", "3"),
)


@pytest.fixture(scope="module")
def dataset(make_histories, write_dataset, tmp_path_factory) -> Path:
    histories = make_histories(lengths=[20, 7, 3, 3, 12, 15, 30], items=40)
    return write_dataset(histories, tmp_path_factory.mktemp("data") / "dataset")


def test_libraries_get_a_place_for_their_caches_where_theirs_cannot_be_written(
    monkeypatch, tmp_path
):
    for name in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_caches()
    assert not os.environ["MPLCONFIGDIR"]
    monkeypatch.setenv("HOME", "/dev/null")  # below it nothing can be made, not even by root
    provide_caches(checkout=tmp_path)
    assert Path(os.environ["MPLCONFIGDIR"]).is_dir()
    assert not os.environ["NUMBA_CACHE_DIR"]
    monkeypatch.setenv("MPLCONFIGDIR", "")
    provide_caches(checkout=tmp_path / "read-only")
    assert os.environ["MPLCONFIGDIR"] == os.environ["NUMBA_CACHE_DIR"] != ""


class MarkExporter:
    """Of bundles that say no more than that they are there."""

    def check_export_target(self, *_: object) -> None:
        """Nothing is in the way."""

    def export_bundle(
        self, model: object, dataset_dir: Path, export_dir: Path, **_: object
    ) -> Path:
        export_dir.mkdir()
        return export_dir

    def bundle_digest(self, export_dir: Path) -> str:
        assert export_dir.is_dir()
        return f"of {export_dir}"


def test_a_report_that_cannot_be_drawn_costs_neither_the_run_nor_its_export(
    dataset, tmp_path, monkeypatch, capsys
):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(run, "write_report", broken)
    monkeypatch.chdir(tmp_path)
    words = ["--dataset_dir", str(dataset), *DIN, "--epochs", "1", "--export_dir", "bundle"]
    run.main(words, MarkExporter())
    said = capsys.readouterr()
    (results,) = (tmp_path / "runs").iterdir()
    assert results.name.endswith("-din")
    assert (results / "log.json").stat().st_size > 0
    assert "exported to bundle, digest of bundle\n" in said.out
    assert (
        f"warning: the report in runs/{results.name}/report is not complete: RuntimeError: Could "
        "not determine home directory.\n" in said.err
    )


@pytest.fixture(scope="module")
def real_dataset(tmp_path_factory) -> Path:
    """One with a workflow, as an export needs it."""
    from lookback.workflows.pipeline import run_dataset

    place = tmp_path_factory.mktemp("real")
    rows = "".join(f"u{n % 8},i{n * n % 13},{1_500_000_000 + n}\n" for n in range(80))
    (place / "a.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    run_dataset("interactions", place / "a.csv", place / "dataset", min_interactions=4)
    return place / "dataset"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB, and what fills it."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")

    def fill() -> None:
        with (place / "filler").open("wb", buffering=0) as file, pytest.raises(OSError) as full:
            while True:
                file.write(bytes(1 << 12))
        assert full.value.errno == errno.ENOSPC

    yield place, fill
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("full", ["save_checkpoint_path", "results_dir", "export_dir"])
def test_a_disk_that_is_full_in_training_is_told_in_a_sentence(
    full, real_dataset, tmp_path, small_disk, monkeypatch, capsys
):
    """Something else fills it after the first checkpoint, which stands, wherever it is."""
    disk, fill = small_disk
    places = {
        name: (disk if name == full else tmp_path) / name
        for name in ("save_checkpoint_path", "results_dir", "export_dir")
    }
    saves = {"save_checkpoint_path": (1,), "results_dir": (1, 2), "export_dir": (2,)}
    save = CheckpointStore.save

    def save_and_fill(store: CheckpointStore, *given: object) -> Path:
        path = save(store, *given)
        if not (disk / "filler").exists():
            fill()
        return path

    monkeypatch.setattr(CheckpointStore, "save", save_and_fill)
    words = ["--dataset_dir", str(real_dataset), *DIN, "--epochs", "2"]
    words += [word for name, place in places.items() for word in (f"--{name}", str(place))]
    assert guarded(lambda: cli.train(words)) == 2
    (said,) = [n for n in capsys.readouterr().err.splitlines() if n.startswith("error: ")]
    assert str(disk) in said and ("space" in said) and "ree" in said, said
    saved = checkpoints_in(places["save_checkpoint_path"])
    # The bundle is written when all is trained; a log's lines may fit what is left of a page.
    assert len(saved) in saves[full]
    assert open_checkpoint(saved[-1]).step > 0
    assert not places["export_dir"].exists()
    assert not [path for path in disk.rglob("*") if ".partial" in path.name or "tmp" in path.name]


@pytest.mark.slow
def test_ctrl_c_saves_and_a_second_run_in_the_same_place_is_refused_at_once(
    dataset, preloaded, tmp_path
):
    def train(results: str, saved: str, *before: str) -> subprocess.Popen[str]:
        words = ["--dataset_dir", str(dataset), *DIN, "--epochs", "100000", "--eval_every", "0"]
        words += ["--results_dir", results, "--save_checkpoint_path", saved]
        return subprocess.Popen(
            [sys.executable, *before, str(ROOT / "train.py"), *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with train("run", "saved", *preloaded) as first:
        while not (tmp_path / "run" / "log.json").exists():
            assert first.poll() is None
            time.sleep(0.02)
        for results, saved, option in (
            ("run", "b", "results_dir: another run is writing to run"),
            ("c", "saved", "save_checkpoint_path: another run is writing to saved"),
        ):
            began = time.monotonic()
            _, complaint = train(results, saved).communicate()
            assert complaint.startswith(f"error: {option}. Wait for it")
            assert time.monotonic() - began < 10  # TensorFlow was not imported
        assert not (tmp_path / "b").exists()
        log = tmp_path / "run" / "log.json"
        while log.read_text().count('"total_loss": ') < 3:
            time.sleep(0.02)
        first.send_signal(signal.SIGINT)
        out, err = first.communicate()
    assert first.returncode == INTERRUPTED
    assert "told to end after " in out
    assert "Traceback" not in err
    steps = log.read_text().count('"total_loss": ')
    saved = open_checkpoint(find_checkpoint(tmp_path / "saved"))
    assert saved.meta["position"]["total_steps"] == steps


def test_a_directory_is_held_once_and_left_as_it_was(tmp_path):
    again = held(tmp_path / "a" / "b", "results_dir")
    with (
        held(tmp_path / "a" / "b", "results_dir"),
        pytest.raises(UserError, match=r"results_dir: another run is writing to .*b\."),
    ):
        again.__enter__()
    assert not (tmp_path / "a" / "b").exists()
    with held(tmp_path / "a", "results_dir"):
        (tmp_path / "a" / "log.json").touch()
    assert (tmp_path / "a" / "log.json").exists()


@pytest.mark.parametrize("where", ["file/below", "loop", "loop/below"])
def test_what_cannot_be_written_is_refused_before_any_work(tmp_path, where):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"results_dir: .* cannot be written to"):
        held(tmp_path / where, "results_dir").__enter__()


def test_processes_that_cannot_share_locks_are_told_where_they_would(monkeypatch):
    require_shared_locks("use one")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    with pytest.raises(UserError, match=r"^/dev/shm cannot be written \(Read-only .* or use one\."):
        require_shared_locks("use one")


def test_runs_of_the_same_second_have_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_results("sim") as first, new_results("sim") as second:
        assert first != second
        (second / "log.json").touch()
    assert not first.exists()
    assert second.exists()


def test_checkpoints_that_do_not_fit_are_told_before_training(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=3)
    tensors = {"table/item_id": np.zeros((1000, 250), np.float32)}  # 1 MB and some alignment
    free = 0

    def disk_usage(path: Path) -> object:
        return type("Usage", (), {"free": free})

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    with pytest.raises(UserError, match=r"0 B free, and a checkpoint of this model takes 1\.00 MB"):
        store.check_room(tensors)
    free = 2_000_000
    warning = store.check_room(tensors)
    assert warning is not None
    assert "keeping 3, and one more while it is written, takes 4.00 MB" in warning
    free = 5_000_000
    assert store.check_room(tensors) is None


def test_a_failure_names_the_last_checkpoint(tmp_path, capsys):
    store = CheckpointStore(tmp_path)
    saved = store.save(3, {"step": np.array(3)}, {})
    config = type("Config", (), {"save_checkpoint_path": tmp_path})
    with pytest.raises(UserError), run.last_checkpoint_named(config, SOLO):
        raise UserError("The log cannot be written.")
    assert f"The last checkpoint is {saved}: go on with " in capsys.readouterr().err


@pytest.fixture
def numbered(tmp_path) -> Path:
    """A dataset of histories that knows the items "b" and "a", as rows 3 and 4."""
    ids = tmp_path / "dataset" / ID_DIRECTORY / id_file("item_id")
    ids.parent.mkdir(parents=True)
    frame = pd.DataFrame({"item_id": ["b", "a"], "item_id_size": [2, 1]}, pd.RangeIndex(3, 5))
    frame.to_parquet(ids)
    return tmp_path / "dataset"


def export_table(tmp_path: Path, rows: int, *more: str) -> int:
    store = CheckpointStore(tmp_path / "saved")
    if not store.checkpoints():
        table = np.arange(2 * rows, dtype=np.float32).reshape(-1, 2)
        store.save(1, {"table/item_id/mf": table}, {})
    words = ["export-table", str(tmp_path / "saved"), "--table", "item_id/mf", *more]
    return PROGRAM.main(words)


def test_an_exported_table_says_what_its_rows_stand_for(numbered, tmp_path):
    output = tmp_path / "new" / "items.parquet"
    assert export_table(tmp_path, 5, "--output", str(output), "--dataset_dir", str(numbered)) == 0
    assert pq.read_table(output).to_pydict() == {
        "row": [0, 1, 2, 3, 4],
        "raw_id": [None, None, None, "b", "a"],
        "special": ["padding", "null", "unknown", None, None],
        "vector": [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]],
    }


@pytest.mark.parametrize(
    ("rows", "output", "complaint"),
    [
        (6, "a.parquet", "numbers 5 values of 'item_id', and table 'item_id/mf' has 6 rows"),
        (5, "a.npy", "expected with an --output that ends in .parquet"),
    ],
)
def test_ids_that_cannot_be_right_are_refused(numbered, tmp_path, capsys, rows, output, complaint):
    more = ("--output", str(tmp_path / output), "--dataset_dir", str(numbered))
    assert export_table(tmp_path, rows, *more) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / output).exists()


def test_scores_carry_raw_ids(numbered, tmp_path):
    rows = {
        "label": np.array([1, 0, 1], np.float32),
        "logit": np.array([0.0, 1.0, -1.0], np.float32),
        "user_id": np.array([7, 7, 8], np.int32),
        "item_id": np.array([4, 2, 3], np.int32),
    }
    found = pq.read_table(write_scores(tmp_path / "scores.parquet", rows, numbered)).to_pydict()
    assert list(found) == ["user_id_row", "item_id", "item_id_row", "label", "logit", "probability"]
    assert found["item_id"] == ["a", None, "b"]
    assert found["item_id_row"] == [4, 2, 3]
    assert found["user_id_row"] == [7, 7, 8]  # of users the dataset has no vocabulary
    np.testing.assert_allclose(found["probability"], 1 / (1 + np.exp([0.0, -1.0, 1.0])))


def test_rows_of_several_ranks_lie_in_the_order_of_batches(in_ranks):
    from lookback.training.evaluation.scored_rows import ScoredRows

    def collect(world) -> dict[str, np.ndarray]:
        scored = ScoredRows(["user_id", "item_id"])
        for batch in range(2):
            first = 10 * batch + 2 * world.rank
            labels = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
            users, items = np.array([first, first + 1]), np.arange(4).reshape(2, 2) + 100 * first
            scored.update(labels, labels + first, users, items)
        return dict(scored.of_all(world).columns())

    for found in in_ranks(2, collect):
        users = [0, 1, 2, 3, 10, 11, 12, 13]
        np.testing.assert_array_equal(found["user_id"], np.repeat(users, 2))
        np.testing.assert_array_equal(found["label"], [1, 0] * 8)
        np.testing.assert_array_equal(found["item_id"][:4], [0, 1, 2, 3])
        np.testing.assert_array_equal(found["item_id"][4:6], [200, 201])


def test_popularity_is_what_a_model_should_beat():
    from sklearn.metrics import roc_auc_score

    from lookback.training.evaluation.popularity import PopularityEvaluator

    counts = np.array([0, 5, 1, (1 << 24) + 1, 1 << 24])  # the last two are one float32
    items = np.array([[3, 4, 4], [2, 4, 2], [4, 1, 3]])  # of each row the first was met
    labels = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0]], np.float32)
    weights = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0]], np.float32)
    choice = {"binary": ("auc", "log_loss"), "ranking": ("hr@1", "hr@3", "mrr")}
    (evaluator,) = PopularityEvaluator.of_counts(counts, choice)
    evaluator.update(labels[:2], items[:2], None, weights[:2])
    evaluator.update(labels[2:], items[2:], None, weights[2:])
    # Ranks 0; 2, as a tie counts against it; and 0, as the more popular one does not compete.
    expected = {
        "auc": pytest.approx(roc_auc_score(labels.ravel(), counts[items].ravel())),
        **{"hr@1": 2 / 3, "hr@3": 1.0, "mrr": pytest.approx((1 + 1 / 3 + 1) / 3)},
    }
    assert evaluator.of_all(SOLO).result() == expected
    evaluator.update(1 - labels, items, None, weights)  # a later evaluation, of the same rows
    assert evaluator.of_all(SOLO).result() == expected
    (one_class,) = PopularityEvaluator.of_counts(counts, {"binary": ("auc",)})
    one_class.update(np.ones_like(labels), items)
    assert one_class.of_all(SOLO).result() == {}
    assert PopularityEvaluator.of_counts(counts, {"binary": ("log_loss",)}) == []
    assert PopularityEvaluator.of_counts(None, choice) == []

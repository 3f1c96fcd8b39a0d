"""Inputs that once gave a traceback, or did harm: each gives one sentence, and harms nothing.

`README.md` here has the table of all cases. Commands run in this process, through their doors, so
that what is tested is what people see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lookback.checkpoints.commands import PROGRAM as EMBEDDINGS
from lookback.checkpoints.format import Checkpoint
from lookback.checkpoints.store import CheckpointStore
from lookback.core.errors import UserError
from lookback.core.options import Program
from lookback.embeddings.plans import load_plan
from lookback.formats.dataset_info import HISTORIES, read_info, write_info
from lookback.formats.split_binary import SplitBinaryDataset
from lookback.formats.tabular_rows import TabularRows
from lookback.serving.commands import PROGRAM as SERVING
from lookback.serving.manifest import InteractionsManifest, Manifest
from lookback.serving.request_lines import request_chunks
from lookback.workflows.commands import PROGRAM as WORKFLOWS
from lookback.workflows.describe import describe

ROOT = Path(__file__).parents[2]
CASES = ROOT.parent / "shared" / "cases"
NOBODY = 65534
RATINGS = "".join(
    f"{user}\t{item}\t3\t{881250949 + 100 * item}\n" for user in range(1, 6) for item in range(1, 9)
)

needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="there is no folder shared/cases here")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def run(program: Program, *words: object) -> tuple[int, str]:
    """A command's exit status, and what it says on standard error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = program.main([str(word) for word in words])
    return status, said.getvalue()


def refused(program: Program, *words: object) -> str:
    """The sentence with which a command refuses; its last line, as others may be notes."""
    status, said = run(program, *words)
    assert status == 2, said
    assert "Traceback" not in said and len(said) < 3000
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: "), said
    return last


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ratings of five users as the 100k set has them."""
    directory = tmp_path_factory.mktemp("raw")
    (directory / "u.data").write_text(RATINGS)
    (directory / "u.item").write_text(
        "".join(f"{item}|T|01-Jan-1995||u|{'|'.join('0' * 18)}|1\n" for item in range(1, 9))
    )
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one table of 192 KB."""
    store = CheckpointStore(tmp_path_factory.mktemp("saved"))
    table = np.arange(48_000, dtype=np.float32).reshape(3000, 16)
    return store.save(3, {"table/item": table, "model/k": np.zeros(3)}, {"model": {}})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What has a bundle's manifest and files, but no model that runs."""
    directory = tmp_path_factory.mktemp("bundle")
    (directory / "model").mkdir()
    (directory / "model" / "saved_model.pb").write_bytes(b"model" * 9)
    (directory / "items.parquet").write_bytes(b"items" * 9)
    InteractionsManifest(
        model_type="neumf",
        options={},
        ids="raw",
        inputs={"user_id": (None,)},
        cardinalities={"user_id": 3},
        vocabularies={},
        dataset={},
        versions={},
        user_features=("user_id",),
        item_features=("item_id",),
    ).write(directory)
    return directory


SPECIFICATION = """feature_spec:
  label.bin: {dtype: bool}
  num_0: {dtype: float16}
  cat_0.bin: {cardinality: 5, dtype: int8}
source_spec:
  train:
  - {features: [label.bin], files: [train/label.bin], type: split_binary}
  - {features: [num_0], files: [train/numerical.bin], type: split_binary}
  - {features: [cat_0.bin], files: [train/cat_0.bin], type: split_binary}
channel_spec: {numerical: [num_0], categorical: [cat_0.bin], label: [label.bin]}
"""


@pytest.fixture(scope="module")
def split_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows as split-binary files."""
    directory = tmp_path_factory.mktemp("split_binary")
    (directory / "feature_spec.yaml").write_text(SPECIFICATION)
    (directory / "train").mkdir()
    np.array([0, 1], bool).tofile(directory / "train" / "label.bin")
    np.array([1, 2], "<f2").tofile(directory / "train" / "numerical.bin")
    np.array([1, 4], np.int8).tofile(directory / "train" / "cat_0.bin")
    return directory


@pytest.fixture(scope="module")
def histories(
    write_dataset: Callable[..., Path],
    make_histories: Callable[..., object],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A small dataset of histories, with all that is said of one."""
    made = make_histories()
    directory = write_dataset(made, tmp_path_factory.mktemp("histories"))
    said = {
        "dataset": "made up",
        "counts": {"users": made.num_users, "events": made.num_events},
        "options": {},
        "history_length": {"min": 2},
        "negative_sampling": {"distributions": ["uniform"]},
    }
    write_info(directory, HISTORIES, {**read_info(directory), **said})
    return directory


def load_split_binary(directory: Path) -> None:
    dataset = SplitBinaryDataset(directory)
    dataset.read("train", 0, 0, TabularRows.empty(dataset.num_rows("train"), dataset.features))


def load_checkpoint(directory: Path) -> None:
    checkpoint = Checkpoint(directory)
    for name in checkpoint:
        checkpoint[name].sum()


def load_histories(directory: Path) -> None:
    from lookback.dataloading.histories.resident import Histories

    Histories.load(directory)


@dataclasses.dataclass(frozen=True)
class Files:
    """Something in files: the fixture that makes it, its reader, and the files that it needs."""

    made_by: str
    load: Callable[[Path], object]
    needed: tuple[str, ...]


READ = (
    Files("split_binary", load_split_binary, ("feature_spec.yaml", "train/label.bin", "train")),
    Files("checkpoint", load_checkpoint, ("manifest.json", "data-00000.bin")),
    Files("bundle", Manifest.read, ("bundle.json", "model/saved_model.pb", "items.parquet")),
    Files("histories", load_histories, ("dataset.json", "schema.pbtxt", "histories")),
    Files("histories", describe, ("dataset.json", "schema.pbtxt")),
)


def missing(file: Path) -> None:
    shutil.rmtree(file) if file.is_dir() else file.unlink()


def empty(file: Path) -> None:
    folder = file.is_dir()
    missing(file)
    file.mkdir() if folder else file.write_bytes(b"")


def half(file: Path) -> None:
    if file.is_dir():
        missing(file)
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def closed(file: Path) -> None:
    file.chmod(0)


def of_another_kind(file: Path) -> None:
    folder = file.is_dir()
    missing(file)
    file.write_bytes(b"x") if folder else file.mkdir()


def loop(file: Path) -> None:
    missing(file)
    file.symlink_to(file.name)


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """A user without rights, where we are root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user can look into, as pytest's own cannot be."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("fault", [missing, empty, half, closed, of_another_kind, loop])
@pytest.mark.parametrize("files", READ, ids=lambda files: f"{files.made_by}-{files.load.__name__}")
def test_permissions(
    files: Files,
    fault: Callable[[Path], None],
    open_place: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Each file: not there, empty, cut off, not to be read, of another kind, a link to itself."""
    source = request.getfixturevalue(files.made_by)
    with contextlib.redirect_stdout(io.StringIO()):
        files.load(source)  # it is whole; and the modules that are needed are imported
    for name in files.needed:
        place = open_place / name.replace("/", "-")
        shutil.copytree(source, place)
        place.chmod(0o755)
        fault(place / name)
        with (
            somebody_else(),
            contextlib.redirect_stdout(io.StringIO()),
            pytest.raises(UserError) as refusal,
        ):
            files.load(place)
        said = str(refusal.value)
        # Of a file that is cut off, what is said may be what it lacks.
        assert str(place) in said or name in said or fault in (empty, half), said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def writers(disk: Path, raw: Path, checkpoint: Path) -> list[tuple[Program, list[object]]]:
    """Commands that write there more than it holds."""
    run = ["run", "--dataset", "movielens", "--input", raw, "--output", disk / "a"]
    run += ["--min_interactions", 2]
    generate = ["generate", "--dataset", "synthetic", "--preset", "tiny", "--output", disk / "a"]
    table = ["export-table", checkpoint, "--table", "item", "--output"]
    return [
        (WORKFLOWS, run),
        (WORKFLOWS, generate),
        (EMBEDDINGS, ["reshard", checkpoint, "--ranks", 2, "--output", disk / "a"]),
        (EMBEDDINGS, [*table, disk / "a.npy"]),
        (EMBEDDINGS, [*table, disk / "a.parquet"]),
    ]


def test_full_disk(small_disk: Path, raw: Path, checkpoint: Path) -> None:
    (small_disk / "full").write_bytes(b"x" * 40_000)
    for program, words in writers(small_disk, raw, checkpoint):
        said = refused(program, *words)
        assert str(small_disk / "a") in said and "space" in said, said
        assert [path.name for path in small_disk.iterdir()] == ["full"]


def test_readonly_disk(small_disk: Path, raw: Path, checkpoint: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    table = ["export-table", checkpoint, "--table", "item"]
    score = ["score", "--export_dir", "nowhere", "--output", small_disk / "scores"]
    for program, words in (
        *writers(small_disk, raw, checkpoint)[:2],
        (EMBEDDINGS, [*table, "--output", small_disk / "deep" / "a.npy"]),
        (SERVING, [*score, "--requests", raw / "u.data"]),
    ):
        said = refused(program, *words)
        assert str(small_disk) in said and "Read-only file system" in said
    assert not list(small_disk.iterdir())


def test_a_refused_run_of_rows_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    day = "\t".join(["1", *["5"] * 13, *["68fd1e64"] * 26]) + "\n"
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(3):
        (raw / f"day_{number}").write_text(day * 500)
    words = ["run", "--dataset", "criteo", "--input", raw, "--output", small_disk / "a"]
    assert "free, but the run needs about" in refused(WORKFLOWS, *words)
    assert not list(small_disk.iterdir())


def test_outputs_below_files_and_links(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for place in (tmp_path / "file" / "a", tmp_path / "loop", tmp_path / "nowhere"):
        for program, words in writers(tmp_path, raw, checkpoint)[:4]:
            position = words.index("--output") + 1
            changed = [*words[:position], place, *words[position + 1 :]]
            if words[0] == "export-table":
                changed[position] = place.with_name(place.name + ".npy")
                if not os.path.lexists(changed[position]) and place.parent.is_dir():
                    continue
            assert str(place) in refused(program, *changed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop", "nowhere"]


BAD_REQUESTS = {
    "latin1": b'{"user_id": 1}\n{"user_id": "Caf\xe9"}\n',
    "gz": b"\x1f\x8b\x08\x00\x00",
    "utf16": '{"user_id": 1}'.encode("utf-16"),
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "twice": b'{"user_id": 1, "user_id": 2}',
    "nan": b'{"user_id": NaN}',
    "huge": b'{"user_id": 1%s}' % (b"0" * 5000),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_serving_score_traceback(name: str) -> None:
    content = BAD_REQUESTS[name]
    line = 2 if name == "latin1" else 1
    with pytest.raises(UserError, match=rf"^requests\.json, line {line} is not valid JSON for us"):
        list(request_chunks(io.BytesIO(content), "requests.json"))


@needs_cases
def test_serving_score_traceback_of_the_files() -> None:
    for name in ("latin1", "gz", "utf16", "deep"):
        content = io.BytesIO((CASES / "serving_score_traceback" / name).read_bytes())
        with pytest.raises(UserError, match=f"{name}, line [12] is not valid JSON for us"):
            list(request_chunks(content, name))
    with (CASES / "serving_score_traceback" / "bom").open("rb") as file:
        assert all(isinstance(value, dict) for _, value in next(request_chunks(file, "bom")))


def test_a_line_without_end_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookback.serving.request_lines.MOST_OF_A_LINE", 20)
    assert len(next(request_chunks(io.BytesIO(b"[12345678901234567]\n" * 2), "r"))) == 2
    with pytest.raises(UserError, match="r, line 2: expected one JSON object of at most 20 bytes"):
        list(request_chunks(io.BytesIO(b"[1]\n[123456789012345678901]\n"), "r"))


def test_score_output(tmp_path: Path, bundle: Path) -> None:
    requests = tmp_path / "requests"
    requests.write_text("{}\n")
    score: list[object] = ["score", "--export_dir", bundle, "--requests", requests, "--output"]
    (tmp_path / "folder").mkdir()
    assert "folder is a directory" in refused(SERVING, *score, tmp_path / "folder")
    assert "there is no directory" in refused(SERVING, *score, tmp_path / "no" / "scores")
    assert "is the input itself" in refused(SERVING, *score, requests)
    sample = ["sample", "--export_dir", bundle, "--dataset_dir", tmp_path, "--seed", -1]
    assert "--seed: expected an integer, 0 or more" in refused(SERVING, *sample)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "requests"]


PLANS = {
    "deep": "[" * 1000,
    "huge": f"item: {{rows: {10**22}}}",
    "wide": f"item: {{rows: 10, dim: {10**30}}}",
    "hot": "item: {rows: 10, hotness: [1.0e308]}",
    "infinite": "item: {rows: 10, hotness: [.inf]}",
    "tag": "a: !!python/object/apply:os.system [false]",
    "twice": "item: {rows: 10}\nitem: {rows: 20}",
    "aliases": "a: &a [1]\nb: *a",
}


@pytest.mark.parametrize("name", PLANS)
def test_plan_yaml(name: str, tmp_path: Path) -> None:
    file = tmp_path / "tables.yaml"
    file.write_text(PLANS[name])
    assert str(file) in refused(EMBEDDINGS, "plan", "--ranks", 2, "--tables", file)


@needs_cases
def test_plan_yaml_of_the_files(checkpoint: Path, tmp_path: Path) -> None:
    for file in sorted((CASES / "plan_yaml").glob("*.yaml")):
        assert str(file) in refused(EMBEDDINGS, "plan", "--ranks", 2, "--tables", file)
        reshard = ["reshard", checkpoint, "--plan", file, "--output", tmp_path / "out"]
        assert str(file) in refused(EMBEDDINGS, *reshard)
    assert not list(tmp_path.iterdir())


def test_plans_of_absurd_sizes_are_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    table = "rows: 30, dim: 4, strategy: row_wise"
    file.write_text(
        f"format: lookback-plan\nversion: 1\nranks: {10**12}\ntables: {{a: {{{table}}}}}"
    )
    began = time.perf_counter()
    with pytest.raises(UserError, match="at most 65,536, received 1,000,000,000,000"):
        load_plan(file)
    file.write_text("a: {rows: 30}")
    words = ["plan", "--ranks", 10**12, "--tables", file]
    assert "--ranks: expected an integer, 1 or more" in refused(EMBEDDINGS, *words)
    assert time.perf_counter() - began < 1


def test_yaml_bomb(tmp_path: Path) -> None:
    """Lists of lists of lists: nine levels stand for 2.3 GB of text."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    lines += ["feature_spec: {}", "source_spec: {}", "channel_spec: {label: *a9}"]
    (tmp_path / "feature_spec.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"aliases \(\*a1\) are not read") as refusal:
        SplitBinaryDataset(tmp_path)
    assert len(str(refusal.value)) < 1000
    # One level, which NVIDIA's own tools write, is read, and shown no longer than people read.
    (tmp_path / "feature_spec.yaml").write_text(
        "names: &n [" + ", ".join(["x" * 50] * 9000) + "]\n"
        "feature_spec: {}\nsource_spec: {}\nchannel_spec: {label: *n}"
    )
    with pytest.raises(UserError) as refusal:
        SplitBinaryDataset(tmp_path)
    assert len(str(refusal.value)) < 1000


def test_overwrite_deletes_anything(raw: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(raw, mine / "in")
    (mine / "notes.txt").write_text("precious")
    run_it = ["run", "--dataset", "movielens", "--overwrite", "--input", mine / "in", "--output"]
    generate = ["generate", "--dataset", "synthetic", "--preset", "tiny", "--overwrite", "--output"]
    for place in (mine, mine / "in"):
        refused(WORKFLOWS, *run_it, place)
        refused(WORKFLOWS, *generate, place)
    assert (mine / "notes.txt").read_text() == "precious"
    assert sorted(path.name for path in (mine / "in").iterdir()) == ["u.data", "u.item"]


@pytest.mark.slow
def test_a_wrong_dataset_dir_is_said_before_tensorflow_is_imported(tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "dataset.json").write_text("{")
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"  # to import it is an error
        "from lookback.core.faults import guarded; from lookback.cli import train\n"
        "for place in sys.argv[1:]:\n"
        "    words = ['--model_type', 'sim', '--dataset_dir', place]\n"
        "    print(guarded(lambda: train(words)))\n"
    )
    places = [tmp_path / "nowhere", tmp_path, tmp_path / "damaged"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, places)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["2", "2", "2"], done.stderr
    first, second, third = done.stderr.strip().splitlines()
    for line, place in ((first, places[0]), (second, places[1])):
        assert line.startswith(f"error: {place} is not a dataset: there is no dataset.json in it")
    assert third.startswith(f"error: {places[2] / 'dataset.json'} is not valid JSON for us")

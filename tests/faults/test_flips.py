"""Whatever is read back is what was written, or is refused: bytes flipped, cut off, taken, added.

Each kind of file that we read again is damaged at seeded random places. Either a `UserError` names
the file, or what is read is the same; never anything else.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookback.checkpoints.store import CheckpointStore, open_checkpoint
from lookback.core.errors import UserError
from lookback.formats.split_binary import SplitBinaryDataset
from lookback.formats.tabular_parquet import TabularDataset
from lookback.formats.tabular_rows import TabularRows
from lookback.formats.vocabulary import ids_digest, keys_digest
from lookback.serving.manifest import InteractionsManifest, Manifest
from lookback.workflows.pipeline import fit_dataset, run_dataset
from lookback.workflows.saved import read_saved_options, verify_workflow
from lookback.workflows.tabular import passes
from lookback.workflows.tabular.export import export_split_binary

FLIPS, FLIPS_OF_TEXT = 3, 12  # of each file; where what is meant must be understood first, more
SHAPE = {"numerical": 2, "categorical": 3, "workers": 0, "block_size": 4_000}
CRITEO = {**SHAPE, "frequency_threshold": 2}

Read = Callable[[Path], Any]


# --- what is written, and how it is read


def write_days(directory: Path) -> Path:
    """Three days of 60 rows in Criteo's form."""
    rng = np.random.default_rng(0)
    directory.mkdir()
    for day in range(3):
        rows = [
            [rng.integers(2), *rng.integers(0, 99, 2), *(f"{v:08x}" for v in rng.integers(0, 9, 3))]
            for _ in range(60)
        ]
        text = "\n".join("\t".join(map(str, row)) for row in rows) + "\n"
        (directory / f"day_{day}").write_text(text)
    return directory


def write_ratings(directory: Path) -> Path:
    """Ratings of MovieLens-20M's form: 12 users with 5 events each."""
    rng = np.random.default_rng(0)
    directory.mkdir()
    places = [(user, 10**9 + time) for user in range(1, 13) for time in range(5)]
    rows = [f"{user},{rng.integers(1, 20)},4,{time}" for user, time in places]
    (directory / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows]))
    movies = [f"{movie},Title,Drama" for movie in range(1, 20)]
    (directory / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]))
    return directory


def read_histories(directory: Path) -> Any:
    from lookback.dataloading.histories.resident import Histories

    found = Histories.load(directory)
    arrays = {**found.user_features, **found.item_features, "offsets": found.offsets}
    catalogue = {f"catalogue {name}": values for name, values in found.catalogue.items()}
    assert found.timestamps is not None
    arrays = {**arrays, **catalogue, "timestamps": found.timestamps}
    return {name: values.tolist() for name, values in arrays.items()}, found.split


def read_rows(data: TabularDataset | SplitBinaryDataset) -> Any:
    read: list[Any] = [data.features, dict(data.cardinalities)]
    for split in ("train", "validation", "test"):
        for block, size in enumerate(data.blocks(split)):
            rows = TabularRows.empty(size, data.features)
            data.read(split, block, 0, rows)
            read += [part.tolist() for part in (rows.labels, rows.numerical, rows.categorical)]
    return read


def read_workflow_of_rows(directory: Path) -> Any:
    verify_workflow(directory)
    options = read_saved_options(directory)
    files = [directory / "vocabulary" / f"cat_{n}.arrow" for n in range(SHAPE["categorical"])]
    return options, [keys_digest(file) for file in files]


def read_workflow_of_histories(directory: Path) -> Any:
    verify_workflow(directory)
    names = ("user_id", "item_id", "category_id")
    files = {name: directory / "categories" / f"unique.{name}.parquet" for name in names}
    return read_saved_options(directory), [ids_digest(f, name) for name, f in files.items()]


def read_checkpoint(directory: Path) -> Any:
    checkpoint = open_checkpoint(directory)
    return checkpoint.meta, {name: checkpoint[name].tolist() for name in checkpoint}


def write_checkpoint(directory: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {"table/a": rng.normal(size=(40, 4)), "step": np.array(3)}
    return CheckpointStore(directory).save(3, tensors, {"model": {"k": 5}})


def read_bundle(directory: Path) -> Any:
    manifest = Manifest.read(directory)
    files = ("model/saved_model.pb", "dataset.json", "workflow/vocabulary/user_id.arrow")
    return manifest, [(directory / name).read_bytes() for name in files]


def write_bundle(directory: Path) -> Path:
    for name in ("model/saved_model.pb", "dataset.json", "workflow/vocabulary/user_id.arrow"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(bytes(range(256)) * 3)
    InteractionsManifest(
        model_type="neumf",
        options={"factors": 4},
        ids="raw",
        inputs={"user_id": (None,), "item_id": (None, None)},
        cardinalities={"user_id": 9, "item_id": 9},
        vocabularies={"user_id": "workflow/vocabulary/user_id.arrow"},
        dataset={"name": "test"},
        versions={"python": "3.11"},
        user_features=("user_id",),
        item_features=("item_id",),
    ).write(directory)
    return directory


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Read]]:
    """Kind -> a directory of it that is whole, and how it is read."""
    base = tmp_path_factory.mktemp("whole")
    run_dataset("criteo", write_days(base / "days"), base / "rows", **CRITEO)
    export_split_binary(base / "rows", base / "binary")
    ratings = write_ratings(base / "ratings")
    run_dataset("movielens", ratings, base / "histories", min_interactions=2, workers=0)
    fit_dataset("movielens", ratings, base / "fitted", min_interactions=2, workers=0)
    return {
        "histories": (base / "histories", read_histories),
        "rows": (base / "rows", lambda d: read_rows(TabularDataset(d))),
        "split_binary": (base / "binary", lambda d: read_rows(SplitBinaryDataset(d))),
        "workflow of rows": (base / "rows/workflow", read_workflow_of_rows),
        "workflow of histories": (base / "fitted", read_workflow_of_histories),
        "checkpoint": (write_checkpoint(base / "store"), read_checkpoint),
        "bundle": (write_bundle(base / "bundle"), read_bundle),
    }


# --- what is done to it


def flip(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
    file.write_bytes(content)


def truncate(file: Path, chance: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])


def lengthen(file: Path, chance: random.Random) -> None:
    file.write_bytes(file.read_bytes() + chance.randbytes(8))


def become_a_directory(file: Path, chance: random.Random) -> None:
    del chance
    file.unlink()
    file.mkdir()


Damage = Callable[[Path, random.Random], None]


def damages(files: list[Path]) -> Iterator[tuple[Path, Damage]]:
    for file in files:
        if file.stat().st_size:
            text = file.suffix in (".json", ".yaml", ".pbtxt")
            yield from [(file, flip)] * (FLIPS_OF_TEXT if text else FLIPS)
            yield file, truncate
        yield file, lengthen
        yield file, lambda path, _: path.unlink()
        yield file, become_a_directory


def outcome(read: Read, directory: Path, expected: Any, file: Path) -> bool:
    """Whether it was refused, by name; if not, it must be what was written."""
    try:
        found = read(directory)
    except UserError as error:
        assert file.name in str(error), f"{error} does not name {file.name}"
        return True
    assert found == expected, file
    return False


KINDS = (
    *("histories", "rows", "split_binary", "workflow of rows", "workflow of histories"),
    *("checkpoint", "bundle"),
)
NOT_READ = {
    # Training needs no workflow (`serving` compares it: test_a_bundle_takes_no_damaged_vocabulary)
    # and no log (`workflows update` compares it).
    "histories": ("workflow", "update", ".lookback.json"),
    "rows": ("workflow", ".lookback.json"),
    "split_binary": (".lookback.json",),
    "workflow of rows": ("workflow.pkl",),
    "workflow of histories": ("workflow.pkl", "encoder/workflow.pkl", ".lookback.json"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_by_name_or_has_no_effect(
    written: dict[str, tuple[Path, Read]], kind: str, tmp_path: Path
) -> None:
    whole, read = written[kind]
    expected = read(whole)
    # A checkpoint's name says its step.
    directory = shutil.copytree(whole, tmp_path / whole.name)
    chance, refused = random.Random(kind), set()
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    for file, damage in damages(files):
        damage(file, chance)
        if outcome(read, directory, expected, file):
            refused.add(file.relative_to(directory).as_posix())
        if file.is_dir():
            file.rmdir()
        shutil.copyfile(whole / file.relative_to(directory), file)
    assert read(directory) == expected
    unread = {
        name
        for name in (file.relative_to(directory).as_posix() for file in files)
        if any(name == part or name.startswith(f"{part}/") for part in NOT_READ.get(kind, ()))
    }
    assert refused == {file.relative_to(directory).as_posix() for file in files} - unread


@pytest.mark.parametrize(
    ("kind", "added"),
    [
        ("histories", "histories/part-00001.parquet"),
        ("rows", "train/part-99999.parquet"),
        ("rows", "validation/part-99999.parquet"),
        ("split_binary", "test/cat_9.bin"),
    ],
)
def test_a_file_more_is_refused(
    written: dict[str, tuple[Path, Read]], kind: str, added: str, tmp_path: Path
) -> None:
    whole, read = written[kind]
    directory = shutil.copytree(whole, tmp_path / kind)
    other = next((directory / added).parent.iterdir())
    shutil.copyfile(other, directory / added)
    with pytest.raises(UserError, match=f"{added} is there"):
        read(directory)


def test_a_bundle_takes_no_damaged_vocabulary(
    written: dict[str, tuple[Path, Read]], tmp_path: Path
) -> None:
    """Or the damage would get digests of its own."""
    from lookback.serving.export import check_export_target

    chance = random.Random(1)
    for kind in ("histories", "rows"):
        whole, _ = written[kind]
        check_export_target(tmp_path / "export", whole)
        directory = shutil.copytree(whole, tmp_path / kind)
        for file in sorted((directory / "workflow").rglob("*.*")):
            flip(file, chance)
            with pytest.raises(UserError, match=file.name):
                check_export_target(tmp_path / "export", directory)
            shutil.copyfile(whole / file.relative_to(directory), file)


# --- a run that goes on


class Killed(BaseException):
    """As SIGKILL ends a process: nothing is cleared up."""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of a Criteo run that was killed when two of three days were written."""
    base = tmp_path_factory.mktemp("killed")
    write_days(base / "days")
    original, days = passes.write_day, []

    def kill(*arguments: Any) -> Any:
        days.append(arguments)
        if len(days) == 3:
            raise Killed
        return original(*arguments)

    passes.write_day = kill
    try:
        with pytest.raises(Killed):
            run_dataset("criteo", base / "days", base / "out", **CRITEO)
    finally:
        passes.write_day = original
    return base


def test_a_run_goes_on_with_what_was_written_and_nothing_else(
    interrupted: Path, written: dict[str, tuple[Path, Read]], tmp_path: Path
) -> None:
    _, read = written["rows"]
    expected = read(written["rows"][0])
    kept = interrupted / "out.partial"
    files = [path.relative_to(kept) for path in sorted(kept.rglob("*")) if path.is_file()]
    chance, refused = random.Random(2), set()
    assert {"counts", "data"} < {file.parts[0] for file in files}
    for number, file in enumerate(files):
        output = tmp_path / str(number)
        partial = shutil.copytree(kept, tmp_path / f"{number}.partial")
        if (partial / file).stat().st_size:
            flip(partial / file, chance)
        else:
            lengthen(partial / file, chance)
        try:
            run_dataset("criteo", interrupted / "days", output, **CRITEO)
        except UserError as error:
            assert file.name in str(error) or file.name == "identity.json", error
            assert not output.exists()
            refused.add(file)
        else:
            assert read(output) == expected
        shutil.rmtree(partial, ignore_errors=True)
    # A flip in a blank of JSON changes nothing.
    assert refused >= {file for file in files if file.suffix != ".json"}

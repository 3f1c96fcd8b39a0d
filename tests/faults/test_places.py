"""Where commands write: never into what they read, by whatever name that goes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lookback import cli
from lookback.core.errors import UserError
from lookback.core.files import atomic_directory, atomic_file, held
from lookback.core.outputs import OutputKind
from lookback.workflows.commands import PROGRAM as WORKFLOWS

NOTES = OutputKind("set of notes")


def words(path: Path) -> set[str]:
    """Names of all that is in a directory."""
    return {found.relative_to(path).as_posix() for found in path.rglob("*")}


@pytest.fixture(scope="module")
def dataset(
    make_histories: Callable[..., object],
    write_dataset: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return write_dataset(make_histories(), tmp_path_factory.mktemp("data") / "dataset")


@pytest.mark.parametrize(
    "command",
    [
        "train --dataset_dir {} --model_type din --results_dir {}/results",
        "train --dataset_dir {} --model_type din --save_checkpoint_path {}",
        "tune --dataset_dir {} --config {}.yaml --results_dir {}/results",
        "serving load-histories {} --store {}/store",
        "serving load-histories {} --store {}/.. --overwrite",
    ],
)
def test_nothing_comes_to_be_in_a_dataset_that_is_read(
    dataset: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be another dataset than the one that its digests are of."""
    Path(f"{dataset}.yaml").write_text("space: {lr: {low: 0.1, high: 0.2}}\n")
    before = words(dataset.parent)
    assert cli.LOOKBACK.main([word.replace("{}", str(dataset)) for word in command.split()]) == 2
    assert "Choose one apart from the inputs." in capsys.readouterr().err
    assert words(dataset.parent) == before


@pytest.fixture
def other_name(tmp_path: Path) -> Iterator[Path]:
    """A second name of `tmp_path`/data, which no link tells."""
    place, other = tmp_path / "data", tmp_path / "other"
    place.mkdir()
    other.mkdir()
    bind = ["mount", "--bind", str(place), str(other)]
    if os.geteuid() or subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")
    yield other
    subprocess.run(["umount", str(other)], check=True)


def test_an_input_is_known_by_its_other_name(tmp_path: Path, other_name: Path) -> None:
    raw = tmp_path / "data" / "raw"
    with atomic_directory(raw, NOTES) as new:
        (new / "a").write_text("a")
    for output, said in (
        (other_name / "raw", "is the input itself"),
        (other_name / "raw" / "below", "lies in the input"),
    ):
        with (
            pytest.raises(UserError, match=said),
            atomic_directory(output, NOTES, overwrite=True, inputs=[raw]),
        ):
            pass
        with pytest.raises(UserError, match=said), held(output, "results_dir", [raw]):
            pass
    with (
        pytest.raises(UserError, match="lies in the input"),
        atomic_file(other_name / "raw" / "b", inputs=[raw]),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"has the input .*raw/a in it"),
        atomic_directory(other_name / "raw", NOTES, overwrite=True, inputs=[raw / "a"]),
    ):
        pass
    assert words(tmp_path / "data") == {"raw", "raw/.lookback.json", "raw/a"}


def test_the_root_of_all_is_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert WORKFLOWS.main(["generate", "--preset", "tiny", "--output", "/", "--overwrite"]) == 2
    assert "/ is a mount point, which stays as it is." in capsys.readouterr().err


@pytest.mark.parametrize("path", ["~/data", "~", "~somebody/data"])
def test_homes_that_no_shell_wrote_out_are_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dask would read and write in the home, and we in a directory called `~`."""
    monkeypatch.chdir(tmp_path)
    assert WORKFLOWS.main(["generate", "--preset", "tiny", f"--output={path}"]) == 2
    said = capsys.readouterr().err
    assert f"--output: expected a path, received '{path}': shells write out `~`" in said
    assert not list(tmp_path.iterdir())

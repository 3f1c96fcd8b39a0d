"""Two commands that write one output at once: the second is refused before it does anything."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookback.core.errors import UserError
from lookback.core.outputs import RECORD
from lookback.workflows.commands import PROGRAM
from lookback.workflows.output import DATASET, Output
from lookback.workflows.pipeline import fit_dataset, run_dataset

ROWS = {"numerical": 1, "categorical": 1, "workers": 0, "frequency_threshold": 0}


@pytest.fixture
def days(tmp_path: Path) -> Path:
    (tmp_path / "days").mkdir()
    for day in range(2):
        lines = "".join(f"{n % 2}\t{n}\t{n % 5:08x}\n" for n in range(40))
        (tmp_path / "days" / f"day_{day}").write_text(lines)
    return tmp_path / "days"


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    (tmp_path / "ratings").mkdir()
    lines = [f"{user}\t{item}\t4\t{10**9 + item}\n" for user in range(1, 5) for item in range(1, 9)]
    (tmp_path / "ratings" / "u.data").write_text("".join(lines))
    flags = "|".join(["0"] * 18 + ["1"])
    items = "".join(f"{item}|Title|01-Jan-1995||http://x|{flags}\n" for item in range(1, 9))
    (tmp_path / "ratings" / "u.item").write_text(items)
    return tmp_path / "ratings"


def first_holds(output: Path, work: Callable[[Callable[[str], None]], Any]) -> Any:
    """Starts `work` in a thread, tries to write `output` while it is at it, lets it end."""
    began, go_on, found = threading.Event(), threading.Event(), []

    def log(text: str) -> None:
        del text
        began.set()
        assert go_on.wait(60)

    thread = threading.Thread(target=lambda: found.append(work(log)))
    thread.start()
    try:
        assert began.wait(60)
        yield
    finally:
        go_on.set()
        thread.join()
    assert found and output.is_dir()


@pytest.mark.parametrize("kind", ["histories", "rows"])
def test_a_second_run_to_one_output_is_refused_at_once(
    kind: str, days: Path, ratings: Path, tmp_path: Path
) -> None:
    output, second = tmp_path / "out", []
    name, source, options = {
        "histories": ("movielens", ratings, {"min_interactions": 2, "workers": 0}),
        "rows": ("criteo", days, ROWS),
    }[kind]
    held = first_holds(output, lambda log: run_dataset(name, source, output, log=log, **options))
    next(held)
    for work in (run_dataset, fit_dataset):
        for overwrite in (False, True):
            with pytest.raises(UserError, match=r"Another process is writing .*out"):
                work(name, source, output, overwrite=overwrite, log=second.append, **options)
    next(held, None)
    assert not second  # it said nothing of what it was about to do
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "command", ["run", "run rows", "fit", "transform", "generate", "export-feature-spec"]
)
def test_each_command_is_refused_while_another_writes(
    command: str, days: Path, ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, rows = tmp_path / "out", tmp_path / "rows"
    shape = ["--numerical", "1", "--categorical", "1", "--workers", "0"]
    words = {
        "run": ["--dataset", "movielens", "--input", ratings],
        "run rows": ["--dataset", "criteo", "--input", days, *shape],
        "fit": ["--dataset", "movielens", "--input", ratings],
        "transform": ["--workflow", rows, "--input", days],
        "generate": ["--preset", "tiny"],
        "export-feature-spec": [rows],
    }[command]
    if rows in words:
        run_dataset("criteo", days, rows, **ROWS)
        capsys.readouterr()
    with Output(output, DATASET, False, ()).create():
        argv = [command.split()[0], *map(str, words), "--output", str(output)]
        assert PROGRAM.main(argv) == 2
    assert "error: Another process is writing" in capsys.readouterr().err
    assert [file.name for file in output.iterdir()] == [RECORD]  # the first one's

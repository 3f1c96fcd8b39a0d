"""The notebooks are valid, and their cells run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lookback.scripts import notebooks

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def cell(kind: str, source: str) -> dict:
    return {"cell_type": kind, "source": source.splitlines(keepends=True), "outputs": []}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_a_small_notebook_of_format_4_5(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 30_000
    content = json.loads(text)
    assert set(content) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    cells = content["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for number, found in enumerate(cells):
        keys = {"cell_type", "id", "metadata", "source"}
        if found["cell_type"] == "code":
            keys |= {"execution_count", "outputs"}
        assert set(found) == keys, number
        assert re.fullmatch(r"[\w-]{1,64}", found["id"])
        assert all(line.endswith("\n") for line in found["source"][:-1])
    printed = [found["outputs"] for found in cells if found["cell_type"] == "code"]
    assert all(printed[-1:]), "run scripts/notebooks.py --store"


def test_cells_share_names_and_keep_what_they_print() -> None:
    notebook = {"cells": [cell("code", "a = 2"), cell("markdown", "b"), cell("code", "print(a)")]}
    notebooks.run(notebook)
    assert [found["outputs"] for found in notebook["cells"]] == [
        [],
        [],
        [{"name": "stdout", "output_type": "stream", "text": ["2\n"]}],
    ]
    with pytest.raises(ZeroDivisionError):
        notebooks.run({"cells": [cell("code", "1 / 0")]})


@pytest.mark.slow
def test_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Graphs pay here: SIM makes hundreds of steps."""
    monkeypatch.chdir(tmp_path)
    notebooks.main([str(path) for path in NOTEBOOKS])
    said = capsys.readouterr().out.splitlines()
    assert said == [f"ran {path.name}" for path in NOTEBOOKS]

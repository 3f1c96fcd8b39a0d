"""Runs notebooks without Jupyter: the code cells of each in order, in an empty directory.

usage: .venv/bin/python scripts/notebooks.py [--store] NOTEBOOK...     --store: keep what they print

Fails with the first cell that does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(notebook: dict[str, Any]) -> None:
    """Runs the code cells in one namespace and puts what they print into their outputs."""
    names: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        number += 1
        source, printed = "".join(cell["source"]), io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, f"cell {number}", "exec"), names)
        text = printed.getvalue().splitlines(keepends=True)
        stream = {"name": "stdout", "output_type": "stream", "text": text}
        cell |= {"execution_count": number, "outputs": [stream] if text else []}


def main(arguments: list[str]) -> None:
    """Runs each notebook that is named."""
    store = arguments[:1] == ["--store"]
    for path in [Path(argument).resolve() for argument in arguments[store:]]:
        notebook = json.loads(path.read_text())
        with tempfile.TemporaryDirectory() as directory:
            os.chdir(directory)
            run(notebook)
            os.chdir(path.parent)
        print(f"ran {path.name}")
        if store:
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

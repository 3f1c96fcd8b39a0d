"""Hooks of mkdocs: notebooks of docs/ become pages, and pages read as on GitHub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page beside each notebook."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            source = Path(str(file.abs_src_path))
            page = "\n".join(map(_markdown, json.loads(source.read_text())["cells"]))
            note = f"\n[This page as a notebook]({source.name})\n"
            uri = file.src_uri.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, uri, content=page + note))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the empty line before lists and tables that Python's Markdown wants, and GitHub not."""
    lines, fenced = [""], False
    for line in markdown.splitlines():
        fenced ^= line.lstrip().startswith("```")
        for begins in (r"\|", r"([-*]|\d+\.) "):
            if not fenced and re.match(begins, line) and not re.match(rf"{begins}|  |$", lines[-1]):
                lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _markdown(cell: dict[str, Any]) -> str:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return f"{text}\n"
    printed = ["".join(output.get("text", "")) for output in cell["outputs"]]
    blocks = "".join(f"\n```text\n{text.rstrip()}\n```\n" for text in printed if text)
    return f"```python\n{text}\n```\n{blocks}"

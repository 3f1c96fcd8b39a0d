"""scripts/docs.sh builds the pages of docs/ as a site."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the script needs of a checkout, with tools of its own."""
    uv = shutil.which(
        "uv", path=f"{':'.join(map(str, ROOT.glob('.tools/*/bin')))}:{os.environ['PATH']}"
    )
    if uv is None:
        pytest.skip("no uv: this .venv is not of scripts/setup.sh")
    for name in ("docs", "scripts", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for path, target in ((".tools/x/bin/uv", uv), (".venv/bin/python", sys.executable)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).symlink_to(Path(target).resolve())
    return tmp_path


@pytest.mark.slow
def test_the_site_builds_and_a_dead_link_fails_it(checkout: Path) -> None:
    def docs() -> subprocess.CompletedProcess[str]:
        command = [checkout / "scripts/docs.sh"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    built = docs()
    assert built.returncode == 0, built.stderr[-3000:]
    assert "WARNING" not in built.stderr
    page = (checkout / "site/notebooks/own-log/index.html").read_text()
    assert "Your own log, in Python" in page
    trust = (checkout / "site/how-to/several-processes/index.html").read_text()
    assert re.search(r"<li>\s*(<p>)?ssh reaches each machine", trust)
    pages = {
        path.relative_to(checkout / "docs").with_suffix("")
        for path in checkout.glob("docs/**/*.md")
    }
    written = {
        path.parent.relative_to(checkout / "site") for path in checkout.glob("site/**/index.html")
    }
    assert {page for page in pages if page.name != "index"} <= written

    with (checkout / "docs/index.md").open("a") as file:
        file.write("\n[nowhere](how-to/train.md#nowhere)\n")
    broken = docs()
    assert broken.returncode != 0
    assert "#nowhere" in broken.stderr

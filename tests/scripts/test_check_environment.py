from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_environment.py"


def check(lock: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(lock)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_names_every_package_that_is_not_as_locked(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    pytest_version = metadata.version("pytest")
    lock.write_text(
        f"pytest=={pytest_version} \\\n    --hash=sha256:00\n"
        "numpy==0.1 \\\n    --hash=sha256:00\n"
        "no-such-package==3.0 \\\n    --hash=sha256:00\n    # via numpy==9\n"
    )
    result = check(lock)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"numpy: locked 0.1, installed {metadata.version('numpy')}",
        "no-such-package: locked 3.0, installed missing",
    ]


@pytest.mark.slow
def test_accepts_this_environment(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(f"numpy=={metadata.version('numpy')} \\\n    --hash=sha256:00\n")
    result = check(lock)
    assert result.returncode == 0, result.stderr
    assert f"horovod {metadata.version('horovod')} with Gloo" in result.stdout

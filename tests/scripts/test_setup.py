"""The quick paths of scripts/setup.sh: nothing to do, and each refusal; CI runs the cold one."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_RANK = ROOT / "training" / "parallel" / "start_rank.sh"
STAMPED = (ROOT / ".venv" / ".lookback-ready").exists()
needs_stamp = pytest.mark.skipif(not STAMPED, reason="this .venv is not of scripts/setup.sh")

BASICS = "awk bash cat cut df dirname env find flock grep head mkdir mktemp mv nproc readlink rm"
BASICS += " sha256sum stat tail touch uname cp ln sed"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what setup.sh reads, in a directory whose name has a blank."""
    copy = tmp_path / "a checkout"
    (copy / "scripts").mkdir(parents=True)
    for name in ("setup.sh", "check_environment.py"):
        shutil.copy(ROOT / "scripts" / name, copy / "scripts" / name)
    for name in ("__init__.py", "cli.py"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("requirements", "kernels", "core"):
        shutil.copytree(ROOT / name, copy / name)
    return copy


def tool_path(directory: Path, names: Iterable[str]) -> str:
    """A PATH that has the basic tools and those named, and nothing else."""
    directory.mkdir()
    for name in (*BASICS.split(), *names):
        found = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin")
        assert found, f"this machine has no {name}"
        (directory / name).symlink_to(found)
    return str(directory)


def setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    keep = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    return subprocess.run(
        [str(checkout / "scripts" / "setup.sh")],
        cwd="/",  # any directory will do
        env=keep | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_refused(result: subprocess.CompletedProcess[str], checkout: Path, says: str) -> None:
    assert result.returncode == 1, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert re.search(rf"^set-up: error: .*{says}", lines[0]), lines[0]
    assert not (checkout / ".venv").exists()


def test_takes_no_arguments(checkout: Path) -> None:
    script = checkout / "scripts" / "setup.sh"
    result = subprocess.run([script, "--fast"], capture_output=True, text=True, check=False)
    assert_refused(result, checkout, "takes no arguments; got: --fast")


def test_missing_compiler(checkout: Path, tmp_path: Path) -> None:
    result = setup(checkout, PATH=tool_path(tmp_path / "bin", ["python3"]))
    assert_refused(result, checkout, r"no C\+\+ compiler.*apt-get install g\+\+")


def test_compiler_that_does_not_work(checkout: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'fatal error: cmath: No such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    result = setup(checkout, CXX=str(compiler))
    assert_refused(result, checkout, r"cannot build a small program: fatal error: cmath.*apt-get")


def test_missing_python(checkout: Path, tmp_path: Path) -> None:
    # The compiler's own helpers (cc1plus, as, ld) are found by it, not on PATH.
    path = tool_path(tmp_path / "bin", ["g++", "as", "ld"])
    result = setup(checkout, PATH=path)
    assert_refused(result, checkout, r"no Python 3 with pip or venv.*apt-get install python3\.11")


def test_little_disk_space(checkout: Path, tmp_path: Path) -> None:
    path = tool_path(tmp_path / "bin", ["g++", "as", "ld"])
    df = Path(path) / "df"
    df.unlink()
    df.write_text("#!/bin/sh\necho header\necho /dev/sda1 9000 7500 1500 83% /\n")
    df.chmod(0o755)
    result = setup(checkout, PATH=path)
    assert_refused(result, checkout, "has 1500 MB free and the set-up needs 3500 MB: free some")


def test_no_network_for_the_tools(checkout: Path, tmp_path: Path) -> None:
    unreachable = {"HTTPS_PROXY": "http://127.0.0.1:9", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
    path = tool_path(tmp_path / "bin", ["g++", "as", "ld"])
    result = setup(
        checkout, PATH=path, LOOKBACK_PYTHON=str(Path(sys.executable).resolve()), **unreachable
    )
    assert_refused(result, checkout, "fetching uv, cmake and ninja: no network.*HTTPS_PROXY")


@needs_stamp
def test_no_network_for_the_packages(checkout: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".tools", checkout / ".tools", symlinks=True)
    result = setup(
        checkout,
        HTTPS_PROXY="http://127.0.0.1:9",
        UV_HTTP_RETRIES="0",
        UV_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert_refused(result, checkout, "asking the package registry: no network.*HTTPS_PROXY")


@needs_stamp
def test_python_of_another_version(checkout: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".tools", checkout / ".tools", symlinks=True)
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    result = setup(checkout, LOOKBACK_PYTHON=str(python))
    assert_refused(result, checkout, f"LOOKBACK_PYTHON={python} is not a Python that runs")


def test_somebody_elses_venv_is_left_alone(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "mine").write_text("precious")
    result = setup(checkout)
    assert result.returncode == 1
    assert "setup.sh did not make it. Move it away" in result.stderr
    assert [path.name for path in (checkout / ".venv").iterdir()] == ["mine"]


def test_second_run_waits_for_the_first(checkout: Path) -> None:
    (checkout / ".tools").mkdir()
    command = [checkout / "scripts" / "setup.sh"]
    with (checkout / ".tools" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        environment = os.environ | {"CXX": "/bin/false"}  # so that it ends soon after it goes on
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            assert "another set-up is running" in run.stdout.readline()
            assert run.poll() is None
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert run.wait(timeout=30) == 1


@needs_stamp
def test_warm_run_is_quick_and_quiet() -> None:
    start = time.monotonic()
    result = setup(ROOT)
    assert time.monotonic() - start < 3
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@needs_stamp
@pytest.mark.parametrize(
    "change",
    ["lock", "stamp", "interpreter", "horovod", "kernels", "tiles", "link", "command", "place"],
)
def test_an_environment_that_is_not_as_stamped_is_not_taken(checkout: Path, change: str) -> None:
    venv = fake_environment(checkout)
    assert setup(checkout).returncode == 0
    if change == "lock":
        with (checkout / "requirements" / "dev.txt").open("a") as lock:
            lock.write("# changed\n")
    elif change == "stamp":  # as a killed run leaves it
        (venv / ".lookback-ready").unlink()
    elif change == "interpreter":
        (venv / "bin" / "python").unlink()
        (venv / "bin" / "python").symlink_to("/nowhere/python3.11")
    elif change == "horovod":
        next(venv.rglob("mpi_lib*.so")).unlink()
    elif change == "kernels":
        next(venv.glob("lib/lookback_kernels-*.so")).unlink()
    elif change == "tiles":  # what is built of them has another name
        with (checkout / "kernels" / "tiles" / "mlp.h").open("a") as source:
            source.write("// changed\n")
    elif change == "link":
        (venv / "src" / "lookback").unlink()
    elif change == "command":
        (venv / "bin" / "lookback").unlink()
    elif change == "place":
        checkout = checkout.rename(checkout.with_name("moved"))
    result = setup(checkout, CXX="/bin/false")
    assert result.returncode == 1
    assert "cannot build a small program" in result.stderr  # the first thing that a real run needs


def fake_environment(checkout: Path) -> Path:
    """A .venv with just what the warm path looks at, stamped as the real one is."""
    venv = checkout / ".venv"
    library = venv / "lib" / "python3.11" / "site-packages" / "horovod" / "tensorflow"
    library.mkdir(parents=True)
    (library / "mpi_lib.cpython-311.so").touch()
    (venv / "lib" / "lookback_kernels-0123456789ab.so").touch()
    (venv / "src").mkdir()
    (venv / "src" / "lookback").symlink_to("../..")
    (venv / "bin").mkdir()
    (venv / "bin" / "lookback").touch(0o755)
    python = str((ROOT / ".venv" / "bin" / "python").readlink())
    (venv / "bin" / "python").symlink_to(python)
    (venv / ".lookback").touch()
    key = (ROOT / ".venv" / ".lookback-ready").read_text().splitlines()[1]
    (venv / ".lookback-ready").write_text(f"{checkout} <- {python}\n{key}\n")
    return venv


def test_scripts_pass_shellcheck() -> None:
    scripts = [*sorted((ROOT / "scripts").glob("**/*.sh")), START_RANK, ROOT / ".ci" / "run"]
    # These three are about files that are sourced, which it sees one by one.
    command = [
        Path(sys.executable).parent / "shellcheck",
        "--exclude=SC1091,SC2034,SC2154",
        *scripts,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_scripts_can_be_run() -> None:
    scripts = [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"]
    assert [str(path) for path in scripts if not os.access(path, os.X_OK)] == []

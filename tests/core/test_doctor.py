"""The doctor: what it reads of CPU and driver, and what it says of checks that go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest

from lookback.core import doctor
from lookback.core.doctor import Check, DoctorOptions, cpu, examine, tried
from lookback.core.gpus import GPU, Driver, ask_driver

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_bf16 amx_bf16 amx_tile
"""
OLD = "model name\t: Old\nflags\t\t: fpu sse4_2\n"

# What of cuda.h the doctor calls; one H100 whose driver knows CUDA 13.0.
FAKE_DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return %(init)d; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = %(count)d; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
  strncpy(name, "NVIDIA H100", length);
  return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : -1;
  return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 85520809984; return 0; }
int cuGetErrorString(int error, const char **text) {
  *text = "system not yet initialized";
  return 0;
}
"""


@pytest.fixture
def driver_of(tmp_path):
    """Builds a driver; what it sees are its arguments."""

    def make(**values):
        source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so.1"
        source.write_text(FAKE_DRIVER % values)
        build = ["g++", "-x", "c", "-shared", "-fPIC", "-o", library, source]
        subprocess.run(build, check=True)
        version = tmp_path / "version"
        version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed\n")
        return ask_driver(str(library), version)

    return make


def test_a_gpu_is_seen_by_its_driver_alone(driver_of):
    h100 = GPU("NVIDIA H100", "9.0", 85_520_809_984)
    assert driver_of(init=0, count=1) == Driver("580.82.07", "13.0", (h100,))


def test_why_there_is_no_gpu(driver_of, tmp_path):
    assert driver_of(init=0, count=0).why == "the driver sees no GPU"
    why = ask_driver(str(tmp_path / "libnone.so")).why
    assert why is not None and why.startswith("no NVIDIA driver (")


def test_a_driver_that_fails_says_so(driver_of):
    found = driver_of(init=802, count=1)
    assert found.version == "580.82.07" and not found.gpus
    assert found.why is not None
    assert found.why.endswith("cuInit gave 802, system not yet initialized")


def test_levels_of_cpus():
    assert cpu(XEON)["model"] == "Intel(R) Xeon(R) Platinum 8480+"
    assert all(cpu(XEON)["levels"].values())
    assert not any(cpu(OLD)["levels"].values())


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Makes a module that a check runs."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(text):
        (tmp_path / "tried.py").write_text(text)
        return Check("it", "tried", "word")

    return make


def test_a_check_is_told_by_the_last_object_of_its_output(module):
    check = module('import sys; print(\'{"works": false}\\n{"works": true}\\nnoise\', sys.argv)')
    assert tried(check) == {"works": True}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import os; os.abort()", "exit status -6: it said nothing"),
        ("raise OSError('no such thing')", "exit status 1: OSError: no such thing"),
        ("import time; time.sleep(60)", "it did not end within 0.5 s"),
    ],
)
def test_a_check_that_dies_or_hangs_is_a_line(module, text, why):
    check = module(text)
    seconds = 0.5 if "sleep" in text else 60
    assert tried(check, seconds) == {"works": False, "why": why}


def test_what_is_not_installed_is_not_tried():
    check = Check("it", "never_run", "word", "no_such_package")
    assert tried(check) == {"works": False, "why": "no_such_package is not installed"}


@pytest.mark.parametrize("works", [True, False])
def test_the_report_and_the_status(module, capsys, works):
    check = module(f'print(\'{{"works": {str(works).lower()}, "why": "W", "says": "S"}}\')')
    assert examine(DoctorOptions(), [check], "it") == (0 if works else 1)
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"it          {'works: S' if works else 'does not work: W'}"
    assert f"numpy {metadata.version('numpy')}" in " ".join(said.split())
    assert examine(DoctorOptions(json=True), [check], "it") == (0 if works else 1)
    found = json.loads(capsys.readouterr().out)
    assert found["checks"] == {"it": {"works": works, "why": "W", "says": "S"}}
    assert found["packages"]["numpy"] == metadata.version("numpy")


def test_a_quick_look_loads_no_tensorflow(monkeypatch):
    code = (
        "import sys; from lookback.cli import main; sys.argv[1:] = ['doctor', '--quick', '--json']"
    )
    code += "; status = main(); assert not status; assert 'tensorflow' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout)["checks"] == {}


def test_a_gpus_line(monkeypatch, capsys):
    h100 = Driver("580.82.07", "13.0", (GPU("NVIDIA H100", "9.0", 85_520_809_984),))
    monkeypatch.setattr(doctor, "ask_driver", lambda: h100)
    examine(DoctorOptions(quick=True), [], "it")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("gpu"))
    assert "NVIDIA H100, compute capability 9.0, 85.5 GB; driver 580.82.07 for CUDA 13.0" in line

"""scripts/gpu_check.sh: its limits, what it makes of profiles, its table; and a whole rehearsal."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lookback.scripts.gpu import check
from lookback.scripts.gpu.trace import Ran, summary

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.sh"


def test_a_profile_is_summed_up():
    """Two steps on two streams: busy 1..4, 5..6 and 8..10 of 1..10."""
    ran = [
        Ran("gemm", 1.0, 3.0),
        Ran("copy", 2.0, 4.0),
        Ran("copy", 5.0, 6.0),
        Ran("gemm", 8.0, 10.0),
    ]
    found = summary(ran, steps=2)
    assert found["launches_per_step"] == 2
    assert found["seconds_per_step"] == 4.5
    assert found["busy_seconds_per_step"] == 3.0
    assert found["busy_fraction"] == pytest.approx(6 / 9)
    assert found["largest_gaps_seconds"] == [2.0, 1.0]
    assert found["top"] == {"gemm": 2.0, "copy": 1.5}


@pytest.fixture
def checker(tmp_path, monkeypatch):
    """A check whose steps are a module of the test's."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(text, seconds=60.0, rehearse=False):
        (tmp_path / "a_step.py").write_text(text)
        monkeypatch.setattr(check, "STEPS_MODULE", "a_step")
        args = argparse.Namespace(
            seconds=seconds, rehearse=rehearse, only=[], output=tmp_path / "o.json", movielens=None
        )
        return check.Checker(args, tmp_path)

    return make


WRITES = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_text('{\"found\": 1}')\n"


def test_what_a_late_step_had_found_stays(checker):
    late = checker(WRITES + "import time; time.sleep(60)")
    late._step("device", 3.0, [])
    assert late.found["steps"]["device"]["found"] == 1
    assert late.found["steps"]["device"]["status"] == "ended by its limit of 3 s"
    assert not check._good(late.found["steps"]["device"])


def test_a_step_that_fails_says_how_and_the_next_one_runs(checker, capsys):
    failing = checker("raise OSError('no such thing')")
    failing._step("device", 60.0, [])
    assert failing.found["steps"]["device"]["status"] == "failed: OSError: no such thing"
    fine = checker(WRITES)
    fine._step("profile", 60.0, [])
    assert fine.found["steps"]["profile"]["status"] == "done"
    assert "no such thing" in capsys.readouterr().err


TELLS = """import json, os, pathlib, sys
told = {"words": sys.argv[1:], "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
pathlib.Path(sys.argv[2]).write_text(json.dumps(told))
"""


def test_every_step_gets_what_it_needs(checker, tmp_path, monkeypatch):
    """In order, and what was found so far is in the file."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    whole = checker(TELLS)
    whole._args.only, whole._args.movielens = [*check.LIMITS], Path("ml")
    whole.run()
    found = json.loads((tmp_path / "o.json").read_text())
    assert found == json.loads(json.dumps(whole.found)) and not found["rehearsal"]
    steps = found["steps"]
    throughputs = [name for name in steps if name.startswith("throughput")]
    assert [*steps] == ["device", "equality", *throughputs, "profile", "sok", "auc"]
    assert len(throughputs) == 2 * len(check.MODELS)
    assert steps["throughput_sim_xla"]["words"][2:] == ["--model", "sim", "--xla"]
    assert steps["throughput_sim"]["words"][2:] == ["--model", "sim"]
    reference = tmp_path / "reference.npz"
    assert steps["equality"]["words"][2:] == ["--start", str(reference)]
    assert steps["equality"]["visible"] is None
    told = json.loads(reference.read_text())  # of the CPU
    assert told["words"][0] == "reference" and told["visible"] == ""
    for step in ("sok", "auc"):
        assert steps[step]["words"][2:] == ["--folder", str(tmp_path), "--movielens", "ml"]


def test_nothing_is_begun_without_time(checker):
    ended = checker(WRITES, seconds=0.0)
    ended._step("device", ended._clock.seconds(60.0), [])
    assert ended.found["steps"]["device"]["status"] == "no time was left for it"


def test_the_steps_fit_into_eight_minutes():
    assert sum(check.LIMITS.values()) <= check.SECONDS == 8 * 60


def test_models_with_targets_come_first(checker):
    order = [*checker("")._combinations()]
    assert order[:4] == [("sim", False), ("sim", True), ("dlrm", False), ("dlrm", True)]
    assert sorted(order) == sorted((model, xla) for model in check.MODELS for xla in (False, True))
    # Every figure that is compared is one that is measured.
    assert {(model, xla) for model, _, xla in (*check.PUBLISHED, *check.TARGETS)} <= set(order)


def test_the_table_puts_targets_beside_what_was_measured():
    measured = {"rows_per_s": 600_000.0, "peak_memory_bytes": 2e9, "gpu_busy_fraction": 0.9}
    unequal = {"equal": False, "largest_difference": 0.5}
    found = {
        "steps": {
            "device": {"status": "done", "tf32_flops_per_s": 4e14},
            "throughput_sim": {"status": "done", "train_tf32": measured},
            "equality": {"status": "done", "sim": unequal, "din": {"equal": True}},
        }
    }
    text = "\n".join(check.table(found))
    assert "tf32 400.00 T/s" in text
    line = next(line for line in text.splitlines() if line.startswith("sim"))
    assert line.split() == [
        *("sim", "train_tf32", "off", "600,000", "381,211", "577,000", "90%", "2.0")
    ]
    assert "equality: done (sim differs by 5.0e-01)" in text
    assert not check._good(found["steps"]["equality"])


def test_without_a_gpu_it_wants_to_rehearse(tmp_path):
    if check.facts()["driver"]["why"] is None:
        pytest.skip("there is a GPU")
    command = [SCRIPT, "--output", tmp_path / "gpu.json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "expected a GPU, found none: " in result.stderr
    assert result.stderr.rstrip().endswith("Without one, give --rehearse.")
    assert not (tmp_path / "gpu.json").exists()


FORKED_STEPS = """import sys
from lookback.scripts.gpu import runs, steps
runs.LOOKBACK = (sys.executable, *{preloaded}, runs.LOOKBACK[1])
steps.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_rehearsal_takes_every_step(tmp_path, preloaded, monkeypatch):
    """In forks, as are their command lines."""
    program = tmp_path / "forked_steps.py"
    program.write_text(FORKED_STEPS.format(preloaded=preloaded))

    def forked(command, **options):
        assert command[:3] == [sys.executable, "-m", check.STEPS_MODULE]
        return run([sys.executable, *preloaded, str(program), *command[3:]], **options)

    run = subprocess.run
    monkeypatch.setattr(check.subprocess, "run", forked)
    assert check.main(["--rehearse", "--output", str(tmp_path / "gpu.json")]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["rehearsal"]
    steps = found["steps"]
    throughputs = {"throughput_sim", "throughput_sim_xla"}
    assert set(steps) == set(check.LIMITS) - {"throughput"} | throughputs
    assert {s["status"] for s in steps.values()} == {"done"}
    assert all(steps["equality"][model]["equal"] for model in check.MODELS)
    assert steps["sok"]["same_after_reload"] and steps["sok"]["backend"] == "horovod"

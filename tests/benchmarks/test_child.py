"""Programs that answer lines of JSON, without and with the module for their end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lookback.benchmarks import child
from lookback.benchmarks.child import python_child

PROGRAM = """
import json, os, sys, time
print("a library talks")
print(json.dumps({"version": sys.argv[1], "own": os.environ["OWN"]}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    time.sleep(asked["seconds"])
    print("again", flush=True)
    print(json.dumps({"twice": 2 * asked["number"]}), flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def test_a_program_answers_past_what_it_prints(program, tmp_path):
    with python_child(program, tmp_path, 7, variables={"OWN": "x"}) as made:
        assert made.facts == {"version": "7", "own": "x"}
        assert [made.ask(number=n, seconds=0)["twice"] for n in (3, 4)] == [6, 8]
    assert not Path(f"/proc/{made.pid}").exists()


def test_a_program_that_does_not_answer_is_killed(program, tmp_path, monkeypatch):
    began = time.monotonic()
    with python_child(program, tmp_path, 7, variables={"OWN": "x"}) as made:
        monkeypatch.setattr(child, "WAIT_SECONDS", 0.2)
        with pytest.raises(RuntimeError, match="ended, or did not answer"):
            made.ask(number=1, seconds=600)
    assert time.monotonic() - began < 60

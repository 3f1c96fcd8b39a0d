"""Ranks that do what their benchmark asks, all together, and are stopped meanwhile."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lookback.benchmarks.rank_groups import RankGroup
from tests.benchmarks.test_peers import wait_for

PROGRAM = """
import os, sys
from lookback.benchmarks.child_server import serve
from lookback.benchmarks.rank_groups import join_group

config, streams = join_group(sys.argv[1])
print("a library talks")
rank = int(os.environ.get("HOROVOD_RANK", "0"))

def where(plus):
    return {"pid": os.getpid(), "rank": rank, "sum": config["base"] + plus,
            "cores": sorted(os.sched_getaffinity(0))}

def fail():
    if rank or config["all"]:
        raise ValueError("no such row")
    return {}

serve({"where": where, "fail": fail}, {}, streams)
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    (tmp_path / "ranks_of_a_test.py").write_text(PROGRAM)
    found = [str(tmp_path), str(Path(sys.prefix) / "src")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))
    return "ranks_of_a_test"


@pytest.mark.parametrize("ranks", [1, 2])
def test_rank_0_answers_for_all(module, ranks):
    core = min(os.sched_getaffinity(0))
    with RankGroup(ranks, module, {"base": 40, "all": True}, cores=[[core]] * ranks) as group:
        found = group.ask(do="where", plus=2)
        assert (found["rank"], found["sum"], found["cores"]) == (0, 42, [core])
        wait_for(found["pid"], "T")
        with pytest.raises(RuntimeError, match="expected `do` of where, fail"):
            group.ask(do="dance")
        assert group.ask(do="where", plus=3)["sum"] == 43
    assert not Path(f"/proc/{found['pid']}").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_group_of_which_one_ends_says_why(module, ranks):
    with (
        RankGroup(ranks, module, {"base": 0, "all": ranks == 1}) as group,
        pytest.raises(RuntimeError, match="no such row"),
    ):
        group.ask(do="fail")
    with pytest.raises(RuntimeError, match="No module named"):
        RankGroup(ranks, "no_such_module", {})

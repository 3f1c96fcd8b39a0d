"""A run loses a process, goes on without it, and with it again: to what a run in peace arrives at.

In micro-batches, the number of ranks leaves no bit different, so that checkpoints can be compared.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from lookback.checkpoints.store import find_checkpoint, open_checkpoint
from lookback.core.errors import UserError
from lookback.core.options import parse
from lookback.training.parallel import elastic, hosts
from lookback.training.parallel.hosts import Hosts
from lookback.training.parallel.launch import Job, JobEnd
from lookback.training.parallel.run_model import elasticity_of, read
from lookback.training.run import command_line

SAVED = "/nowhere/saved"
ELASTIC = ("--np", "3", "--min_np", "2")
RUN = (
    *("--model_type", "neumf", "--dataset_dir", "d", "--results_dir", "r"),
    *("--save_checkpoint_path", SAVED),
)


def script_in(directory: Path, text: str) -> Path:
    path = directory / "hosts.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def elasticity(*words: str):
    launch, train = read([*ELASTIC, *RUN, *words])
    run, data, _ = parse(train, command_line())
    return elasticity_of(launch, run, data)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--plan", "p.json"], "received --plan, which holds for one"),
        (["--placements", "item_id=table_wise:2"], "received --placements, which holds for one"),
        (["--save_checkpoint_path", "none"], "a run that trains with --save_checkpoint_path"),
        (["--results_dir", "none"], "and --results_dir, where its log goes on"),
        (["--micro_batches", "9"], "both dividing the 9 of --micro_batches, received 2"),
        (["--min_np", "3"], "fewer than the 3 processes of --np, received 3"),
        (["--hosts_script", "s", "--hosts", "h:3"], "hosts_script"),
    ],
)
def test_a_run_that_could_not_go_on_is_refused(words, says):
    with pytest.raises(UserError) as caught:
        elasticity(*words)
    assert says in str(caught.value)


def test_shards_of_histories_hold_for_one_number_of_processes():
    launch, train = read([*ELASTIC, *RUN, "--model_type", "din", "--shard_histories"])
    run, data, _ = parse(train, command_line())
    with pytest.raises(UserError, match="received --shard_histories"):
        elasticity_of(launch, run, data)


def test_sizes_divide_the_micro_batches():
    assert elastic.sizes_of(2, 6, 12) == [2, 3, 4, 6]
    assert elastic.sizes_of(2, 4, None) == [2, 3, 4]
    found = elasticity("--micro_batches", "6")
    assert [found.size_for(slots) for slots in range(5)] == [None, None, 2, 3, 3]


def test_a_killed_processs_place_is_left_empty_for_a_while(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(hosts.time, "monotonic", lambda: clock[0])
    here = Hosts(3, rest=60)
    assert here.now() == {None: 3}
    assert here.set_aside(None) == 60
    clock[0] += 59
    assert here.now() == {None: 2}
    clock[0] += 2
    assert here.now() == {None: 3}


def test_a_script_says_which_machines_there_are(tmp_path):
    script = script_in(tmp_path, f"cat {tmp_path}/there")
    there = Hosts(5, script=script)
    with pytest.raises(UserError, match="expected a program that prints HOST:SLOTS lines"):
        there.now()
    (tmp_path / "there").write_text("a:2\nb:4\n")
    assert there.now() == {"a": 2, "b": 3}  # no more than there may be
    there.set_aside("b")
    (tmp_path / "there").write_text("b:4")
    assert there.now() == {"b": 3}
    (tmp_path / "there").unlink()
    assert there.now() == {"b": 3}  # what it said last
    (tmp_path / "there").write_text("b")
    with pytest.raises(UserError, match="expected HOST:SLOTS, such as node1:4, received 'b'"):
        there.now()


def test_ssh_tells_which_machines_there_are(tmp_path, monkeypatch):
    ssh = 'for word; do [ "$word" != there ] || exit 0; done; exit 255'
    (tmp_path / "ssh").write_text(f"#!/bin/sh\n{ssh}\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(
        "horovod.runner.util.network.filter_local_addresses",
        lambda names: [name for name in names if name != "localhost"],
    )
    assert hosts.reachable(["localhost", "there", "gone"]) == {"localhost", "there"}
    assert Hosts(9, {"localhost": 1, "gone": 4, "there": 2}).now() == {"localhost": 1, "there": 2}


def test_ranks_fill_one_machine_after_another():
    assert hosts.hosts_of_ranks("a:2,b:3", 4) == ["a", "a", "b", "b"]
    assert hosts.hosts_of_ranks(None, 2) == [None, None]
    assert hosts.listed({"a": 2, "b": 3}) == "a:2,b:3"
    assert hosts.listed({None: 2}) is None


class Starts:
    """Stands in for `run_to_end`: ends each start as it is told, and keeps what was started."""

    def __init__(self, monkeypatch, ends, saves=()):
        self.jobs = []
        self._ends = iter(ends)
        self._saves = {0: None, **dict(saves)}
        monkeypatch.setattr(elastic, "run_to_end", self)
        monkeypatch.setattr(elastic, "_latest", lambda directory: self._saves[self._upto()])

    def _upto(self):
        return max(number for number in self._saves if number <= len(self.jobs))

    def __call__(self, job, recall):
        self.jobs.append(job)
        status, rank, *more = next(self._ends)
        return JobEnd(status, rank, told="told" in more, recalled="recalled" in more)


KILLED, OVER, ERROR, GONE = (137, 1), (0, None), (2, 0), (75, 0)


def start(monkeypatch, ends, saves=()):
    starts = Starts(monkeypatch, ends, saves)
    job = Job(["train"], 3)
    spare = elastic.Elasticity([2, 3], Path(SAVED), Hosts(3), patience=0)
    return elastic.run_elastic(job, spare), starts.jobs


def test_after_a_loss_the_others_go_on_from_the_last_checkpoint(monkeypatch, capsys):
    saves = {1: Path("step-10"), 2: Path("step-20")}
    recalled = (143, None, "recalled")
    status, jobs = start(monkeypatch, [KILLED, recalled, OVER], saves)
    assert status == 0
    assert [job.ranks for job in jobs] == [3, 2, 2]  # the place is empty for a minute
    on = ["train", "--init_from", "none", "--trusted_digest", "none"]
    on += ["--load_checkpoint_path", SAVED]
    assert [job.command for job in jobs] == [["train"], on, on]
    said = capsys.readouterr().err
    assert "the place of rank 1 is left empty for 60 s" in said
    assert "going on with 2 of 3 processes, from step-10" in said
    assert "more processes can be had: those that ran have saved, and all start again" in said


def test_a_place_that_is_free_again_is_seen_while_the_others_run(monkeypatch):
    now, jobs, seen = [0.0], [], []
    for module in (elastic, hosts):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def run(job, recall):
        jobs.append(job.ranks)
        if len(jobs) == 1:
            return JobEnd(*KILLED, told=False, recalled=False)
        for seconds in (0, 30, 31):
            now[0] += seconds
            seen.append(recall())
        return JobEnd(*OVER, told=False, recalled=False)

    monkeypatch.setattr(elastic, "run_to_end", run)
    spare = elastic.Elasticity([2, 3], Path(SAVED), Hosts(3), patience=0)
    assert elastic.run_elastic(Job(["train"], 3), spare) == 0
    assert (jobs, seen) == ([3, 2], [False, False, True])


def test_before_the_first_checkpoint_it_begins_again_and_says_so(monkeypatch, capsys):
    status, jobs = start(monkeypatch, [GONE, OVER])
    assert (status, [job.ranks for job in jobs]) == (0, [3, 3])
    assert jobs[1].command == ["train"]
    assert "as it was started, as no checkpoint has been saved since" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ends", "status", "starts"),
    [
        ([ERROR], 2, 1),  # a mistake is no loss
        ([(70, 1)], 70, 1),
        ([(137, 1, "told")], 137, 1),  # somebody ended it
        ([(143, 0)], 143, 1),
        ([(1, None)], 1, 1),  # nothing could be started
        ([GONE, (1, None), GONE], 75, 3),  # three losses without a checkpoint
        ([GONE, ERROR], 2, 2),
    ],
)
def test_what_is_no_loss_ends_it(monkeypatch, ends, status, starts):
    found, jobs = start(monkeypatch, ends)
    assert (found, len(jobs)) == (status, starts)


def test_too_few_machines_for_too_long(monkeypatch):
    with pytest.raises(UserError, match=r"at least 2 processes, and there has been room for 1"):
        start(monkeypatch, [KILLED, KILLED, OVER], {1: Path("a"), 2: Path("b")})


@pytest.mark.slow
def test_a_run_of_three_survives_the_loss_of_one(launch, kills, preloaded, dataset, tmp_path):
    """How one comes back: the next test."""

    def words(name: str) -> list[str]:
        found = kills.arguments(launch, dataset, tmp_path / name, "run", epochs=1)
        return [*found, "--micro_batches", "6", "--checkpoint_every", "7", "--max_steps", "90"]

    from lookback import cli

    cli.train(words("peace"))
    log = tmp_path / "war" / "run" / "log.json"
    options = ("--np", "3", "--min_np", "2", "--bind", "none")
    with launch.start_forked(preloaded, tmp_path, *options, *words("war")) as started:
        started.wait_for_steps(log, 20)
        started.ranks()[1].send_signal(signal.SIGKILL)
        result = started.finish(400)
        assert not started.left_over(), result.stderr
    assert result.status == 0, result.stderr
    assert "rank 1 ended with status 137: killed (SIGKILL)" in result.stderr
    on = re.search(r"going on with 2 of 3 processes, from \S*step-(\d+)", result.stderr)
    assert on is not None, result.stderr
    assert re.search(r"[1-7] logged steps after that are lost, and trained again", result.stdout)
    saved, expected = (find_checkpoint(tmp_path / name / "saved") for name in ("war", "peace"))
    assert open_checkpoint(saved).meta["position"] == open_checkpoint(expected).meta["position"]
    kills.assert_equal(expected, saved)


@pytest.mark.slow
def test_a_machine_falls_off_the_network_and_comes_back(
    launch, kills, preloaded, dataset, tmp_path, two_hosts
):
    """Its processes are forks; test_failures.py starts some on two machines as users do."""
    if two_hosts.how != "namespaces":
        pytest.skip("two machines are made of network namespaces, which need root")
    first, second = (host.partition(":")[0] for host in two_hosts.options[1].split(","))
    cable = "/sys/class/net/cable0/carrier"
    script = script_in(
        tmp_path, f"echo {first}:1; if [ $(cat {cable}) = 1 ]; then echo {second}:1; fi"
    )

    def plug(state: str) -> None:
        words = ("ip", "-n", two_hosts.there[3], "link", "set", "cable0", state)
        subprocess.run(words, check=True, capture_output=True)

    words = kills.arguments(launch, dataset, tmp_path, "run", epochs=1000)
    words += ["--max_steps", "500"]
    options = ("--np", "2", "--min_np", "1", "--hosts_script", str(script), "--bind", "none")
    log = tmp_path / "run" / "log.json"
    environment = {"PATH": two_hosts.path, "HOROVOD_GLOO_TIMEOUT_SECONDS": "5"}
    words = (*options, *words)
    with launch.start_forked(
        preloaded, tmp_path, *words, before=two_hosts.here, **environment
    ) as started:
        started.wait_for_steps(log, 15)
        plug("down")
        started.wait_for_steps(log, launch.steps_in(log) + 20)
        plug("up")
        result = started.finish(400)
    assert result.status == 0, result.stderr
    assert "going on with 1 of 2 processes, from" in result.stderr
    assert "more processes can be had" in result.stderr
    assert "going on with 2 of 2 processes, from" in result.stderr
    assert open_checkpoint(find_checkpoint(tmp_path / "saved")).step == 500

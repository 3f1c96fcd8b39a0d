"""scripts/run_model.sh: what it makes of options, how it binds ranks, what it passes on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from urllib.request import Request, urlopen

import pytest

from lookback.core.errors import UserError
from lookback.training.parallel.job_store import JobStore, NoLauncherError
from lookback.training.parallel.launch import START_RANK
from lookback.training.parallel.run_model import read


@pytest.mark.parametrize(
    ("written", "ranks", "train"),
    [
        ("--data_path d", 1, "--dataset_dir d"),
        ("--data_path=d --gpus 4", 4, "--dataset_dir d"),
        ("--np 2 --gpus 2 --batch_size 64", 2, "--global_batch_size 64"),
        (
            *("--amp 1 --xla 0 --benchmark 1 --drop_remainder 0", 1),
            "--amp --no_xla --benchmark --no_drop_remainder",
        ),
        ("--amp --benchmark --xla true", 1, "--amp --benchmark --xla"),
        ("--hosts h1:4,h2:4 --mode train", 8, "--mode train"),
        ("--hosts h1:4,h2:4 --np 5", 5, ""),
        ("--mode train --lr=0.1 --plan p", 1, "--mode train --lr=0.1 --plan p"),
        ("--np 2 --network_interface eth1 --seed 3", 2, "--seed 3"),
        ("--np 2 -- --np 3 --amp 1", 2, "--np 3 --amp 1"),
        ("--env A,B --np 2 --env=C", 2, ""),
        ("--config run.yaml --no_shuffle --np 3", 3, "--config run.yaml --no_shuffle"),
    ],
)
def test_options_of_nvidias_script_and_of_train(written, ranks, train):
    launch, words = read(written.split())
    assert (launch.ranks, words) == (ranks, train.split())
    assert launch.variables == (["A", "B", "C"] if "--env" in written else [])


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("--np", "--np: expected a value, received none"),
        ("--data_path --np 2", "--data_path: expected a value, received none"),
        ("--np 0", "--np: expected an integer, 1 or more, or none, received 0"),
        ("--np two", "received 'two'"),
        ("--np 2 --gpus 3", "--np is 2 and --gpus is 3, which mean the same. Remove one"),
        ("--amp 2", "--amp: expected 0 or 1, received 2"),
        ("--bind socket", "--bind: expected one of cores, none, received 'socket'"),
        ("--hosts h1", "--hosts: 'h1': expected HOST:SLOTS, such as node1:4, received 'h1'"),
        ("--hosts h1:4,h2:0", "received 'h2:0'"),
        ("--hosts h1:2,h2:2 --np 5", "--np: expected at most the 4 slots of --hosts"),
        ("--env", "--env: expected a value, received none"),
        ("--np 2 --hosts_script s", "hosts_script: expected with --min_np"),
        ("--min_np 2 --hosts_script s", "--hosts_script: expected with --np"),
        ("--np 2 --return_after 5", "return_after: expected with --min_np"),
    ],
)
def test_mistakes_say_what_was_expected(written, says):
    with pytest.raises(UserError) as caught:
        read(written.split())
    assert says in str(caught.value)


def test_the_command_line_answers_at_once_from_anywhere(launch, tmp_path):
    def run(*words: str):
        return launch.run_model(*words, cwd=tmp_path)

    helped = run("--help")
    assert helped.status == 0
    assert "usage: lookback run" in helped.stdout
    removed = run("--np", "2", "--data_path", "d", "--prebatch_train_size", "16384")
    assert removed.status == 2
    assert removed.stderr.startswith("error: --prebatch_train_size is not needed here: ")
    mistyped = run("--np", "2", "--data_path", "d", "--epoch", "3")
    assert mistyped.status == 2
    assert "--epochs" in mistyped.stderr
    assert not list(tmp_path.iterdir())


def test_one_process_is_train_itself(launch, tmp_path):
    result = launch.run_model("--np", "1", "--data_path", "nothing", cwd=tmp_path)
    assert result.status == 2
    assert result.stderr.startswith("error: nothing is not a dataset")  # and nothing before it
    assert "run_model:" not in result.stderr
    assert "Traceback" not in result.stderr


def bound_cores(local_rank: int, local_size: int, how: str = "cores", **more: str) -> list[int]:
    """The cores on which a command of one rank may run."""
    code = "import os; print(*sorted(os.sched_getaffinity(0)))"
    environment = {"HOROVOD_LOCAL_RANK": str(local_rank), "HOROVOD_LOCAL_SIZE": str(local_size)}
    out = subprocess.run(
        [START_RANK, how, sys.executable, "-c", code],
        env={**os.environ, **environment, **more},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [int(word) for word in out.split()]


def test_ranks_share_the_cores_that_they_may_use():
    allowed = os.sched_getaffinity(0)
    ranks = len(allowed)
    shares = [bound_cores(rank, ranks) for rank in range(ranks)]
    assert sorted(core for share in shares for core in share) == sorted(allowed)
    assert all(len(share) == 1 for share in shares)
    assert bound_cores(0, 1) == sorted(allowed)
    assert bound_cores(1, 2, "none") == sorted(allowed)
    # More ranks than cores: no core is anybody's own.
    assert bound_cores(0, ranks + 1) == sorted(allowed)


def test_a_rank_keeps_its_status_and_hears_sigterm():
    environment = {**os.environ, "HOROVOD_LOCAL_RANK": "0", "HOROVOD_LOCAL_SIZE": "1"}

    def start(command: str) -> subprocess.Popen:
        return subprocess.Popen(
            [START_RANK, "cores", "bash", "-c", command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    assert start("exit 7").wait(10) == 7
    killed = start("kill -KILL $$")
    assert killed.wait(10) == 137
    assert killed.communicate() == ("", "")
    trap = start("trap 'echo saved; exit 143' TERM; echo ready; while :; do sleep 0.05; done")
    assert trap.stdout.readline() == "ready\n"
    trap.terminate()
    assert trap.communicate(timeout=10)[0] == "saved\n"
    assert trap.returncode == 143


def test_a_program_that_fails_and_one_that_ends_well(launch, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\n"
        "rank = os.environ['HOROVOD_RANK']\n"
        "print('out of', rank)\n"
        "if sys.argv[1:] == [rank]:\n"
        "    sys.exit(5)\n"
        "time.sleep(20 * bool(sys.argv[1:]))\n"
    )
    well = launch.run_script(2, program)
    assert (well.status, well.stderr) == (0, "")
    assert sorted(well.stdout.splitlines()) == ["[1] out of 1", "out of 0"]
    failed = launch.run_script(2, program, "1")
    assert failed.status == 5
    assert failed.stderr.splitlines()[-1] == "run_model: rank 1 ended with status 5"
    assert "Traceback" not in failed.stderr  # horovodrun's
    assert "horovodrun" not in failed.stdout


def write_to(port: int, key: str, body: bytes) -> int:
    """Writes to a store as anybody can; returns the HTTP status."""
    url = f"http://127.0.0.1:{port}/lookback/{key}"
    with urlopen(Request(url, data=body, method="PUT"), timeout=5) as answer:
        return answer.status


def read_from(port: int, key: str) -> bytes:
    """Reads what a store has."""
    with urlopen(f"http://127.0.0.1:{port}/lookback/{key}", timeout=5) as answer:
        return answer.read()


def test_a_note_is_sealed_as_rfc_2104_says():
    # Outer and inner hash, in full.
    import hashlib

    def sha256(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    key = b"secret".ljust(64, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in key) + b"error\n{}")
    expected = sha256(bytes(byte ^ 0x5C for byte in key) + inner)
    assert JobStore("127.0.0.1", 1, "secret").seal("error", b"{}") == expected


def test_notes_outlive_who_wrote_them(monkeypatch):
    from horovod.runner.http.http_server import RendezvousServer

    server = RendezvousServer()
    port = server.start()
    server.init([])
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1")
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_PORT", str(port))
    monkeypatch.setenv("LOOKBACK_SECRET", "open sesame")
    job_store = JobStore.of_this_process()
    assert job_store is not None
    assert job_store.get("error") is None
    job_store.put("error", {"rank": 1, "text": "ü"})
    assert job_store.get("error") == {"rank": 1, "text": "ü"}
    with pytest.raises(TimeoutError, match="here-1"):
        job_store.meet(0, 2, seconds=0.2)
    assert not job_store.found_strange
    # Notes of who does not know the secret, without a seal, and one that was moved, are none.
    JobStore("127.0.0.1", port, "open rye").put("here-1", {})
    assert job_store.get("here-1") is None
    assert job_store.found_strange
    assert write_to(port, "here-1", b"{}") == 200
    assert job_store.get("here-1") is None
    assert write_to(port, "stop", read_from(port, "error")) == 200
    assert job_store.get("stop") is None
    assert job_store.get("error") is not None
    job_store.put("here-1", {})
    job_store.meet(0, 2, seconds=0.2)
    job_store.meet(1, 2, seconds=0.2)
    server.stop()


def test_a_launcher_that_is_gone_is_told_from_a_note_that_is_missing():
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(NoLauncherError):
        JobStore("127.0.0.1", port, "open sesame").get("error")


@pytest.mark.parametrize(
    ("launcher", "address", "refused"),
    [
        ("10.0.0.1", "127.0.1.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("127.0.0.1", "127.0.1.1", False),
    ],
)
def test_a_machine_whose_name_means_itself_is_refused(monkeypatch, launcher, address, refused):
    from lookback.training.parallel import horovod_world as distributed

    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_ADDR", launcher)
    monkeypatch.setattr(distributed.socket, "gethostbyname", lambda name: address)
    if not refused:
        distributed.check_own_name()
        return
    with pytest.raises(UserError, match=r"means 127\.0\.1\.1 on it.*Correct it in /etc/hosts"):
        distributed.check_own_name()


def test_a_machine_whose_name_means_nothing_is_refused(monkeypatch):
    """Gloo would abort the process, on Merlin's import in one process too."""
    from lookback.training.parallel import horovod_world as distributed

    def unknown(name):
        raise distributed.socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(distributed.socket, "gethostbyname", unknown)
    for name in ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"no address on it \(Name or service.*to /etc/hosts"):
        distributed.start_world()

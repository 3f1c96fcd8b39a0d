"""What others on a machine or on its network see of a job, and what they can do to it.

The program waits and listens as train.py does, without TensorFlow.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from horovod.runner.common.util.hosts import SlotInfo

from lookback.training.parallel import horovodrun

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CANARY = "hunter2-not-for-ps"
PROGRAM = """
import json, os, socket, sys, time
from pathlib import Path

root, directory = map(Path, sys.argv[1:])
sys.path.insert(0, str(root))
from lookback.core.errors import UserError
from lookback.training.parallel.job_store import JobStore
from lookback.training.parallel.watch import Watch

job_store = JobStore.of_this_process()
watch = Watch(job_store)
job_store.meet(watch.rank, 2, seconds=60)
port = int(os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"])
with socket.socket() as probe:
    reached = str(probe.connect_ex(("127.0.0.1", port)) == 0)
(directory / "new").mkdir(exist_ok=True)
text = json.dumps({**os.environ, "REACHED": reached})
(directory / "new" / str(watch.rank)).write_text(text)
(directory / "new" / str(watch.rank)).rename(directory / str(watch.rank))
while not (directory / "fail").exists():
    time.sleep(0.05)
if watch.rank == 1:
    watch.tell(UserError("the disk is full"))
    print("error: the disk is full", file=sys.stderr, flush=True)
    time.sleep(8 * bool(job_store.secret))  # others end by what they hear, or by horovodrun
    sys.exit(2)
time.sleep(60)
"""


class CommandLines:
    """Every command line that anybody could list meanwhile."""

    def __enter__(self) -> CommandLines:
        self.seen: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    self.seen.add(" ".join(process.cmdline()))

    def holding(self, text: str) -> list[str]:
        return [line for line in self.seen if text in line]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def environments(directory: Path, seconds: float = 60) -> list[dict[str, str]]:
    """Waits until both processes listen; returns their environments."""
    deadline = time.monotonic() + seconds
    paths = [directory / str(rank) for rank in range(2)]
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [json.loads(path.read_text()) for path in paths]


def port_of(environment: dict[str, str]) -> int:
    return int(environment["HOROVOD_GLOO_RENDEZVOUS_PORT"])


def write_strange_error(port: int) -> None:
    body = json.dumps({"rank": 99, "text": "a stranger says so", "status": 7}).encode()
    request = Request(f"http://127.0.0.1:{port}/lookback/error", data=body, method="PUT")
    with urlopen(request, timeout=5) as answer:
        assert answer.status == 200


def other_addresses() -> Iterator[str]:
    """This machine's, without loopback."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not address.address.startswith("127."):
                yield address.address


def test_a_job_on_one_machine(launch, program, tmp_path):
    addresses = list(other_addresses())
    job = {"bind": "none", "variables": ["ASKED_FOR"]}
    with (
        CommandLines() as lines,
        launch.start_script(
            *(2, program, ROOT, tmp_path),
            job=job,
            SECRET_CANARY=CANARY,
            ASKED_FOR=f"{CANARY} 'too'\n",
        ) as started,
    ):
        ranks = environments(tmp_path)
        for rank in ranks:
            assert "SECRET_CANARY" not in rank
            assert rank["ASKED_FOR"] == f"{CANARY} 'too'\n"
            assert rank["HOROVOD_GLOO_RENDEZVOUS_ADDR"] == "127.0.0.1"
        port = port_of(ranks[0])
        for address in addresses:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5).close()
        write_strange_error(port)
        time.sleep(3)  # each looks once a second
        assert set(started.ranks()) == {0, 1}
        (tmp_path / "fail").touch()
        result = started.finish(30)
    assert result.status == 2, result.stderr
    assert "\nerror: rank 1 failed: the disk is full\n" in result.stderr
    assert "a stranger says so" not in result.stderr
    assert result.stderr.count("warning: somebody who does not belong to this run") == 1
    assert any("program.py" in line for line in lines.seen)
    assert not lines.holding(CANARY)
    assert not lines.holding(ranks[0]["LOOKBACK_SECRET"])
    if not addresses:
        pytest.skip("no address but loopback here: whether the port is open elsewhere is not known")


def test_a_job_on_two_machines(launch, program, tmp_path, two_hosts):
    options = dict(zip(two_hosts.options[::2], two_hosts.options[1::2], strict=True))
    job = {
        "hosts": options["--hosts"],
        "interface": options.get("--network_interface", "cable0"),
        "variables": ["ASKED_FOR"],
    }
    with (
        CommandLines() as lines,
        launch.start_script(
            *(2, program, ROOT, tmp_path),
            job=job,
            before=two_hosts.here,
            PATH=two_hosts.path,
            SECRET_CANARY=CANARY,
            ASKED_FOR=f"{CANARY} 'too'\n",
            SSH_AUTH_SOCK="/agent",
        ) as started,
    ):
        ranks = environments(tmp_path)
        for rank in ranks:
            assert rank["ASKED_FOR"] == f"{CANARY} 'too'\n"
            assert not {"SECRET_CANARY", "SSH_AUTH_SOCK"} & set(rank)
        assert len({rank["LOOKBACK_SECRET"] for rank in ranks}) == 1
        # The store is at its network's address alone; that is loopback if one machine plays two.
        assert (ranks[0]["REACHED"] == "True") == (two_hosts.how == "addresses")
        (tmp_path / "fail").touch()
        result = started.finish(30)
    assert result.status == 2, result.stderr
    assert "\nerror: rank 1 failed: the disk is full\n" in result.stderr
    assert lines.holding("/ssh -o")
    assert not lines.holding(CANARY)
    assert not lines.holding(ranks[0]["LOOKBACK_SECRET"])


def test_horovodrun_by_itself_tells_nobody_and_hears_nobody(launch, program, tmp_path):
    # It would import TensorFlow first.
    horovodrun = (
        "from horovod.runner import launch; launch.gloo_built = lambda verbose: True; "
        "launch.run_commandline()"
    )
    words = ("-np", "2", "--gloo", sys.executable, program, ROOT, tmp_path)
    with launch.Started(sys.executable, "-c", horovodrun, *words) as started:
        ranks = environments(tmp_path)
        write_strange_error(port_of(ranks[0]))
        time.sleep(3)
        assert set(started.ranks()) == {0, 1}
        (tmp_path / "fail").touch()
        result = started.finish(30)
    assert result.status != 0
    assert "error: the disk is full" in result.stderr  # who failed says it
    assert "a stranger says so" not in result.stderr
    assert not started.left_over()


def test_the_shell_sets_variables_without_starting_env():
    slot = SlotInfo("here", rank=1, local_rank=0, cross_rank=1, size=2, local_size=1, cross_size=2)
    written = horovodrun.slot_info_to_command_fn("/bin/sh -c 'echo \"$A\"'", {"A": "it's; $HOME"})(
        slot
    )
    ran = subprocess.run(
        ["/bin/sh", "-c", written], env={"PATH": ""}, capture_output=True, text=True, timeout=10
    )
    assert (ran.stdout, ran.stderr) == ("it's; $HOME\n", "")


def test_a_remote_shell_without_input_fails():
    def run(text: str) -> subprocess.CompletedProcess:
        words = ["/bin/sh", "-c", horovodrun.EVALUATE_INPUT]
        return subprocess.run(words, input=text, capture_output=True, text=True, timeout=10)

    assert run("echo 'a b'; exit 3").stdout == "a b\n"
    assert run("echo 'a b'; exit 3").returncode == 3
    assert run("").returncode != 0
    assert "expected from ssh, which passed no input on" in run("").stderr

"""scripts/slurm.py and scripts/kubernetes.py: what they would start, and that it starts.

Slurm's commands are stood in for; what they start are real processes, on two machines (network
namespaces) that no ssh connects.
"""

from __future__ import annotations

import base64
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from lookback.core.errors import UserError
from lookback.core.options import parse_known
from lookback.training.parallel.hosts import interface_to
from lookback.training.parallel.run_model import checked, node_of, read

ROOT = Path(__file__).resolve().parents[2]
RUN = ["--data_path", "/data/m l", "--model_type", "sim", "--results_dir", "r$x'"]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def slurm() -> ModuleType:
    return load("slurm")


@pytest.fixture(scope="module")
def kubernetes() -> ModuleType:
    return load("kubernetes")


def test_a_dry_run_of_slurm_prints_what_it_submits(slurm, capsys, monkeypatch):
    asked = ["--nodes", "2", "--processes_per_node", "2", "--gpus_per_node", "2"]
    asked += ["--cpus_per_node", "16", "--time", "1:00:00", "--partition", "gpu"]
    assert slurm.main([*asked, "--dry_run", "--", *RUN]) == 0
    said = capsys.readouterr().out
    script, _, processes = said.partition("\n\n#")
    lines = script.splitlines()
    assert lines[1:9] == [
        "#SBATCH --job-name=lookback",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=16",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --time=1:00:00",
        "#SBATCH --partition=gpu",
        "#SBATCH --signal=TERM@120",
    ]
    assert shlex.split(lines[-1]) == RUN
    words = " ".join(["train.py", "--dataset_dir", "'/data/m l'", *RUN[2:5], """'r$x'"'"''"""])
    assert processes.splitlines() == [
        " 4 processes, they meet at FIRST_MACHINE:29400; cores: cores",
        f"# rank 0: node 0, 1 of 2 there: {words}",
        f"# rank 1: node 0, 2 of 2 there: {words}",
        f"# rank 2: node 1, 1 of 2 there: {words}",
        f"# rank 3: node 1, 2 of 2 there: {words}",
    ]
    submitted = {}
    monkeypatch.setattr(
        "lookback.scripts.scheduling.subprocess.run",
        lambda command, **how: submitted.update(how, command=command) or _ended(),
    )
    slurm.main([*asked, "--", *RUN])
    assert submitted["command"] == ["sbatch"]
    assert submitted["input"].rstrip() == script.rstrip()


def _ended():
    return subprocess.CompletedProcess([], 0)


def test_mistakes_are_found_before_anything_waits_in_a_queue(slurm, kubernetes):
    with pytest.raises(UserError, match="--epochs"):
        slurm.main(["--nodes", "2", "--dry_run", "--", *RUN, "--epoch", "3"])
    with pytest.raises(UserError, match=r"--epochs: no option of scripts/slurm\.py"):
        slurm.main(["--nodes", "2", "--epochs", "3", "--", *RUN])
    for value in ("a\n#SBATCH --wrap=x", "a b", ""):
        with pytest.raises(UserError, match="--partition: expected a word without spaces"):
            slurm.main(["--nodes", "2", "--partition", value, "--dry_run", "--", *RUN])
    with pytest.raises(UserError, match=r"--nodes is required: .* Give it on the command line\.$"):
        slurm.main(["--", *RUN])
    for old in ("--cpus", "--gpus"):
        with pytest.raises(UserError, match=f"{old}: it is {old}_per_node now"):
            kubernetes.main(["--image", "i", "--nodes", "2", f"{old}=4", "--", *RUN])
    with pytest.raises(UserError, match="--name: expected a DNS label"):
        kubernetes.main(["--image", "i", "--nodes", "2", "--name", "A_b", "--dry_run", "--", *RUN])


def expanded(words: list[str], index: int) -> list[str]:
    """Arguments as Kubernetes passes them on (third_party/forked/golang/expansion)."""
    found = []
    for word in words:
        text, rest = "", word
        while rest:
            if rest.startswith("$$"):
                text, rest = text + "$", rest[2:]
            elif rest.startswith("$(JOB_COMPLETION_INDEX)"):
                text, rest = text + str(index), rest.removeprefix("$(JOB_COMPLETION_INDEX)")
            else:
                text, rest = text + rest[0], rest[1:]
        found.append(text)
    return found


def test_a_dry_run_of_kubernetes_prints_what_it_makes(kubernetes, capsys):
    asked = ["--image", "here/lookback:1", "--nodes", "3", "--processes_per_node", "2"]
    asked += ["--gpus_per_node", "2", "--memory", "64Gi", "--claim", "ml", "--namespace", "team"]
    run = [*RUN, "--env", "$(HOME)"]
    assert kubernetes.main([*asked, "--dry_run", "--", *run]) == 0
    said = capsys.readouterr().out
    assert "# 6 processes, they meet at lookback-0.lookback:29400" in said
    assert "# rank 5: node 2, 2 of 2 there: train.py" in said
    secret, service, policy, job = yaml.safe_load_all(said)
    assert {part["metadata"]["namespace"] for part in (secret, service, policy, job)} == {"team"}
    assert len(base64.b64decode(secret["data"]["secret"])) == 64
    assert service["spec"]["clusterIP"] == "None"
    pods = {"job-name": "lookback"}
    assert service["spec"]["selector"] == pods
    assert policy["spec"]["podSelector"]["matchLabels"] == pods
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": pods}}]}]
    job = job["spec"]
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (3, 3, "Indexed")
    pod = job["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]  # or pods had no names
    (container,) = pod["containers"]
    assert container["command"] == ["lookback", "run"]
    assert container["resources"] == {"limits": {"memory": "64Gi", "nvidia.com/gpu": 2}}
    for index in range(3):
        launch, train = read(expanded(container["args"], index))
        assert (launch.node, launch.nodes, launch.ranks) == (index, 3, 6)
        assert launch.variables == ["$(HOME)"]
        assert train == ["--dataset_dir", *RUN[1:]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--nodes 2", "--nodes: expected with --node and --store"),
        ("--nodes 2 --node 2 --store h:1", "expected more than --node (2)"),
        ("--nodes 2 --node 0 --store h:1 --np 3", "a divisor of the 3 processes of --np"),
        ("--nodes 2 --node 0 --store h", "expected HOST:SLOTS"),
        ("--nodes 2 --node 0 --store h:70000", "expected a port below 65536, received 70000"),
        ("--node 0", "node: expected with --nodes"),
        ("--nodes 2 --node 0 --store h:1 --hosts a:2", "expected without --hosts"),
    ],
)
def test_nodes_that_do_not_fit_together_are_refused(words, says):
    with pytest.raises(UserError) as caught:
        read(words.split())
    assert says in str(caught.value)


def test_machines_share_a_secret():
    launch, _ = read(["--nodes", "2", "--node", "1", "--store", "localhost:29400"])
    with pytest.raises(UserError, match="LOOKBACK_SECRET: expected 32 characters or more"):
        node_of(launch, {"LOOKBACK_SECRET": "short"})
    node = node_of(launch, {"LOOKBACK_SECRET": "s" * 32})
    assert (node.number, node.count, node.address, node.port) == (1, 2, "127.0.0.1", 29400)
    assert "sss" not in repr(node)
    assert interface_to("127.0.0.1") == "lo"


def test_what_ssh_would_start_is_shown():
    lines = checked(["--hosts", "a:1,b:2", "--np", "2", *RUN])
    assert lines[0] == "2 processes, started from here by ssh; cores: cores"
    assert [line.split(": train")[0] for line in lines[1:]] == [
        "rank 0: a, 1 of 1 there",
        "rank 1: b, 1 of 1 there",
    ]


@pytest.mark.slow
def test_two_machines_that_no_ssh_connects_train_together(
    launch, kills, slurm, dataset, tmp_path, two_hosts
):
    """The batch script itself, with srun and scontrol stood in for."""
    first = two_hosts.options[1].split(":")[0]
    places = [shlex.join(place) for place in (two_hosts.here, two_hosts.there)]
    tools = {
        "scontrol": f"[ \"$1 $2 $3\" = 'show hostnames the-list' ] && echo {first}",
        "srun": 'while [ "$1" != bash ]; do shift; done\n'
        "trap 'kill -TERM $one $two' TERM\n"
        f'SLURM_NODEID=0 {places[0]} "$@" & one=$!\n'
        f'SLURM_NODEID=1 {places[1]} "$@" & two=$!\n'
        "wait $one; status=$?; wait $two; exit $((status + $?))",
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    words = kills.arguments(launch, dataset, tmp_path, "run", epochs=1)
    script = tmp_path / "job.sh"
    asked, _ = parse_known(["--nodes", "2"], slurm.SlurmOptions)
    script.write_text(slurm.batch_script(asked, [*words, "--max_steps", "40"]))
    path = f"{tmp_path}:{two_hosts.path}"
    with launch.Started("bash", script, PATH=path, SLURM_JOB_NODELIST="the-list") as started:
        started.wait_for_steps(tmp_path / "run" / "log.json", 5)
        places = {Path(f"/proc/{p.pid}/ns/net").readlink() for p in started.ranks().values()}
        assert len(places) == (2 if two_hosts.how == "namespaces" else 1)
        result = started.finish(200)
        assert not started.left_over()
    assert result.status == 0, result.stderr
    assert "2 processes" in result.stdout
    assert launch.steps_in(tmp_path / "run" / "log.json") == 40

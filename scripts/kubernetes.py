"""Trains on Kubernetes, in the pods of an indexed job; with --dry_run, prints the manifest.

usage: scripts/kubernetes.py --image IMAGE --nodes N [--dry_run] [options] -- [options of
       scripts/run_model.sh]

Each pod has a launcher, and these find each other through a headless service: no operator and no
ssh. A network policy keeps others from reaching the pods (where the cluster's network knows
policies). The dataset and the directories for results lie on a volume claim that all pods mount
(ReadWriteMany). If a pod fails, so does the job: submit it again with --load_checkpoint_path.
"""

from __future__ import annotations

import base64
import dataclasses
import re
import secrets
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from lookback.core.errors import UserError
from lookback.core.faults import guarded
from lookback.core.limits import MOST_PARTS, MOST_THREADS
from lookback.core.options import option
from lookback.scripts.scheduling import SECONDS_TO_SAVE, hand_over, read_scheduling
from lookback.training.parallel.run_model import checked

INDEX = "$(JOB_COMPLETION_INDEX)"  # which Kubernetes puts in
SECRET_KEY = "secret"


@dataclasses.dataclass(frozen=True)
class KubernetesOptions:
    """What the cluster is asked for."""

    image: str = option(help="image with Lookback, made from our Dockerfile", nonempty=True)
    nodes: int = option(help="pods", at_least=1, limit=MOST_PARTS)
    processes_per_node: int = option(
        1, help="processes in each: one for each GPU", at_least=1, limit=MOST_PARTS
    )
    name: str = option("lookback", help="of job, service, secret and network policy")
    namespace: str | None = option(None, help="where they are made; none: kubectl's")
    claim: str | None = option(None, help="volume claim that each pod mounts")
    mount: str = option("/data", help="where it is mounted")
    cpus_per_node: int | None = option(None, help="cores of a pod", at_least=1, limit=MOST_THREADS)
    memory: str | None = option(None, help="memory of a pod, as Kubernetes reads it, such as 64Gi")
    gpus_per_node: int | None = option(None, help="GPUs of a pod", at_least=1, limit=MOST_PARTS)
    port: int = option(29400, help="of the first pod, where all meet", at_least=1024, below=1 << 16)
    dry_run: bool = option(False, help="print the manifest and the processes, start nothing")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", self.name):
            raise UserError(
                f"--name: expected a DNS label of at most 52 letters, digits and hyphens, received "
                f"{self.name!r}."
            )

    @property
    def processes(self) -> int:
        """All of them."""
        return self.nodes * self.processes_per_node


def arguments_of(asked: KubernetesOptions, node: str, run: Sequence[str]) -> list[str]:
    """The words after `lookback run` of the pod with a number."""
    store = f"{asked.name}-0.{asked.name}:{asked.port}"
    own = ["--np", str(asked.processes), "--nodes", str(asked.nodes), "--node", node]
    return [*own, "--store", store, *run]


def manifest(asked: KubernetesOptions, run: Sequence[str], secret: str) -> list[dict[str, Any]]:
    """The objects that are made.

    Args:
      asked: of the cluster.
      run: options of run_model.sh.
      secret: of this job alone, which lets its processes write to their store.
    """
    metadata = {"name": asked.name}
    if asked.namespace is not None:
        metadata["namespace"] = asked.namespace
    own = {"job-name": asked.name}  # a label that Kubernetes gives a job's pods
    encoded = base64.b64encode(secret.encode()).decode()
    service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": own}
    policy = {
        "podSelector": {"matchLabels": dict(own)},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": dict(own)}}]}],
    }
    return [
        _object("v1", "Secret", metadata, data={SECRET_KEY: encoded}),
        _object("v1", "Service", metadata, spec=service),
        _object("networking.k8s.io/v1", "NetworkPolicy", metadata, spec=policy),
        _object("batch/v1", "Job", metadata, spec=_job(asked, run)),
    ]


def _object(version: str, kind: str, metadata: Any, **content: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": dict(metadata), **content}


def _job(asked: KubernetesOptions, run: Sequence[str]) -> dict[str, Any]:
    # Kubernetes reads $(NAME) in arguments, and $$ as a dollar.
    words = [word.replace("$", "$$") for word in run]
    limits = {
        "cpu": asked.cpus_per_node,
        "memory": asked.memory,
        "nvidia.com/gpu": asked.gpus_per_node,
    }
    reference = {"secretKeyRef": {"name": asked.name, "key": SECRET_KEY}}
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    if asked.claim is not None:
        mounts.append({"name": "data", "mountPath": asked.mount})
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": asked.claim}})
    container = {
        "name": "lookback",
        "image": asked.image,
        "command": ["lookback", "run"],
        "args": arguments_of(asked, INDEX, words),
        "env": [{"name": "LOOKBACK_SECRET", "valueFrom": reference}],
        "resources": {"limits": {k: v for k, v in limits.items() if v is not None}},
        "volumeMounts": mounts,
    }
    pod = {
        "subdomain": asked.name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SECONDS_TO_SAVE,
        "containers": [container],
        "volumes": volumes,
    }
    return {
        "completions": asked.nodes,
        "parallelism": asked.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod alone cannot be started again: the others have ended, too
        "template": {"spec": pod},
    }


def main(arguments: Sequence[str]) -> int:
    """Starts, or shows.

    Raises:
      UserError: for what the user can put right.
    """
    given = read_scheduling(arguments, KubernetesOptions, "scripts/kubernetes.py", __doc__)
    if given is None:
        return 0
    asked, run = given
    lines = checked(arguments_of(asked, "0", run))
    objects = manifest(asked, run, secrets.token_hex(32))
    text = yaml.safe_dump_all(objects, sort_keys=False)
    if asked.dry_run:
        print(text)
        print("\n".join(f"# {line}" for line in lines))
        return 0
    return hand_over(["kubectl", "create", "-f", "-"], text, "a machine that reaches the cluster")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))

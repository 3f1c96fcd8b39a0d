"""Training across two machines: two network namespaces, horovodrun's own way to get there."""

from __future__ import annotations

import signal
from pathlib import Path

from training.checkpoint import open_checkpoint


def test_two_machines_train_as_one_does_and_end_together(launch, dataset, two_hosts, tmp_path):
    def arguments(name: str) -> list[str]:
        paths = {"data_path": dataset, "results_dir": tmp_path / name}
        return [
            *(word for key, value in paths.items() for word in (f"--{key}", str(value))),
            *(*launch.TINY_SIM, "--save_checkpoint_path", str(tmp_path / f"{name}-saved")),
            *("--keep_checkpoints", "1000"),
        ]

    together = launch.run_model("--np", "2", *arguments("one"), "--epochs", "1")
    assert together.status == 0, together.stderr

    across = launch.Started(
        *(*two_hosts.here, launch.RUN_MODEL, *two_hosts.options),
        *(*arguments("two"), "--epochs", "1000"),
        PATH=two_hosts.path,
    )
    with across:
        steps = launch.steps_in(tmp_path / "one" / "log.json")
        across.wait_for_steps(tmp_path / "two" / "log.json", steps + 1)
        namespaces = {Path(f"/proc/{p.pid}/ns/net").readlink() for p in across.ranks().values()}
        assert len(namespaces) == (2 if two_hosts.how == "namespaces" else 1)
        across.ranks()[0].send_signal(signal.SIGKILL)
        result = across.finish(40)
        assert result.status == 137, result.stderr
        assert "rank 0 ended with status 137: killed (SIGKILL)" in result.stderr
        # No ssh tells the other machine that the job is over: its process finds out by itself.
        assert not across.left_over(30)

    expected, found = (
        open_checkpoint(tmp_path / f"{name}-saved" / f"step-{steps:08d}") for name in ("one", "two")
    )
    assert set(expected) == set(found)
    for name in expected:
        assert (expected[name] == found[name]).all(), name

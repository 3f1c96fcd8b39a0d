"""What processes get of an environment."""

from __future__ import annotations

import pytest

from lookback.core.errors import UserError
from lookback.training.parallel.environment import handed_over

READ = {
    "PATH": "/bin",
    "LD_LIBRARY_PATH": "/lib",
    "PYTHONPATH": "/src",
    "LC_ALL": "C",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "30",
    "CUDA_VISIBLE_DEVICES": "0",
    "NCCL_DEBUG": "INFO",
    "OMP_NUM_THREADS": "1",
}
OTHERS = {
    "AWS_SECRET_ACCESS_KEY": "hunter2",
    "HTTPS_PROXY": "http://user:password@proxy",
    "SSH_AUTH_SOCK": "/tmp/agent",
    "MYPATH": "x",
    "BASH_FUNC_which%%": "() { :; }",
}


def test_what_they_read_and_what_is_asked_for():
    assert handed_over(READ | OTHERS) == READ
    assert handed_over(READ | OTHERS, ["MYPATH"]) == READ | {"MYPATH": "x"}


def test_no_shell_can_set_some_names():
    assert handed_over({"PYTHON PATH": "", "TF_A-B": "", "PYTHON": ""}) == {"PYTHON": ""}


@pytest.mark.parametrize("name", ["TYPO", "MYPATH=hunter2", "BASH_FUNC_which%%", ""])
def test_what_is_not_there_is_a_mistake_and_no_value_is_shown(name):
    with pytest.raises(UserError, match="--env: expected names of variables") as caught:
        handed_over(OTHERS, [name])
    assert "hunter2" not in str(caught.value)

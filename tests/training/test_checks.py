"""The doctor's checks of what this environment has: they agree with what its tests use."""

from __future__ import annotations

import importlib.util

import pytest

from lookback.cli import CHECKS
from lookback.core.doctor import tried
from lookback.training.parallel import checks


def test_the_doors_checks_are_there():
    assert {check.word for check in CHECKS} == {*checks.CHECKS} - {"exchange"}
    assert all(importlib.util.find_spec(check.module) for check in CHECKS)


@pytest.mark.slow
def test_sok_is_refused_with_the_reason():
    """As the backend itself refuses: no package, or no GPU."""
    check = next(check for check in CHECKS if check.word == "sok")
    if tried(check)["works"]:
        pytest.skip("it works here")
    without = tried(type(check)(check.name, check.module, check.word))
    assert "backend: sok" in without["why"]

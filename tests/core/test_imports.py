from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from lookback.core.imports import deferred, hidden


def said_by(program: str) -> str:
    """What a program prints, in a process that has imported nothing."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_hidden_cannot_be_imported_and_then_can() -> None:
    import json

    assert "graphlib" not in sys.modules or sys.modules.pop("graphlib")
    with hidden("graphlib", "json"):
        with pytest.raises(ImportError):
            import graphlib
        assert sys.modules["json"] is json  # imported before, it stays
    import graphlib

    assert graphlib.TopologicalSorter
    assert sys.modules["json"] is json


def test_what_failed_within_hides_nothing_afterwards() -> None:
    with pytest.raises(ZeroDivisionError), hidden("no_such_package"):
        _ = 1 / 0
    assert "no_such_package" not in sys.modules


def test_a_deferred_module_is_imported_when_something_of_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import colorsys

    module: Any = deferred("colorsys")
    monkeypatch.delitem(sys.modules, "colorsys")
    assert "colorsys" not in sys.modules
    assert module.rgb_to_hsv(0, 0, 1)[2] == colorsys.rgb_to_hsv(0, 0, 1)[2] == 1
    assert "colorsys" in sys.modules
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_every_door_looks_for_cycles_rarely() -> None:
    found = said_by(
        "import contextlib, gc, io\n"
        "from lookback.cli import LOOKBACK\n"
        "for door in ('train', 'tune', 'workflows', 'serving'):\n"
        "    gc.set_threshold(700)\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        LOOKBACK.main([door, '--help'])\n"
        "    print(door, gc.get_threshold()[0])"
    )
    assert found.splitlines() == [
        f"{door} 50000" for door in ("train", "tune", "workflows", "serving")
    ]


@pytest.mark.slow
def test_a_process_that_trains_alone_starts_no_horovod() -> None:
    found = said_by(
        "import sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from lookback.core.imports import import_merlin_alone, import_tensorflow\n"
        "import_tensorflow()\n"
        "print('jax' in sys.modules, 'scipy.ndimage' in sys.modules)\n"
        "import_merlin_alone()\n"
        "from merlin.models.tf.distributed import backend\n"
        "import horovod, scipy.ndimage\n"  # there again
        "print(backend.hvd_installed, 'horovod.tensorflow' in sys.modules)"
    )
    assert found.splitlines() == ["False False", "False False"]

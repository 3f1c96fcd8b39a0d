"""The package's public names: one list, and nothing imported before they are asked for."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import lookback
from lookback import api


def test_what_is_public_is_what_the_api_defines() -> None:
    defined = {
        name
        for name, value in vars(api).items()
        if getattr(value, "__module__", None) == api.__name__ and not name.startswith("_")
    }
    assert defined == set(lookback.__all__) - {"__version__"}
    for name in defined:
        assert getattr(lookback, name) is getattr(api, name)
        assert inspect.getdoc(getattr(lookback, name))
    assert dir(lookback) == sorted(lookback.__all__)
    with pytest.raises(AttributeError, match=r"'lookback' has no attribute 'recommend'"):
        lookback.recommend  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, lookback; lookback.load_bundle; import lookback.api; "
        "print(*sorted({'numpy', 'pandas', 'pyarrow', 'tensorflow', 'merlin'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

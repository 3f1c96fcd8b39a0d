"""Triton as `nvidia-pytriton` installs it: a server with the backend for Python, and no more."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

from lookback.core.errors import UserError

_INSTALL = "Install the extra `triton` (docs/how-to/install.md), or serve with --engine local."


@dataclasses.dataclass(frozen=True)
class Installation:
    """Where its parts are.

    Attributes:
      server: the program.
      libraries: a directory of those that it needs.
      backend: the directory of the one for Python.
      stub: the program in which that backend runs this version of Python.
    """

    server: Path
    libraries: Path
    backend: Path
    stub: Path

    @classmethod
    def find(cls) -> Installation:
        """The one of this environment.

        Raises:
          UserError: if there is none.
        """
        missing = [n for n in ("pytriton", "tritonclient") if importlib.util.find_spec(n) is None]
        if missing:
            raise UserError(f"--engine triton: {' and '.join(missing)} not installed. {_INSTALL}")
        spec = importlib.util.find_spec("pytriton")
        # Not imported: its package starts by looking for CUDA.
        home = Path(next(iter(spec.submodule_search_locations or ()))) if spec else Path()
        server = home / "tritonserver"
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
        found = cls(
            server=server / "bin" / "tritonserver",
            libraries=home.parent / "nvidia_pytriton.libs",
            backend=server / "backends" / "python",
            stub=stub,
        )
        for path in (found.server, found.libraries, found.backend, found.stub):
            if not path.exists():
                raise UserError(
                    f"--engine triton: expected {path}, as nvidia-pytriton 0.7 has it for Python "
                    f"{python}. {_INSTALL}"
                )
        return found

    def environment(self) -> dict[str, str]:
        """The variables with which the server and its stubs start.

        Stubs embed Python: they find its library by `LD_LIBRARY_PATH`, where this interpreter's own
        has to come before the system's, and its packages by the `python3` that `PATH` names first.
        """
        libraries = [str(sysconfig.get_config_var("LIBDIR")), str(self.libraries)]
        given = os.environ.get("LD_LIBRARY_PATH")
        programs = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *([given] if given else [])]),
            "PATH": os.pathsep.join(programs),
            "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
        }

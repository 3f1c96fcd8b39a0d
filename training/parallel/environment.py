"""The environment variables that a job's processes get from whoever starts them: what they read.

Passwords and keys of other programs lie in it, too, and would reach every machine of the job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lookback.core.errors import UserError

_NAMES = (
    *("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME"),  # matplotlib's, beside MPLCONFIGDIR
)
_PREFIXES = (
    *("LOOKBACK_", "PYTHON", "LC_", "MPL"),
    *("TF_", "TF2_", "XLA_", "HOROVOD_", "PROTOCOL_BUFFERS_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "UCX_", "FI_"),  # GPUs, and the networks that NCCL knows
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "MALLOC_"),  # CPUs
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # a shell sets them


def handed_over(environment: Mapping[str, str], more: Sequence[str] = ()) -> dict[str, str]:
    """The variables that processes get.

    Args:
      environment: all there are.
      more: names of some that are handed over besides.

    Raises:
      UserError: if one of `more` is not there.
    """
    for name in more:
        if name not in environment or not _NAME.fullmatch(name):
            # What follows "=" may be a secret.
            raise UserError(
                f"--env: expected names of variables of this environment, as in --env A,B, "
                f"received {name.partition('=')[0]!r}. Set and export it before."
            )
    return {
        name: value
        for name, value in environment.items()
        if (name in _NAMES or name in more or name.startswith(_PREFIXES)) and _NAME.fullmatch(name)
    }

"""How tabular data's raw numbers become what its files hold: at fit, at transform and in requests.

NVIDIA adds 2 so that all numbers are at least 1, which holds for Criteo's; smaller ones, of
other data, count as -1, so that their logarithm is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LOG_OFFSET = 2.0  # NVIDIA's DLRM: "Adding 2 to all the numerical features"


def shifted_log(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """X -> ln(max(x + 2, 1)), a missing x (NaN) counting as 0.

    Args:
      values: ``[n]``; computed in float64, which holds every integer of up to 15 digits.
    """
    logs = np.nan_to_num(np.asarray(values, np.float64))  # a copy
    logs += LOG_OFFSET
    np.maximum(logs, 1, out=logs)
    return np.log(logs, out=logs).astype(np.float32)


def unshifted(logs: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Numbers ``[n]`` that `shifted_log` would give `logs` of, but for rounding."""
    numbers: npt.NDArray[np.float64] = np.exp(np.asarray(logs, np.float64))
    return numbers - LOG_OFFSET

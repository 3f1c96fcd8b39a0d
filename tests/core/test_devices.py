"""In which type whole numbers lie, with a GPU and without one."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.core import devices
from lookback.core.devices import computable, resident, whole_numbers


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"])
def gpu(request, monkeypatch):
    monkeypatch.setattr(devices, "has_gpu", lambda: request.param)
    return request.param


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_whole_numbers_are_int64_on_gpus_alone(gpu, dtype):
    values = np.array([3, 1, 2], dtype)
    found = resident(values)
    assert found.dtype == (tf.int64 if gpu else tf.as_dtype(dtype))
    assert found.numpy().tolist() == [3, 1, 2]
    assert computable(tf.constant(values)).dtype == found.dtype
    assert whole_numbers() is (np.int64 if gpu else np.int32)


def test_other_numbers_stay_as_they_are(gpu):
    assert resident(np.array([0.5], np.float32)).dtype == tf.float32

"""How fast the device copies, how busy it is, and how much memory it took."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from lookback.core.devices import has_gpu
from lookback.core.rates import calls_a_second

_INTERVAL = 0.02  # seconds between two looks at how busy the GPU is


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))  # nvml.h: nvmlUtilization_t


def copy_rates(size: int, seconds: float) -> dict[str, float]:
    """Bytes a second: read and written in the device's memory, and to and from the host.

    Args:
      size: bytes of what is copied.
      seconds: of each measurement.
    """
    numbers = tf.random.normal([size // 4])
    on_host = numbers.numpy()

    @tf.function(autograph=False)
    def through() -> tf.Tensor:
        return numbers + 1.0

    return {
        "memory_bytes_per_s": 2 * size * calls_a_second(through, seconds),
        "to_device_bytes_per_s": size * calls_a_second(lambda: _sent(on_host), seconds),
        "to_host_bytes_per_s": size * calls_a_second(lambda: numbers.numpy(), seconds),
    }


def _sent(values: Any) -> tf.Tensor:
    with tf.device("/GPU:0" if has_gpu() else "/CPU:0"):
        return tf.identity(tf.convert_to_tensor(values))


@contextlib.contextmanager
def busy() -> Iterator[dict[str, Any]]:
    """Measures, within it, how busy GPU 0 is; fills what it gives when it ends.

    NVML's rate: the part of its last sample period in which a kernel ran.
    """
    found: dict[str, Any] = {}
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        device = ctypes.c_void_p()
        failed = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device))
    except OSError:
        failed = 1
    if failed:
        yield found
        return
    seen: list[int] = []
    ended = threading.Event()

    def look() -> None:
        now = _Utilization()
        while not ended.wait(_INTERVAL):
            if not nvml.nvmlDeviceGetUtilizationRates(device, ctypes.byref(now)):
                seen.append(now.gpu)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        if seen:
            found["gpu_busy_fraction"] = sum(seen) / len(seen) / 100


def peak_memory() -> int | None:
    """Bytes of GPU 0 that TensorFlow had at once since the last call; None without a GPU."""
    if not has_gpu():
        return None
    peak = int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    tf.config.experimental.reset_memory_stats("GPU:0")
    return peak

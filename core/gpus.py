"""NVIDIA's driver and the GPUs it sees, asked without TensorFlow and without taking any memory."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from pathlib import Path
from typing import Any

DRIVER = "libcuda.so.1"
_VERSION_FILE = Path("/proc/driver/nvidia/version")
# cuda.h: CUdevice_attribute
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NAME_BYTES = 100


@dataclasses.dataclass(frozen=True)
class GPU:
    """One GPU.

    Attributes:
      name: as its driver calls it.
      capability: compute capability, such as "9.0".
      memory: bytes of it.
    """

    name: str
    capability: str
    memory: int


@dataclasses.dataclass(frozen=True)
class Driver:
    """What the driver says.

    Attributes:
      version: of the kernel's module, such as "580.82.07"; None where it does not say.
      cuda: the newest CUDA that it can run, such as "13.0"; None without a driver.
      gpus: by number.
      why: why there are none; None if there are.
    """

    version: str | None = None
    cuda: str | None = None
    gpus: tuple[GPU, ...] = ()
    why: str | None = None


def least_memory() -> float | None:
    """Bytes of the smallest GPU that this process sees; None without one."""
    return min((float(gpu.memory) for gpu in ask_driver().gpus), default=None)


def ask_driver(library: str = DRIVER, version_file: Path = _VERSION_FILE) -> Driver:
    """Asks NVIDIA's driver; never raises.

    Args:
      library: its name or path.
      version_file: where the kernel's module says what it is.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        return Driver(why=f"no NVIDIA driver ({error})")
    version = None
    if version_file.is_file():
        match = re.search(r"(\d+\.\d+[.\d]*)", version_file.read_text(errors="replace"))
        version = match and match[1]
    try:
        _call(cuda, "cuInit", 0)
        newest, count = ctypes.c_int(), ctypes.c_int()
        _call(cuda, "cuDriverGetVersion", ctypes.byref(newest))
        newest_text = f"{newest.value // 1000}.{newest.value % 1000 // 10}"
        _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
        found = tuple(_gpu(cuda, number) for number in range(count.value))
    except (OSError, AttributeError) as error:
        return Driver(version, why=f"the driver is there and does not work: {error}")
    return Driver(version, newest_text, found, None if found else "the driver sees no GPU")


def _gpu(cuda: Any, number: int) -> GPU:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(_NAME_BYTES)
    _call(cuda, "cuDeviceGet", ctypes.byref(device), number)
    _call(cuda, "cuDeviceGetName", name, _NAME_BYTES, device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    return GPU(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)


def _call(cuda: Any, function: str, *arguments: Any) -> None:
    """Calls a function of the driver; OSError with its own words where it fails."""
    status = getattr(cuda, function)(*arguments)
    if status:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        reason = (text.value or b"unknown error").decode(errors="replace")
        raise OSError(f"{function} gave {status}, {reason}")

"""What `lookback doctor` tries, each in a process of its own: ``python -m ... checks NAME``.

The last line of output is a JSON object: `works`, `why` it does not or what it `says`, figures.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from lookback.core.errors import UserError
from lookback.core.rates import gemm_rate

MODULE = "lookback.training.parallel.checks"
"""This one's name: run by `-m`, it is called `__main__`."""
SECONDS = 0.5
"""Of each product: two make a second."""
_EXCHANGED = 4 << 20  # float32 numbers that a rank sends to each, 16 MB
_REPEATS = 5


def tensorflow() -> dict[str, Any]:
    """A product in float32 and in the type of `--amp`, on the device that training would take."""
    start = time.perf_counter()
    import tensorflow as tf

    imported = time.perf_counter() - start
    gpus = [
        tf.config.experimental.get_device_details(g) for g in tf.config.list_physical_devices("GPU")
    ]
    half = tf.float16 if gpus else tf.bfloat16
    rates = {dtype.name: gemm_rate(dtype.name, SECONDS) for dtype in (tf.float32, half)}
    where = gpus[0].get("device_name", "a GPU") if gpus else "the CPU"
    speeds = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in rates.items())
    return {
        "works": True,
        "says": f"{tf.__version__}, {speeds} on {where}; imported in {imported:.1f} s",
        "gpus": gpus,
        "flops": rates,
        "import_seconds": imported,
    }


def kernels() -> dict[str, Any]:
    """Loads our operations."""
    from lookback.kernels.loader import why_portable

    why = why_portable()
    return {"works": why is None, "why": why, "says": "our operations for CPUs are used"}


def horovod() -> dict[str, Any]:
    """Starts two ranks here, that send each other numbers; rank 0 prints what comes out."""
    from lookback.training.parallel.launch import Job, run_job

    status = run_job(Job([sys.executable, "-m", MODULE, "exchange"], ranks=2, bind="none"))
    raise SystemExit(status)


def exchange() -> dict[str, Any] | None:
    """One of two ranks: an all-to-all, its numbers compared with what they must be."""
    import horovod.tensorflow as hvd
    import numpy as np
    import tensorflow as tf

    from lookback.training.parallel.horovod_world import start_world

    world = start_world()
    gpus = tf.config.list_physical_devices("GPU")
    # NCCL takes a GPU for each rank; with fewer, Gloo carries what lies in the hosts' memory.
    own = gpus[world.local_rank : world.local_rank + 1] if len(gpus) >= world.local_size else []
    tf.config.set_visible_devices(own, "GPU")
    with tf.device("/GPU:0" if own else "/CPU:0"):
        sent = np.repeat(np.arange(world.size) + world.size * world.rank, _EXCHANGED)
        numbers = tf.constant(sent, tf.float32)
        seconds = []
        for number in range(_REPEATS):
            start = time.perf_counter()
            received = hvd.alltoall(numbers, name=f"doctor_{number}")
            answer = received.numpy()
            seconds.append(time.perf_counter() - start)
    expected = np.repeat(np.arange(world.size) * world.size + world.rank, _EXCHANGED)
    right = all(world.gather(bool(np.array_equal(answer, expected))))
    if world.rank:
        return None
    size = 4 * _EXCHANGED * world.size
    return {
        "works": right,
        "why": "an all-to-all of two ranks gave wrong numbers",
        "says": f"an all-to-all of {world.size} ranks, {size / 1e6:,.0f} MB of each, in "
        f"{1e3 * min(seconds):,.0f} ms over {'NCCL' if own else 'Gloo'}",
        "bytes": size,
        "seconds": min(seconds),
    }


def sok() -> dict[str, Any]:
    """Starts SOK, which needs a GPU."""
    from lookback.embeddings.backends.sok import start

    _, module = start()
    return {"works": True, "says": f"SOK {module.__version__}"}


def gpu_frames() -> dict[str, Any]:
    """Adds up three numbers with cuDF."""
    import cudf

    total = int(cudf.Series([1, 2, 3]).sum())
    return {
        "works": total == 6,
        "why": f"the sum of 1, 2, 3 came out as {total}",
        "says": f"cuDF {cudf.__version__}",
    }


CHECKS: dict[str, Callable[[], dict[str, Any] | None]] = {
    "tensorflow": tensorflow,
    "kernels": kernels,
    "horovod": horovod,
    "exchange": exchange,
    "sok": sok,
    "gpu_frames": gpu_frames,
}


def main(name: str) -> None:
    """Runs a check and prints its object.

    Args:
      name: a key of CHECKS.
    """
    try:
        answer = CHECKS[name]()
    except UserError as error:
        answer = {"works": False, "why": str(error)}
    except Exception as error:  # whatever a library raises is why it does not work
        answer = {"works": False, "why": f"{type(error).__name__}: {error}"}
    if answer is not None:
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

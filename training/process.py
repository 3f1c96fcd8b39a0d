"""Process set-up: what must be decided before TensorFlow is imported, and right after."""

from __future__ import annotations

import os
import warnings

from errors import UserError
from training.config import RunConfig


def prepare_environment(config: RunConfig) -> None:
    """Sets what TensorFlow and Merlin read when they are imported; call before importing them.

    Args:
      config: of the run.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors; not which CPU instructions exist
    # Merlin warns on import that it found neither PyTorch nor Triton, which nobody asked for.
    warnings.filterwarnings("ignore", message=".*dtype mappings did not load.*")
    if config.xla:
        # On CPU, clusters are compiled only with the second flag.
        flags = os.environ.get("TF_XLA_FLAGS", "")
        os.environ["TF_XLA_FLAGS"] = f"{flags} --tf_xla_auto_jit=2 --tf_xla_cpu_global_jit".strip()


def set_up_tensorflow(config: RunConfig, local_rank: int = 0) -> None:
    """Configures threads, devices and precision; call before any tensor is made.

    Args:
      config: of the run.
      local_rank: which of its node's processes this is; each has the GPU of that number.
    """
    import tensorflow as tf

    from training.precision import amp_policy

    # Merlin's imports log a deprecation of TensorFlow's through its own logger.
    tf.get_logger().setLevel("ERROR")
    if config.inter_op_parallelism is not None:
        tf.config.threading.set_inter_op_parallelism_threads(config.inter_op_parallelism)
    if config.intra_op_parallelism is not None:
        tf.config.threading.set_intra_op_parallelism_threads(config.intra_op_parallelism)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus and local_rank >= len(gpus):
        raise UserError(
            f"This machine has {len(gpus)} GPUs, and process {local_rank} of it, from 0, was "
            "started. Start one process for each GPU."
        )
    if gpus:
        gpus = gpus[local_rank : local_rank + 1]
        tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if config.amp:
        tf.keras.mixed_precision.set_global_policy(amp_policy(has_gpu=bool(gpus)))

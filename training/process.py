"""Process set-up: what must be decided before TensorFlow is imported, and right after."""

from __future__ import annotations

import os

from lookback.core.caches import provide_caches
from lookback.core.errors import UserError
from lookback.core.imports import expect_no_pytorch, import_merlin_alone
from lookback.core.world import SOLO, World
from lookback.training.config import RunConfig


def prepare_environment() -> None:
    """Sets what TensorFlow and Merlin read when they are imported; call before importing them.

    Raises:
      UserError: if no temporary files can be made.
    """
    provide_caches()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors; not which CPU instructions exist
    expect_no_pytorch()


def set_up_tensorflow(config: RunConfig, world: World = SOLO) -> None:
    """Configures threads, devices and precision; call before any tensor is made.

    Args:
      config: of the run.
      world: the processes that train together; each has the GPU of its number on its node.

    Raises:
      UserError: if this process has no GPU where others of its node have.
    """
    import tensorflow as tf

    from lookback.training.precision import amp_policy

    # Merlin's imports log a deprecation of TensorFlow's through its own logger.
    tf.get_logger().setLevel("ERROR")
    threads = tf.config.threading
    for name, choose in (
        ("inter_op_parallelism", threads.set_inter_op_parallelism_threads),
        ("intra_op_parallelism", threads.set_intra_op_parallelism_threads),
    ):
        if getattr(config, name) is not None:
            try:
                choose(getattr(config, name))
            except RuntimeError as error:
                raise UserError(
                    f"{name}: expected before TensorFlow's first operation, received it in a "
                    "process that has run one. Give it in a new process, or leave it out."
                ) from error
    if world.size > 1:
        stop_spinning()
    gpus, local_rank = tf.config.list_physical_devices("GPU"), world.local_rank
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
    # Said of both: an earlier run of this process may have said the other.
    policy = amp_policy() if config.amp else "float32"
    tf.keras.mixed_precision.set_global_policy(policy)
    if world.size == 1:
        import_merlin_alone()


def stop_spinning() -> None:
    """Lets TensorFlow's idle threads sleep; call before any tensor is made.

    They spin while they wait, on the cores that Horovod's thread needs for what they wait for:
    with one core a rank, two ranks trained 1.4 times as fast without. TensorFlow 2 has no public
    switch for it (`ConfigProto.Experimental.disable_thread_spinning`; the context merges its own
    settings into this one, tensorflow/python/eager/context.py, `Context.config`).
    """
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.eager import context

    settings = config_pb2.ConfigProto()
    settings.experimental.disable_thread_spinning = True
    context.context()._config = settings

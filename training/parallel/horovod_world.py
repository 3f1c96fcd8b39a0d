"""The processes that a launcher started (`horovodrun`, `mpirun`), connected by Horovod.

The only place where dense gradients are reduced and where processes are told of each other's
errors. Tables exchange their rows in `embeddings.backends`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lookback.core.errors import UserError
from lookback.core.faults import status_of
from lookback.core.world import SOLO, World, running_sum
from lookback.training.parallel.job_store import LOST_CONNECTION, JobStore, NoLauncherError
from lookback.training.parallel.watch import ADVICE, Failure, Watch
from lookback.training.signals import TERMINATED_EXIT_STATUS

if TYPE_CHECKING:
    import tensorflow as tf

_SIZE_VARIABLES = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""What horovodrun, Open MPI and MPICH (Intel MPI, Slurm's PMI) tell a process of their number."""

_RANK_VARIABLES = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""What they tell it of its place among them."""

_SECONDS_TO_EXIT = 10.0
"""After an error, how long shutting down may take before the process just ends."""

_SECONDS_TO_START = 600.0
"""How long the first process waits for the last to import TensorFlow."""

_CYCLE_MILLISECONDS = "5"
"""How often Horovod's thread looks for work on CPUs while ids travel ahead.

It takes turns with the computation there. Horovod's default is 1 (5 before 0.19), at which asking
all others each time took 7 % of a rank's only core (measured with two ranks, steps of 0.4 s). Steps
that are short, or wait for their ids, lose more by waiting for the next look than they gain.
"""

_SIGNS_OF_A_LOST_CONNECTION = ("Horovod has been shut down", "gloo/transport/")
"""In the messages of Horovod (operations.cc) and Gloo, which say in which file they arose."""


def launched_rank() -> int:
    """The rank of this process among those that were launched together; 0 of one alone."""
    return max(int(os.environ.get(name, "0")) for name in _RANK_VARIABLES)


def launched_size() -> int:
    """How many processes were launched together with this one; 1 if it is alone."""
    return max(int(os.environ.get(name, "1")) for name in _SIZE_VARIABLES)


def start_world(*, prefetch_ids: bool = False) -> World:
    """The processes that were launched together; SOLO if this one was started alone.

    Call it before TensorFlow is used, after the environment is set.

    Args:
      prefetch_ids: whether the ids of a batch will be exchanged while another is computed.

    Raises:
      UserError: if several processes were launched and Horovod is not there, or does not know
        the launcher; if this machine's name has no address.
    """
    launched = launched_size()
    if launched == 1:
        if importlib.util.find_spec("horovod") is not None:
            check_own_name()
        Watch(JobStore.of_this_process())  # a launcher may ask it to save and end
        return SOLO
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise UserError(
            f"Several processes were launched together, and Horovod, which connects them, cannot "
            f"be imported ({error}). Run scripts/setup.sh, which builds it."
        ) from error
    job_store = JobStore.of_this_process()
    watch = Watch(job_store)  # first: connecting waits for all the others
    try:
        check_own_name()
        if job_store is not None:
            _await_others(job_store, watch.rank, launched)
    except UserError as error:
        watch.tell(error)
        raise
    if prefetch_ids and not hvd.nccl_built():
        os.environ.setdefault("HOROVOD_CYCLE_TIME", _CYCLE_MILLISECONDS)
    hvd.init()
    if hvd.size() != launched:
        raise UserError(
            f"{launched} processes were launched together, and Horovod connects {hvd.size()} of "
            "them: it was not built for this launcher. Start them with scripts/run_model.sh or "
            "horovodrun --gloo."
        )
    return HorovodWorld(hvd, watch)


def _await_others(job_store: JobStore, rank: int, size: int) -> None:
    """Waits until all processes have done their imports.

    Gloo allows as little time for the slowest start as for a message later
    (HOROVOD_GLOO_TIMEOUT_SECONDS), and then aborts. Imports from a busy file system take longer.
    """
    try:
        job_store.meet(rank, size, _SECONDS_TO_START)
    except (NoLauncherError, OSError) as error:
        raise UserError(
            f"rank {rank} of {size} has waited for the others to start, and they have not: {error}."
        ) from error


def check_own_name() -> None:
    """Refuses a machine whose name means nothing, or one among several whose name means itself.

    Gloo aborts the process where the name has no address, and so it is when one process trains: on
    import Merlin starts Horovod (merlin/models/tf/distributed/backend.py:20).

    Horovod forgets, for one of its connections, the interface that horovodrun has found, and takes
    the one that the machine's name has (0.28.1, gloo_context.cc: InitializeForProcessSet reads the
    `gloo_iface_` of a new context). Where the name means 127.0.1.1, as Debian writes it into
    /etc/hosts, the others are told to connect to themselves; then Horovod aborts.
    """
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        raise UserError(
            f"The name of this machine, {name}, means no address on it ({error.strerror}), and "
            f"Horovod aborts then. Add it to /etc/hosts, for one machine as `127.0.1.1 {name}`."
        ) from error
    launcher = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1")
    if launcher.startswith("127.") or not address.startswith("127."):
        return  # all on one machine, or a name that the others understand
    raise UserError(
        f"The name of this machine, {name}, means {address} on it. Expected its address in the "
        f"network of the other machines, which Horovod tells them. Correct it in /etc/hosts."
    )


class HorovodWorld:
    """Several processes."""

    def __init__(self, hvd: Any, watch: Watch) -> None:
        """Wraps an initialised `horovod.tensorflow`."""
        self._hvd = hvd
        self._watch = watch
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()
        self.local_rank: int = hvd.local_rank()
        self.local_size: int = hvd.local_size()

    def gather(self, value: Any) -> list[Any]:
        """See `World`."""
        values: list[Any] = self._hvd.allgather_object(value)
        return values

    def concatenate(self, rows: NDArray[Any]) -> NDArray[Any]:
        """See `World`."""
        array: NDArray[Any] = self._hvd.allgather(np.ascontiguousarray(rows)).numpy()
        return array

    def sum(self, tensors: Sequence[tf.Tensor], wire_dtype: str = "float32") -> Sequence[tf.Tensor]:
        """See `World`."""
        import tensorflow as tf

        if not tensors:
            return []
        shapes = [tensor.shape for tensor in tensors]
        sizes = [int(np.prod(shape)) for shape in shapes]
        flat = [tf.reshape(tensor, [-1]) for tensor in tensors]
        if wire_dtype == "float32":
            message = tf.concat([*flat, _never_constant(flat[0].dtype)], 0)
            total = self._hvd.allreduce(message, op=self._hvd.Sum)[:-1]
        else:
            wire = tf.as_dtype(wire_dtype)
            total = self._compressed_sum(tf.concat(flat, 0), wire, sum(sizes))
        parts = tf.split(total, sizes)
        return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]

    def sum_in_order(self, rows: tf.Tensor) -> tf.Tensor:
        """See `World`; each rank adds up a share of the columns of everybody's rows."""
        import tensorflow as tf

        count, size = rows.shape
        share = -(-size // self.size)
        padded = tf.pad(rows, [[0, 0], [0, share * self.size - size]])
        by_owner = tf.transpose(tf.reshape(padded, [count, self.size, share]), [1, 0, 2])
        sent = tf.reshape(by_owner, [-1])
        arrived, _ = self._hvd.alltoall(sent, tf.fill([self.size], count * share))
        total = running_sum(tf.reshape(arrived, [self.size * count, share]))
        return self._hvd.allgather(total)[:size]

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """See `World`."""
        self._hvd.broadcast_variables(variables, root_rank=0)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Tells the others of an error here, and ends this process in good order for theirs.

        Raises:
          SystemExit: in place of a lost connection, after saying whose error it was.
        """
        previous = signal.signal(signal.SIGTERM, _terminate)
        try:
            yield
        except BaseException as error:
            # The launcher's SIGTERM for the others must not cut short what is said now.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._watch.close()
            self._end(error)
        self._watch.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)

    def _compressed_sum(self, flat: tf.Tensor, wire: tf.DType, size: int) -> tf.Tensor:
        """Reduce-scatter and all-gather in `wire`, adding up in float32.

        As many bytes as a ring all-reduce in `wire`, which Horovod has for float16 alone
        (horovod/tensorflow/mpi_ops.cc, HorovodAllreduce), and which would round, or overflow,
        at each addition.
        """
        import tensorflow as tf

        def bits(values: tf.Tensor) -> tf.Tensor:
            return tf.bitcast(tf.cast(values, wire), tf.uint16)

        def numbers(values: tf.Tensor) -> tf.Tensor:
            return tf.cast(tf.bitcast(values, wire), tf.float32)

        share = -(-size // self.size)
        padded = tf.pad(flat, [[0, share * self.size - size]])
        arrived, _ = self._hvd.alltoall(bits(padded), tf.fill([self.size], share))
        total = tf.reduce_sum(tf.reshape(numbers(arrived), [self.size, share]), 0)
        return numbers(self._hvd.allgather(bits(total)))[:size]

    def _end(self, error: BaseException) -> NoReturn:
        """Raises what ends this process after `error`, here or elsewhere."""
        if isinstance(error, SystemExit) and error.code != TERMINATED_EXIT_STATUS:
            raise error
        failure = None
        if isinstance(error, SystemExit):
            # horovodrun ends all processes when one has failed. If that is why, say so.
            failure = self._watch.failure() or self._terminated(error)
        elif _is_lost_connection(error):
            failure = self._watch.failure() or self._lost_connection()
        if failure is None:
            self._watch.tell(error)
            _leave_in_time(status_of(error))
            raise error
        failure.report()
        _leave_in_time(failure.status)
        raise SystemExit(failure.status) from error

    def _terminated(self, error: SystemExit) -> Failure:
        text = (
            f"rank {self.rank} of {self.size} was told to end (SIGTERM), as all are when one has "
            "ended."
        )
        return Failure(TERMINATED_EXIT_STATUS, text if isinstance(error, _Terminated) else "")

    def _lost_connection(self) -> Failure:
        return Failure(
            LOST_CONNECTION,
            f"rank {self.rank} of {self.size} lost the connection to another process, which was "
            f"killed (out of memory?) or frozen, or whose machine or network failed; the end of "
            f"its own output says more. {ADVICE}",
        )


def _never_constant(dtype: tf.DType) -> tf.Tensor:
    """A number ``[1]`` that makes a message depend on more than constants.

    While TensorFlow optimises a graph it computes what follows from constants, as the size of a
    batch of fixed shape does, and so would reduce it there (constant_folding.cc: whatever is not
    declared stateful, and Horovod's operations are not): this process alone, while others wait for
    it in another message, forever. Reading the clock is stateful.
    """
    import tensorflow as tf

    return tf.reshape(tf.cast(tf.timestamp(), dtype), [1])


def _leave_in_time(status: int) -> None:
    """Ends the process if shutting down hangs, so that nobody waits for it."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    timer = threading.Timer(_SECONDS_TO_EXIT, leave)
    timer.daemon = True
    timer.start()


class _Terminated(SystemExit):
    """SIGTERM has arrived where nothing is to be saved."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated(TERMINATED_EXIT_STATUS)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an error of TensorFlow or Horovod says that a collective could not be finished."""
    import tensorflow as tf
    from horovod.common.exceptions import HorovodInternalError

    if isinstance(error, HorovodInternalError):
        return True
    return isinstance(error, tf.errors.OpError) and any(
        sign in str(error) for sign in _SIGNS_OF_A_LOST_CONNECTION
    )

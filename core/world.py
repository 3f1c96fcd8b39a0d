"""The processes that train together, as each of them sees the others.

No communication library here: `training.parallel.horovod_world` has the processes that a launcher
started.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lookback.core.errors import UserError
from lookback.core.faults import sentence

if TYPE_CHECKING:
    import tensorflow as tf
    from numpy.typing import NDArray


class World(Protocol):
    """The processes (ranks) that train together."""

    @property
    def rank(self) -> int:
        """The number of this process, in [0, size)."""

    @property
    def size(self) -> int:
        """How many processes there are (R)."""

    @property
    def local_rank(self) -> int:
        """The number of this process among those of its node."""

    @property
    def local_size(self) -> int:
        """How many processes this one's node has."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, on every rank.

        A collective, and so a barrier: every rank must call it as often as the others.

        Args:
          value: what this rank says; something that JSON can hold.
        """

    def concatenate(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Arrays ``[n, ...]`` of all ranks, one after another, on every rank. A collective."""

    def sum(self, tensors: Sequence[tf.Tensor], wire_dtype: str = "float32") -> Sequence[tf.Tensor]:
        """Sums over all ranks, element by element, in the graph or out of it. A collective.

        Args:
          tensors: float32, or all int64, of the same shapes on every rank; they travel together.
          wire_dtype: type in which they travel: float32, float16 or bfloat16. They are added up
            in float32.
        """

    def sum_in_order(self, rows: tf.Tensor) -> tf.Tensor:
        """Adds up rows one after another, rank 0's first, so that the sum has one value.

        Args:
          rows: float32 ``[m, n]``, as many on every rank. A collective.

        Returns:
          ``[n]``, the same whichever ranks the rows were on.
        """

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Gives variables the values of rank 0. A collective."""

    def together(self) -> contextlib.AbstractContextManager[None]:
        """A block of work in which one rank's error is every rank's."""


@dataclasses.dataclass(frozen=True)
class Solo:
    """One process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """The value."""
        return [value]

    def concatenate(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows."""
        return rows

    def sum(self, tensors: Sequence[tf.Tensor], wire_dtype: str = "float32") -> Sequence[tf.Tensor]:
        """The tensors."""
        del wire_dtype
        return tensors

    def sum_in_order(self, rows: tf.Tensor) -> tf.Tensor:
        """The rows one after another."""
        return running_sum(rows)

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """They are what they should be."""

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Nothing: there is no other process to tell."""
        yield


SOLO = Solo()


def agree(world: World, work: Callable[[], Any]) -> list[Any]:
    """Does something on every rank; if it fails on one, it has failed on all.

    One gather, whatever happens, so that no rank waits for one that has failed.

    Args:
      world: the ranks, each of which calls this function.
      work: what this rank does; returns something that JSON can hold.

    Returns:
      What each rank's work returned, by rank.

    Raises:
      BaseException: on a rank whose work raised, that error; on the others a UserError if it was
        one, else a RuntimeError, with the message of the first rank that failed.
    """
    result = failure = None
    try:
        result = work()
    except BaseException as error:  # the others must hear of an interrupt, too
        failure = error
    fault = None if failure is None else _fault(failure)
    answers = world.gather({"result": result, "fault": fault})
    if failure is not None:
        raise failure
    for rank, answer in enumerate(answers):
        if answer["fault"] is not None:
            kind = UserError if answer["fault"]["user"] else RuntimeError
            raise kind(f"rank {rank}: {answer['fault']['text']}")
    return [answer["result"] for answer in answers]


def require_same(world: World, facts: Mapping[str, Any]) -> None:
    """Checks that all ranks were started with the same facts.

    Args:
      world: the ranks.
      facts: by name; something that JSON can hold.

    Raises:
      UserError: naming what differs, and between which ranks.
    """
    told = world.gather(dict(facts))
    for rank, theirs in enumerate(told):
        for name, value in told[0].items():
            if theirs.get(name) != value:
                raise UserError(
                    f"{name}: expected the same on all ranks, received {value!r} on rank 0 and "
                    f"{theirs.get(name)!r} on rank {rank}. Start all with one command line."
                )


def _fault(error: BaseException) -> dict[str, Any]:
    message = sentence(error)
    text = f"{type(error).__name__}: {error}" if message is None else message
    return {"user": message is not None, "text": text}


def running_sum(rows: tf.Tensor) -> tf.Tensor:
    """Rows ``[m, n]`` added up one after another: ``[n]``.

    Not reduce_sum, whose order of additions depends on shapes and threads.
    """
    import tensorflow as tf

    first, *others = tf.unstack(rows)
    for row in others:
        first += row
    return first

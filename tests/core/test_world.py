"""What one rank finds out, all do: agreement, and the world of one process."""

from __future__ import annotations

import numpy as np
import pytest

from lookback.core.errors import UserError
from lookback.core.world import SOLO, Solo, World, agree


def test_one_process_hears_itself():
    variables, rows = [object()], np.arange(3)
    assert (SOLO.rank, SOLO.size, SOLO.local_rank, SOLO.local_size) == (0, 1, 0, 1)
    assert SOLO.gather({"a": 1}) == [{"a": 1}]
    assert SOLO.concatenate(rows) is rows
    assert SOLO.sum(variables) is variables
    SOLO.broadcast(variables)
    with pytest.raises(KeyError), SOLO.together():
        raise KeyError
    assert Solo() == SOLO


def test_every_world_has_the_whole_interface(in_ranks):
    from lookback.training.parallel.horovod_world import HorovodWorld

    members = {name for name in vars(World) if not name.startswith("_")}
    assert members >= {"rank", "size", "gather", "sum", "broadcast", "together"}
    assert members <= set(dir(SOLO))
    (fake,) = in_ranks(1, lambda world: world)
    assert members <= set(dir(fake))  # the tests' ranks in threads
    attributes = {"rank", "size", "local_rank", "local_size"}
    assert members - attributes <= set(dir(HorovodWorld))


def test_agreement_gives_every_ranks_answer_by_rank(in_ranks):
    answers = in_ranks(3, lambda world: agree(world, lambda: {"rank": world.rank}))
    assert answers == [[{"rank": 0}, {"rank": 1}, {"rank": 2}]] * 3
    assert agree(SOLO, lambda: 7) == [7]


def outcome(world, work):
    """What `agree` raises, or returns."""
    try:
        return agree(world, work)
    except BaseException as error:
        return error


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (UserError("the disk is full"), UserError, "rank 1: the disk is full"),
        (OSError("odd"), RuntimeError, "rank 1: OSError: odd"),
        (PermissionError(13, "x", "/d"), UserError, "rank 1: /d: Permission denied (x). Mend"),
        (KeyboardInterrupt(), RuntimeError, "rank 1: KeyboardInterrupt: "),
        (SystemExit(143), RuntimeError, "rank 1: SystemExit: 143"),
    ],
)
def test_a_failure_on_one_rank_is_one_on_all(in_ranks, error, kind, text):
    def work(world):
        def fails():
            if world.rank == 1:
                raise error
            return world.rank

        first = outcome(world, fails)
        # Nobody is a collective ahead: the ranks still hear each other.
        return first, agree(world, lambda: world.rank)

    answers = in_ranks(3, work)
    assert [again for _, again in answers] == [[0, 1, 2]] * 3
    assert answers[1][0] is error
    for rank in (0, 2):
        raised = answers[rank][0]
        assert type(raised) is kind
        assert str(raised).startswith(text)


def test_of_several_failures_each_keeps_its_own_and_others_hear_the_first(in_ranks):
    def work(world):
        def fails():
            if world.rank:
                raise UserError(f"fault of {world.rank}")

        return outcome(world, fails)

    raised = [str(error) for error in in_ranks(4, work)]
    assert raised == ["rank 1: fault of 1", "fault of 1", "fault of 2", "fault of 3"]


def test_an_error_in_one_process_is_raised_as_it_is():
    error = OSError("no space")
    assert outcome(SOLO, lambda: (_ for _ in ()).throw(error)) is error

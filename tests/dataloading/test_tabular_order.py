"""Orders against lists: every position once, the same for any number of processes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lookback.dataloading.parts import WHOLE, Part
from lookback.dataloading.tabular.order import BatchOrder, Shuffle

BLOCKS = [10, 10, 4, 10, 10, 3]  # 47 rows
TOTAL = sum(BLOCKS)
STARTS = np.cumsum(BLOCKS) - BLOCKS


def shuffle(epoch=0, seed=3, lanes=3, window=15):
    return Shuffle(seed, epoch, lanes, window)


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def batches(blocks=BLOCKS, batch_size=8, **options):
    """The batches of an order, as lists of numbers of rows in file order."""
    order = BatchOrder(blocks, batch_size, **options)
    starts = np.cumsum(blocks) - blocks
    lanes = {}
    for window in order.windows():
        numbers = [
            starts[piece.block] + row
            for piece in order.pieces(window)
            for row in range(piece.begin, piece.end)
        ]
        chosen = np.asarray(numbers)[order.chosen(window)].tolist()
        assert len(chosen) == window.rows > 0
        lanes.setdefault(window.lane, []).extend(chosen)
    found = [
        [lanes[lane].pop(0) for lane, rows in enumerate(counts) for _ in range(rows)]
        for counts in order.batches()
    ]
    assert not any(lanes.values())
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 7, 8, 16, 47, 100])
def test_file_order(batch_size):
    expected = [list(range(b, min(b + batch_size, TOTAL))) for b in range(0, TOTAL, batch_size)]
    assert batches(batch_size=batch_size) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 7, 8, 16, 47, 100])
@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_shuffled_epochs_hold_every_row_once(batch_size, lanes):
    found = batches(batch_size=batch_size, shuffle=shuffle(lanes=lanes))
    assert [len(batch) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    assert sorted(flat(found)) == list(range(TOTAL))


def test_orders_are_those_of_seed_and_epoch():
    def order(**options):
        return tuple(flat(batches(shuffle=shuffle(**options))))

    assert order() == order()
    assert len({order(), order(epoch=1), order(seed=4), tuple(range(TOTAL))}) == 4


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 10, 16, 100])
@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
def test_processes_share_the_batches_of_one(shuffled, drop_remainder, batch_size, ranks):
    options = {
        "batch_size": batch_size,
        "drop_remainder": drop_remainder,
        "shuffle": shuffle(epoch=2) if shuffled else None,
    }
    whole = batches(**options)
    parts = [batches(part=Part(rank, ranks), **options) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        assert flat(part[step] for part in parts) == batch
    for rank, part in enumerate(parts):
        for batch, share in zip(whole, part, strict=True):
            begin, end = Part(rank, ranks).bounds(len(batch))
            assert share == batch[begin:end]


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("part", [WHOLE, Part(1, 3)])
@pytest.mark.parametrize("first_step", [0, 1, 3, 5, 6, 9])
def test_resuming(shuffled, part, first_step):
    options = {"shuffle": shuffle() if shuffled else None, "part": part}
    assert batches(first_step=first_step, **options) == batches(**options)[first_step:]


@pytest.mark.parametrize("shuffled", [False, True])
def test_subset_is_the_first_rows(shuffled):
    found = batches(rows=22, shuffle=shuffle() if shuffled else None)
    assert [len(batch) for batch in found] == [8, 8, 6]
    assert sorted(flat(found)) == list(range(22))


def test_dropped_rows_differ_between_epochs():
    blocks = [10] * 5
    kept = [
        set(flat(batches(blocks, 8, shuffle=shuffle(epoch), drop_remainder=True)))
        for epoch in range(4)
    ]
    assert all(len(rows) == 48 for rows in kept)
    assert len({frozenset(rows) for rows in kept}) > 1


def test_windows_are_whole_blocks_within_a_lane():
    order = BatchOrder([10] * 24, 12, shuffle=shuffle(lanes=3, window=20))
    windows = [w for w in order.windows() if w.lane == 1]
    assert [w.end - w.begin for w in windows] == [10, 20, 20, 20, 10]
    assert all((piece.begin, piece.end) == (0, 10) for w in windows for piece in order.pieces(w))


def test_a_process_needs_only_the_blocks_of_its_lanes():
    blocks = [10] * 32

    def needed(part, first_step=0):
        order = BatchOrder(blocks, 8, shuffle=shuffle(lanes=8), part=part, first_step=first_step)
        return {piece.block for window in order.windows() for piece in order.pieces(window)}

    ranks = [needed(Part(rank, 8)) for rank in range(8)]
    assert all(len(blocks) == 4 for blocks in ranks)
    assert set.union(*ranks) == set(range(32))
    # Three quarters into the epoch, of each lane the last block or two.
    assert len(needed(WHOLE, first_step=30)) <= 16


def test_blocks_without_own_rows_are_skipped_in_file_order():
    def needed(rank):
        order = BatchOrder([65_536] * 8, 4 * 65_536, part=Part(rank, 4))
        return {piece.block for window in order.windows() for piece in order.pieces(window)}

    assert needed(0) == {0, 4}
    assert needed(3) == {3, 7}


def test_rows_mix_across_blocks():
    """A batch of a shuffled epoch has rows of as many blocks as lanes and windows reach."""
    rows = 64
    found = batches([rows] * 32, 128, shuffle=Shuffle(0, 0, lanes=8, window=2 * rows))
    blocks = [len({row // rows for row in batch}) for batch in found]
    assert np.mean(blocks) > 11


def test_micro_batches_are_cut_where_those_of_the_batch_would_be():
    sizes = [13, 13, 4]
    for ranks, cuts in ((1, 6), (2, 3), (3, 2)):
        bounds = []
        for rank in range(ranks):
            part = Part(rank, ranks)
            order = BatchOrder([30], 13, part=part)
            for number in range(cuts):
                shares = [order.share(step, part.cut(number, cuts)) for step in range(3)]
                starts = [part.bounds(size)[0] for size in sizes]
                bounds.append([(b + s, e + s) for (b, e), s in zip(shares, starts, strict=True)])
        expected = [[Part(n, 6).bounds(size) for size in sizes] for n in range(6)]
        assert bounds == expected

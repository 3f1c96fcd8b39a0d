"""What the peers of models over histories share: prepared batches, options, the two functions.

Runs in the peers' environments, which have NumPy and PyTorch.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lookback.benchmarks.child_server import serve_steps

Ids = npt.NDArray[np.int64]

USER, ITEMS = "user_id", ("item_id", "category_id")


class HistoryBatch(NamedTuple):
    """Rows of one candidate each; ids are int64, 0 is padding.

    Attributes:
      user: ``[B]``.
      target: by item feature ``[B]``.
      history: by item feature ``[B, T]``, the newest event last and padding before the first.
      labels: float32 ``[B]``.
    """

    user: Ids
    target: dict[str, Ids]
    history: dict[str, Ids]
    labels: npt.NDArray[np.float32]

    @property
    def lengths(self) -> Ids:
        """Events of each history ``[B]``."""
        return (self.history[ITEMS[0]] > 0).sum(1)

    def padded_behind(self) -> HistoryBatch:
        """The same with the first event in the first slot, for `pack_padded_sequence`."""
        order = np.argsort(self.history[ITEMS[0]] == 0, axis=1, kind="stable")
        moved = {name: np.take_along_axis(ids, order, 1) for name, ids in self.history.items()}
        return self._replace(history=moved)


def given_batches(path: str, slots: int) -> list[HistoryBatch]:
    """Batches of an .npz file: a column of `HistoryBatch` and histories ``NAME_history``, [K, ...].

    Args:
      path: of the file.
      slots: newest history slots to keep (T).
    """
    with np.load(path) as arrays:
        columns = {name: arrays[name] for name in arrays.files}

    def ids(name: str, batch: int) -> Ids:
        return columns[name][batch].astype(np.int64)

    return [
        HistoryBatch(
            ids(USER, k),
            {name: ids(name, k) for name in ITEMS},
            {name: ids(f"{name}_history", k)[:, -slots:] for name in ITEMS},
            columns["labels"][k].astype(np.float32),
        )
        for k in range(len(columns["labels"]))
    ]


def parsed(description: str | None, models: Sequence[str]) -> argparse.Namespace:
    """The command line of such a peer.

    Args:
      description: of the program.
      models: those that it has.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", choices=tuple(models), required=True)
    parser.add_argument("--batches", required=True, help="an .npz file, see `given_batches`")
    parser.add_argument("--rows", required=True, help="of the tables: user,item,category")
    parser.add_argument("--slots", type=int, required=True, help="newest events to look at")
    parser.add_argument("--dim", type=int, default=16, help="of an embedding")
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.rows = dict(zip((USER, *ITEMS), map(int, args.rows.split(",")), strict=True))
    return args


def serve_batches(
    batches: Sequence[Any],
    labels: Sequence[npt.NDArray[np.float32]],
    train: Callable[[Any], Any],
    infer: Callable[[Any], Any],
    **facts: Any,
) -> None:
    """Serves "train" and "infer", one batch a call.

    Args:
      batches: as the functions take them.
      labels: of each batch.
      train: takes a step, returns the loss.
      infer: scores.
      **facts: about the peer.
    """
    turn = itertools.cycle(zip(batches, map(len, labels), strict=True))

    def train_one() -> int:
        batch, rows = next(turn)
        loss = float(train(batch))
        if not np.isfinite(loss):
            raise FloatingPointError(f"The loss is {loss}.")
        return rows

    def infer_one() -> int:
        batch, rows = next(turn)
        with torch.no_grad():
            infer(batch)
        return rows

    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), **facts}
    serve_steps({"train": train_one, "infer": infer_one}, facts)

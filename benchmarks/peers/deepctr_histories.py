"""DeepCTR-Torch's DIN and DIEN, in the peer `deepctr_torch`.

The step is that of their `fit` (summed cross entropy, L2 of 1e-6 on all of the tables, Adam of
every row) and the rest are their defaults: MLPs of 256, 128, attention of 64, 16 (DIN's with Dice
and without softmax), DIEN with plain GRUs as wide as an item and without auxiliary loss. Batches
are the float32 matrices that `fit` makes, and prepared: nothing is read while the clock runs.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DIEN, DIN

from lookback.benchmarks.peers.history_batches import (
    ITEMS,
    USER,
    HistoryBatch,
    given_batches,
    parsed,
    serve_batches,
)

_MODELS = {"din": DIN, "dien": DIEN}
_LENGTH = "length"


def columns(rows: dict[str, int], dim: int, slots: int) -> list[SparseFeat | VarLenSparseFeat]:
    """The user, the target and the history, which shares the target's tables."""
    single = [SparseFeat(name, count, embedding_dim=dim) for name, count in rows.items()]
    histories = [
        VarLenSparseFeat(
            SparseFeat(f"hist_{name}", rows[name], embedding_dim=dim, embedding_name=name),
            maxlen=slots,
            length_name=_LENGTH,
        )
        for name in ITEMS
    ]
    return [*single, *histories]


def as_theirs(
    batch: HistoryBatch, places: dict[str, tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix with all columns at their places, and labels."""
    batch = batch.padded_behind()
    values = {
        USER: batch.user[:, None],
        _LENGTH: batch.lengths[:, None],
        **{name: batch.target[name][:, None] for name in ITEMS},
        **{f"hist_{name}": batch.history[name] for name in ITEMS},
    }
    matrix = np.zeros((len(batch.user), max(end for _, end in places.values())), np.float32)
    for name, (start, end) in places.items():
        matrix[:, start:end] = values[name]
    return torch.from_numpy(matrix), torch.from_numpy(batch.labels)


def main() -> None:
    """Builds the model and serves."""
    args = parsed(__doc__, list(_MODELS))
    batches = given_batches(args.batches, args.slots)
    model = _MODELS[args.model](columns(args.rows, args.dim, args.slots), list(ITEMS))
    model.compile("adam", "binary_crossentropy")

    def train(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        matrix, labels = batch
        model.train()
        predicted = model(matrix).squeeze(-1)
        model.optim.zero_grad()
        loss = model.loss_func(predicted, labels, reduction="sum")
        total: torch.Tensor = loss + model.get_regularization_loss() + model.aux_loss
        total.backward()
        model.optim.step()
        return total

    def infer(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        model.eval()
        predicted: torch.Tensor = model(batch[0])
        return predicted

    serve_batches(
        [as_theirs(batch, model.feature_index) for batch in batches],
        [batch.labels for batch in batches],
        train,
        infer,
        deepctr_torch=version("deepctr-torch"),
    )


if __name__ == "__main__":
    main()

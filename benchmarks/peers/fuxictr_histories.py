"""FuxiCTR's SIM, DIN and DIEN (model_zoo.LongCTR of its wheel), in the peer `fuxictr`.

Their own training step (`train_step`: Adam of every row, gradients clipped by their norm) and their
defaults: MLPs of 512, 128, 64 (DIEN 200, 80), DIN's attention of 64 with Dice, DIEN's AUGRU as wide
as an item and without auxiliary loss, SIM with multi-head attention where the paper has DIEN.
Batches are as their `LongCTRDataLoader` makes them, and prepared: nothing is read while the clock
runs.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from model_zoo.LongCTR import DIEN, DIN, SIM

from lookback.benchmarks.peers.history_batches import (
    ITEMS,
    USER,
    HistoryBatch,
    given_batches,
    parsed,
    serve_batches,
)

_MODELS = {"sim": SIM, "din": DIN, "dien": DIEN}
_CLIP = 10.0  # `fit`'s default of max_gradient_norm


def feature_map(rows: dict[str, int], dim: int) -> FeatureMap:
    """The columns: the user, and an item's features, which histories share."""
    found = FeatureMap("histories", data_dir=".")
    found.labels, found.default_emb_dim = ["label"], dim
    for name, count in rows.items():
        source = "user" if name == USER else "item"
        found.features[name] = {
            **{"source": source, "type": "categorical", "vocab_size": count},
            **({"padding_idx": 0} if source == "item" else {}),
        }
    return found


def as_theirs(batch: HistoryBatch) -> tuple[dict[str, Any], dict[str, Any], torch.Tensor]:
    """The user and the label, events and target in one row after another, and the mask."""
    columns = {USER: torch.from_numpy(batch.user), "label": torch.from_numpy(batch.labels)}
    items = {
        name: torch.from_numpy(
            np.hstack([batch.history[name], batch.target[name][:, None]]).ravel()
        )
        for name in ITEMS
    }
    return columns, items, torch.from_numpy(batch.history[ITEMS[0]] > 0).float()


def main() -> None:
    """Builds the model and serves."""
    args = parsed(__doc__, list(_MODELS))
    batches = given_batches(args.batches, args.slots)
    if args.model == "dien":
        batches = [batch.padded_behind() for batch in batches]  # it packs its sequences
    options: dict[str, Any] = {"optimizer": "adam", "loss": "binary_crossentropy", "verbose": 0}
    if args.model == "sim":
        options["short_seq_len"] = 11  # ten events: the target counts as one
    with tempfile.TemporaryDirectory() as directory:
        model = _MODELS[args.model](
            feature_map(args.rows, args.dim),
            embedding_dim=args.dim,
            model_root=directory,
            metrics=["AUC"],
            **options,
        )
    # What `fit` sets before it calls `train_step`.
    model._max_gradient_norm, model._batch_index = _CLIP, 0

    def train(batch: Any) -> torch.Tensor:
        model.train()
        loss: torch.Tensor = model.train_step(batch)
        return loss

    def infer(batch: Any) -> Any:
        model.eval()
        return model(batch)["y_pred"]

    serve_batches(
        list(map(as_theirs, batches)),
        [batch.labels for batch in batches],
        train,
        infer,
        fuxictr=version("fuxictr"),
    )


if __name__ == "__main__":
    main()

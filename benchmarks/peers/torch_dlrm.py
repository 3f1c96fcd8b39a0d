"""DLRM as a PyTorch user writes it, after facebookresearch/dlrm; runs in the peer `torch`.

Tables are `EmbeddingBag(mode="sum", sparse=True)`, the interaction is one batched product and its
lower triangle, one SGD updates all (Naumov et al. 2019, and the open reference implementation).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lookback.benchmarks.child_server import serve_steps

BATCHES = 8  # prepared batches that it cycles through

Batch = tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]


class DLRM(nn.Module):
    """Logits of ``numerical [B, N]`` and M fields' ids.

    Args:
      numerical: N.
      rows: of each of M tables.
      dim: of an embedding; also the width of the bottom MLP's last layer.
      bottom: widths of the bottom MLP.
      top: widths of the top MLP, the last of which is 1.
    """

    def __init__(
        self,
        numerical: int,
        rows: Sequence[int],
        dim: int = 128,
        bottom: Sequence[int] = (512, 256, 128),
        top: Sequence[int] = (1024, 1024, 512, 256, 1),
    ) -> None:
        super().__init__()
        if bottom[-1] != dim:
            raise ValueError(f"The bottom MLP must end with {dim} units, received {bottom}.")
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(count, dim, mode="sum", sparse=True) for count in rows
        )
        for table in self.tables:
            limit = table.num_embeddings**-0.5
            nn.init.uniform_(table.weight, -limit, limit)
        self.bottom = _mlp(numerical, bottom, last_relu=True)
        features = len(rows) + 1
        pairs = torch.tril_indices(features, features, offset=-1)
        self.register_buffer("left", pairs[0])
        self.register_buffer("right", pairs[1])
        self.top = _mlp(dim + features * (features - 1) // 2, top, last_relu=False)

    def forward(self, numerical: torch.Tensor, ids: list[torch.Tensor]) -> torch.Tensor:
        """Logits ``[B]``; `ids` holds ``[B]`` of each field."""
        x = self.bottom(numerical)  # [B, D]
        offsets = torch.arange(len(numerical))
        vectors = [table(of, offsets) for table, of in zip(self.tables, ids, strict=True)]
        stacked = torch.cat([x, *vectors], dim=1).view(len(x), -1, x.shape[1])  # [B, M + 1, D]
        products = torch.bmm(stacked, stacked.transpose(1, 2))  # [B, M + 1, M + 1]
        dots = products[:, self.left, self.right]
        return self.top(torch.cat([x, dots], dim=1)).squeeze(1)


def _mlp(inputs: int, widths: Sequence[int], *, last_relu: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, width in itertools.pairwise((inputs, *widths)):
        linear = nn.Linear(before, width)
        nn.init.normal_(linear.weight, 0.0, (2.0 / (before + width)) ** 0.5)
        nn.init.normal_(linear.bias, 0.0, (1.0 / width) ** 0.5)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


def random_batches(
    batch: int, numerical: int, rows: Sequence[int], exponent: float, seed: int = 0
) -> list[Batch]:
    """Batches with nothing to learn, and ids as popular as a power law says (0: all alike)."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> torch.Tensor:
        # The inverse of the integral of t^-a from 1; a = 1 would need a logarithm.
        uniform, power = rng.random(batch), 1.0 - exponent or 1e-6
        end = (1.0 + count) ** power
        at = (1.0 + uniform * (end - 1.0)) ** (1.0 / power)
        return torch.from_numpy(np.clip(at.astype(np.int64) - 1, 0, count - 1))

    return [
        (
            torch.from_numpy(rng.random((batch, numerical), np.float32)),
            [draw(count) for count in rows],
            torch.from_numpy((rng.random(batch) < 0.25).astype(np.float32)),
        )
        for _ in range(BATCHES)
    ]


def given_batches(path: str) -> list[Batch]:
    """Batches of an .npz file: numerical [K, B, N], categorical [K, B, M], labels [K, B]."""
    with np.load(path) as arrays:
        return [
            (
                torch.from_numpy(numerical.astype(np.float32)),
                list(torch.from_numpy(np.ascontiguousarray(ids.T.astype(np.int64)))),
                torch.from_numpy(labels.astype(np.float32)),
            )
            for numerical, ids, labels in zip(
                arrays["numerical"], arrays["categorical"], arrays["labels"], strict=True
            )
        ]


def contenders(
    model: DLRM, batches: list[Batch], *, lr: float, amp: bool
) -> dict[str, Callable[[], int]]:
    """The two functions that are timed, one step a call: they return the number of samples."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss_function = nn.BCEWithLogitsLoss()
    turn = itertools.cycle(batches)

    def train() -> int:
        numerical, ids, labels = next(turn)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = model(numerical, ids)
        loss = loss_function(logits.float(), labels)
        loss.backward()
        optimizer.step()
        float(loss)
        return len(labels)

    def infer() -> int:
        numerical, ids, labels = next(turn)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            model(numerical, ids)
        return len(labels)

    return {"train": train, "infer": infer}


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the model and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--tables", type=int, default=26)
    parser.add_argument("--rows", type=int, default=100_000, help="of each table")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--numerical", type=int, default=13)
    parser.add_argument("--exponent", type=float, default=0.0, help="of the ids' power law")
    parser.add_argument("--batches", help="an .npz file with batches, instead of random ones")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    parser.add_argument("--amp", action="store_true", help="bfloat16 where PyTorch's autocast does")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    rows = [args.rows] * args.tables
    model = DLRM(args.numerical, rows, args.dim)
    if args.batches is None:
        batches = random_batches(args.batch, args.numerical, rows, args.exponent)
    else:
        batches = given_batches(args.batches)
    facts: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    serve_steps(contenders(model, batches, lr=args.lr, amp=args.amp), facts)


if __name__ == "__main__":
    main()

"""NeuMF as a PyTorch user writes it, after NVIDIA's own; runs in the peer `torch`.

NVIDIA's is DeepLearningExamples' PyTorch/Recommendation/NCF: `neumf.py`, `ncf.py`, `inference.py`.

Pairs are flat, users and items ``[N]``. Every weight is updated in every step by PyTorch's own
fused Adam, in place of Apex's, which is for CUDA only. Batches are prepared: nothing is drawn while
the clock runs.
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

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class NeuMF(nn.Module):
    """Scores of pairs: a product of embeddings beside an MLP (`neumf.py`).

    Args:
      users: rows of the users' two tables.
      items: rows of the items' two tables.
      factors: width of an embedding of the product.
      layers: widths of the MLP, the first of which is that of its input, half user, half item.
      dropout: after each layer of the MLP.
    """

    def __init__(
        self,
        users: int,
        items: int,
        factors: int = 64,
        layers: Sequence[int] = (256, 256, 128, 64),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if layers[0] % 2:
            raise ValueError(f"The MLP's first width must be even, received {layers[0]}.")
        self.mf_user_embed = nn.Embedding(users, factors)
        self.mf_item_embed = nn.Embedding(items, factors)
        self.mlp_user_embed = nn.Embedding(users, layers[0] // 2)
        self.mlp_item_embed = nn.Embedding(items, layers[0] // 2)
        self.mlp = nn.ModuleList(nn.Linear(*sizes) for sizes in itertools.pairwise(layers))
        self.final = nn.Linear(layers[-1] + factors, 1)
        self.dropout = dropout
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, 0.0, 0.01)
        for layer in self.mlp:
            nn.init.xavier_uniform_(layer.weight)
        limit = (3.0 / self.final.in_features) ** 0.5
        nn.init.uniform_(self.final.weight, -limit, limit)

    def forward(
        self, user: torch.Tensor, item: torch.Tensor, sigmoid: bool = False
    ) -> torch.Tensor:
        """Logits ``[N, 1]``, or probabilities, of pairs ``[N]``."""
        xmf = self.mf_user_embed(user) * self.mf_item_embed(item)
        xmlp = torch.cat((self.mlp_user_embed(user), self.mlp_item_embed(item)), dim=1)
        for layer in self.mlp:
            xmlp = nn.functional.relu(layer(xmlp))
            if self.dropout:
                xmlp = nn.functional.dropout(xmlp, p=self.dropout, training=self.training)
        x = self.final(torch.cat((xmf, xmlp), dim=1))
        return torch.sigmoid(x) if sigmoid else x


def given_batches(path: str) -> list[Batch]:
    """Batches of an .npz file with users, items and labels, each ``[K, N]``."""
    with np.load(path) as arrays:
        return [
            (
                torch.from_numpy(users.astype(np.int64)),
                torch.from_numpy(items.astype(np.int64)),
                torch.from_numpy(labels.astype(np.float32)),
            )
            for users, items, labels in zip(
                arrays["users"], arrays["items"], arrays["labels"], strict=True
            )
        ]


def contenders(
    model: NeuMF, batches: list[Batch], *, fused: bool = True, amp: bool = False
) -> dict[str, Callable[[], int]]:
    """The two functions that are timed, one step a call: they return the number of samples."""
    optimizer = torch.optim.Adam(
        model.parameters(), lr=0.0045, betas=(0.25, 0.5), eps=1e-8, fused=fused
    )
    loss_function = nn.BCEWithLogitsLoss()
    turn = itertools.cycle(batches)

    def train() -> int:
        users, items, labels = next(turn)
        model.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = model(users, items)
        loss = loss_function(logits.float().view(-1), labels)
        loss.backward()
        optimizer.step()
        loss.item()
        return len(labels)

    def infer() -> int:
        users, items, labels = next(turn)
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            model(users, items, sigmoid=True)
        return len(labels)

    return {"train": train, "infer": infer}


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the model and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", required=True, help="an .npz file, see `given_batches`")
    parser.add_argument("--users", type=int, default=138_493, help="rows of the users' tables")
    parser.add_argument("--items", type=int, default=26_744, help="rows of the items' tables")
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    parser.add_argument("--not_fused", action="store_true", help="PyTorch's default form of Adam")
    parser.add_argument("--amp", action="store_true", help="bfloat16 where PyTorch's autocast does")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model = NeuMF(args.users, args.items)
    batches = given_batches(args.batches)
    facts: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    serve_steps(contenders(model, batches, fused=not args.not_fused, amp=args.amp), facts)


if __name__ == "__main__":
    main()

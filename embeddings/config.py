"""Where a model's tables are to live: the value that a model passes on to its collection."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lookback.embeddings.types import Placement, ShardingPlan, TableSpec

WIRE_DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Sharding:
    """How a collection's rows are spread over processes and exchanged.

    Attributes:
      backend: a key of `embeddings.backends.BACKENDS`.
      plan: where every row lies; None for backends that hold whole tables.
      wire_dtype: type in which vectors and their gradients travel. Rows, optimizer state and
        updates stay float32.
      joint: whether tables of one width share a variable, so that one gather reads, and one sparse
        update changes, the rows of all. None leaves it to the backend (`Backend.joins`).
    """

    backend: str = "local"
    plan: ShardingPlan | None = None
    wire_dtype: str = "float32"
    joint: bool | None = None

    def __post_init__(self) -> None:
        """Validates the type's name.

        Raises:
          ValueError: if it is unknown.
        """
        if self.wire_dtype not in WIRE_DTYPES:
            raise ValueError(
                f"wire_dtype must be one of {WIRE_DTYPES}, received {self.wire_dtype!r}."
            )

    def as_config(self) -> dict[str, Any]:
        """Plain values, for `get_config`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sharding:
        """Rebuilds the value from `as_config`, JSON's lists in place of tuples included."""
        config = dict(config)
        plan = config.pop("plan", None)
        if plan is not None:
            plan = ShardingPlan(
                ranks=plan["ranks"],
                tables=tuple(TableSpec(**table) for table in plan["tables"]),
                placements=tuple(
                    Placement(p["table"], p["strategy"], tuple(p["ranks"]))
                    for p in plan["placements"]
                ),
            )
        return cls(plan=plan, **config)


LOCAL = Sharding()
"""Every table whole, in this process."""

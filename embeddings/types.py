"""The frozen values that describe embedding tables. Pure Python."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """One embedding table.

    Attributes:
      name: the table's name; the schema's domain name, so that features of one domain share it.
      rows: number of rows, the reserved ids (padding, null, out-of-vocabulary) included.
      dim: length of a row (D).
      init_scale: rows start uniform in ``[-init_scale, init_scale]``. None means
        ``sqrt(1 / rows)``, the initialiser of NVIDIA's SIM and DLRM (seed 004; Naumov et al.
        2019).
    """

    name: str
    rows: int
    dim: int
    init_scale: float | None = None

    def __post_init__(self) -> None:
        """Validates the numbers.

        Raises:
          ValueError: if `rows` or `dim` is not positive, or the name is empty.
        """
        if not self.name:
            raise ValueError("TableSpec.name must not be empty: it keys the checkpoint.")
        for field, value in (("rows", self.rows), ("dim", self.dim)):
            if value < 1:
                raise ValueError(
                    f"TableSpec {self.name!r}: {field} must be at least 1, received {value}."
                )

    @property
    def scale(self) -> float:
        """The bound of the uniform initialiser."""
        return math.sqrt(1.0 / self.rows) if self.init_scale is None else self.init_scale

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.rows * self.dim

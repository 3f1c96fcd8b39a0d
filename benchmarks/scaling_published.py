"""What NVIDIA measured of its own programs on 1, 8 and 16 GPUs, beside what the model says.

Throughputs are those of its READMEs, for one global batch on any number of GPUs.
Of each program one number is fitted to one row on several GPUs: the seconds of a step that do not
shrink. All other rows are predicted, from it and the throughput of one GPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

from lookback.benchmarks.scaling_model import (
    CUBE_MESH_V100,
    INFINIBAND,
    NVLINK_A100,
    NVLINK_V100,
    Fabric,
    all_reduce,
    all_to_all,
)

MACHINES = {
    "DGX A100": Fabric(NVLINK_A100, INFINIBAND, 8),
    "DGX-1": Fabric(CUBE_MESH_V100, INFINIBAND, 8),
    "DGX-2": Fabric(NVLINK_V100, INFINIBAND, 16),
}
_HALF, _FULL = 2, 4  # bytes of a number that travels
_DLRM_TABLES, _DLRM_DIM = 26, 128
_DLRM_BATCH = 65_536
_DLRM_WEIGHTS = 2_365_184  # 13-512-256-128 and 479-1024-1024-512-256-1
_SIM_ROWS = 105_925 + 1_209_081 + 2_330  # users, items, categories; the gradient of all of them
_NCF_ROWS = 138_493 + 26_744  # MovieLens-20M, likewise


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row of a README.

    Attributes:
      machine: a key of MACHINES.
      how: precision, and what else tells the row from others.
      ranks: GPUs.
      alone: samples a second of one GPU.
      rate: of all together.
      alone_batch: of one GPU; None: the program's.
    """

    machine: str
    how: str
    ranks: int
    alone: float
    rate: float
    alone_batch: int | None = None


@dataclasses.dataclass(frozen=True)
class PublishedProgram:
    """A program of NVIDIA's.

    Attributes:
      name: and its framework.
      batch: rows of the global batch.
      messages: seconds that its messages take: of (ranks, bytes of a number, fabric).
      rows: those of its README; the first is the one that is fitted.
      missing: what the model lacks for a machine on which it is off by more than `TOLERANCE`.
    """

    name: str
    batch: int
    messages: Callable[[int, int, Fabric], float]
    rows: tuple[Measured, ...]
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def _messages(self, row: Measured) -> float:
        wire = _HALF if row.how.startswith("AMP") else _FULL
        return self.messages(row.ranks, wire, MACHINES[row.machine])

    @property
    def fixed(self) -> float:
        """Seconds of a step that do not shrink, from the first row.

        ``t = fixed + (t1 - fixed) / S + messages``, where S is how many times fewer rows a GPU has.
        """
        row = self.rows[0]
        smaller = self._smaller(row)
        time = self.batch / row.rate - self._messages(row)
        return (smaller * time - self._alone(row)) / (smaller - 1)

    def predicted(self, row: Measured) -> float:
        """Samples a second."""
        rest = (self._alone(row) - self.fixed) / self._smaller(row)
        return self.batch / (self.fixed + rest + self._messages(row))

    def _alone(self, row: Measured) -> float:
        return (row.alone_batch or self.batch) / row.alone

    def _smaller(self, row: Measured) -> float:
        return (row.alone_batch or self.batch) * row.ranks / self.batch


TOLERANCE = 0.30
"""Share of what was measured, by which a prediction may be off: the project's target."""


def _sim(ranks: int, wire: int, fabric: Fabric) -> float:
    """All-reduce of whole tables (sparse_as_dense), in float32 whatever the precision."""
    return all_reduce(_FULL * 16 * _SIM_ROWS, ranks, fabric)


def _dlrm(ranks: int, wire: int, fabric: Fabric) -> float:
    """Vectors of tables go from their owners to all, their gradients back; the MLPs' gradients.

    Whole tables: the busiest GPU has as many as the number of GPUs leaves it.
    """
    tables = math.ceil(_DLRM_TABLES / ranks)
    vectors = _DLRM_BATCH * tables * _DLRM_DIM * wire * (ranks - 1) / ranks
    return 2 * all_to_all(vectors, ranks, fabric) + all_reduce(_FULL * _DLRM_WEIGHTS, ranks, fabric)


def _ncf(ranks: int, wire: int, fabric: Fabric) -> float:
    """All-reduce of everything: 64 and 128 numbers a row."""
    return all_reduce(_FULL * (64 + 128) * _NCF_ROWS, ranks, fabric)


PUBLISHED = (
    PublishedProgram(
        "SIM, TensorFlow",
        131_072,
        _sim,
        (
            Measured("DGX-2", "FP32", 8, 210_772.27, 1_357_463.39),
            Measured("DGX-2", "FP32", 16, 210_772.27, 2_319_719.76),
            Measured("DGX-2", "FP32, XLA", 8, 248_514.27, 1_584_757.09),
            Measured("DGX-2", "FP32, XLA", 16, 248_514.27, 2_681_789.69),
            Measured("DGX-2", "AMP", 8, 312_580.01, 1_785_361.62),
            Measured("DGX-2", "AMP", 16, 312_580.01, 2_837_309.15),
            Measured("DGX-2", "AMP, XLA", 8, 358_305.52, 2_091_403.04),
            Measured("DGX-2", "AMP, XLA", 16, 358_305.52, 3_168_488.89),
            Measured("DGX A100", "TF32", 8, 381_211.31, 2_304_284.08),
            Measured("DGX A100", "TF32, XLA", 8, 462_012.86, 2_679_300.61),
            Measured("DGX A100", "AMP", 8, 484_360.65, 2_475_445.94),
            Measured("DGX A100", "AMP, XLA", 8, 571_727.91, 3_006_370.96),
        ),
    ),
    PublishedProgram(
        "DLRM, TensorFlow",
        _DLRM_BATCH,
        _dlrm,
        (
            Measured("DGX A100", "TF32, large", 8, 2.84e6, 10.9e6),
            Measured("DGX A100", "AMP, large", 8, 4.55e6, 13.8e6),
            Measured("DGX A100", "TF32, extra large", 8, 2.84e6, 9.76e6),
            Measured("DGX A100", "AMP, extra large", 8, 4.55e6, 11.5e6),
            Measured("DGX-1", "FP32, large", 8, 0.663e6, 3.13e6),
            Measured("DGX-1", "AMP, large", 8, 2.23e6, 6.31e6),
            Measured("DGX-2", "FP32, large", 16, 0.698e6, 6.43e6),
            Measured("DGX-2", "AMP, large", 16, 2.44e6, 10.5e6),
        ),
        {"DGX-2": "what is uneven beside the messages: 26 whole tables on 16 GPUs"},
    ),
    PublishedProgram(
        "NCF, PyTorch",
        1_048_576,
        _ncf,
        (
            Measured("DGX A100", "TF32", 8, 22.64e6, 105.8e6),
            Measured("DGX A100", "AMP", 8, 33.59e6, 137.8e6),
            Measured("DGX-2", "FP32", 8, 10.83e6, 60.33e6),
            Measured("DGX-2", "FP32", 16, 10.83e6, 83.00e6),
            Measured("DGX-2", "AMP", 8, 22.18e6, 95.58e6),
            Measured("DGX-2", "AMP", 16, 22.18e6, 120.1e6),
        ),
    ),
    PublishedProgram(
        "DLRM, PyTorch",
        _DLRM_BATCH,
        _dlrm,
        (
            Measured("DGX A100", "TF32", 8, 2_498_002, 9_056_775, 32_768),
            Measured("DGX A100", "AMP", 8, 4_081_969, 14_230_793, 32_768),
            Measured("DGX-2", "FP32", 8, 706_933, 3_169_146, 32_768),
            Measured("DGX-2", "FP32", 16, 706_933, 4_567_478, 32_768),
            Measured("DGX-2", "AMP", 8, 2_417_585, 8_315_534, 32_768),
            Measured("DGX-2", "AMP", 16, 2_417_585, 11_208_483, 32_768),
            Measured("DGX-1", "FP32", 8, 670_239, 1_620_421, 32_768),
            Measured("DGX-1", "AMP", 8, 2_281_278, 3_305_045, 32_768),
        ),
        {
            "DGX-1": "an all-to-all between GPUs that no NVLink joins, which this program's NCCL "
            "(20.x) sends through PCIe and the processors' link",
            "DGX-2": "the large model's own work: one GPU was measured with the small one",
        },
    ),
)


def compared() -> Iterator[tuple[PublishedProgram, Measured, float]]:
    """Each published row with the prediction's error, as a share of what was measured."""
    for program in PUBLISHED:
        for row in program.rows:
            yield program, row, program.predicted(row) / row.rate - 1

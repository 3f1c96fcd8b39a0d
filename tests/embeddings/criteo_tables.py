"""Table sizes of NVIDIA's public DLRM recipes on Criteo's 1 TB, by frequency threshold."""

from __future__ import annotations

from embeddings.types import TableSpec

DIM = 128
BATCH_ROWS = 65536
MEMORY_A_RANK = 80e9

# fmt: off
ROWS = {
    "t15": [
        7912889, 33823, 17139, 7339, 20046, 4, 7105, 1382, 63, 5554114, 582469, 245828, 11, 2209,
        10667, 104, 4, 968, 15, 8165896, 2675940, 7156453, 302516, 12022, 97, 35,
    ],
    "t3": [
        45833188, 36747, 1572176, 345139, 11, 2209, 11268, 128, 4, 975, 15, 48937457, 17246,
        11316796, 40094537, 452104, 12607, 105, 36, 7414, 20244, 4, 7115, 1442, 63, 29275261,
    ],
    "t0": [
        227605432, 39061, 3067956, 405283, 11, 2209, 11939, 155, 4, 977, 15, 292775614, 17296,
        40790948, 187188510, 590152, 12974, 109, 37, 7425, 20266, 4, 7123, 1544, 64, 130229467,
    ],
}
# fmt: on


def criteo_tables(threshold: str) -> list[TableSpec]:
    """The 26 tables of a recipe, one id a row each."""
    return [TableSpec(f"cat_{n}", rows, DIM) for n, rows in enumerate(ROWS[threshold])]

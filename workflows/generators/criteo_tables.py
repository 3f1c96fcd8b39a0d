"""Table sizes of NVIDIA's public DLRM recipes on Criteo's 1 TB, by frequency threshold."""

from __future__ import annotations

# Rows of cat_0 to cat_25, from the feature specifications that NVIDIA publishes with the recipes;
# t3 and t0 list the features in another order than t15.
# fmt: off
ROWS: dict[str, tuple[int, ...]] = {
    "t15": (
        7912889, 33823, 17139, 7339, 20046, 4, 7105, 1382, 63, 5554114, 582469, 245828, 11, 2209,
        10667, 104, 4, 968, 15, 8165896, 2675940, 7156453, 302516, 12022, 97, 35,
    ),
    "t3": (
        45833188, 36747, 1572176, 345139, 11, 2209, 11268, 128, 4, 975, 15, 48937457, 17246,
        11316796, 40094537, 452104, 12607, 105, 36, 7414, 20244, 4, 7115, 1442, 63, 29275261,
    ),
    "t0": (
        227605432, 39061, 3067956, 405283, 11, 2209, 11939, 155, 4, 977, 15, 292775614, 17296,
        40790948, 187188510, 590152, 12974, 109, 37, 7425, 20266, 4, 7123, 1544, 64, 130229467,
    ),
}
# fmt: on

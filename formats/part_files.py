"""Names of the files that a split, or the histories, of a dataset are cut into."""

from __future__ import annotations


def part_name(number: int) -> str:
    """File name of a part; names sort as numbers do up to 99,999."""
    return f"part-{number:05d}.parquet"

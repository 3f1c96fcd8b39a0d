"""`formats.bags`: what is written is read, and what can be no bags is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.core.errors import UserError
from lookback.formats.bags import bag_file, read_bags, write_bags

BAGS = [[], [], [], [3, 5], [2], [], [3, 4, 8]]


def write(directory: Path, bags: object, kind: pa.DataType | None = None) -> Path:
    file = bag_file(directory, "genres")
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"ids": pa.array(bags, kind or pa.list_(pa.int32()))}), file)
    return directory


def test_bags_are_read_as_they_were_written(tmp_path: Path) -> None:
    lengths = np.array([len(bag) for bag in BAGS])
    ids = np.array([element for bag in BAGS for element in bag], np.int32)
    digest = write_bags(tmp_path, "genres", lengths, ids)
    plain = lengths.astype("<i8").tobytes() + ids.astype("<i4").tobytes()
    assert digest == hashlib.sha256(plain).hexdigest()
    found = read_bags(tmp_path, "genres", 4, 9)
    assert found.dtype == np.int32
    assert found.tolist() == [bag + [0] * (4 - len(bag)) for bag in BAGS]


def test_no_bag_but_the_reserved_ones(tmp_path: Path) -> None:
    write_bags(tmp_path, "genres", np.zeros(3, int), np.zeros(0, np.int32))
    assert read_bags(tmp_path, "genres", 2, 9).tolist() == [[0, 0]] * 3


@pytest.mark.parametrize(
    ("bags", "text"),
    [
        ([[], [], [2], [3]], r"3 empty bags first, found lengths \[0, 0, 1\]"),
        ([[], []], r"3 empty bags first, found lengths \[0, 0\]"),
        ([*BAGS, [1, 2, 3, 4]], "at most 3 elements a bag, found 4"),
        ([*BAGS, [4, 9]], r"elements in \[1, 8\], found \[2, 9\]"),
        ([*BAGS, [0]], r"elements in \[1, 8\], found \[0, 8\]"),
        ([*BAGS, [4, 4]], "to ascend and to differ"),
        ([*BAGS, [4, 3]], "to ascend and to differ"),
        ([*BAGS, None], "without nulls"),
        ([*BAGS, [None]], "holds nulls"),
    ],
)
def test_what_can_be_no_bags_is_refused(tmp_path: Path, bags: object, text: str) -> None:
    with pytest.raises(UserError, match=text):
        read_bags(write(tmp_path, bags), "genres", 3, 9)


def test_another_type_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"genres\.parquet cannot be read"):
        read_bags(tmp_path, "genres", 3, 9)
    with pytest.raises(UserError, match="expected lists of int32 without nulls, found list<"):
        read_bags(write(tmp_path, BAGS, pa.list_(pa.int64())), "genres", 3, 9)

"""`formats.schema`: what is written is read; and each format's name stands in one file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from merlin.schema import ColumnSchema, Schema, Tags

from lookback.core.errors import UserError
from lookback.formats.schema import read_schema, write_schema

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    schema = Schema(
        [
            ColumnSchema("label", tags=[Tags.TARGET], dtype="float32"),
            ColumnSchema(
                "item_id",
                tags=[Tags.ITEM_ID, Tags.CATEGORICAL],
                dtype="int32",
                dims=(None, (0, None)),
                properties={"domain": {"min": 0, "max": 8, "name": "item_id"}},
            ),
        ]
    )
    write_schema(schema, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["schema.pbtxt"]
    read = read_schema(tmp_path)
    assert read.column_names == ["label", "item_id"]
    assert read["item_id"].int_domain.max == 8 and read["item_id"].is_ragged
    assert {Tags.ITEM, Tags.ID} <= set(read["item_id"].tags)  # Merlin's way to write ITEM_ID
    assert read["label"].dtype.name == "float32"


def test_a_missing_or_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no schema\.pbtxt in .*workflows run") as error:
        read_schema(tmp_path)
    assert str(tmp_path) in str(error.value)
    for content in (b"feature {", b"\xff\xfe", b"x: 1"):
        (tmp_path / "schema.pbtxt").write_bytes(content)
        with pytest.raises(UserError, match=r"schema\.pbtxt cannot be read .*workflows run"):
            read_schema(tmp_path)


def test_neither_file_s_module_needs_merlin_or_tensorflow() -> None:
    code = (
        "import sys; from lookback.formats import dataset_info, schema\n"
        "assert not {'merlin', 'tensorflow', 'nvtabular'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

from __future__ import annotations

import pytest
from merlin.schema import ColumnSchema, Schema, Tags
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

from lookback.core.errors import UserError
from lookback.embeddings.tables import tables_from_schema
from lookback.formats.dataset_info import is_tabular
from lookback.formats.tabular_schema import TabularFeatures, tabular_schema

FEATURES = TabularFeatures("label", ("num_0", "num_1"), ("cat_0", "cat_1"))


def test_schema_survives_the_disk(tmp_path):
    schema = tabular_schema(2, {"cat_0": 5, "cat_1": 1})
    TensorflowMetadata.from_merlin_schema(schema).to_proto_text_file(str(tmp_path))
    read = TensorflowMetadata.from_proto_text_file(str(tmp_path)).to_merlin_schema()
    for found in (schema, read):
        assert TabularFeatures.from_schema(found) == FEATURES
        assert FEATURES.names == tuple(found.column_names)
        tables, columns = tables_from_schema(found, 8)
        assert [(t.name, t.rows, t.dim) for t in tables] == [("cat_0", 5, 8), ("cat_1", 1, 8)]
        assert columns == {"cat_0": "cat_0", "cat_1": "cat_1"}


def test_names_are_free():
    schema = tabular_schema(["price"], {"brand": 3}, label="click")
    assert TabularFeatures.from_schema(schema) == TabularFeatures("click", ("price",), ("brand",))
    assert TabularFeatures.from_schema(tabular_schema(0, {"a": 2})).numerical == ()


@pytest.mark.parametrize(
    ("numerical", "tables", "message"),
    [
        (1, {"num_0": 3}, r"Columns \['num_0'\] occur twice"),
        (["label"], {}, r"Columns \['label'\] occur twice"),
        (1, {"cat_0": 0}, "'cat_0' has a table of 0 rows"),
        (1, {"cat_0": 2**31}, "'cat_0' has a table of 2147483648 rows"),
    ],
)
def test_impossible_columns(numerical, tables, message):
    with pytest.raises(UserError, match=message):
        tabular_schema(numerical, tables)


def test_schemas_of_something_else():
    label = ColumnSchema("label", tags=[Tags.TARGET])
    number = ColumnSchema("x", tags=[Tags.CONTINUOUS], dtype="float32")
    words = ColumnSchema("w", tags=[Tags.CATEGORICAL], dtype="int32", dims=(None, (0, None)))
    with pytest.raises(UserError, match="exactly one column tagged TARGET, found none"):
        TabularFeatures.from_schema(Schema([number]))
    with pytest.raises(UserError, match="no column tagged CONTINUOUS or CATEGORICAL"):
        TabularFeatures.from_schema(Schema([label]))
    with pytest.raises(UserError, match=r"Columns \['w'\] hold lists"):
        TabularFeatures.from_schema(Schema([label, words]))


def test_is_tabular(tmp_path):
    assert not is_tabular(tmp_path)
    for text, expected in (
        ("{", False),
        ("[]", False),
        ('{"format": "other"}', False),
        ('{"format": "lookback-tabular", "format_version": 7}', True),
    ):
        (tmp_path / "dataset.json").write_text(text)
        assert is_tabular(tmp_path) is expected

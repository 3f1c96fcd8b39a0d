from __future__ import annotations

import pytest
from merlin.schema import Schema, Tags

from lookback.formats import history_columns as columns
from lookback.formats.features import HistoryFeatures, dataset_column
from lookback.formats.impressions import impression_columns


def test_columns_are_in_the_order_of_the_contract() -> None:
    found = columns.history_columns(("age",), ("category_id", "brand"))
    assert [column.name for column in found] == [
        "user_id",
        "age",
        "item_id",
        "category_id",
        "brand",
        "timestamp",
    ]
    assert [column.is_list for column in found] == [False, False, True, True, True, True]
    assert [column.dtype for column in found] == ["int32"] * 5 + ["int64"]
    assert columns.categorical_names(found) == (
        "user_id",
        "age",
        "item_id",
        "category_id",
        "brand",
    )


def test_tags_are_merlin_tags() -> None:
    known = {tag.value for tag in Tags}
    for column in columns.history_columns(("age",), ("category_id",)):
        assert set(column.tags) <= known
        assert ("list" in column.tags) == column.is_list


def test_repeated_names_are_refused() -> None:
    with pytest.raises(ValueError, match="repeated: item_id"):
        columns.history_columns((), ("item_id",))


TYPED = (
    columns.number("dwell", "event"),
    columns.category("device", "context"),
    columns.category("genres", "item", 4),
    columns.number("age", "user"),
    columns.category("rating", "event"),
    columns.number("price", "item"),
)


def test_typed_columns_are_in_the_order_of_their_roles() -> None:
    found = columns.typed_columns(TYPED, split=True)
    assert [(c.name, c.dtype, c.is_list, c.bag, c.role) for c in found] == [
        ("user_id", "int32", False, None, "user"),
        ("age", "float32", False, None, "user"),
        ("split", "int8", False, None, None),
        ("item_id", "int32", True, None, "item"),
        ("genres", "int32", True, 4, "item"),
        ("price", "float32", True, None, "item"),
        ("device", "int32", True, None, "context"),
        ("dwell", "float32", True, None, "event"),
        ("rating", "int32", True, None, "event"),
        ("timestamp", "int64", True, None, None),
    ]
    known = {tag.value for tag in Tags}
    assert all(set(column.tags) <= known for column in found)
    assert columns.categorical_names(found) == ("user_id", "item_id", "genres", "device", "rating")


def test_what_is_new_is_a_column_of_events_and_no_feature() -> None:
    *others, new = columns.typed_columns(TYPED, new=True)
    assert others == list(columns.typed_columns(TYPED))
    assert (new.name, new.dtype, new.is_list, new.role) == ("new", "int8", True, None)
    schema = Schema([dataset_column(column, {}) for column in [*others, new]])
    assert "new" not in HistoryFeatures.from_schema(schema).of(*columns.ROLES)
    assert impression_columns([*others, new])[-3:] == ["new", "timestamp", "label"]


def test_a_feature_named_as_the_users_split_is_refused_where_there_is_one() -> None:
    split = columns.category("split", "user")
    assert len(columns.typed_columns([split])) == 4
    with pytest.raises(ValueError, match="repeated: split"):
        columns.typed_columns([split], split=True)

from __future__ import annotations

import pytest
from merlin.schema import Tags

from lookback.formats import history_columns as columns


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

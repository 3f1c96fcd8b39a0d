"""TableSpec's arithmetic and errors."""

from __future__ import annotations

import dataclasses

import pytest

from lookback.embeddings.types import TableSpec


def test_scale_and_parameters():
    table = TableSpec("item", rows=400, dim=16)
    assert table.scale == 0.05
    assert table.parameters == 6400
    assert dataclasses.replace(table, init_scale=0.2).scale == 0.2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rows": 0}, "'item': rows must be at least 1, received 0"),
        ({"dim": -1}, "'item': dim must be at least 1, received -1"),
        ({"name": ""}, "name must not be empty"),
    ],
)
def test_impossible_tables_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        TableSpec(**{"name": "item", "rows": 4, "dim": 2, **change})


def test_specs_are_frozen_values():
    table = TableSpec("item", 4, 2)
    assert table == TableSpec("item", 4, 2)
    assert len({table, TableSpec("item", 4, 2)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.rows = 5

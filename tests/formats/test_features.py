"""Columns by role, and the schema of a batch."""

from __future__ import annotations

import pytest
from merlin.schema import ColumnSchema, Schema, Tags

from lookback.core.errors import UserError
from lookback.formats.features import (
    TIME_GAP_BUCKETS,
    HistoryFeatures,
    history_name,
    negatives_name,
    sample_schema,
    table_rows,
)
from lookback.formats.schema import read_schema, write_schema
from tests.typed_data import ROWS, typed_schema


def test_columns_are_selected_by_tag_and_the_item_id_comes_first(make_schema):
    schema = make_schema({"country": 4, "user_id": 7}, {"item_id": 9, "brand": 5, "shop": 3})
    reordered = Schema([schema[name] for name in reversed(schema.column_names)])
    features = HistoryFeatures.from_schema(reordered)
    assert features.item == ("item_id", "shop", "brand")
    assert features.user == ("user_id", "country")
    assert features.time == "timestamp"
    assert HistoryFeatures.from_schema(make_schema(time=False)).time is None


def test_no_user_features_is_allowed(make_schema):
    assert HistoryFeatures.from_schema(make_schema(users={})).user == ()


@pytest.mark.parametrize("found", [[], ["item_id", "other_id"]])
def test_anything_but_one_item_id_is_an_error(make_schema, found):
    schema = Schema([c for c in make_schema() if c.name != "item_id"])
    tags = [Tags.ITEM, Tags.ITEM_ID, Tags.CATEGORICAL]
    for name in found:
        schema += Schema([ColumnSchema(name, tags=tags)])
    with pytest.raises(UserError, match="exactly one categorical column tagged ITEM_ID") as error:
        HistoryFeatures.from_schema(schema)
    assert all(name in str(error.value) for name in found)
    assert "workflows" in str(error.value)


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("time", [False, True])
def test_sample_schema(make_schema, negatives, time):
    sample = sample_schema(
        make_schema(domains={"category_id": "topics"}),
        max_seq_length=10,
        short_seq_length=3,
        negatives=negatives,
        time_features=time,
    )
    expected = {
        "user_id": (None, 6, "user_id"),
        "country": (None, 3, "country"),
        "item_id": (None, 39, "item_id"),
        "category_id": (None, 5, "topics"),
        "item_id_history": (10, 39, "item_id"),
        "category_id_history": (10, 5, "topics"),
    }
    if negatives:
        expected["item_id_negatives"] = (3, 39, "item_id")
        expected["category_id_negatives"] = (3, 5, "topics")
    if time:
        expected["time_gap_history"] = (10, TIME_GAP_BUCKETS - 1, "time_gap")
    assert set(sample.column_names) == set(expected)
    for column in sample:
        length, largest, domain = expected[column.name]
        assert (column.int_domain.max, column.int_domain.name) == (largest, domain)
        assert column.dtype.name == "int32"
        assert column.is_list == (length is not None)
        if length is not None:
            assert column.shape.dims[1].max == column.shape.dims[1].min == length
    assert sample.select_by_tag(Tags.ITEM_ID).column_names == ["item_id"]
    assert sample.select_by_tag(Tags.USER_ID).column_names == ["user_id"]


def test_names_of_derived_columns():
    assert history_name("brand") == "brand_history"
    assert negatives_name("brand") == "brand_negatives"


def test_table_rows_follow_the_domains(make_schema):
    assert table_rows(make_schema()) == {
        "user_id": 7,
        "country": 4,
        "item_id": 40,
        "category_id": 6,
    }


def test_a_categorical_column_without_a_domain_is_named(make_schema):
    bare = ColumnSchema("brand", tags=[Tags.ITEM, Tags.CATEGORICAL])
    with pytest.raises(UserError, match="'brand' has no int domain"):
        table_rows(make_schema() + Schema([bare]))


def test_typed_columns_have_roles_whoever_wrote_the_schema(tmp_path):
    """Protobuf turns M into a floating-point number."""
    write_schema(typed_schema(), tmp_path)
    for schema in (typed_schema(), read_schema(tmp_path)):
        features = HistoryFeatures.from_schema(schema)
        assert features == HistoryFeatures(
            user=("user_id", "country", "interests"),
            item=("item_id", "category_id", "genres"),
            time="timestamp",
            context=("device", "sensors"),
            event=("rating", "actions"),
            bags={"interests": 3, "genres": 2, "sensors": 2, "actions": 3},
            numbers={"age": "user", "price": "item", "hour": "context", "dwell": "event"},
        )
        assert features.of("item", "context") == (
            *("item_id", "category_id", "genres", "price"),
            *("device", "sensors", "hour"),
        )
        assert features.numbers_of("event") == ("dwell",)
        assert features.ids == ("user_id", "item_id")
        assert table_rows(schema) == ROWS


def test_sample_schema_of_typed_columns():
    sample = sample_schema(
        typed_schema(), max_seq_length=10, short_seq_length=3, negatives=True, time_features=True
    )
    lengths = {
        **{"user_id": (), "country": (), "interests": (3,), "age": ()},
        **{"device": (), "sensors": (2,), "hour": ()},
    }
    for name, bag in {"item_id": (), "category_id": (), "genres": (2,), "price": ()}.items():
        lengths |= {name: bag, f"{name}_history": (10, *bag), f"{name}_negatives": (3, *bag)}
    past = {"device": (), "sensors": (2,), "hour": (), "rating": (), "actions": (3,), "dwell": ()}
    lengths |= {f"{name}_history": (10, *bag) for name, bag in past.items()}
    lengths["time_gap_history"] = (10,)
    assert set(sample.column_names) == set(lengths)
    numbers = ("age", "price", "hour", "dwell")
    for column in sample:
        dims = column.shape.dims[1:] if column.shape.dims else ()
        assert tuple(dim.max for dim in dims) == lengths[column.name], column.name
        assert all(dim.min == dim.max for dim in dims)
        of = column.name.removesuffix("_history").removesuffix("_negatives")
        number = of in numbers
        assert column.dtype.name == ("float32" if number else "int32")
        assert (Tags.CONTINUOUS in column.tags) == number != (Tags.CATEGORICAL in column.tags)
        if of in ROWS:
            assert (column.int_domain.max, column.int_domain.name) == (ROWS[of] - 1, of)
    roles = HistoryFeatures.from_schema(typed_schema())
    assert HistoryFeatures.from_schema(sample).user == roles.user


@pytest.mark.parametrize("most", [0, 2.5, "many"])
def test_a_bag_that_holds_nothing_or_a_fraction_is_refused(most):
    column = ColumnSchema(
        "genres", tags=[Tags.ITEM, Tags.CATEGORICAL, Tags.SEQUENCE], properties={"bag": most}
    )
    schema = typed_schema()
    with pytest.raises(UserError, match=r"'genres'.* whole number of at least 1"):
        HistoryFeatures.from_schema(Schema([*(c for c in schema if c.name != "genres"), column]))


def test_a_category_of_nobody_and_no_sequence_is_no_feature(make_schema):
    """As before there were features of events: labels of a foreign schema, for one."""
    other = ColumnSchema("label", tags=[Tags.CATEGORICAL])
    with_it = HistoryFeatures.from_schema(make_schema() + Schema([other]))
    assert with_it == HistoryFeatures.from_schema(make_schema())

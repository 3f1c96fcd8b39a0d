"""Which columns a batch has: derived from the schema by tag, named in one place.

A dataset's schema describes one row a user: scalar user features, list columns of item features
and a list of timestamps. A sample derived from it has, for every item feature ``f``: ``f`` (the
candidates), ``f_history`` and, in training, ``f_negatives``. Features of the context have ``f`` (of
the target, whichever candidate it is) and ``f_history``; those of events ``f_history`` alone.

In a batch, of B histories with T slots and C candidates:

    feature of          target        history       auxiliary negatives
    a user              [B]
    an item             [B, C]        [B, T]        [B, S]
    the context         [B]           [B, T]
    an event                          [B, T]

Categories are int32 ids, and numbers float32. Bags have an axis more, their M ids. What is not
there (slots without an event, places that a bag leaves free) is 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from merlin.schema import ColumnSchema, Schema, Tags

from lookback.core.errors import UserError
from lookback.formats.dataset_info import AGAIN
from lookback.formats.history_columns import ROLES, TIME_GAP, Column, Role, role_of

TIME_GAP_BUCKETS = 34
"""Rows of that table: padding, and floor(log2(1 + seconds)) from 0 to 32, which spans 136 years."""


_BAG = "bag"
"""Property of a column whose values are bags: how many ids one holds at most."""


def history_name(feature: str) -> str:
    """Name of the batch column that holds the history of an item feature."""
    return f"{feature}_history"


def negatives_name(feature: str) -> str:
    """Name of the batch column that holds the auxiliary negatives of an item feature."""
    return f"{feature}_negatives"


@dataclasses.dataclass(frozen=True)
class HistoryFeatures:
    """The feature columns of a dataset of histories, by role.

    Attributes:
      user: names of the categorical user features.
      item: names of the categorical item features; the item id comes first.
      time: name of the timestamp column, None if the dataset has none.
      context: names of the categorical context features.
      event: names of the categorical event features.
      bags: which of all these are bags of ids, and how many they hold at most (M).
      numbers: the numerical features, and whose each is.
    """

    user: tuple[str, ...]
    item: tuple[str, ...]
    time: str | None
    context: tuple[str, ...] = ()
    event: tuple[str, ...] = ()
    bags: Mapping[str, int] = dataclasses.field(default_factory=dict)
    numbers: Mapping[str, Role] = dataclasses.field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        """What says of whom and of what a row is: of users (where there are any) and items, one."""
        return (*self.user[:1], *self.item[:1])

    def of(self, *roles: Role) -> tuple[str, ...]:
        """Names of the features of roles: of each its categories and then its numbers."""
        return tuple(
            name for role in roles for name in (*getattr(self, role), *self.numbers_of(role))
        )

    def numbers_of(self, role: Role) -> tuple[str, ...]:
        """Names of the numerical features of a role."""
        return tuple(name for name, whose in self.numbers.items() if whose == role)

    @classmethod
    def from_schema(cls, schema: Schema) -> HistoryFeatures:
        """Selects columns by tag.

        Args:
          schema: CATEGORICAL and CONTINUOUS columns are features. USER, ITEM or CONTEXT tells
            whose; a SEQUENCE without them is of events. ITEM_ID marks the item id; TIME the
            timestamps.

        Raises:
          UserError: if there is not exactly one ITEM_ID column.
        """
        categorical = schema.select_by_tag(Tags.CATEGORICAL)
        item_ids = categorical.select_by_tag(Tags.ITEM_ID).column_names
        if len(item_ids) != 1:
            raise UserError(
                f"The schema must have exactly one categorical column tagged ITEM_ID, found "
                f"{item_ids or 'none'}. Write the dataset with `python -m workflows`, or tag its "
                "schema."
            )
        times = schema.select_by_tag(Tags.TIME).column_names
        of = _by_role(categorical)
        bags = {column.name: _most(column) for column in categorical if _BAG in column.properties}
        numbers = _by_role(schema.select_by_tag(Tags.CONTINUOUS))
        return cls(
            user=of["user"],
            item=(item_ids[0], *(name for name in of["item"] if name != item_ids[0])),
            time=times[0] if times else None,
            context=of["context"],
            event=of["event"],
            bags=bags,
            numbers={name: role for role, names in numbers.items() for name in names},
        )


def chosen(schema: Schema, names: Sequence[str]) -> Schema:
    """The part of a dataset's schema that is of some features, the ids and times.

    Args:
      schema: of the dataset, or such a part that has them.
      names: of features; the ids may be among them.

    Raises:
      UserError: if the dataset has no such feature.
    """
    features = HistoryFeatures.from_schema(schema)
    known = features.of(*ROLES)
    unknown = [name for name in names if name not in known]
    if unknown:
        others = [name for name in known if name not in features.ids]
        raise UserError(
            f"features: expected some of {', '.join(others) or 'none, as the dataset has none'}, "
            f"received {', '.join(unknown)}."
        )
    left_out = {*known} - {*names, *features.ids}
    return Schema([column for column in schema if column.name not in left_out])


def sample_schema(
    schema: Schema,
    *,
    max_seq_length: int,
    short_seq_length: int,
    negatives: bool,
    time_features: bool,
) -> Schema:
    """The schema of a batch made from a dataset with `schema`.

    Args:
      schema: of the dataset.
      max_seq_length: history slots (T).
      short_seq_length: slots that auxiliary negatives are drawn for (S).
      negatives: whether the batch has auxiliary negatives.
      time_features: whether the batch has time gaps.

    Returns:
      What is of users, contexts and candidates as scalars, histories and negatives as fixed-length
      lists; of bags, lists of M and of M each. Columns keep the dataset's domains, which name the
      tables they share.
    """
    features = HistoryFeatures.from_schema(schema)
    columns = [_scalar(schema[name], name) for name in features.of("user", "item", "context")]
    for name in features.of("item", "context", "event"):
        columns.append(_list(schema[name], history_name(name), max_seq_length))
        if negatives and name in features.of("item"):
            columns.append(_list(schema[name], negatives_name(name), short_seq_length))
    if time_features:
        domain = {"min": 0, "max": TIME_GAP_BUCKETS - 1, "name": TIME_GAP}
        gap = ColumnSchema(
            TIME_GAP, tags=[Tags.CATEGORICAL], dtype="int32", properties={"domain": domain}
        )
        columns.append(_list(gap, history_name(TIME_GAP), max_seq_length))
    return Schema(columns)


def dataset_column(column: Column, properties: Mapping[str, Any]) -> ColumnSchema:
    """A column of a dataset as its schema has it.

    Args:
      column: to describe.
      properties: what else the schema says of it; "domain", for ids and the elements of bags:
        ``min``, ``max`` and ``name``, which names their table.
    """
    bag = {} if column.bag is None else {_BAG: column.bag}
    return ColumnSchema(
        column.name,
        dtype=column.dtype,
        tags=list(column.tags),
        properties={**properties, **bag},
        is_list=column.is_list,
        is_ragged=column.is_list,
    )


def bag_size(column: ColumnSchema) -> int:
    """How many ids a value of a column stands for at most: M of bags, 1 of others."""
    return _most(column) if _BAG in column.properties else 1


def table_rows(schema: Schema) -> dict[str, int]:
    """Rows of the embedding table of each categorical column, by column name."""
    columns = schema.select_by_tag(Tags.CATEGORICAL)
    return {column.name: int(_domain(column)["domain"]["max"]) + 1 for column in columns}


def _by_role(columns: Schema) -> dict[Role, tuple[str, ...]]:
    """Names of features by whose they are; of an event's, only what is a sequence."""
    of: dict[Role, list[str]] = {role: [] for role in ROLES}
    for column in columns:
        role = role_of(tag.value for tag in column.tags)
        if role != "event" or Tags.SEQUENCE in column.tags:
            of[role].append(column.name)
    return {role: tuple(names) for role, names in of.items()}


def _most(column: ColumnSchema) -> int:
    most = column.properties[_BAG]  # a file of protobuf's has floating-point numbers alone
    if not isinstance(most, int | float) or most < 1 or most != int(most):
        raise UserError(
            f"Column {column.name!r}: the schema's property {_BAG!r} must be how many ids a bag "
            f"holds at most, a whole number of at least 1, found {most!r}. {AGAIN}"
        )
    return int(most)


def _scalar(column: ColumnSchema, name: str) -> ColumnSchema:
    tags = [tag for tag in column.tags if tag not in (Tags.LIST, Tags.SEQUENCE)]
    return _sampled(column, name, tags, ())


def _list(column: ColumnSchema, name: str, length: int) -> ColumnSchema:
    # The ids' own roles stay with the scalar column: a schema has one USER_ID and one ITEM_ID.
    tags = [tag for tag in column.tags if tag not in (Tags.ITEM_ID, Tags.ID)]
    return _sampled(column, name, [*tags, Tags.LIST, Tags.SEQUENCE], (length,))


def _sampled(
    column: ColumnSchema, name: str, tags: list[Tags], lengths: tuple[int, ...]
) -> ColumnSchema:
    """A column of a batch, with axes of these lengths behind that of the batch."""
    if Tags.CONTINUOUS in column.tags:
        dtype, properties = "float32", {}
    else:
        dtype, properties = "int32", _domain(column)
    if _BAG in column.properties:
        lengths = (*lengths, _most(column))
        properties[_BAG] = lengths[-1]
    if lengths:
        return ColumnSchema(
            name, tags=tags, dtype=dtype, dims=(None, *lengths), properties=properties
        )
    return ColumnSchema(name, tags=tags, dtype=dtype, properties=properties)


def _domain(column: ColumnSchema) -> dict[str, Any]:
    domain = column.int_domain
    if domain is None or domain.max is None:
        raise UserError(
            f"Categorical column {column.name!r} has no int domain in the schema, so its table's "
            "size is unknown. Write the dataset with `python -m workflows`, or add the domain."
        )
    return {"domain": {"min": 0, "max": int(domain.max), "name": domain.name or column.name}}

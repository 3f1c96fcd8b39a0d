"""Which columns a batch has: derived from the schema by tag, named in one place.

A dataset's schema describes one row a user: scalar user features, list columns of item features
and a list of timestamps. A sample derived from it has, for every item feature ``f``: ``f`` (the
candidates), ``f_history`` and, in training, ``f_negatives``.
"""

from __future__ import annotations

import dataclasses

from merlin.schema import ColumnSchema, Schema, Tags

from lookback.core.errors import UserError

TIME_GAP = "time_gap"
"""Domain (and table) of log-bucketed gaps between an event and the target, see `windows`."""

TIME_GAP_BUCKETS = 34
"""Rows of that table: padding, and floor(log2(1 + seconds)) from 0 to 32, which spans 136 years."""


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
    """

    user: tuple[str, ...]
    item: tuple[str, ...]
    time: str | None

    @property
    def ids(self) -> tuple[str, ...]:
        """What says of whom and of what a row is: of users (where there are any) and items, one."""
        return (*self.user[:1], *self.item[:1])

    @classmethod
    def from_schema(cls, schema: Schema) -> HistoryFeatures:
        """Selects columns by tag.

        Args:
          schema: USER or ITEM tells whose feature a CATEGORICAL column is; ITEM_ID marks the item
            id; TIME the timestamps.

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
        others = [n for n in categorical.select_by_tag(Tags.ITEM).column_names if n != item_ids[0]]
        times = schema.select_by_tag(Tags.TIME).column_names
        return cls(
            user=tuple(categorical.select_by_tag(Tags.USER).column_names),
            item=(item_ids[0], *others),
            time=times[0] if times else None,
        )


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
      User features and candidates as scalars, histories and negatives as fixed-length lists.
      Columns keep the dataset's domains, which name the tables they share.
    """
    features = HistoryFeatures.from_schema(schema)
    columns = [_scalar(schema[name], name) for name in (*features.user, *features.item)]
    for name in features.item:
        columns.append(_list(schema[name], history_name(name), max_seq_length))
        if negatives:
            columns.append(_list(schema[name], negatives_name(name), short_seq_length))
    if time_features:
        domain = {"min": 0, "max": TIME_GAP_BUCKETS - 1, "name": TIME_GAP}
        gap = ColumnSchema(
            TIME_GAP, tags=[Tags.CATEGORICAL], dtype="int32", properties={"domain": domain}
        )
        columns.append(_list(gap, history_name(TIME_GAP), max_seq_length))
    return Schema(columns)


def table_rows(schema: Schema) -> dict[str, int]:
    """Rows of the embedding table of each categorical column, by column name."""
    columns = schema.select_by_tag(Tags.CATEGORICAL)
    return {column.name: int(_domain(column)["domain"]["max"]) + 1 for column in columns}


def _scalar(column: ColumnSchema, name: str) -> ColumnSchema:
    tags = [tag for tag in column.tags if tag not in (Tags.LIST, Tags.SEQUENCE)]
    return ColumnSchema(name, tags=tags, dtype="int32", properties=_domain(column))


def _list(column: ColumnSchema, name: str, length: int) -> ColumnSchema:
    # The ids' own roles stay with the scalar column: a schema has one USER_ID and one ITEM_ID.
    tags = [tag for tag in column.tags if tag not in (Tags.ITEM_ID, Tags.ID)]
    return ColumnSchema(
        name,
        tags=[*tags, Tags.LIST, Tags.SEQUENCE],
        dtype="int32",
        dims=(None, length),
        properties=_domain(column),
    )


def _domain(column: ColumnSchema) -> dict[str, dict[str, int | str]]:
    domain = column.int_domain
    if domain is None or domain.max is None:
        raise UserError(
            f"Categorical column {column.name!r} has no int domain in the schema, so its table's "
            "size is unknown. Write the dataset with `python -m workflows`, or add the domain."
        )
    return {"domain": {"min": 0, "max": int(domain.max), "name": domain.name or column.name}}

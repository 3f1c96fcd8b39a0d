"""Which columns a model of users and items reads: their ids, by tag."""

from __future__ import annotations

import dataclasses

from merlin.schema import Schema, Tags

from lookback.core.errors import UserError
from lookback.formats.features import HistoryFeatures, sample_schema, table_rows

SAMPLE_KEY = "sample_key"
"""Batch column, int64 ``[B]``, of training: a random number of each sample, for its dropout."""


@dataclasses.dataclass(frozen=True)
class InteractionFeatures:
    """The two columns.

    Attributes:
      user: name of the user id.
      item: name of the item id.
    """

    user: str
    item: str

    @classmethod
    def from_schema(cls, schema: Schema) -> InteractionFeatures:
        """Selects columns of a dataset of histories by tag.

        Raises:
          UserError: if there is not exactly one USER_ID and one ITEM_ID column.
        """
        users = schema.select_by_tag(Tags.CATEGORICAL).select_by_tag(Tags.USER_ID).column_names
        if len(users) != 1:
            raise UserError(
                f"The schema must have exactly one categorical column tagged USER_ID, found "
                f"{users or 'none'}. Write the dataset with `python -m workflows`, or tag its "
                "schema."
            )
        return cls(users[0], HistoryFeatures.from_schema(schema).item[0])

    def rows(self, schema: Schema) -> dict[str, int]:
        """Rows of the two ids' tables, by name."""
        rows = table_rows(schema)
        return {name: rows[name] for name in (self.user, self.item)}

    def sample_schema(self, schema: Schema) -> Schema:
        """The schema of a batch: both ids as scalars."""
        scalars = sample_schema(
            schema, max_seq_length=1, short_seq_length=1, negatives=False, time_features=False
        )
        return scalars.select_by_name([self.user, self.item])

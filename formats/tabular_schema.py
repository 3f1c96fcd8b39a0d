"""The columns of tabular data: one label, N numbers and M ids a row, by tag.

A dataset on disk of this format says them in `schema.pbtxt`; a batch holds them as the
matrices ``numerical`` ``[B, N]`` and ``categorical`` ``[B, M]``, columns in the schema's order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from merlin.schema import ColumnSchema, Schema, Tags

from lookback.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class TabularFeatures:
    """The columns of a row, by role.

    Attributes:
      label: name of the binary target.
      numerical: names of the N numbers.
      categorical: names of the M ids.
    """

    label: str
    numerical: tuple[str, ...]
    categorical: tuple[str, ...]

    @classmethod
    def from_schema(cls, schema: Schema) -> TabularFeatures:
        """Selects columns by tag, in the schema's order.

        Args:
          schema: TARGET marks the label, CONTINUOUS the numbers, CATEGORICAL the ids.

        Raises:
          UserError: if there is not one label, no feature at all, or a list among the columns.
        """
        labels = schema.select_by_tag(Tags.TARGET).column_names
        if len(labels) != 1:
            raise UserError(
                f"The schema must have exactly one column tagged TARGET, found {labels or 'none'}. "
                "Write the dataset with `python -m workflows`, or tag its schema."
            )
        features = cls(
            label=labels[0],
            numerical=tuple(schema.select_by_tag(Tags.CONTINUOUS).column_names),
            categorical=tuple(schema.select_by_tag(Tags.CATEGORICAL).column_names),
        )
        if not features.numerical and not features.categorical:
            raise UserError(
                f"The schema has no column tagged CONTINUOUS or CATEGORICAL beside "
                f"{features.label!r}. Write the dataset with `python -m workflows`."
            )
        lists = [name for name in features.names if schema[name].is_list]
        if lists:
            raise UserError(
                f"Columns {lists} hold lists. Tabular data has one value a row and column; a "
                "dataset of histories needs another model."
            )
        return features

    @property
    def names(self) -> tuple[str, ...]:
        """All columns: the label, the numbers, the ids."""
        return (self.label, *self.numerical, *self.categorical)


def tabular_schema(
    numerical: int | Sequence[str], cardinalities: Mapping[str, int], *, label: str = "label"
) -> Schema:
    """The schema of tabular data.

    Args:
      numerical: names of the numbers, or how many: then they are num_0, num_1, ...
      cardinalities: rows of the table of each id column, by the column's name.
      label: name of the target.

    Raises:
      UserError: if a name occurs twice or a table has no row.
    """
    if isinstance(numerical, int):
        numerical = [f"num_{index}" for index in range(numerical)]
    names = [label, *numerical, *cardinalities]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"Columns {twice} occur twice. Every column needs a name of its own.")
    columns = [ColumnSchema(label, tags=[Tags.TARGET, Tags.BINARY_CLASSIFICATION], dtype="float32")]
    columns += [ColumnSchema(name, tags=[Tags.CONTINUOUS], dtype="float32") for name in numerical]
    for name, rows in cardinalities.items():
        if not 0 < rows < 2**31:
            raise UserError(
                f"Column {name!r} has a table of {rows} rows. Expected 1 to 2,147,483,647."
            )
        domain = {"min": 0, "max": rows - 1, "name": name}
        columns.append(
            ColumnSchema(
                name, tags=[Tags.CATEGORICAL], dtype="int32", properties={"domain": domain}
            )
        )
    return Schema(columns)

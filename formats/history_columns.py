"""The columns of a histories dataset and the tags that give them meaning.

Pure Python: what a column is called, typed and tagged is decided here, once, and everything that
reads or writes a dataset asks here. A tag is written as its string; the names are those of
``merlin.schema.Tags``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
HISTORY_ID = "history_id"
"""Numbers the histories inside one partition of the intermediate events; never leaves it."""

CATEGORICAL = "categorical"
ID = "id"
ITEM = "item"
LIST = "list"
SEQUENCE = "sequence"
TIME = "time"
USER = "user"


@dataclass(frozen=True)
class Column:
    """One column of the histories table.

    Attributes:
      name: its name in the parquet files and in the schema.
      dtype: of one value: ``int32`` for encoded ids, ``int64`` for seconds.
      tags: what it means; the only thing a reader of the dataset may select it by.
      is_list: whether a row holds one value for each event of the user, or one for the user.
    """

    name: str
    dtype: str
    tags: tuple[str, ...]
    is_list: bool

    @property
    def is_categorical(self) -> bool:
        """Whether its values index an embedding table."""
        return CATEGORICAL in self.tags


def history_columns(
    user_features: Sequence[str] = (), item_features: Sequence[str] = ()
) -> tuple[Column, ...]:
    """The columns of a dataset, in their order on disk.

    Args:
      user_features: names of what is known of a user beside the id.
      item_features: names of what is known of an item beside the id.

    Raises:
      ValueError: if two columns share a name.
    """
    columns = (
        Column(USER_ID, "int32", (USER, ID, CATEGORICAL), is_list=False),
        *(Column(name, "int32", (USER, CATEGORICAL), is_list=False) for name in user_features),
        Column(ITEM_ID, "int32", (ITEM, ID, SEQUENCE, LIST, CATEGORICAL), is_list=True),
        *(
            Column(name, "int32", (ITEM, SEQUENCE, LIST, CATEGORICAL), is_list=True)
            for name in item_features
        ),
        Column(TIMESTAMP, "int64", (TIME, SEQUENCE, LIST), is_list=True),
    )
    names = [column.name for column in columns]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"column names must differ; repeated: {', '.join(repeated)}")
    return columns


def categorical_names(columns: Sequence[Column]) -> tuple[str, ...]:
    """Names of the columns that index an embedding table, in order."""
    return tuple(column.name for column in columns if column.is_categorical)

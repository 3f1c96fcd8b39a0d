"""The columns of a histories dataset and the tags that give them meaning.

Pure Python: what a column is called, typed and tagged is decided here, once, and everything that
reads or writes a dataset asks here. A tag is written as its string; the names are those of
``merlin.schema.Tags``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
HISTORY_ID = "history_id"
"""Numbers the histories inside one partition of the intermediate events; never leaves it."""

SPLIT = "split"
"""Of the split rule "users": to which part a user belongs, by its place in `SPLITS`."""

NEW = "new"
"""Of datasets that `workflows update` wrote: 1 of events that the dataset before did not train on
(they came since, or it held them out, or left them out), else 0. No feature; impressions have it
too."""

TIME_GAP = "time_gap"
"""Domain (and table) of log-bucketed gaps between an event and the target; no column holds them."""

OF_REQUESTS = ("history", "candidates", "probability", "logit", "known")
"""Keys of requests and answers beside the features', so that no feature can be called so."""

CATEGORICAL = "categorical"
CONTEXT = "context"
CONTINUOUS = "continuous"
ID = "id"
ITEM = "item"
LIST = "list"
SEQUENCE = "sequence"
TIME = "time"
USER = "user"


Role = Literal["user", "item", "context", "event"]
"""Whose a feature is.

Of a user, or of an item. Of the context: of an event, and known when an item is shown (the device,
the hour), so that it is known of a target too. Of an event: known only afterwards (the time spent,
the rating), so of past events alone.
"""

ROLES: tuple[Role, ...] = ("user", "item", "context", "event")


@dataclass(frozen=True)
class Column:
    """One column of the histories table.

    Attributes:
      name: its name in the parquet files and in the schema.
      dtype: of one value: ``int32`` of encoded ids, ``int64`` of seconds, ``float32`` of numbers.
      tags: what it means; the only thing a reader of the dataset may select it by.
      is_list: whether a row holds one value for each event of the user, or one for the user.
      bag: None: a value is one id; else it is the number of a bag of ids (`formats.bags`), and this
        is how many it holds at most (M).
    """

    name: str
    dtype: str
    tags: tuple[str, ...]
    is_list: bool
    bag: int | None = None

    @property
    def is_categorical(self) -> bool:
        """Whether its values index an embedding table, or are bags of what does."""
        return CATEGORICAL in self.tags

    @property
    def role(self) -> Role | None:
        """Whose feature it is; None of what is no feature: times, `SPLIT` and `NEW`."""
        if not {CATEGORICAL, CONTINUOUS} & set(self.tags):
            return None
        return role_of(self.tags)


NEW_COLUMN = Column(NEW, "int8", (SEQUENCE, LIST), is_list=True)


def role_of(tags: Iterable[str]) -> Role:
    """Whose a feature with these tags is."""
    tags = set(tags)
    return next((role for role in ROLES if role in tags), "event")


def category(name: str, role: Role, bag: int | None = None) -> Column:
    """The column of a categorical feature.

    Args:
      name: of the feature.
      role: whose it is.
      bag: see `Column`.
    """
    return _feature(name, role, "int32", CATEGORICAL, bag)


def number(name: str, role: Role) -> Column:
    """The column of a numerical feature: transformed already, and never NaN."""
    return _feature(name, role, "float32", CONTINUOUS)


def typed_columns(
    features: Sequence[Column], *, split: bool = False, new: bool = False
) -> tuple[Column, ...]:
    """The columns of a dataset with these features, in their order on disk.

    Args:
      features: made by `category` and `number`; those of a role keep their order.
      split: whether users are split by a column `SPLIT`.
      new: whether events have a column `NEW`.

    Raises:
      ValueError: if two columns share a name.
    """
    of: dict[Role, list[Column]] = {role: [] for role in ROLES}
    for column in features:
        of[role_of(column.tags)].append(column)
    return _distinct(
        Column(USER_ID, "int32", (USER, ID, CATEGORICAL), is_list=False),
        *of["user"],
        *([Column(SPLIT, "int8", (), is_list=False)] if split else []),
        Column(ITEM_ID, "int32", (ITEM, ID, SEQUENCE, LIST, CATEGORICAL), is_list=True),
        *(column for role in ROLES[1:] for column in of[role]),
        Column(TIMESTAMP, "int64", (TIME, SEQUENCE, LIST), is_list=True),
        *([NEW_COLUMN] if new else []),
    )


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
    users = [category(name, "user") for name in user_features]
    return typed_columns([*users, *(category(name, "item") for name in item_features)])


def categorical_names(columns: Sequence[Column]) -> tuple[str, ...]:
    """Names of the columns that index an embedding table, in order."""
    return tuple(column.name for column in columns if column.is_categorical)


def _feature(name: str, role: Role, dtype: str, kind: str, bag: int | None = None) -> Column:
    if role == "user":
        return Column(name, dtype, (USER, kind), is_list=False, bag=bag)
    own = () if role == "event" else (role,)
    return Column(name, dtype, (*own, SEQUENCE, LIST, kind), is_list=True, bag=bag)


def _distinct(*columns: Column) -> tuple[Column, ...]:
    names = [column.name for column in columns]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"column names must differ; repeated: {', '.join(repeated)}")
    return columns

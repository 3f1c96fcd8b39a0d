"""The best items for some users, in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError
from lookback.formats.histories import history_files
from lookback.formats.verification import verify_dataset
from lookback.serving.layouts.candidates import CandidateRequestEncoder, StoredUsers
from lookback.serving.layouts.candidates_layout import CandidateRequestLayout
from lookback.serving.layouts.registry import LAYOUTS
from lookback.serving.manifest import Manifest
from lookback.serving.offline.items import RankedItems, catalogue_of, items_of
from lookback.serving.offline.ranking import Asked, OfflineRanking, PairScorer
from lookback.serving.requests import RequestError

_SHOWN = 3  # ids in an error


class _Bundle(PairScorer, Protocol):
    directory: Path
    manifest: Manifest


def recommend(
    bundle: _Bundle,
    users: Sequence[Any],
    k: int = 10,
    *,
    candidates: Sequence[Any] | pd.DataFrame | None = None,
    exclude_seen: bool = False,
    dataset_dir: str | Path | None = None,
    timestamp: int | None = None,
) -> pd.DataFrame:
    """Ranks items for users.

    Args:
      bundle: of a model that scores items of a user.
      users: raw ids, of users of `dataset_dir` (a model that reads no histories needs none); or
        requests as `score` takes them, without candidates.
      k: items for each.
      candidates: raw ids of the items to rank, or a frame of them with a column for each item
        feature; None: the whole catalogue.
      exclude_seen: whether items of the user's history are left out.
      dataset_dir: the dataset that the model was trained on.
      timestamp: the moment in seconds, for users of a dataset where the model reads times.

    Returns:
      A row a user and item, the best first: user and item id, `score` (the probability), `rank`
      from 1 on. Users are in the order given; of equal scores the item of the lower row (of
      candidates: the earlier one) comes first.

    Raises:
      UserError: if bundle, users and dataset do not fit together; the text says what was expected.
    """
    layout = layout_of(bundle.manifest)
    encoder: CandidateRequestEncoder = bundle.encoder
    if k < 1:
        raise UserError(f"k: expected at least 1, received {k}.")
    users = list(users)
    if not users:
        raise UserError("users: expected one at least, received none.")
    named = not all(isinstance(user, Mapping) for user in users)
    stored, rows = None, users
    if dataset_dir is not None:
        if not named:
            raise UserError(
                "dataset_dir: expected ids of its users, received requests, which bring their "
                "histories. Leave one of them out."
            )
        directory = Path(dataset_dir)
        verify_dataset(directory)
        stored = layout.stored_users(
            bundle.manifest, encoder, bundle.directory, directory, timestamp
        )
        rows = users_of(directory, encoder, stored, users)
    elif named:
        user = encoder.ids[0]
        if user is None or not encoder.leaves_out:
            raise UserError(
                "users: expected requests with histories, or the dataset that has them "
                f"(dataset_dir), received ids ({users[:_SHOWN]}) alone."
            )
        rows = [{user[0]: value} for value in users]
    asked = Asked(_items(encoder, candidates), k, exclude_seen)
    ranking = OfflineRanking(bundle, asked, stored)
    try:
        table, _ = ranking.score(rows)
    except RequestError as error:
        raise UserError(f"users[{error.index}]: {error.detail}") from error
    return table.to_pandas()


def layout_of(manifest: Manifest) -> CandidateRequestLayout:
    """The layout of a bundle that ranks items.

    Raises:
      UserError: if it scores rows instead.
    """
    layout = LAYOUTS[manifest.layout]
    if not isinstance(layout, CandidateRequestLayout):
        raise UserError(
            f"The bundle's model ({manifest.model_type}) scores rows, not items of a user: there "
            "is nothing to rank. Score rows (`score`, or `serving score-file`)."
        )
    return layout


def users_of(
    directory: Path, encoder: CandidateRequestEncoder, stored: StoredUsers, users: Sequence[Any]
) -> pa.Table:
    """Rows of a dataset's histories, in the order of raw user ids.

    Raises:
      UserError: naming users that it has not.
    """
    user = encoder.ids[0]
    if user is None:
        raise UserError("The model reads no user ids, so users of a dataset cannot be named.")
    name, ids = user
    try:
        wanted = pd.Index(ids.encode(users))
    except ValueError as error:
        raise UserError(f"users: {error}.") from error
    columns = list(dict.fromkeys(stored.columns.values()))
    found: list[pa.Table] = []
    for path in history_files(directory):
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                own = file.read_row_group(group, [name])[name].to_numpy()
                places = np.flatnonzero(np.isin(own, wanted))
                if len(places):
                    found.append(file.read_row_group(group, columns).take(pa.array(places)))
    table = pa.concat_tables(found) if found else None
    have = pd.Index([] if table is None else table[name].to_numpy())
    order = have.get_indexer(wanted) if len(have) else np.full(len(wanted), -1)
    if table is None or (order < 0).any():
        missing = [user for user, place in zip(users, order.tolist(), strict=True) if place < 0]
        raise UserError(
            f"{directory} has no user {', '.join(map(repr, missing[:_SHOWN]))}"
            f"{' and others' if len(missing) > _SHOWN else ''}. Give ids as the data had them."
        )
    return table.take(pa.array(order))


def _items(encoder: CandidateRequestEncoder, candidates: Any) -> RankedItems:
    if candidates is None:
        return catalogue_of(encoder)
    try:
        if isinstance(candidates, pd.DataFrame):
            return items_of(encoder, pa.Table.from_pandas(candidates, preserve_index=False))
        item_id = encoder.ids[1][0]
        return items_of(encoder, [{item_id: value} for value in candidates])
    except RequestError as error:
        raise UserError(f"candidates[{error.index}]: {error.detail}") from error

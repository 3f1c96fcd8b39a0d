"""Items that are ranked for every user: the catalogue of a bundle, or a list of candidates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from lookback.core.errors import UserError
from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.serving.columns import CANDIDATES, Columns, Ragged, RequestObjects, RequestTable
from lookback.serving.encoding import VocabularyEncoder
from lookback.serving.layouts.candidates import CandidateRequestEncoder
from lookback.serving.requests import Request, RequestError, check_keys

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class RankedItems:
    """I items, no two of one id.

    Attributes:
      raw: their ids as the data had them. ``[I]``
      inputs: of the model, ``[I, ...]`` by item feature, the id first.
      repeated: how many others there were of the same ids, which are left out.
      unknown: how many of them the bundle does not know.
    """

    raw: pa.Array
    inputs: Mapping[str, npt.NDArray[Any]]
    repeated: int = 0
    unknown: int = 0

    def __len__(self) -> int:
        return len(self.raw)

    def places_of(self, seen: Ragged, *, encoded: bool) -> tuple[Int64, Int64]:
        """Which of the items are among those of each user.

        Args:
          seen: ids of each of B users.
          encoded: whether these are the model's: unknown ones are none of the items then.

        Returns:
          Rows (numbers of users) and places (of items), of each found.
        """
        if encoded:
            own = next(iter(self.inputs.values()))
            known = np.flatnonzero(own >= FIRST_KNOWN)
            ids = np.asarray(seen.values)
            place = np.full(max(own.max(initial=0), ids.max(initial=0)) + 1, -1)
            place[own[known]] = known
            places = place[ids]
        else:
            places = self._index.encode(seen.values).astype(np.int64) - FIRST_KNOWN
        found = places >= 0
        return seen.owners[found], places[found]

    @functools.cached_property
    def _index(self) -> VocabularyEncoder:
        return VocabularyEncoder(self.raw)


def catalogue_of(encoder: CandidateRequestEncoder) -> RankedItems:
    """The items that a bundle knows, by ascending row.

    Raises:
      UserError: if it knows none.
    """
    inputs = encoder.whole_catalogue
    if inputs is None:
        raise UserError(
            "The bundle was exported without a workflow, so it has no catalogue to rank. Give "
            "candidates: in the input, or with --candidates."
        )
    item_id, ids = encoder.ids[1]
    if not len(inputs[item_id]):
        raise UserError("The catalogue of the bundle knows no item, so there is none to rank.")
    return RankedItems(ids.raw(inputs[item_id]), inputs)


def items_of(encoder: CandidateRequestEncoder, items: pa.Table | Sequence[Request]) -> RankedItems:
    """Candidates for every user.

    Args:
      encoder: of the bundle.
      items: a table with a column of ids and maybe of other item features, or such objects.

    Raises:
      RequestError: naming the candidate and the field.
      UserError: if there is none.
    """
    (item_id, ids), (needed, optional) = encoder.ids[1], encoder.item_fields
    if not len(items):
        raise UserError(f"candidates: expected one item at least, by {item_id}, received none.")
    columns: Columns
    if isinstance(items, pa.Table):
        check_keys(
            0, "the candidates", dict.fromkeys(items.column_names), needed=needed, allowed=optional
        )
        one = pa.array(np.arange(len(items) + 1), pa.int32())
        lists = {
            f"{CANDIDATES}.{name}": pa.ListArray.from_arrays(one, column.combine_chunks())
            for name, column in zip(items.column_names, items.columns, strict=True)
        }
        columns = RequestTable(pa.table(lists))
    else:
        for index, item in enumerate(items):
            check_keys(index, "the candidate", item, needed=needed, allowed=optional)
        columns = RequestObjects([{CANDIDATES: {n: [v] for n, v in i.items()}} for i in items])
    inputs = encoder.encode_items(columns)
    values = columns.several(CANDIDATES, item_id).values
    raw = values if isinstance(values, pa.Array) else pa.array(values)
    if raw.null_count:
        first = int(np.argmax(raw.is_null().to_numpy(zero_copy_only=False)))
        raise RequestError(first, f"{item_id}: expected an id, received null.")
    kept = ~pd.Index(raw.to_numpy(zero_copy_only=False)).duplicated()
    own = {name: column[kept] for name, column in inputs.items()}
    unknown = own[item_id] < FIRST_KNOWN if isinstance(ids, VocabularyEncoder) else np.zeros(0)
    raw = raw.filter(pa.array(kept)).cast(ids.raw(np.zeros(0, np.int32)).type)
    return RankedItems(raw, own, int((~kept).sum()), int(unknown.sum()))

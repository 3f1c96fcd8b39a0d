"""What requests for a user's candidates have in common: lists of items, checked and encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.serving.encoding import Encoder, Int32, VocabularyEncoder
from lookback.serving.requests import RequestError, attempt, check_keys, is_list

CANDIDATES = "candidates"


def check_items(
    index: int, part: str, items: Any, *, needed: Sequence[str], allowed: Sequence[str]
) -> int:
    """Checks that a part of a request is an object of lists, all of one length.

    Args:
      index: of the request.
      part: name of the part.
      items: the part.
      needed: names of the lists that must be there, the item id first.
      allowed: names of those that may be.

    Returns:
      Their length.

    Raises:
      RequestError: saying what was expected and what came.
    """
    check_keys(index, part, items, needed=needed, allowed=allowed)
    item_id = needed[0]
    for name, values in items.items():
        if not is_list(values):
            raise RequestError(index, f"{part}.{name}: expected a list, received {values!r:.60}")
    for name, values in items.items():
        if len(values) != len(items[item_id]):
            raise RequestError(
                index,
                f"{part}.{name} has {len(values)} entries and {part}.{item_id} "
                f"{len(items[item_id])}; they must be equally long.",
            )
    return len(items[item_id])


def check_candidates(
    index: int, request: Mapping[str, Any], *, needed: Sequence[str], allowed: Sequence[str]
) -> int:
    """Checks a request's candidates as `check_items` does; there must be one at least."""
    count = check_items(index, CANDIDATES, request[CANDIDATES], needed=needed, allowed=allowed)
    if not count:
        raise RequestError(index, f"{CANDIDATES}.{needed[0]} is empty; expected at least one.")
    return count


def encode_lists(
    encoder: Encoder, field: str, lists: Sequence[Sequence[Any]]
) -> list[npt.NDArray[Any]]:
    """Encodes one list of each request, all of them at once.

    Args:
      encoder: of the values.
      field: the lists' name in a request.
      lists: of each request.

    Raises:
      RequestError: naming the request and the field.
    """
    try:
        joined = encoder.encode([value for values in lists for value in values])
    except ValueError:
        # Once more one by one, to tell whose it is.
        for index, values in enumerate(lists):
            attempt(index, field, encoder.encode, values)
        raise
    ends = np.cumsum([len(values) for values in lists])
    return np.split(joined, ends[:-1])


def known(encoder: Encoder, ids: Int32) -> tuple[bool, ...] | None:
    """Which of encoded items ``[C]`` are known, as `Scores.known` has it.

    Args:
      encoder: of the items.
      ids: that it gave.
    """
    return tuple((ids >= FIRST_KNOWN).tolist()) if isinstance(encoder, VocabularyEncoder) else None


def padded(rows: Sequence[npt.NDArray[Any]], width: int, *, left: bool) -> npt.NDArray[Any]:
    """Rows of different lengths as one array ``[B, width, ...]``, padded with 0 on one side."""
    filled = np.zeros((len(rows), width, *rows[0].shape[1:]), rows[0].dtype)
    for target, row in zip(filled, rows, strict=True):
        if left:
            target[width - len(row) :] = row
        else:
            target[: len(row)] = row
    return filled

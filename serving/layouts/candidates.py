"""What requests for a user's candidates have in common: lists of items, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.serving.columns import CANDIDATES
from lookback.serving.encoding import Encoder, Int32, VocabularyEncoder
from lookback.serving.requests import RequestError, check_keys, is_list


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


def known(encoder: Encoder, ids: Int32) -> tuple[bool, ...] | None:
    """Which of encoded items ``[C]`` are known, as `Scores.known` has it.

    Args:
      encoder: of the items.
      ids: that it gave.
    """
    return tuple((ids >= FIRST_KNOWN).tolist()) if isinstance(encoder, VocabularyEncoder) else None

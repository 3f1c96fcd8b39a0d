"""The contract of what keeps records of users by key: a directory of ours, or Redis."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping

from lookback.core.errors import UserError
from lookback.formats.stored_histories import Head

Change = Callable[[bytes | None], bytes | None]
"""What becomes of a key's record; None: there is none yet, or there is to be none."""


class RecordKeeper(abc.ABC):
    """Bytes by key, as one head says.

    Attributes:
      head: of the store, when it was last looked at. Where a newer dataset's has taken its place
        (`adopt`), whoever has the store open goes on with that one.
      place: its address, for people.
    """

    head: Head
    place: str

    @abc.abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """A whole record."""

    @abc.abstractmethod
    def header(self, key: bytes) -> bytes | None:
        """Its first bytes, by which one can tell whether it has changed."""

    @abc.abstractmethod
    def update(self, changes: Mapping[bytes, Change]) -> None:
        """Changes records: all of them, durably, or none.

        Raises:
          OSError: if the disk is full, or fails; nothing has changed.
          UserError: if the store cannot be written to.
        """

    @abc.abstractmethod
    def adopt(self, head: Head, before: str) -> None:
        """Makes another head the store's, in one step; its records are as that says already.

        Args:
          head: the other.
          before: digest of the one that it takes the place of.

        Raises:
          OSError: if the disk is full, or fails; nothing has changed.
          UserError: if the store cannot be written to, or has yet another head by now.
        """

    def require_head(self, digest: str) -> None:
        """Refuses to go on where the store has another head by now.

        Args:
          digest: of the head that it had.

        Raises:
          UserError: if it has another.
        """
        if self.head.digest != digest:
            raise self.replaced()

    def replaced(self) -> UserError:
        """The error of who finds that somebody else has replaced the head."""
        return UserError(
            f"{self.place}: somebody else has replaced the store meanwhile. Look at it, and try "
            "again."
        )

    @abc.abstractmethod
    def refresh(self) -> None:
        """Looks at the head now.

        Raises:
          UserError: if the store has become one of other histories.
        """

    @abc.abstractmethod
    def keys(self) -> Iterator[bytes]:
        """All keys, as they are now, in no order that means anything."""

    @abc.abstractmethod
    def size(self) -> int:
        """Bytes that the store takes."""

    @abc.abstractmethod
    def compact(self, without: Iterable[bytes] = ()) -> None:
        """Writes anew what the store holds, so that nothing is left of what it held.

        Args:
          without: keys whose records are left out.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Lets go of it."""

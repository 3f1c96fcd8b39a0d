"""The addresses of the history store: a user's history, and events to append.

    POST   /v2/models/NAME/events        an event, or a list of them; durable before it answers
    GET    /v2/models/NAME/users/USER    what the store has of a user, in raw values
    DELETE /v2/models/NAME/users/USER    deletes the user, from the store's files too

A name stands for the store as its model reads it: of items that its catalogue knows, events may
leave out everything else. Histories are about people: where administrators have a token it is
asked for, and without one they are told and taken on this machine alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lookback.core.errors import UserError, shown
from lookback.core.json_files import load_json
from lookback.serving.server.address import Bodied, Site, TooLargeError
from lookback.serving.server.models import StoreOfBundle
from lookback.serving.store.events import EventError, IdError, raw_value, read_events

MOST_EVENTS = 10_000
"""Of one call."""

_FULL = 507  # Insufficient Storage, RFC 4918
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def store_addresses(site: Site) -> list[tuple[str, type, dict[str, Any]]]:
    """For the application's list."""
    model, given = r"/v2/models/([^/]+)(?:/versions/([^/]+))?", {"site": site}
    return [(rf"{model}/events", _Events, given), (rf"{model}/users/([^/]+)", _User, given)]


class _Stored(Bodied):
    """One that needs a store."""

    def prepare(self) -> None:
        """Refuses callers that may not read histories."""
        super().prepare()
        if self._finished:
            return
        if self.site.token is not None:
            self.require_token()
        elif self.site.names is None:
            self.fail(
                403,
                "Histories are told to other machines only with the token of administrators. Start "
                "the server with --admin_token_file.",
            )

    def histories(self, name: str, version: str | None) -> StoreOfBundle | None:
        """The store, as a model reads it; without one the answer says so."""
        model = self.named(name, version)
        if model is None:
            return None
        if model.histories is None:
            self.fail(404, f"{name} has no history store. Start the server with --store.")
        return model.histories

    async def off_loop(self, work: Callable[[], _T]) -> _T | None:
        """Does what waits for a disk in another thread; without a result the answer says why."""
        self.site.active += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(None, work)
        except (EventError, IdError) as error:  # what was asked for
            self.fail(400, str(error))
        except UserError as error:  # the store
            _log.error("%s", error)
            self.fail(500, str(error))
        except OSError as error:
            _log.error("%s", error)
            self.fail(_FULL, f"The store cannot be written ({error.strerror}); nothing was kept.")
        finally:
            self.site.active -= 1
        return None


class _Events(_Stored):
    async def post(self, name: str, version: str | None) -> None:
        """Appends all events, or none."""
        histories = self.histories(name, version)
        if histories is None:
            return
        try:
            content = load_json(self.body, "the body", "Expected an event, or a list of events.")
            events: Sequence[Any] = content if isinstance(content, list) else [content]
            if len(events) > MOST_EVENTS:
                raise UserError(
                    f"Expected at most {MOST_EVENTS:,} events, received {len(events):,}."
                )
        except UserError as error:
            self.fail(413 if isinstance(error, TooLargeError) else 400, str(error))
            return
        store = histories.store
        if not store.writes:
            self.fail(409, "This server only reads its store (--store_read_only).")
            return
        done = await self.off_loop(
            lambda: store.append(read_events(store.head, events, histories.catalogue))
        )
        if done is not None:
            self.finish(dataclasses.asdict(done))


class _User(_Stored):
    async def get(self, name: str, version: str | None, user: str) -> None:
        """The history of a user, oldest event first."""
        histories = self.histories(name, version)
        if histories is None:
            return
        store = histories.store
        history = await self.off_loop(lambda: (store.get(_id(histories, user)),))
        if history is None:
            return
        if history[0] is None:
            self._unknown(user)
            return
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(history[0].as_json(), ensure_ascii=False))

    async def delete(self, name: str, version: str | None, user: str) -> None:
        """Deletes a user; the whole store is written anew for it."""
        histories = self.histories(name, version)
        if histories is None:
            return
        store = histories.store
        if not store.writes:
            self.fail(409, "This server only reads its store (--store_read_only).")
            return
        unknown = await self.off_loop(lambda: (store.delete([_id(histories, user)]),))
        if unknown is not None and unknown[0]:
            self._unknown(user)
        elif unknown is not None:
            self.finish({"deleted": True})

    def _unknown(self, user: str) -> None:
        self.fail(404, f"The store has no user {shown(user)}.")


def _id(histories: StoreOfBundle, word: str) -> Any:
    """The user of an address; raises IdError if that is none."""
    head = histories.store.head
    return raw_value(head, head.user_id, word)

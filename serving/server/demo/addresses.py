"""The addresses of the page, and of what its script asks.

    GET  /demo/, /demo/page.css, /demo/page.js
    GET  /demo/models                       what can be looked at
    GET  /demo/models/NAME/users            users, and items to choose from
    GET  /demo/models/NAME/users/USER       the request of a user
    POST /demo/models/NAME/explain          a request: its answer, and what was attended to

The page is files, without a script or a style in it or from elsewhere, and a policy that forbids
them; its script writes text alone, never markup.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lookback.core.errors import UserError, shown
from lookback.core.json_files import load_json
from lookback.serving.bundle import Bundle
from lookback.serving.columns import HISTORY
from lookback.serving.layouts.registry import LAYOUTS
from lookback.serving.requests import Request
from lookback.serving.server.address import Address, Bodied, Site, TooLargeError
from lookback.serving.server.backlog import OverloadedError
from lookback.serving.server.demo.data import DemoUsers
from lookback.serving.server.models import ServedModel
from lookback.serving.server.scorer import ScoringError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}


def demo_addresses(
    site: Site, users: Mapping[str, DemoUsers]
) -> list[tuple[str, type[Address], dict[str, Any]]]:
    """For the application's list.

    Args:
      site: of the server.
      users: of each model that can be looked at, by its name.
    """
    given = {"site": site, "users": users}
    return [
        (r"/demo/(|page\.css|page\.js|icon\.svg)", _File, {"site": site}),
        (r"/demo/models", _Models, given),
        (r"/demo/models/([^/]+)/users", _Users, given),
        (r"/demo/models/([^/]+)/users/([^/]+)", _User, given),
        (r"/demo/models/([^/]+)/explain", _Explain, given),
    ]


class _File(Address):
    def get(self, name: str) -> None:
        """A file of the page."""
        file, kind = _FILES[name]
        self.set_header("Content-Type", f"{kind}; charset=utf-8")
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-cache")
        self.finish((_PAGE / file).read_bytes())


class _Demo(Address):
    """One that knows users."""

    users: Mapping[str, DemoUsers]

    def initialize(self, site: Site, users: Mapping[str, DemoUsers] | None = None) -> None:
        super().initialize(site)
        self.users = users or {}

    def chosen(self, name: str) -> tuple[ServedModel, DemoUsers] | None:
        """A model and its users; without them the answer says so."""
        model = self.named(name)
        if model is None:
            return None
        if name not in self.users or not isinstance(model, ServedModel):
            self.fail(404, f"{name} has no users to look at.")
            return None
        return model, self.users[name]

    def write_json(self, content: Any) -> None:
        """Answers, with characters as they are."""
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(content, ensure_ascii=False))


class _Models(_Demo):
    def get(self) -> None:
        """What can be looked at, and how its requests are made."""
        found = [self.site.models.served.get(name) for name in self.users]
        self.finish({"models": [_about(one) for one in found if isinstance(one, ServedModel)]})


class _Users(_Demo):
    def get(self, name: str) -> None:
        """Names of users, their ids and numbers of events, and items to choose from."""
        found = self.chosen(name)
        if found is None:
            return
        model, users = found
        item_id = model.bundle.manifest.roles["item"][0]
        listed = [
            {"user": u, "id": users.ids.get(u), "events": len(r[HISTORY][item_id])}
            for u, r in users.requests.items()
        ]
        self.write_json({"users": listed, "items": users.items})


class _User(_Demo):
    def get(self, name: str, user: str) -> None:
        """The request of a user."""
        found = self.chosen(name)
        if found is None:
            return
        request = found[1].requests.get(user)
        if request is None:
            self.fail(404, f"There is no user {shown(user)} to look at.")
            return
        self.write_json(request)


class _Explain(Bodied, _Demo):
    async def post(self, name: str) -> None:
        """Scores a request, and says what the model attended to."""
        found = self.chosen(name)
        if found is None:
            return
        model, _ = found
        try:
            request = load_json(self.body, "the body", "Expected a request.")
            (answer,) = await self.site.scorer.answers(model, [request])
            loop = asyncio.get_running_loop()
            attention = await loop.run_in_executor(None, attention_of, model.bundle, request)
        except UserError as error:
            self.fail(413 if isinstance(error, TooLargeError) else 400, str(error))
        except OverloadedError:
            self.fail(503, "More requests wait than are scored soon. Try again.")
        except ScoringError as error:
            self.fail(500, f"The model could not score this ({error}).")
        else:
            self.write_json({"answer": answer, "attention": attention})


def attention_of(bundle: Bundle, request: Request) -> dict[str, Any] | None:
    """What a model attended to in a request's history; None if it does not say.

    Args:
      bundle: of the model.
      request: that can be scored.

    Returns:
      Of the newest events that the model's window has, E of them: `weights` (C lists of E), `found`
      (C lists of the numbers of events that the search chose, from 0 on) and `read`, the numbers of
      those it looks at.
    """
    inputs = bundle.encoder.encode([request]).inputs
    attention = bundle.attend(inputs)
    if attention is None:
        return None
    events = len(request[HISTORY][bundle.manifest.roles["item"][0]])
    newest = slice(len(attention.slots) - min(events, len(attention.slots)), None)
    weights, found = attention.weights[0][:, newest], attention.found[0][:, newest]
    return {
        "weights": [[round(float(w), 6) for w in row] for row in weights],
        "found": [np.flatnonzero(row).tolist() for row in found],
        "read": np.flatnonzero(attention.slots[newest]).tolist(),
    }


def _about(model: ServedModel) -> dict[str, Any]:
    manifest = model.bundle.manifest
    return {
        "name": model.name,
        "model_type": manifest.model_type,
        "version": model.version,
        "dataset": manifest.dataset.get("name", ""),
        "roles": {role: list(names) for role, names in manifest.roles.items()},
        "window": manifest.options["max_seq_length"],
        "timed": bool(manifest.options.get("time_features")),
        "searches": manifest.options.get("gsu"),
        "stored": model.histories is not None,
        "probability": LAYOUTS[manifest.layout].probability_of(manifest),
    }

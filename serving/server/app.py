"""The addresses of a server, and what it answers there.

    POST /v2/models/NAME/infer        as Triton and KServe: see `serving.server.wire`
    POST /v2/models/NAME/score        a request, or a list of them, in JSON; answers likewise
    GET  /v2/models/NAME[/ready]      what it takes and gives
    POST /v2/models/NAME/events, GET and DELETE /v2/models/NAME/users/USER: `server.store_addresses`
    GET  /v2/models/NAME/schema       a request and an answer of `score` as JSON Schema
    GET  /v2, /v2/models, /v2/health/live, /v2/health/ready, /metrics
    GET  /demo/                       a page to look at: see `serving.server.demo`
    POST /v2/repository/index, /v2/repository/models/NAME/load    with the token of administrators

A name may be followed by ``/versions/N``, which then must be the one that is served.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tornado import web

from lookback.core.errors import UserError, shown
from lookback.core.json_files import load_json
from lookback.serving.server.address import Address, Bodied, Site, TooLargeError
from lookback.serving.server.backlog import OverloadedError
from lookback.serving.server.demo.addresses import demo_addresses
from lookback.serving.server.demo.data import DemoUsers
from lookback.serving.server.metrics import CONTENT_TYPE
from lookback.serving.server.models import Served, unknown_variant
from lookback.serving.server.scorer import ScoringError
from lookback.serving.server.store_addresses import store_addresses
from lookback.serving.server.wire import (
    JSON_LENGTH,
    VARIANT,
    metadata_of,
    read_inference,
    write_inference,
)

MOST_REQUESTS = 1024
"""Of one call."""

RETRY_SECONDS = 1
"""After which a client may try again that came before the server was ready."""

PROBE_SECONDS = 10.0
"""In which the model must score a row, for the server to be alive."""

_log = logging.getLogger(__name__)


def application(site: Site, users: Mapping[str, DemoUsers] | None = None) -> web.Application:
    """The server's addresses.

    Args:
      site: what they share.
      users: of the demo page, by model; None: there is no such page.
    """
    model = r"/v2/models/([^/]+)(?:/versions/([^/]+))?"
    given = {"site": site}
    return web.Application(
        [
            (rf"{model}/infer", _Infer, given),
            (rf"{model}/score", _Score, given),
            (rf"{model}/schema", _Schema, given),
            (rf"{model}(/ready)?", _Model, given),
            *store_addresses(site),
            (r"/v2/models", _Names, given),
            (r"/v2/?", _About, given),
            (r"/v2/health/(live|ready)", _Health, given),
            (r"/v2/repository/index", _Index, given),
            (r"/v2/repository/models/([^/]+)/load", _Load, given),
            (r"/metrics", _Metrics, given),
            *([] if users is None else demo_addresses(site, users)),
            (r".*", _Elsewhere, given),
        ],
        log_function=_log_request,
    )


class _Scored(Bodied):
    """One whose body is scored."""

    async def post(self, name: str, version: str | None) -> None:
        model = self.named(name, version)
        if model is None:
            return
        if not self.site.ready:
            reason = f"The server is ending, or not ready yet. Try again in {RETRY_SECONDS} s."
            self._refuse(reason, RETRY_SECONDS)
            return
        started = time.perf_counter()
        self.site.active += 1
        try:
            await self.answer(model)
        except UserError as error:
            self.fail(413 if isinstance(error, TooLargeError) else 400, str(error))
        except OverloadedError as error:
            self._refuse(str(error), error.retry_seconds)
        except ScoringError as error:
            self.fail(500, f"The model could not score this ({error}); the server's log says more.")
        else:
            self.site.metrics.seconds.labels(model.name).observe(time.perf_counter() - started)
        finally:
            self.site.active -= 1

    async def answer(self, model: Served) -> None:
        """Writes what is answered.

        Raises:
          UserError: if the body is not as it must be.
        """
        raise NotImplementedError

    async def scored(self, model: Served, requests: list[Any]) -> list[dict[str, Any]]:
        """The answers to requests."""
        if len(requests) > MOST_REQUESTS:
            raise UserError(
                f"Expected at most {MOST_REQUESTS:,} requests, received {len(requests):,}."
            )
        return await self.site.scorer.answers(model, requests)

    def variant(self, model: Served, named: Any) -> Served:
        """The model that is to answer.

        Args:
          model: that was called.
          named: another, or None.

        Raises:
          UserError: if there is none of that name.
        """
        if named is None:
            return model
        served = self.site.models.served
        if not isinstance(named, str) or named not in served:
            raise unknown_variant(named, served)
        return served[named]

    def _refuse(self, message: str, seconds: int) -> None:
        self.set_header("Retry-After", str(seconds))
        self.fail(503, message)


class _Infer(_Scored):
    async def answer(self, model: Served) -> None:
        """As `serving.server.wire` says."""
        call = read_inference(self.body, self.request.headers.get(JSON_LENGTH))
        requests = [load_json(text, f"request {n}") for n, text in enumerate(call.texts)]
        answers = await self.scored(self.variant(model, call.variant), requests)
        texts = [json.dumps(answer, ensure_ascii=False) for answer in answers]
        body, headers = write_inference(model.name, model.version, call, texts)
        for header, value in headers.items():
            self.set_header(header, value)
        self.finish(body)


class _Score(_Scored):
    async def answer(self, model: Served) -> None:
        """A request, or a list of them; answers likewise."""
        content = load_json(self.body, "the body", "Expected a request, or a list of requests.")
        many = isinstance(content, list)
        chosen = self.variant(model, self.get_query_argument(VARIANT, None))
        answers = await self.scored(chosen, content if many else [content])
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(answers if many else answers[0], ensure_ascii=False))


class _Model(Address):
    def get(self, name: str, version: str | None, ready: str | None) -> None:
        model = self.named(name, version)
        if model is None:
            return
        if ready is None:
            about = metadata_of(model.name, model.version)
            self.finish({**about, "model_type": model.manifest.model_type})
        elif not self.site.ready:
            self.set_status(503)


class _Schema(Address):
    async def get(self, name: str, version: str | None) -> None:
        """What a model takes and gives, for programs."""
        model = self.named(name, version)
        if model is None:
            return
        try:
            loop = asyncio.get_running_loop()
            self.finish(await loop.run_in_executor(None, lambda: model.schema))
        except UserError as error:  # the layout has none
            self.fail(404, str(error))


class _Names(Address):
    def get(self) -> None:
        """What is served."""
        self.finish({"models": list(self.site.models.served)})


class _About(Address):
    def get(self) -> None:
        """Which server this is."""
        from lookback import __version__

        self.finish(
            {"name": "lookback", "version": __version__, "extensions": ["binary_tensor_data"]}
        )


class _Health(Address):
    async def get(self, what: str) -> None:
        """Alive: every model scores. Ready: requests are taken."""
        if what == "ready":
            self.set_status(200 if self.site.ready else 503)
            return
        for model in self.site.models.served.values():
            try:
                await asyncio.wait_for(self.site.scorer.probe(model), PROBE_SECONDS)
            except Exception as error:  # of TensorFlow, whatever it is
                known = isinstance(error, ScoringError | asyncio.TimeoutError)
                _log.error("%s does not score: %s", model.name, error, exc_info=not known)
                self.fail(503, f"{model.name} does not score: {type(error).__name__}")
                return


class _Metrics(Address):
    async def get(self) -> None:
        self.set_header("Content-Type", CONTENT_TYPE)
        loop = asyncio.get_running_loop()
        self.finish(await loop.run_in_executor(None, self.site.metrics.text))


class _Administered(Bodied):
    """One for administrators alone."""

    def prepare(self) -> None:
        super().prepare()
        if self._finished:
            return
        self.require_token()


class _Index(_Administered):
    def post(self) -> None:
        """What is served, and from where."""
        listed = [
            {
                "name": model.name,
                "version": str(model.version),
                "state": "READY",
                "path": str(model.directory),
                "digest": model.digest,
            }
            for model in self.site.models.served.values()
        ]
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(listed))


class _Load(_Administered):
    async def post(self, name: str) -> None:
        """Loads a bundle; only when it scores does it take the place of the name's last."""
        metrics, loop = self.site.metrics, asyncio.get_running_loop()
        try:
            body = self.body.strip()
            content = load_json(body, "the body") if body else {}
            given = _given(content)
            model = await loop.run_in_executor(
                None, functools.partial(self.site.models.load, name, **given)
            )
        except (UserError, OSError) as error:
            metrics.loads.labels(name, "refused").inc()
            self.fail(400, str(error))
            return
        metrics.loads.labels(name, "loaded").inc()
        _log.warning("%s is now %s, version %d", name, model.directory, model.version)
        said: dict[str, Any] = {"name": name, "version": str(model.version), "digest": model.digest}
        if model.renewed is not None:
            said["histories"] = dataclasses.asdict(model.renewed)
        self.finish(said)


class _Elsewhere(Address):
    def prepare(self) -> None:
        super().prepare()
        if not self._finished:
            self.fail(404, "There is no such address. GET /v2 says what this is.")


def _given(content: Any) -> dict[str, Any]:
    """What ``{"parameters": {...}}`` says, as `Models.load` takes it."""
    parameters = content.get("parameters", {}) if isinstance(content, dict) else None
    if not isinstance(parameters, dict) or set(parameters) - {"path", "digest", "dataset_dir"}:
        raise UserError(
            'Expected {"parameters": {"path": DIR, "digest": SHA256, "dataset_dir": DIR}}, all '
            f"optional, received {shown(content)}."
        )
    if not all(isinstance(value, str | None) for value in parameters.values()):
        raise UserError(f"parameters: expected texts, received {shown(parameters)}.")
    path, digest, dataset = (parameters.get(name) for name in ("path", "digest", "dataset_dir"))
    return {
        "directory": None if path is None else Path(path),
        "trusted_digest": digest,
        "dataset_dir": None if dataset is None else Path(dataset),
    }


def _log_request(handler: web.RequestHandler) -> None:
    """A line for what failed through the server's fault; metrics count the rest."""
    if handler.get_status() >= 500 and handler.get_status() != 503:
        _log.error("%s %s: %d", handler.request.method, handler.request.path, handler.get_status())

"""Triton as an engine of `serving.server.app`: it loads, is asked, watched and healed.

A model's process may die while its server lives and says of the model that it is ready. So the
system tells us of processes that end, and each model is asked to score something once a second; one
that cannot is loaded anew, and where that does not help, or the server itself has ended, all is
started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookback.core.digests import digest_of
from lookback.core.errors import UserError
from lookback.serving.layouts.registry import LAYOUTS
from lookback.serving.manifest import MANIFEST_FILE, Manifest
from lookback.serving.server.backlog import OverloadedError
from lookback.serving.server.metrics import Metrics
from lookback.serving.server.models import Served, StoreReading, next_version
from lookback.serving.server.scorer import ScoringError
from lookback.serving.server.triton.process import TritonProcess
from lookback.serving.server.triton.repository import ModelRepository
from lookback.serving.server.wire import INPUT, OUTPUT, PROBE, TEXT

_WATCH_SECONDS = 1.0
_HUNG_SECONDS = 30.0
"""Without an answer to a request of one row, after which a model counts as dead."""

_AGAIN_SECONDS = 30.0
"""After which a model that could not be loaded is tried again: it takes some 5 s of a core."""
_TRACEBACK = "\n\nAt:\n"  # what comes before it in what Triton says of a model

_log = logging.getLogger(__name__)


class TritonModels:
    """What Triton serves, by name; as `serving.server.models.Models`.

    Args:
      repository: whose models they are.
      start: starts a server of that repository, without models, and waits until it listens.
      reading: of the store, for its addresses.
    """

    def __init__(
        self,
        repository: ModelRepository,
        start: Callable[[], TritonProcess],
        reading: StoreReading,
    ) -> None:
        self._repository, self._start, self._reading = repository, start, reading
        self._served: dict[str, Served] = {}
        self._dead: set[str] = set()
        self._hopeless: dict[str, float] = {}  # when those are tried again that cannot be loaded
        self._loading = threading.Lock()
        self._process = start()

    @property
    def process(self) -> TritonProcess:
        """The server's."""
        return self._process

    @property
    def served(self) -> Mapping[str, Served]:
        """The models by name."""
        return dict(self._served)

    def load(
        self,
        name: str,
        directory: Path | None = None,
        trusted_digest: str | None = None,
        dataset_dir: Path | None = None,
    ) -> Served:
        """Has Triton load a bundle; as `serving.server.models.Models.load`."""
        with self._loading:
            version, directory = next_version(self._served.get(name), name, directory)
            manifest = Manifest.read(directory, trusted_digest)
            digest = digest_of(directory / MANIFEST_FILE)
            histories = renewed = None
            if dataset_dir is not None:
                renewed = self._reading.renew(dataset_dir, directory, manifest)
            if self._reading.store is not None:
                encoder = LAYOUTS[manifest.layout].load_encoder(directory, manifest)
                histories = self._reading.histories(directory, manifest, encoder)
            self._repository.add(name, version, directory, digest)
            try:
                self._process.load(name)
            except UserError as error:
                self._repository.remove(name, version)
                said = str(error).partition(_TRACEBACK)[0]
                raise UserError(f"{directory}: Triton cannot load it: {said}") from error
            self._dead.discard(name)
            self._hopeless.pop(name, None)
            if name in self._served:
                self._repository.remove(name, self._served[name].version)
            self._served[name] = Served(
                name, version, directory, digest, manifest, histories, renewed
            )
            return self._served[name]

    def heal(self, names: Sequence[str]) -> None:
        """Loads anew what does not score any more, and the whole server if it has ended.

        Args:
          names: of such models.
        """
        with self._loading:
            self._dead |= set(names)
            try:
                if restarted := not self._process.alive:
                    _log.error("Triton's server has ended: it is started again")
                    self._dead = set(self._served)
                    self._process.end(0)
                    self._process = self._start()
                for name in sorted(self._dead):
                    if not self._reload(name, restarted):
                        self._process.end(0)  # next time all is started again
                        return
            except (UserError, OSError) as error:
                _log.error("that did not help: %s", error)
                self._process.end(0)

    def _reload(self, name: str, restarted: bool) -> bool:
        """Loads a dead model anew; False: the server may be to blame that it cannot.

        One that a new server cannot load either has itself to blame (its bundle may be gone, its
        store another one's): it is tried again after a while, and the others serve on.
        """
        if not restarted and time.monotonic() < self._hopeless.get(name, 0.0):
            return True
        _log.error("%s does not score: it is loaded anew", name)
        try:
            self._process.reload(name)
        except (UserError, OSError) as error:
            said = str(error).partition(_TRACEBACK)[0]
            _log.error("%s cannot be loaded: %s", name, said)
            if not restarted and name not in self._hopeless:
                return False
            self._hopeless[name] = time.monotonic() + _AGAIN_SECONDS
        else:
            self._dead.discard(name)
            self._hopeless.pop(name, None)
        return True

    @property
    def dead(self) -> frozenset[str]:
        """Those that were found dead, and could not be healed."""
        return frozenset(self._dead)


class TritonScorer:
    """Passes requests on to Triton; as `serving.server.scorer.Scorer`. Made in an event loop.

    Args:
      address: of its gRPC.
      models: that it serves.
    """

    def __init__(self, address: str, models: TritonModels) -> None:
        from tritonclient.grpc.aio import InferenceServerClient

        self._client = InferenceServerClient(address)
        self._models = models
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def arrive(self, model: Served, client: Hashable) -> None:
        """Refuses nothing: the model does."""
        del model, client

    def leave(self, client: Hashable) -> None:
        """A client has gone, of whom nothing is kept."""
        del client

    async def answers(self, model: Served, requests: Sequence[Any]) -> list[dict[str, Any]]:
        """As `serving.server.scorer.Scorer.answers`."""
        if not requests:
            return []
        texts = [json.dumps(request, ensure_ascii=False) for request in requests]
        return [json.loads(text) for text in await self._infer(model.name, texts)]

    async def probe(self, model: Served) -> None:
        """Has a model score something.

        Raises:
          ScoringError: if it does not.
        """
        with contextlib.suppress(OverloadedError):  # a model that refuses is alive
            await self._infer(model.name, ["{}"], {PROBE: True}, _HUNG_SECONDS)
        if model.name in self._models.dead:
            raise ScoringError("its process is dead")

    async def close(self) -> None:
        """Ends."""
        self._task.cancel()
        await self._client.close()

    async def _infer(
        self,
        name: str,
        texts: Sequence[str],
        parameters: dict[str, Any] | None = None,
        seconds: float | None = None,
    ) -> list[bytes]:
        from tritonclient.grpc import InferInput
        from tritonclient.utils import InferenceServerException

        tensor = InferInput(INPUT, [len(texts), 1], TEXT)
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], np.object_))
        try:
            answer = await self._client.infer(
                name, [tensor], parameters=parameters, client_timeout=seconds
            )
        except InferenceServerException as error:
            said, status = error.message(), str(error.status())
            if status == "StatusCode.INVALID_ARGUMENT":
                raise UserError(said) from error
            if status == "StatusCode.UNAVAILABLE":
                raise OverloadedError from error
            raise ScoringError(said) from error
        return list(answer.as_numpy(OUTPUT).reshape(-1))

    async def _watch(self) -> None:
        while True:
            try:
                await self._look_after()
            except Exception:  # whatever it was, what is watched next must not die of it
                _log.exception("watching the models failed; it goes on")
                await asyncio.sleep(_WATCH_SECONDS)

    async def _look_after(self) -> None:
        """Waits a while, or until a model's process ends, and heals what does not answer."""
        models = list(self._models.served.values())
        if await _one_ends(self._models.process.stubs(), _WATCH_SECONDS):
            running = set(self._models.process.stubs().values())  # an exchanged one's, too
            failed = [model.name for model in models if model.name not in running]
        else:
            found = await asyncio.gather(*map(self.probe, models), return_exceptions=True)
            failed = [m.name for m, e in zip(models, found, strict=True) if e is not None]
        if failed or not self._models.process.alive:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self._models.heal, failed)


async def _one_ends(processes: Iterable[int], seconds: float) -> bool:
    """Waits until one of some processes ends; False: none did in so many seconds."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    with contextlib.ExitStack() as stack:
        for process in processes:
            try:
                file = os.pidfd_open(process)
            except ProcessLookupError:
                return True
            except OSError:  # no descriptor is left, or the system has none: probes will tell
                continue
            stack.callback(os.close, file)
            loop.add_reader(file, ended.set)
            stack.callback(loop.remove_reader, file)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ended.wait(), seconds)
    return ended.is_set()


class TritonMetrics(Metrics):
    """Ours of a server before Triton, and Triton's.

    Args:
      models: that it serves.
    """

    def __init__(self, models: TritonModels) -> None:
        super().__init__(scores=False)
        self._models = models

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        try:
            return super().text() + self._models.process.metrics()
        except OSError:  # while it is started anew
            return super().text()

"""What Triton runs for each model, in a process of its own: a bundle behind its tensors of text.

A call's tensor ``request`` is ``[N, 1]``: texts, each a request in JSON; so is ``answer``. Triton
hands over what came while the calls before were answered, and what of it is scored together or
refused is the local engine's to say: its `Scorer` runs here, in a thread.

Triton names no connections. So a call's client is its place among those that were handed over
together: there are as many different clients as calls have waited at once.

All are answered before the next are handed over. To answer each as soon as it is scored (response
senders) ended Triton 2.51 now and then, by a mutex of gRPC's call that was gone (SIGSEGV within
TRITONBACKEND_ResponseSend, while a bundle was exchanged under load).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookback.core.errors import UserError
from lookback.core.faults import cut
from lookback.core.json_files import load_json
from lookback.serving.requests import RequestError
from lookback.serving.server.backlog import Backlog, OverloadedError
from lookback.serving.server.models import Models, spare_imports, unknown_variant
from lookback.serving.server.scorer import Scorer
from lookback.serving.server.triton.model_metrics import ModelMetrics
from lookback.serving.server.triton.repository import ENDING_FILE, source_of
from lookback.serving.server.wire import INPUT, OUTPUT, PROBE, VARIANT
from lookback.serving.store.store import HistoryStore

MOST_BATCH_ROWS = 1024
"""As of the local engine."""
CLIENT_SECONDS = 30.0
"""In which a crowd is remembered. A forgotten one counts as a few clients that wait for each other,
until as many calls are handed over together again, of which some ten are answered late."""


class TritonPythonModel:
    """One version of one model; Triton calls its methods by their names."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the bundle.

        Args:
          args: of Triton: where the model lies, and which version it is.
        """
        import triton_python_backend_utils as triton

        self._triton = triton
        directory = Path(args["model_repository"])
        source = source_of(directory, args["model_version"])
        self._models = directory.parent
        self._ending = directory.parents[1] / ENDING_FILE
        self._store = None
        if source.store.address is not None:
            self._store = HistoryStore.open(source.store.address)
        spare_imports()
        models = Models(self._store, beyond_window=source.store.beyond_window)
        self._model = models.load(source.name, source.path, source.digest)
        metrics = ModelMetrics(triton, self._model.name, self._store)
        backlog = Backlog(source.most_seconds, client_seconds=CLIENT_SECONDS)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="calls")
        self._thread.start()
        self._scorer = self._done(self._start(backlog, metrics))

    def execute(self, calls: Sequence[Any]) -> list[Any]:
        """Answers calls that Triton has batched."""
        if self._ending.exists():
            return [self._refused("The server is ending.") for _ in calls]
        return self._done(self._all(calls))

    def finalize(self) -> None:
        """Ends; Triton has waited for the answers."""
        self._done(self._scorer.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if self._store is not None:
            self._store.close()

    async def _start(self, backlog: Backlog, metrics: ModelMetrics) -> Scorer:
        return Scorer(MOST_BATCH_ROWS, backlog, metrics)

    def _done(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What the loop's thread made of some work."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _all(self, calls: Sequence[Any]) -> list[Any]:
        return await asyncio.gather(*(self._answer(c, place) for place, c in enumerate(calls)))

    async def _answer(self, call: Any, client: int) -> Any:
        """The answer to a call, or why there is none."""
        try:
            self._scorer.arrive(self._model, client)
            return await self._answered(call)
        except OverloadedError as error:
            return self._refused(str(error))
        except Exception as error:
            return self._failed(error)

    async def _answered(self, call: Any) -> Any:
        """The answer to a call; errors as of `Scorer.answers` and `_passed_on`."""
        given = json.loads(call.parameters() or "{}")
        if given.get(PROBE):
            await self._scorer.probe(self._model)
            return self._texts(call, None)
        if given.get(VARIANT, self._model.name) != self._model.name:
            return await self._loop.run_in_executor(None, self._passed_on, call, given[VARIANT])
        answers = await self._scorer.answers(self._model, self._requests(call))
        return self._texts(call, [json.dumps(answer, ensure_ascii=False) for answer in answers])

    def _requests(self, call: Any) -> list[Any]:
        """The requests of a call.

        Raises:
          RequestError: if one is no JSON.
        """
        texts = self._triton.get_input_tensor_by_name(call, INPUT).as_numpy().reshape(-1)
        requests = []
        for index, text in enumerate(texts):
            try:
                requests.append(load_json(text, f"request {index}"))
            except UserError as error:
                raise RequestError(index, str(error)) from error
        return requests

    def _texts(self, call: Any, texts: Sequence[str] | None) -> Any:
        shape = self._triton.get_input_tensor_by_name(call, INPUT).shape()
        values = np.full(shape, b"{}", np.object_)
        if texts is not None:
            values.reshape(-1)[:] = [text.encode() for text in texts]
        return self._triton.InferenceResponse([self._triton.Tensor(OUTPUT, values)])

    def _passed_on(self, call: Any, variant: Any) -> Any:
        """The answer of another model, which the call names.

        Raises:
          UserError: if there is none of that name.
        """
        known = sorted(path.name for path in self._models.iterdir())
        if variant not in known:
            raise unknown_variant(variant, known)
        tensor = self._triton.get_input_tensor_by_name(call, INPUT)
        answer = self._triton.InferenceRequest(
            model_name=variant, inputs=[tensor], requested_output_names=[OUTPUT]
        ).exec()
        if answer.has_error():
            return answer
        output = self._triton.get_output_tensor_by_name(answer, OUTPUT)
        return self._triton.InferenceResponse([output])

    def _refused(self, reason: str) -> Any:
        kind = self._triton.TritonError
        return self._triton.InferenceResponse(error=kind(reason, kind.UNAVAILABLE))

    def _failed(self, error: Exception) -> Any:
        kind = self._triton.TritonError
        fault = kind.INVALID_ARG if isinstance(error, UserError) else kind.INTERNAL
        return self._triton.InferenceResponse(error=kind(cut(str(error)), fault))

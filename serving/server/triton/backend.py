"""What Triton runs for each model, in a process of its own: a bundle behind its tensors of text.

A call's tensor ``request`` is ``[N, 1]``: texts, each a request in JSON; so is ``answer``. Calls
that Triton has batched (all that waited) are scored together, as far as that is soon done; the
others are refused.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookback.core.errors import UserError
from lookback.core.faults import cut
from lookback.core.json_files import load_json
from lookback.serving.requests import RequestError
from lookback.serving.scores import Scores
from lookback.serving.server.backlog import MOST_CLIENTS, TIMES, BatchTimes
from lookback.serving.server.metrics import CACHED, COUNTED, tally
from lookback.serving.server.models import Models, spare_imports, unknown_variant
from lookback.serving.server.scorer import CheckedRequests, completed, score_calls
from lookback.serving.server.triton.repository import source_of
from lookback.serving.server.wire import INPUT, OUTPUT, PROBE, VARIANT
from lookback.serving.store.store import HistoryStore


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
        self._store = None
        if source.store.address is not None:
            self._store = HistoryStore.open(source.store.address)
        spare_imports()
        models = Models(self._store, beyond_window=source.store.beyond_window)
        self._model = models.load(source.name, source.path, source.digest)
        self._most_seconds, self._times = source.most_seconds, BatchTimes()
        family = triton.MetricFamily
        self._families = {  # metrics are gone with their family
            name: family(name=name, description=text, kind=family.COUNTER)
            for name, text in COUNTED.items()
        }
        if self._store is not None:
            self._families |= {
                name: family(name=name, description=text, kind=family.COUNTER)
                for name, (text, _) in CACHED.items()
            }
        self._told = dict.fromkeys(CACHED, 0)
        self._metrics = {
            name: found.Metric(labels={"model": self._model.name})
            for name, found in self._families.items()
        }

    def execute(self, calls: Sequence[Any]) -> list[Any]:
        """Answers calls that Triton has batched."""
        answers: list[Any] = [None] * len(calls)
        read: list[tuple[int, CheckedRequests]] = []
        for place, call in enumerate(calls):
            try:
                given = json.loads(call.parameters() or "{}")
                if given.get(PROBE):
                    self._model.probe()
                    answers[place] = self._texts(call, None)
                elif given.get(VARIANT, self._model.name) != self._model.name:
                    answers[place] = self._passed_on(call, given[VARIANT])
                else:
                    read.append((place, self._requests(call)))
            except Exception as error:
                answers[place] = self._failed(error)
        taken = self._taken([sum(checked.counts) for _, checked in read])
        for place, _ in read[taken:]:
            answers[place] = self._refused()
        found = self._scores([checked for _, checked in read[:taken]])
        for (place, checked), scores in zip(read, found, strict=False):
            if isinstance(scores, Exception):
                answers[place] = self._failed(scores)
                continue
            for name, count in tally(checked.requests, scores).items():
                self._metrics[name].increment(count)
            scored = zip(checked.requests, scores, strict=True)
            said = [self._model.answer(request, own) for request, own in scored]
            texts = [json.dumps(answer, ensure_ascii=False) for answer in said]
            answers[place] = self._texts(calls[place], texts)
        self._tell_of_cache()
        return answers

    def _tell_of_cache(self) -> None:
        """Adds what the store has counted since it was asked last."""
        for name, (_, attribute) in CACHED.items() if self._store is not None else ():
            count = getattr(self._store, attribute)
            self._metrics[name].increment(count - self._told[name])
            self._told[name] = count

    def _taken(self, rows: Sequence[int]) -> int:
        """How many of the calls, of so many rows each, are scored: the first in any case."""
        most = self._most_seconds
        if most is None:
            if len(rows) <= MOST_CLIENTS:
                return len(rows)
            most = TIMES * self._times.seconds(rows[0])
        for number, total in enumerate(itertools.accumulate(rows)):
            if number and self._times.seconds(total) > most:
                return number
        return len(rows)

    def _scores(self, calls: Sequence[CheckedRequests]) -> list[list[Scores] | Exception]:
        """Scores calls, and learns how long that took."""
        began = time.perf_counter()
        found = score_calls(self._model, calls)
        if rows := sum(count for call in calls for count in call.counts):
            self._times.add(rows, time.perf_counter() - began)
        return found

    def finalize(self) -> None:
        """Ends."""
        if self._store is not None:
            self._store.close()

    def _requests(self, call: Any) -> CheckedRequests:
        """The requests of a call, with histories and of the right shape.

        Raises:
          RequestError: if one is not.
        """
        texts = self._triton.get_input_tensor_by_name(call, INPUT).as_numpy().reshape(-1)
        requests = []
        for index, text in enumerate(texts):
            try:
                requests.append(load_json(text, f"request {index}"))
            except UserError as error:
                raise RequestError(index, str(error)) from error
        return CheckedRequests.of(self._model, completed(self._model, requests))

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

    def _refused(self) -> Any:
        said = f"{self._model.name}: more requests wait than are scored soon. Try again."
        kind = self._triton.TritonError
        return self._triton.InferenceResponse(error=kind(said, kind.UNAVAILABLE))

    def _failed(self, error: Exception) -> Any:
        kind = self._triton.TritonError
        fault = kind.INVALID_ARG if isinstance(error, UserError) else kind.INTERNAL
        return self._triton.InferenceResponse(error=kind(cut(str(error)), fault))

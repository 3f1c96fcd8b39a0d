"""Starts Triton as the engine of a server, and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from lookback.serving.server.address import Engine
from lookback.serving.server.app import MOST_REQUESTS
from lookback.serving.server.listening import free_port, written
from lookback.serving.server.models import StoreReading
from lookback.serving.server.triton.engine import TritonMetrics, TritonModels, TritonScorer
from lookback.serving.server.triton.installation import Installation
from lookback.serving.server.triton.process import Ports, TritonProcess
from lookback.serving.server.triton.repository import BatchLimits, ModelRepository, StoreSource


@contextlib.asynccontextmanager
async def triton_engine(
    host: str,
    http_port: int,
    grpc_port: int,
    *,
    reading: StoreReading,
    store_address: str | None,
    drain_seconds: float,
    wait_seconds: float | None,
) -> AsyncIterator[Engine]:
    """Triton's, in processes of its own.

    Args:
      host: where it listens.
      http_port: of its HTTP; 0: any.
      grpc_port: of its gRPC; 0: any.
      reading: of the store, for its addresses.
      store_address: of the same store, which the models read themselves; None: there is none.
      drain_seconds: how long its end waits for calls that are under way.
      wait_seconds: how long a call may have to wait; it is refused then. None: see `BatchLimits`.

    Raises:
      UserError: if it is not installed, or does not start.
    """
    installation = Installation.find()
    ports = Ports(
        host,
        http=free_port(host, http_port),
        grpc=free_port(host, grpc_port),
        metrics=free_port("127.0.0.1", 0),
    )
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="lookback-triton-") as directory:
        limits = BatchLimits(MOST_REQUESTS, wait_seconds)
        source = StoreSource(store_address, reading.beyond_window)
        repository = ModelRepository(Path(directory), installation, limits, source)

        def start() -> TritonProcess:
            process = TritonProcess(installation, repository, ports, drain_seconds)
            process.wait()
            return process

        models = await loop.run_in_executor(None, TritonModels, repository, start, reading)
        try:
            at = written(host)
            scorer = TritonScorer(f"{at}:{ports.grpc}", models)
            address = (
                f"http://{at}:{ports.http}/v2 and grpc://{at}:{ports.grpc} (Triton); health, "
                f"metrics, loading at http://{at}:{{port}}/v2"
            )
            yield Engine(models, scorer, TritonMetrics(models), address)
            repository.end()
            await scorer.close()
        finally:
            await loop.run_in_executor(None, models.process.end, drain_seconds)

"""TensorBoard's events: a decoration of the run, so that nothing here is worth an error."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SECONDS_BETWEEN_FLUSHES = 10.0


class TensorBoard:
    """Writes scalars and options to a directory, until that fails: then a line says so, once.

    All scalars of a step are one event, which costs a fraction of what tf.summary takes for each.
    """

    def __init__(self, directory: Path) -> None:
        """Names the directory; the first event creates it (and imports TensorFlow)."""
        self._directory: Path | None = directory
        self._writer: Any = None
        self._flushed = 0.0

    def scalars(self, group: str, step: int, data: Mapping[str, Any]) -> None:
        """Writes the numbers among the metrics, as "group/metric"; those of no group it has not."""
        if not group:
            return

        def write() -> None:
            from tensorboard.compat.proto.summary_pb2 import Summary

            values = [
                Summary.Value(tag=f"{group}/{metric}", simple_value=value)
                for metric, value in data.items()
                if isinstance(value, int | float)
            ]
            self._record(Summary(value=values), step)

        self._try(write)

    def options(self, values: Mapping[str, Any]) -> None:
        """Writes the run's options, for TensorBoard's table of hyperparameters."""

        def write() -> None:
            from tensorboard.plugins.hparams.summary_v2 import hparams_pb

            plain = {
                n: v if isinstance(v, int | float | str) else str(v) for n, v in values.items()
            }
            self._record(hparams_pb(plain), 0)

        self._try(write)

    def close(self, status: str = "FINISHED") -> None:
        """Closes the file; further calls do nothing."""
        del status
        if self._writer is not None:
            self._try(self._writer.close)
        self._directory = self._writer = None

    def _record(self, summary: Any, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        if self._writer is None:
            self._writer = self._open()
        event = Event(wall_time=time.time(), step=step, summary=summary)
        self._writer.write(event.SerializeToString())
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self._writer.flush()
            self._flushed = time.monotonic()

    def _open(self) -> Any:
        import tensorflow as tf
        from tensorboard.compat.proto.event_pb2 import Event

        assert self._directory is not None
        self._directory.mkdir(parents=True, exist_ok=True)
        # The names of processes that go on differ, and sort by time.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        writer = tf.io.TFRecordWriter(str(self._directory / name))
        writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        return writer

    def _try(self, work: Callable[[], None]) -> None:
        if self._directory is None:
            return
        try:
            work()
        except Exception as error:  # of TensorFlow or the system: whatever it is, the run goes on
            place, self._directory, self._writer = self._directory, None, None
            print(
                f"warning: TensorBoard's events in {place} end here: "
                f"{type(error).__name__}: {error}",
                file=sys.stderr,
                flush=True,
            )

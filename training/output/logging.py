"""The log of a run: DLLL lines in a file, a terminal, and TensorBoard.

The file has the format of NVIDIA's DLLogger, one JSON object a line:

  DLLL {"timestamp": .., "datetime": .., "elapsedtime": .., "type": "LOG", "step": .., "data": ..}

`step` is `[epoch, step]` for a step, `[epoch]` for an epoch's end, `[]` for the summary of the run,
all counted from 0; `data` is {metric: value}. Lines of type METADATA carry a metric's unit. Values
that are absent or not finite are written as null.

A fresh run begins a new file, and moves what is there of another run aside; a resumed one appends
to its own. Steps between the last checkpoint and the crash are then there twice, with equal
values; `read_log` gives the later line.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from lookback.core.errors import UserError
from lookback.core.faults import naming
from lookback.core.files import require_writable
from lookback.core.json_files import load_object
from lookback.training.evaluation.names import metric_of
from lookback.training.output.results import (
    IDENTITY,
    LOG_PREFIX,
    check_results,
    identity_of,
    set_aside,
)
from lookback.training.output.tensorboard import TensorBoard

_SPEED, _ROWS = "samples/s", "rows"
_STEPS_OF_A_SPEED = 50
_DETAILS = ("latency_p90", "latency_p95", "gauc_groups", "gauc_skipped")
"""Endings of figures that the file has of an epoch, and its line has not."""

UNITS: dict[str, str | None] = {
    "samples/s": "samples/s",
    "throughput": "samples/s",
    "latency_mean": "ms",
    "latency_p90": "ms",
    "latency_p95": "ms",
    "latency_p99": "ms",
    "sent_bytes_a_step": "bytes",
    "time": "s",
    "time_to_train": "s",
    "train_loss": None,
    "test_auc": None,
}
"""Metric -> unit, as METADATA lines and the terminal give it."""


@dataclasses.dataclass(frozen=True)
class LogRecord:
    """One LOG line.

    Attributes:
      step: (epoch, step), (epoch,), or () for the summary.
      data: metric -> value; None for what is absent or not finite.
      elapsed: seconds since the process that wrote it opened the log.
    """

    step: tuple[int, ...]
    data: dict[str, Any]
    elapsed: float


class Tracker(Protocol):
    """Receives what a run logs, beside its file, and reports its own failures."""

    def scalars(self, group: str, step: int, data: Mapping[str, Any]) -> None:
        """Takes the metrics of a step or an epoch; of no group (""), of the whole run."""

    def options(self, values: Mapping[str, Any]) -> None:
        """Takes the run's options."""

    def close(self, status: str = "FINISHED") -> None:
        """Takes how the run ended."""


class RunLogger:
    """Writes the log of a run to `results_dir` and shows it on the terminal.

    On a terminal there is a progress bar that moves with each logged step; where the output is a
    file or a pipe, a plain line every few seconds. TensorBoard gets the same steps and epochs.

    Example:
      with RunLogger(results_dir, epochs=3, steps_per_epoch=2880) as log:
          log.step(0, 0, {"total_loss": 0.69, "samples/s": 9312.0})
          log.epoch(0, {"test_auc": 0.78})
          log.summary({"time_to_train": 12.3})

    Attributes:
      directory: where the results are.
      reached: epoch and step, both from 0, that an earlier process of this run logged last; None:
        none did.
    """

    def __init__(
        self,
        results_dir: str | os.PathLike[str],
        log_filename: str = "log.json",
        *,
        append: bool = False,
        identity: str | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        units: Mapping[str, str | None] | None = None,
        tensorboard: bool = True,
        trackers: Sequence[Tracker] = (),
        seconds_between_lines: float = 5.0,
        terminal: TextIO | None = None,
        enabled: bool = True,
    ) -> None:
        """Opens the log.

        Args:
          results_dir: created if needed.
          log_filename: name of the file with the DLLL lines, in results_dir.
          append: continue the file of an earlier process (a resumed run), if it is of this run.
          identity: tells this run from others in the file; the same when it is resumed.
          epochs: how many the run has, for "epoch 1/3".
          steps_per_epoch: for the bar's length, the time left, and TensorBoard's global step.
          units: metric -> unit, added to `UNITS`.
          tensorboard: write scalars to results_dir/tensorboard (imports TensorFlow).
          trackers: receive steps, epochs, options and the summary besides.
          seconds_between_lines: where the output is no terminal.
          terminal: where to print; None means standard output.
          enabled: False makes every method do nothing (processes other than the first).
        """
        self.directory = Path(results_dir)
        self._enabled = enabled
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._units = {**UNITS, **(units or {})}
        self._started = time.monotonic()
        own = [TensorBoard(Path(results_dir) / "tensorboard")] if tensorboard else []
        self._trackers: list[Tracker] = [*own, *trackers]
        self._steps_logged = 0
        self._speeds: collections.deque[float] = collections.deque(maxlen=_STEPS_OF_A_SPEED)
        self._seconds_between_lines = seconds_between_lines
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._bar_epoch: int | None = None
        self._epoch_began: tuple[float, int] = (0.0, 0)  # time and step at which it began
        self.reached: tuple[int, int] | None = None
        if not enabled:
            return
        self._console = Console(
            file=terminal or sys.stdout, highlight=False, markup=False, emoji=False
        )
        directory = Path(results_dir)
        require_writable(directory, "results_dir")
        check_results(directory, log_filename)
        path = directory / log_filename
        self._path = path
        append = append and path.exists() and identity_of(path) == identity
        if append:
            _drop_half_line(path)
            steps = [record.step for record in read_log(path) if len(record.step) == 2]
            self.reached = (int(steps[-1][0]), int(steps[-1][1])) if steps else None
        aside = None if append else set_aside(directory)
        self._file = path.open("a" if append else "w", encoding="utf-8", buffering=1)
        if not append:
            if identity is not None:
                self._write("METADATA", metric=IDENTITY, metadata={"identity": identity})
            for metric, unit in self._units.items():
                self._write("METADATA", metric=metric, metadata={"unit": unit})
        if aside is not None:
            self.message(f"{directory} held the results of another run; they are in {aside} now")

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        killed = kind is not None and not issubclass(kind, Exception)
        self.close("FINISHED" if kind is None else "KILLED" if killed else "FAILED")

    def step(self, epoch: int, step: int, data: Mapping[str, Any]) -> None:
        """Logs a training step, both counted from 0. About 10 microseconds without TensorBoard."""
        if not self._enabled:
            return
        plain = _plain(data)
        self._write("LOG", step=[epoch, step], data=plain)
        self._show_step(epoch, step, self._shown(plain))
        for tracker in self._trackers:
            tracker.scalars("step", self._global_step(epoch, step), plain)
        self._steps_logged += 1

    def epoch(self, epoch: int, data: Mapping[str, Any]) -> None:
        """Logs the end of an epoch, counted from 0."""
        if not self._enabled:
            return
        plain = _plain(data)
        self._write("LOG", step=[epoch], data=plain)
        self._stop_bar()
        shown = {name: value for name, value in plain.items() if not name.endswith(_DETAILS)}
        self._show_figures(f"epoch {self._of_epochs(epoch)}", shown)
        for tracker in self._trackers:
            tracker.scalars("epoch", epoch + 1, plain)

    def summary(self, data: Mapping[str, Any], warnings: Sequence[str] = ()) -> None:
        """Logs the results of the run.

        Args:
          data: figures by name.
          warnings: what to know of them, a line each; in the file they are "warnings".
        """
        if not self._enabled:
            return
        plain = _plain(data)
        extra = {"warnings": list(warnings)} if warnings else {}
        self._write("LOG", step=[], data={**plain, **extra})
        self._stop_bar()
        self._show_figures("summary", plain)
        for tracker in self._trackers:
            tracker.scalars("", self._epochs or 0, plain)
        for warning in warnings:
            self.message(f"warning: {warning}")

    def options(self, values: Mapping[str, Any]) -> None:
        """Tells trackers the run's options; they are not in the file."""
        for tracker in self._trackers if self._enabled else ():
            tracker.options(values)

    def message(self, text: str) -> None:
        """Prints a line on the terminal, above the bar; it is not in the file."""
        if self._enabled:
            console = self._console if self._bar is None else self._bar.console
            console.print(text, soft_wrap=True)  # a long line stays one line in a file

    @contextlib.contextmanager
    def track(self, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Shows the progress of something else than training, such as an evaluation.

        Args:
          description: what it is.
          total: how many parts it has; None if that is unknown.

        Yields:
          A function to call with the number of parts done since its last call.
        """
        if not self._enabled:
            yield lambda parts: None
            return
        if self._console.is_terminal:
            self._stop_bar()
            with self._new_bar() as bar:
                task = bar.add_task(description, total=total, metrics="")
                yield lambda parts: bar.advance(task, parts)
            return
        done = 0

        def advance(parts: int) -> None:
            nonlocal done
            done += parts
            if self._is_time_for_a_line():
                self.message(f"{description}  {_of(done, total)}")

        yield advance

    def close(self, status: str = "FINISHED") -> None:
        """Closes the file and trackers; further calls do nothing.

        Args:
          status: how the run ended: FINISHED, FAILED or KILLED.
        """
        if not self._enabled:
            return
        self._stop_bar()
        with contextlib.suppress(OSError):  # what could not be written was said when it was
            self._file.close()
        for tracker in self._trackers:
            tracker.close(status)
        self._enabled = False

    def _write(self, kind: str, **content: Any) -> None:
        now = datetime.datetime.now()
        line = {
            "timestamp": str(now.timestamp()),
            "datetime": str(now.astimezone()),
            "elapsedtime": str(time.monotonic() - self._started),
            "type": kind,
            **content,
        }
        # Line-buffered: each line is in the file when this returns, whatever happens to us next.
        with naming(self._path):
            self._file.write(f"{LOG_PREFIX}{json.dumps(line, allow_nan=False)}\n")

    def _global_step(self, epoch: int, step: int) -> int:
        return epoch * self._steps_per_epoch + step if self._steps_per_epoch else self._steps_logged

    def _show_step(self, epoch: int, step: int, data: Mapping[str, Any]) -> None:
        if self._bar_epoch != epoch:
            self._stop_bar()
            self._bar_epoch = epoch
            self._epoch_began = (time.monotonic(), step)
            self._last_line = time.monotonic()
            if self._console.is_terminal:
                self._bar = self._new_bar()
                self._bar.start()
                self._task = self._bar.add_task(
                    f"epoch {self._of_epochs(epoch)}",
                    total=self._steps_per_epoch,
                    completed=step,
                    metrics="",
                )
        if self._bar is not None and self._task is not None:
            now = time.monotonic()
            last = self._steps_per_epoch is not None and step + 1 >= self._steps_per_epoch
            if last or now - self._last_line > 0.1:  # an eye sees no more
                self._last_line = now
                self._bar.update(self._task, completed=step + 1, metrics=self._short(data))
        elif self._is_time_for_a_line():
            place = _of(step + 1, self._steps_per_epoch)
            left = self._time_left(step)
            self.message(
                f"epoch {self._of_epochs(epoch)}  step {place}  {self._readable(data)}{left}"
            )

    def _is_time_for_a_line(self) -> bool:
        now = time.monotonic()
        due = now - self._last_line >= self._seconds_between_lines
        if due:
            self._last_line = now
        return due

    def _time_left(self, step: int) -> str:
        began, first_step = self._epoch_began
        if self._steps_per_epoch is None or step == first_step:
            return ""
        seconds = (time.monotonic() - began) / (step - first_step)
        left = datetime.timedelta(seconds=round(seconds * (self._steps_per_epoch - step - 1)))
        return f"  {left} left in this epoch"

    def _new_bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            refresh_per_second=5,
        )

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = self._bar_epoch = None

    def _of_epochs(self, epoch: int) -> str:
        return f"{epoch + 1}/{self._epochs}" if self._epochs else str(epoch + 1)

    def _show_figures(self, what: str, data: Mapping[str, Any]) -> None:
        """Two lines: what was evaluated, the AUC first; and what else there is."""
        metrics = [name for name in data if metric_of(name) is not None]
        metrics.sort(key=lambda name: metric_of(name) != "auc")  # others keep their order
        others = [name for name in data if name not in metrics]
        for names in filter(None, (metrics, others)):
            self.message(f"{what}  {self._readable({name: data[name] for name in names})}")
            what = " " * len(what)

    def _shown(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A step's metrics as a person follows them: the speed of the last steps together."""
        speed = data.get(_SPEED)
        if speed:
            self._speeds.append(float(speed))
            mean = len(self._speeds) / sum(1 / speed for speed in self._speeds)
            data = {**data, _SPEED: mean}
        return {name: value for name, value in data.items() if name != _ROWS}

    def _readable(self, data: Mapping[str, Any]) -> str:
        return "  ".join(self._metric(name, value) for name, value in data.items())

    def _short(self, data: Mapping[str, Any]) -> str:
        """The first metric and the speed: what fits beside a bar."""
        names = list(data)
        shown = names[:1] + [n for n in names[1:] if self._units.get(n) == "samples/s"]
        return "  ".join(self._metric(name, data[name]) for name in shown)

    def _metric(self, name: str, value: Any) -> str:
        unit = self._units.get(name)
        if value is None:
            text = "none"
        elif isinstance(value, float):
            text = f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.4g}"
        else:
            text = f"{value:,}" if isinstance(value, int) else str(value)
        if unit == name:  # "9,312 samples/s" rather than "samples/s 9,312 samples/s"
            return f"{text} {unit}"
        return f"{name} {text} {unit}" if unit else f"{name} {text}"


def read_log(path: str | os.PathLike[str]) -> list[LogRecord]:
    """The LOG lines of a file, each step, epoch and summary once, with each metric as written last.

    Lines that are not DLLL lines are skipped, as is a last line that a killed process left half
    written.

    Raises:
      UserError: if the file is not there, or a DLLL line within it cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"expected a log at {path}, but {error.strerror}.") from None
    records: dict[tuple[int, ...], LogRecord] = {}
    for number, line in enumerate(lines, start=1):
        if not line.startswith(LOG_PREFIX):
            continue
        try:
            record = _record(line)
        except (UserError, KeyError, TypeError, ValueError, OverflowError):
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number}: expected 'DLLL' and a JSON object with type, step, data "
                f"and elapsedtime, received {line[:80]!r}."
            ) from None
        if record is None:
            continue
        # Taken out first, so that the order is that of the later lines.
        earlier = records.pop(record.step, None)
        if earlier is not None:  # a step's own line and that of an evaluation after it
            record = dataclasses.replace(record, data={**earlier.data, **record.data})
        records[record.step] = record
    return list(records.values())


def _record(line: str) -> LogRecord | None:
    """What a DLLL line says; None if it is not of the type LOG."""
    entry = load_object(line.removeprefix(LOG_PREFIX), "the line")
    if entry["type"] != "LOG":
        return None
    step = tuple(entry["step"])
    if not all(isinstance(part, int | str) for part in step):
        raise TypeError("the numbers and names of a step")
    return LogRecord(step, dict(entry["data"]), float(entry["elapsedtime"]))


def _drop_half_line(path: Path) -> None:
    """Cuts off what a killed process left after the last line end."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - (1 << 16)))
        tail = file.read()
        half = len(tail) - (tail.rfind(b"\n") + 1)
        if half:
            file.truncate(end - half)


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON numbers: NumPy's and TensorFlow's become Python's, NaN becomes None."""
    plain = {}
    for name, value in data.items():
        if hasattr(value, "numpy"):
            value = value.numpy()
        if hasattr(value, "item"):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        plain[name] = value
    return plain


def _of(done: int, total: int | None) -> str:
    return f"{done:,}/{total:,} ({100 * done // total} %)" if total else f"{done:,}"

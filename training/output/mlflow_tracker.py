"""MLflow: options and metrics of a run, sent where `MLFLOW_TRACKING_URI` says.

A run does not depend on it: a failure on the way costs a warning, once. That mlflow is missing is
an error only with `--tracker mlflow`. It is an extra; nothing else imports it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lookback.core.errors import UserError
from lookback.training.config import RunConfig

URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
"""Variables of MLflow's own."""
_DEFAULT_EXPERIMENT = "lookback"
_MISSING = 'mlflow, an extra: pip install "lookback[mlflow]" (or mlflow-skinny and sqlparse)'
_SECONDS_BETWEEN_BATCHES = 10.0
_MOST_METRICS, _MOST_OPTIONS = 1000, 100  # of a batch, mlflow/utils/validation.py of 1.27
_LONGEST_OPTION = 250  # characters, likewise


class MlflowTracker:
    """One run of MLflow. Metrics travel in batches: when one is full, and every ten seconds."""

    def __init__(self, name: str, tags: Mapping[str, str]) -> None:
        """Begins the run.

        Args:
          name: of the run.
          tags: of the run.

        Raises:
          Exception: of mlflow or the network, whatever it is.
        """
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        experiment = os.environ.get(EXPERIMENT) or _DEFAULT_EXPERIMENT
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        tags = {"mlflow.runName": name, "mlflow.source.name": "lookback train", **tags}
        self._run = self._client.create_run(number, tags=dict(tags)).info.run_id
        self._waiting: list[Any] = []
        self._sent = time.monotonic()

    def scalars(self, group: str, step: int, data: Mapping[str, Any]) -> None:
        """Sends the numbers among the metrics, as "group/metric"; as "metric" of no group."""

        def add() -> None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            self._waiting += [
                Metric(_key(f"{group}/{metric}" if group else metric), float(value), now, step)
                for metric, value in data.items()
                if isinstance(value, int | float)
            ]
            waited = time.monotonic() - self._sent
            if len(self._waiting) >= _MOST_METRICS or waited > _SECONDS_BETWEEN_BATCHES:
                self._send()

        self._try(add)

    def options(self, values: Mapping[str, Any]) -> None:
        """Sends the run's options."""

        def send() -> None:
            from mlflow.entities import Param

            every = [Param(n, str(v)[:_LONGEST_OPTION]) for n, v in values.items()]
            for begin in range(0, len(every), _MOST_OPTIONS):
                self._client.log_batch(self._run, params=every[begin : begin + _MOST_OPTIONS])

        self._try(send)

    def close(self, status: str = "FINISHED") -> None:
        """Ends the run; further calls do nothing.

        Args:
          status: as MLflow calls it: FINISHED, FAILED or KILLED.
        """

        def end() -> None:
            self._send()
            self._client.set_terminated(self._run, status)

        self._try(end)
        self._client = None

    def _send(self) -> None:
        for begin in range(0, len(self._waiting), _MOST_METRICS):
            batch = self._waiting[begin : begin + _MOST_METRICS]
            self._client.log_batch(self._run, metrics=batch)
        self._waiting, self._sent = [], time.monotonic()

    def _try(self, work: Callable[[], None]) -> None:
        if self._client is None:
            return
        try:
            work()
        except Exception as error:  # of mlflow or the network: whatever it is, the run goes on
            self._client = None
            print(
                f"warning: what MLflow gets of this run ends here: {type(error).__name__}: {error}",
                file=sys.stderr,
                flush=True,
            )


def trackers_of(run: RunConfig, identity: str) -> tuple[Sequence[MlflowTracker], str | None]:
    """The trackers of a run, and what to say of it.

    Args:
      run: its options.
      identity: of the run, alike for the processes that continue it.

    Raises:
      UserError: if it was asked for by name, and cannot be had.
    """
    asked = run.tracker == "mlflow"
    if not asked and (run.tracker == "none" or not os.environ.get(URI)):
        return (), None
    check_tracker(run)
    if importlib.util.find_spec("mlflow") is None:
        return (), f"{URI} is set and nothing is sent there: expected {_MISSING}"
    name = f"{run.model_type} on {run.dataset_dir.resolve().name}, seed {run.seed}"
    try:
        return [MlflowTracker(name, {"lookback.run": identity})], None
    except Exception as error:  # of mlflow or the network, whatever it is
        failure = f"MLflow at {os.environ.get(URI) or 'mlruns'}: {type(error).__name__}: {error}"
        if asked:
            raise UserError(f"tracker: expected to begin a run, received of {failure}") from error
        return (), f"warning: nothing is sent to {failure}"


def check_tracker(run: RunConfig) -> None:
    """Refuses, before any work, a tracker that is not installed.

    Raises:
      UserError: if it was asked for by name.
    """
    if run.tracker == "mlflow" and importlib.util.find_spec("mlflow") is None:
        raise UserError(f"tracker: expected {_MISSING}; found none. Install it, or leave it out.")


def _key(name: str) -> str:
    """A metric's name in letters that MLflow allows."""
    return name.replace("@", "_at_")

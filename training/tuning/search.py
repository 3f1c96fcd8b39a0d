"""``lookback tune``: trials of training with options out of a space, and the best of them.

    lookback tune --config space.yaml --results_dir tuned

Each trial is a process of its own, ``RESULTS_DIR/trials/NUMBER``, with its log and report. Optuna
(an extra) chooses options by what trials before found (tree-structured Parzen estimators), and
ends trials whose evaluations stay below the median of the others'. The study is ``tune.db``: the
same command goes on with it, whatever ended it. In the end there are ``trials.csv`` and
``best.yaml``, which `train --config` takes.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from lookback.core.errors import UserError
from lookback.core.files import atomic_file, inside_ours
from lookback.core.limits import MOST_STEPS
from lookback.core.options import option, words_of
from lookback.core.yaml_files import StrictDumper, read_yaml
from lookback.training.children import TERMINAL_FILE, Start, last_words, run_process, summary_in
from lookback.training.evaluation.names import metric_of
from lookback.training.output.logging import read_log
from lookback.training.tuning.space import Dimension, Space, given

if TYPE_CHECKING:
    import optuna

STUDY_FILE, TRIALS_FILE, BEST_FILE = "tune.db", "trials.csv", "best.yaml"
BASE_FILE, TRIALS = "base.yaml", "trials"
_NAME = "tune"
_SEARCH, _STATUS = "search", "status"  # of the study: what it is; of a trial: how its run ended
_FIRST_TRIALS = 5  # that are not ended early: a median of fewer says little
_SECONDS_BETWEEN_LOOKS = 2.0
_SAID = 200  # characters of a database's error
_SHARE_OF_LOOKING = 0.05  # of the time, that reading a trial's log may take


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What is searched, and how."""

    scope = "search"

    space: Space | None = option(None, help="Options to search, and the values of each")
    metric: str = option(
        "validation_auc", help="Figure of a run's summary that the search is for", nonempty=True
    )
    direction: Literal["maximize", "minimize"] | None = option(
        None, help="Which metric is better; none: what the metric says"
    )
    trials: int = option(
        20,
        help="Number of trials, those of an earlier call among them",
        at_least=1,
        limit=MOST_STEPS,
    )
    prune: bool = option(
        True, help="End trials early whose evaluations stay below the others' median (flag)"
    )

    @property
    def goal(self) -> Literal["maximize", "minimize"]:
        """The direction.

        Raises:
          UserError: if the metric does not say.
        """
        if self.direction is not None:
            return self.direction
        metric = metric_of(self.metric)
        if metric is None or metric == "calibration":
            raise UserError(
                f"direction: expected maximize or minimize with the metric {self.metric}, of which "
                "neither is better by itself, received none."
            )
        return "minimize" if metric == "log_loss" else "maximize"


@dataclasses.dataclass(frozen=True)
class Base:
    """What all trials have in common.

    Attributes:
      content: options of a file.
      words: of a command line, which take precedence over them.
      seed: of every trial, and of the search.
      log_filename: name of the trials' logs.
      kinds: the type of each option of the space.
    """

    content: Mapping[str, Any]
    words: Sequence[str]
    seed: int
    log_filename: str
    kinds: Mapping[str, type]


def require_optuna() -> None:
    """Refuses a search without it.

    Raises:
      UserError: saying how to get it.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            'tune: expected optuna, an extra: pip install "lookback[tune]" (or optuna); found none.'
        )


class Search:
    """A study on disk, and the trials that are left to run."""

    def __init__(
        self, tune: TuneOptions, base: Base, results_dir: Path, start: Start = run_process
    ) -> None:
        """Opens the study, or begins it.

        Args:
          tune: what is searched, and how.
          base: what all trials have in common.
          results_dir: ours to write in.
          start: runs a command line.

        Raises:
          UserError: if the directory holds something else, or another search.
        """
        assert tune.space is not None
        self._tune, self._base, self._start = tune, base, start
        self._space, self._directory = tune.space.space, results_dir
        self._study = self._open()

    def run(self) -> Path:
        """Runs what is left of the trials.

        Returns:
          The file with the best options.

        Raises:
          UserError: if trials fail from the first on, or have no such metric.
        """
        _write_yaml(self._directory / BASE_FILE, self._base.content)
        while (number := self._ended()) < self._tune.trials:
            print(f"trial {number + 1} of {self._tune.trials}: ", end="", flush=True)
            print(self._trial(), flush=True)
            self._write_trials()
        return self._tell()

    def _open(self) -> optuna.Study:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self._directory / STUDY_FILE
        inside = [p.name for p in self._directory.iterdir() if not p.name.startswith(".")]
        if inside and not path.exists():
            raise UserError(
                f"results_dir: expected a new directory or one of an earlier search, received "
                f"{self._directory}, which holds {sorted(inside)[0]}. Choose another."
            )
        try:
            study = optuna.create_study(
                storage=f"sqlite:///{path.resolve()}",
                study_name=_NAME,
                load_if_exists=True,
                direction=self._tune.goal,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=_FIRST_TRIALS),
            )
        except (SQLAlchemyError, RuntimeError, optuna.exceptions.OptunaError) as error:
            raise UserError(
                f"results_dir: expected {path} to be a search's database, but "
                f"{' '.join(str(error).split())[:_SAID]}. Choose another directory, or remove it."
            ) from error
        # Another seed for each process that goes on, or it would propose the same again.
        study.sampler = optuna.samplers.TPESampler(seed=self._base.seed + len(study.trials))
        self._require_same(study)
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # its process is gone
        return study

    def _require_same(self, study: optuna.Study) -> None:
        assert self._tune.space is not None
        search = {
            "space": self._tune.space.content()["space"],
            "options": dict(self._base.content),
            "words": list(self._base.words),
            "metric": self._tune.metric,
            "direction": self._tune.goal,
        }
        search = json.loads(json.dumps(search, default=str))
        before = study.user_attrs.get(_SEARCH, search)
        changed = [name for name, value in search.items() if before.get(name) != value]
        if changed:
            raise UserError(
                f"results_dir: {self._directory} holds a search with another "
                f"{' and '.join(changed)}. Choose another directory, or say the same (--trials may "
                "grow)."
            )
        study.set_user_attr(_SEARCH, search)

    def _ended(self) -> int:
        """Trials that ended by themselves; one that was killed with us is run again."""
        states = self._finished()
        return sum(t.state in states or _STATUS in t.user_attrs for t in self._study.trials)

    @staticmethod
    def _finished() -> Sequence[optuna.trial.TrialState]:
        from optuna.trial import TrialState

        return TrialState.COMPLETE, TrialState.PRUNED

    def _trial(self) -> str:
        """Runs one; gives what to say of it."""
        from optuna.trial import TrialState

        trial = self._study.ask(
            {n: _distribution(d, self._base.kinds[n]) for n, d in self._space.items()}
        )
        choices = ", ".join(f"{name} {_shown(value)}" for name, value in trial.params.items())
        directory = self._directory / TRIALS / str(trial.number)
        directory.mkdir(parents=True)
        log = directory / self._base.log_filename
        watch = _Watch(trial, log, self._tune.metric) if self._tune.prune else None
        status = self._start(
            self._words(trial.params, directory),
            directory / TERMINAL_FILE,
            (lambda: False) if watch is None else watch.ends,
        )
        if watch is not None and watch.ended:
            self._study.tell(trial, state=TrialState.PRUNED)
            return f"{choices}: ended early"
        if status:
            trial.set_user_attr(_STATUS, status)
            self._study.tell(trial, state=TrialState.FAIL)
            return self._failed(choices, directory, status)
        summary = summary_in(log)
        if self._tune.metric not in summary:
            names = [n for n, v in summary.items() if isinstance(v, int | float)]
            self._study.tell(trial, state=TrialState.FAIL)
            raise UserError(
                f"metric: expected a figure of the run's summary ({', '.join(names)}), received "
                f"{self._tune.metric}."
            )
        value = summary[self._tune.metric]
        if value is None:  # no number, such as where all rows have one label
            trial.set_user_attr(_STATUS, f"no {self._tune.metric}")
            self._study.tell(trial, state=TrialState.FAIL)
            return f"{choices}: {self._tune.metric} is no number, see {directory}"
        self._study.tell(trial, float(value))
        best = self._study.best_trial
        found = f"{self._tune.metric} {value:.6g} (best {best.value:.6g} of {best.number + 1})"
        return f"{choices}: {found}"

    def _failed(self, said: str, directory: Path, status: int) -> str:
        told = f"{said}: ended with exit status {status}, see {directory}"
        if not any(t.state in self._finished() for t in self._study.trials):
            raise UserError(f"the first trial {told}: {last_words(directory / TERMINAL_FILE)}")
        return told

    def _words(self, params: Mapping[str, Any], directory: Path) -> list[str]:
        """The command line of a trial."""
        chosen = words_of(given(params, self._base.kinds))
        seed = [] if "seed" in params else ["--seed", str(self._base.seed)]
        base = ["--config", str(self._directory / BASE_FILE), *self._base.words]
        return [*base, *seed, *chosen, "--results_dir", str(directory)]

    def _write_trials(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial", "state", self._tune.metric, *self._space, "directory"])
        for trial in self._study.trials:
            params = [trial.params.get(name, "") for name in self._space]
            place = self._directory / TRIALS / str(trial.number)
            state, value = trial.state.name.lower(), "" if trial.value is None else trial.value
            writer.writerow([trial.number + 1, state, value, *params, place])
        with atomic_file(self._directory / TRIALS_FILE, replaces=inside_ours) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")

    def _tell(self) -> Path:
        """Writes and prints the best."""
        from optuna.trial import TrialState

        complete = self._study.get_trials(states=[TrialState.COMPLETE])
        if not complete:
            raise UserError(f"tune: no trial of {self._directory} came to its end. See {TRIALS}/.")
        best = self._study.best_trial
        options = read_yaml(self._directory / TRIALS / str(best.number) / "config.yaml")
        path = self._directory / BEST_FILE
        _write_yaml(path, {n: v for n, v in options.items() if n != "results_dir"})
        ranked = sorted(complete, key=lambda t: t.value or 0.0)
        if self._tune.goal == "maximize":
            ranked.reverse()
        for trial in ranked[:10]:
            params = "  ".join(f"{name} {_shown(value)}" for name, value in trial.params.items())
            print(f"{trial.number + 1:>5}  {self._tune.metric} {trial.value:.6g}  {params}")
        print(f"the best options are in {path}, all trials in {self._directory / TRIALS_FILE}")
        return path


class _Watch:
    """Reports a trial's evaluations as its log tells them."""

    def __init__(self, trial: optuna.Trial, log: Path, metric: str) -> None:
        self._trial, self._log, self._metric = trial, log, metric
        self._reported: set[int] = set()
        self._next_look = 0.0
        self.ended = False

    def ends(self) -> bool:
        """Whether the trial is to end."""
        began = time.monotonic()
        if began < self._next_look or not self._log.exists():
            return False
        for record in read_log(self._log):
            value = record.data.get(self._metric)
            if len(record.step) != 1 or value is None or record.step[0] in self._reported:
                continue
            self._reported.add(record.step[0])
            self._trial.report(float(value), record.step[0])
            self.ended = self.ended or self._trial.should_prune()
        now = time.monotonic()
        self._next_look = now + max(_SECONDS_BETWEEN_LOOKS, (now - began) / _SHARE_OF_LOOKING)
        return self.ended


def _distribution(dimension: Dimension, kind: type) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if dimension.choices is not None:
        return CategoricalDistribution(dimension.choices.words)
    assert dimension.low is not None and dimension.high is not None
    low, high, step = dimension.low, dimension.high, dimension.step
    if kind is int:
        return IntDistribution(int(low), int(high), log=dimension.log, step=int(step or 1))
    return FloatDistribution(low, high, log=dimension.log, step=step)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    text = yaml.dump(dict(content), Dumper=StrictDumper, sort_keys=False)
    with atomic_file(path, replaces=inside_ours) as temporary:
        temporary.write_text(text, encoding="utf-8")

"""Searches options of training, which Optuna chooses, trial by trial.

The file of --config has options of `train`, for all trials, and beside them `space`: for each
option to search {low: .., high: ..}, with log: true or step: .., or {choices: [.., ..]}. The same
command goes on with a search that was ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.core.files import held
from lookback.core.options import CommandLine, parse, parse_known, words_of
from lookback.core.yaml_files import read_yaml
from lookback.dataloading import require_data
from lookback.training.children import Start, run_process
from lookback.training.config import RunConfig
from lookback.training.output.results import new_results
from lookback.training.parallel.horovod_world import launched_size
from lookback.training.run import command_line as train_line
from lookback.training.tuning.search import Base, Search, TuneOptions, require_optuna
from lookback.training.tuning.space import NOT_IN_TRIALS, given, options_of_file


def command_line() -> CommandLine:
    """What can be given: options of every trial, and of the search."""
    train = train_line()
    return dataclasses.replace(
        train,
        configs=(TuneOptions, *train.configs),
        document=lambda file: options_of_file(file, train),
    )


def main(argv: Sequence[str], prog: str = "lookback tune", start: Start = run_process) -> Path:
    """Searches; the same command line goes on with a search that was ended.

    Args:
      argv: the arguments, without the program's name.
      prog: how it was called.
      start: runs a trial's command line.

    Returns:
      The file with the best options.

    Raises:
      UserError: for what can be put right.
    """
    tune, run, _, options = parse(argv, command_line(), prog=prog, description=__doc__)
    if tune.space is None:
        raise UserError("space: expected in the file of --config: options, and their values.")
    for name in NOT_IN_TRIALS:
        if getattr(run, name) not in (None, False):
            raise UserError(
                f"{name}: trials would write over each other, or be no single runs. Remove it; "
                "`train --config best.yaml` takes it afterwards."
            )
    if launched_size() > 1:
        raise UserError(
            "tune: expected in one process, which starts the trials one after another, received "
            f"{launched_size()} processes."
        )
    require_optuna()
    base = _base(argv, tune, run)
    require_data(options.layout, run.dataset_dir, run.model_type)
    with contextlib.ExitStack() as stack:
        directory = run.results_dir or stack.enter_context(new_results("tune"))
        stack.enter_context(held(directory, "results_dir", [run.dataset_dir]))
        stack.enter_context(_ends_with_children())
        if tune.metric.startswith("test_"):
            print(f"warning: {tune.metric} chooses by the test split, which then is no measure")
        best = Search(tune, base, directory, start).run()
    return best


def _base(argv: Sequence[str], tune: TuneOptions, run: RunConfig) -> Base:
    """What trials have in common.

    Raises:
      UserError: if a trial could not be run, of those on the corners of the space.
    """
    config, words = _taken(argv, "--config")
    _, words = _taken(words, "--results_dir")
    content: Mapping[str, Any] = {} if config is None else read_yaml(config)
    own = {field.name for field in dataclasses.fields(TuneOptions)}
    content = {n: v for n, v in content.items() if n not in (*own, "results_dir")}
    _, words = parse_known(words, TuneOptions)
    line = train_line()
    kinds: dict[str, type] = {}
    for variant in line.variants:
        kinds |= {name: found.kind for name, found in line.options(variant).items()}
    assert tune.space is not None
    of_content = words_of(content)
    corners = {name: d.corners(kinds[name]) for name, d in tune.space.space.items()}
    for name, values in corners.items():
        for value in values:
            chosen = {n: others[0] for n, others in corners.items()} | {name: value}
            parse([*of_content, *words, *words_of(given(chosen, kinds))], line)
    _ = tune.goal  # which may be refused
    return Base(content, words, run.seed or 0, run.log_filename, kinds)


def _taken(words: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a flag, and the words without it."""
    rest, value = list(words), None
    for number, word in enumerate(words):
        if word == flag:
            value, rest = words[number + 1], [*words[:number], *words[number + 2 :]]
        elif word.startswith(f"{flag}="):
            value, rest = word.partition("=")[2], [*words[:number], *words[number + 1 :]]
    return value, rest


@contextlib.contextmanager
def _ends_with_children() -> Iterator[None]:
    """Ends as Ctrl-C would where a signal says so: what is running in a process ends with us."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

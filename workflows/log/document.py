"""A description of a log → the options of ``workflows run`` that it stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError, shown
from lookback.core.options import ConfigFile
from lookback.core.options.nested import Problems, parts_of, read_nested, unknown_key
from lookback.core.yaml_files import load_yaml, read_text, yaml_lines
from lookback.workflows.log.description import LogFile
from lookback.workflows.log.splits import SplitRule

DATASETS = {"histories": "log", "tabular": "tabular_log"}
"""Names of the datasets of the layouts."""

_MARKS = ("version", "events")
"""Keys that tell a description from lines of options."""


def described(file: ConfigFile) -> Mapping[str, Any]:
    """The options that a file of --config stands for, by name.

    A description may have options beside its keys; what is not a description is given as it is.
    That it is of dataset log, a command that has no such option knows.

    Raises:
      UserError: naming all that is wrong with a description, with paths and lines.
    """
    if not any(mark in file.content for mark in _MARKS):
        return file.content
    log = log_of(file)
    rest = {key: value for key, value in file.content.items() if key not in _keys()}
    chosen = {"input": str(file.path.parent), **options_of_log(log), **rest}
    return {**chosen, "dataset": DATASETS[log.layout]} if "dataset" in file.known else chosen


def read_description(path: Path) -> LogFile:
    """A description of a file that has nothing beside it; see `options_of_log`.

    Raises:
      UserError: as `log_of`, or if the file cannot be read.
    """
    text = read_text(path, str(path))
    content = load_yaml(text, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a description of a log, received {shown(content)}.")
    return log_of(ConfigFile(path, text, content, ()))


def log_of(file: ConfigFile) -> LogFile:
    """The description in a file.

    Raises:
      UserError: naming all that is wrong with it, with paths and lines.
    """
    problems = Problems(str(file.path), yaml_lines(file.text))
    for key in file.content:
        if key not in _keys() and key not in file.known:
            problems.add((str(key),), unknown_key(key, dict.fromkeys([*_keys(), *file.known])))
    own = {key: value for key, value in file.content.items() if key in _keys()}
    log = read_nested(LogFile, own, problems)
    dataset = DATASETS["histories" if log is None else log.layout]
    if log is not None and file.content.get("dataset", dataset) != dataset:
        wrong = f"this log is of dataset {dataset}, received {shown(file.content['dataset'])}."
        problems.add(("dataset",), f"{wrong} Remove the line.")
    problems.raise_any()
    if log is None:
        raise TypeError("what is wrong with a description is told")
    return log


def options_of_log(log: LogFile) -> dict[str, Any]:
    """The options of the reader and the pipeline that a description stands for, by name."""
    unit = None if log.events.time is None else log.events.time.unit
    options: dict[str, Any] = {
        "events": log.events,
        "items": log.items,
        "users": log.users,
        "split": log.split,
    }
    if log.layout == "tabular":
        return {**options, **({} if unit in (None, "iso") else {"time_unit": unit})}
    last = log.split.validation if log.split.by == "last" else None
    options |= {
        "labels": log.labels,
        "filters": dataclasses.replace(log.filters, min_events_per_user=None),
        "sessions": log.sessions,
        "split": SplitRule() if log.split.rule is None else log.split,
    }
    chosen: dict[str, Any] = {
        "duplicates": log.duplicates,
        "ties": log.ties,
        "time_unit": None if unit == "iso" else unit,
        "min_interactions": log.filters.min_events_per_user,
        "validation": None if last is None else bool(last.value),
    }
    return {**options, **{name: value for name, value in chosen.items() if value is not None}}


def _keys() -> list[str]:
    return [part.key for part in parts_of(LogFile)]

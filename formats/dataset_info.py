"""``dataset.json``: what makes a directory a dataset, of which format, and what was counted.

    format, format_version   which of the two formats, `HISTORIES` or `TABULAR`
    dataset, options         the name it came through, and what had a say in its content
    counts, cardinalities    numbers by name; rows of each table
    content_hash             of schema and values, as the format defines it
    vocabularies             what ids stand for: a digest by column, where there is a workflow
    created_by               versions of the software
    split, history_length    (histories) what is held out; and more, for people
    labels                   (histories) `SAMPLED`, as where it is absent, or `EXPLICIT`
    features                 how each feature of a user's own log was made
    update                   (histories) of which dataset this is the update, and what is new
    files, sha256            all other files with sizes and digests, and that of all of this
                             (`core.manifests`); absent from datasets of earlier versions

It is written last. Nothing here needs Merlin, and with it TensorFlow.
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError, shown
from lookback.core.files import atomic_file, inside_ours
from lookback.core.json_files import load_object, read_bytes
from lookback.core.manifests import (
    FILES,
    Files,
    entries_of,
    has_digests,
    is_whole,
    sealed,
    visible_files,
)

DATASET_FILE = "dataset.json"
WORKFLOW_DIRECTORY = "workflow"
"""In a dataset: the saved workflow that made it."""
UPDATE_DIRECTORY = "update"
"""In a dataset of histories: the log that it was made of (`formats.kept_log`)."""
LONGEST_BAGS = "longest_bags"
"""Key of the counts: by column of several categories, how many the longest has."""
UPDATE = "update"
"""Key: of which dataset (``of``, its content hash) this is the update, and how much is new:
``new_events`` of the histories (and ``new_impressions``) that came since, ``new_training`` targets
to train on that that dataset did not train on, how many events came that were ``seen_again``, and
``new_ids`` by column."""
VOCABULARIES = "vocabularies"
"""Key: digests of what the ids of columns stand for."""
CONTENT_HASH = "content_hash"
"""Key: of schema and values."""
FEATURES = "features"
"""Key: the transformations of typed features, see `formats.transforms`."""
HISTORIES = "lookback-histories"
TABULAR = "lookback-tabular"
FORMAT_VERSION = 1
"""Of both formats."""

SPLITS = ("train", "validation", "test")
"""Of a tabular dataset, and of impressions; each a directory."""

LEAVE_LAST_OUT, BY_TIME, BY_USERS = "leave_last_out", "time", "users"
"""Rules of the split of histories: what is held out of each user, from when on, or of whom."""

LABELS = "labels"
"""Key: what the targets of histories are."""
SAMPLED = "sampled"
"""Events, with negatives that are drawn."""
EXPLICIT = "explicit"
"""Impressions with labels (`formats.impressions`)."""

AGAIN = "Write the dataset again with `python -m workflows run`."
"""The way out for whoever has a dataset that cannot be read."""

_LABELS = (SAMPLED, EXPLICIT)
_PACKAGES = ("nvtabular", "merlin-core", "pandas", "pyarrow", "numpy")


def is_histories(directory: str | Path) -> bool:
    """Whether the directory's dataset.json names the format of histories (in whatever version)."""
    return _format_of(directory) == HISTORIES


def is_tabular(directory: str | Path) -> bool:
    """Whether the directory's dataset.json names the tabular format (in whatever version)."""
    return _format_of(directory) == TABULAR


def read_histories_info(directory: str | Path) -> dict[str, Any]:
    """Reads and checks the dataset.json of histories.

    Raises:
      UserError: if the directory is no such dataset of this version.
    """
    info = _read(Path(directory), HISTORIES)
    split, labels = info.get("split"), info.get(LABELS, SAMPLED)
    if not isinstance(split, dict) or not {"test", "validation"} <= set(split):
        raise UserError(f"{Path(directory) / DATASET_FILE} has no split rule. {AGAIN}")
    rules = (LEAVE_LAST_OUT, BY_TIME, BY_USERS)
    for key, value, known in (("rule", split.get("rule"), rules), (LABELS, labels, _LABELS)):
        if value not in known:
            raise UserError(
                f"{Path(directory) / DATASET_FILE}: {key!r} must be one of {known}, found "
                f"{shown(value)}. {AGAIN}"
            )
    counts = info.get("counts", {})  # absent where somebody writes histories without a workflow
    counted = [split["test"], split["validation"]]
    if isinstance(counts, dict):
        counted += [counts[name] for name in ("users", "events", "items") if name in counts]
    if not isinstance(counts, dict) or any(type(number) is not int for number in counted):
        raise UserError(
            f"{Path(directory) / DATASET_FILE}: 'counts' and 'split' must hold whole numbers by "
            f"name. {AGAIN}"
        )
    return info


def content_of(directory: str | Path, info: Mapping[str, Any]) -> str:
    """The hash of a dataset's content: what a run that goes on compares.

    Args:
      directory: of the dataset.
      info: of its dataset.json.

    Raises:
      UserError: if nobody wrote it, as of histories that came without a workflow.
    """
    found = info.get(CONTENT_HASH)
    if not isinstance(found, str) or not found:
        raise UserError(
            f"{Path(directory) / DATASET_FILE}: expected {CONTENT_HASH!r}, a text that differs "
            f"from that of other data, found {shown(found)}: a run could not tell whether it goes "
            f"on with the same data. Add it, or: {AGAIN}"
        )
    return found


def is_explicit(directory: str | Path) -> bool:
    """Whether the targets of histories are impressions, with labels of their own.

    Raises:
      UserError: if the directory is no such dataset of this version.
    """
    return bool(read_histories_info(directory).get(LABELS) == EXPLICIT)


def impression_count(split: str) -> str:
    """Key of the counts: how many impressions a split has."""
    return f"{split}_impressions"


def training_events(directory: str | Path, before: int = 0) -> int:
    """How many events of histories, or impressions, are to train on, as dataset.json says.

    Args:
      directory: of the dataset.
      before: events that a user must have before one to train on.

    Raises:
      UserError: if the directory is no such dataset, or does not say.
    """
    info = read_histories_info(directory)
    counts, split = info.get("counts", {}), info["split"]
    try:
        if info.get(LABELS) == EXPLICIT:
            return int(counts[impression_count("train")])
        users, events = (int(counts[name]) for name in ("users", "events"))
        held_out = int(split["test"]) + int(split["validation"])
        if split["rule"] == LEAVE_LAST_OUT:
            held_out *= users
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{Path(directory) / DATASET_FILE} does not say how many users and events there are. "
            f"Give --global_batch_size. {AGAIN}"
        ) from None
    return max(events - held_out - users * before, 0)


def read_tabular_info(directory: str | Path) -> dict[str, Any]:
    """Reads and checks the dataset.json of a tabular dataset.

    Raises:
      UserError: if the directory is no such dataset of this version.
    """
    info = _read(Path(directory), TABULAR)
    for name, optional in (("counts", SPLITS), ("cardinalities", ())):
        entries = info.get(name)
        known = entries if isinstance(entries, dict) else {"": None}
        # Counts may hold more than the splits' rows: what else the workflow counted.
        used = [key for key in optional or known if key in known]
        if entries is not known or any(type(known[key]) is not int for key in used):
            raise UserError(
                f"{Path(directory) / DATASET_FILE}: {name!r} must hold whole numbers by name. "
                f"{AGAIN}"
            )
    return info


def read_info(directory: str | Path) -> dict[str, Any]:
    """Reads and checks the dataset.json of either format.

    Raises:
      UserError: if the directory is no dataset of this version.
    """
    return (read_tabular_info if is_tabular(directory) else read_histories_info)(directory)


def write_info(
    directory: Path, kind: str, content: Mapping[str, Any], known: Files | None = None
) -> dict[str, Any]:
    """Writes dataset.json; all else of the dataset must be there.

    Args:
      directory: of the dataset, which is ours to write in.
      kind: `HISTORIES` or `TABULAR`.
      content: what it holds beside the format's name and version, and what created it.
      known: sizes and digests of files that were written some time ago; what they have become
        since is not looked at. Of all others the digests are computed.

    Returns:
      all of its content.
    """
    known = known or {}
    names = [name for name in visible_files(directory) if name not in {*known, DATASET_FILE}]
    files = {**known, **entries_of(directory, names)}
    info = sealed(
        {
            "format": kind,
            "format_version": FORMAT_VERSION,
            **content,
            "created_by": {
                "python": platform.python_version(),
                **{package: version(package) for package in _PACKAGES},
            },
            FILES: {name: files[name] for name in sorted(files)},
        }
    )
    with atomic_file(directory / DATASET_FILE, replaces=inside_ours) as file:
        file.write_text(json.dumps(info, indent=1) + "\n")
    return info


def _format_of(directory: str | Path) -> Any:
    try:
        return _load(Path(directory)).get("format")
    except UserError:
        return None


def _read(directory: Path, kind: str) -> dict[str, Any]:
    info = _load(directory)
    found = (info.get("format"), info.get("format_version"))
    if found != (kind, FORMAT_VERSION):
        raise UserError(
            f"{directory / DATASET_FILE}: expected format {kind!r} version {FORMAT_VERSION}, found "
            f"{shown(found[0])} version {shown(found[1])}. {AGAIN}"
        )
    return info


def _load(directory: Path) -> dict[str, Any]:
    """The file's content, of whatever format."""
    path = directory / DATASET_FILE
    missing = (
        f"{directory} is not a dataset: there is no {path.name} in it. Expected the output "
        "directory of `python -m workflows run`."
    )
    return dict(_parsed(read_bytes(path, AGAIN, missing), str(path)))


@functools.lru_cache(maxsize=2)  # at its start a run asks some twelve times
def _parsed(content: bytes, path: str) -> Mapping[str, Any]:
    """What dataset.json says, with its digest compared; callers do not write into it."""
    info = load_object(content, path, AGAIN)
    if has_digests(info) and not is_whole(info):
        raise UserError(
            f"{path} is not what was written: its content has another digest than it says. Copy "
            f"the dataset again from where it was written. Or: {AGAIN}"
        )
    return info

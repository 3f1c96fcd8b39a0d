"""What a dataset holds, as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lookback.core.errors import UserError
from lookback.core.manifests import WHOLLY, Verification
from lookback.formats.dataset_info import (
    AGAIN,
    DATASET_FILE,
    EXPLICIT,
    FEATURES,
    LABELS,
    SPLITS,
    TABULAR,
    UPDATE,
    UPDATE_DIRECTORY,
    WORKFLOW_DIRECTORY,
    impression_count,
    is_tabular,
    read_info,
)
from lookback.formats.schema import read_schema
from lookback.formats.verification import TRUSTED, dataset_digest, verify_dataset
from lookback.workflows.times import in_words


def describe(
    directory: str | Path, console: Console | None = None, verification: Verification = WHOLLY
) -> None:
    """Prints schema, cardinalities, counts and options of a dataset.

    Of histories also their lengths, split and negatives.

    Args:
      directory: the dataset.
      console: where to; the standard output if None.
      verification: how far its files are compared with what dataset.json says of them.

    Raises:
      UserError: if `directory` is not a whole dataset.
    """
    directory = Path(directory)
    metadata = read_info(directory)
    _require_described(directory, metadata)
    for parts in (None, (WORKFLOW_DIRECTORY, UPDATE_DIRECTORY)):
        verify_dataset(directory, verification, parts)
    schema = read_schema(directory)
    console = console or Console()
    console.print(f"[bold]{directory}[/bold]: {metadata['dataset']}, {metadata['content_hash']}")
    name, digest = dataset_digest(directory)
    console.print(f"digest: {digest} (of {name}, for --{TRUSTED})", soft_wrap=True)
    console.print(_schema_table(schema))
    if FEATURES in metadata:
        console.print(_features_table(metadata))
    console.print(_flat_table("counts", metadata["counts"]))
    if UPDATE in metadata:
        console.print(_flat_table("update", metadata[UPDATE]))
    if not is_tabular(directory):
        console.print(_flat_table("history length (events a user)", metadata["history_length"]))
        console.print(_split_table(metadata))
    console.print(_flat_table("options", metadata["options"]))


def _require_described(directory: Path, metadata: Mapping[str, Any]) -> None:
    """Refuses a dataset.json that reads well and lacks what is printed; ours never does."""
    tables = ["counts", "options"]
    tables += [] if is_tabular(directory) else ["history_length", "negative_sampling"]
    missing = [name for name in tables if not isinstance(metadata.get(name), dict)]
    missing += [name for name in ("dataset", "content_hash") if name not in metadata]
    if missing:
        raise UserError(
            f"{directory / DATASET_FILE}: expected {', '.join(missing)}, which every workflow "
            f"writes, found none. {AGAIN}"
        )


def _schema_table(schema: Any) -> Table:
    table = Table("column", "type", "tags", "domain", "rows", title="schema", title_justify="left")
    for column in schema:
        domain = column.properties.get("domain") or {}
        dtype = f"list<{column.dtype.name}>" if column.is_list else column.dtype.name
        rows = f"{domain['max'] + 1:,}" if domain else ""
        tags = ", ".join(sorted(tag.value for tag in column.tags))
        table.add_row(column.name, dtype, tags, domain.get("name", ""), rows)
    return table


def _flat_table(title: str, values: dict[str, Any]) -> Table:
    table = Table("", "", title=title, title_justify="left", show_header=False)
    for name, value in values.items():
        if isinstance(value, dict):
            text = ", ".join(f"{key}: {_number(count)}" for key, count in value.items()) or "none"
        else:
            text = _number(value)
        table.add_row(name, text)
    return table


def _features_table(metadata: dict[str, Any]) -> Table:
    """How raw values become what the columns hold, and how many there are not."""
    counts, rows = metadata["counts"], metadata["cardinalities"]
    clicks = shown = counts.get("events", 0)
    if metadata["format"] == TABULAR:
        shown = sum(counts[part] for part in SPLITS)
    elif metadata.get(LABELS) == EXPLICIT:
        shown = sum(counts[impression_count(part)] for part in SPLITS)
    table = Table(
        "feature", "of", "type", "rows", "missing", "cut", title="features", title_justify="left"
    )
    for name, said in metadata[FEATURES].items():
        every = clicks if said["of"] == "event" else shown
        missing = counts["missing_values"][name]
        bag = said.get("bag")
        table.add_row(
            name,
            said["of"],
            said["type"] if bag is None else f"up to {bag['most']} of a {said['type']}",
            f"{rows[name]:,}" if name in rows else "",
            f"{missing:,} ({missing / max(every, 1):.1%})",
            "" if bag is None else f"{counts['bags_cut'][name]:,}",
        )
    return table


def _split_table(metadata: dict[str, Any]) -> Table:
    split = metadata["split"]
    table = Table("part", "targets", "which", title=f"split: {split['rule']}", title_justify="left")
    for row in _parts(metadata):
        table.add_row(*row)
    negatives = metadata["negative_sampling"]
    table.add_section()
    drawn = "none is drawn: impressions have labels" if metadata.get(LABELS) == EXPLICIT else ""
    table.add_row("negatives", "", drawn or f"{' or '.join(negatives['distributions'])}")
    return table


def _parts(metadata: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, number of targets and what they are, of each part of the split."""
    split, counts = metadata["split"], metadata["counts"]
    users, events = counts["users"], counts["events"]
    which = {
        "time": {
            "train": "before that",
            **{name: f"from {_from(split, name)}" for name in SPLITS[1:]},
        },
        "users": {
            "train": "of the other users",
            "validation": "of users held out for validation",
            "test": "of users held out for the test",
        },
    }.get(split["rule"])
    if which is None:
        # A user's first event has no history, so it is nobody's target; a history as long as what
        # is held out has no training target left.
        held_out = split["test"] + split["validation"]
        short = "" if metadata["history_length"]["min"] > held_out else " (at most)"
        training = max(events - users * (1 + held_out), 0)
        yield "train", f"{training:,}{short}", "each earlier event with a history"
        if split["validation"]:
            yield "validation", f"{users:,}", "the event before the last of each user"
        yield "test", f"{users:,}", "the last event of each user"
        return
    explicit = metadata.get(LABELS) == EXPLICIT
    held_out = {part: split[part] for part in SPLITS[1:]}
    clicks = {SPLITS[0]: events - sum(held_out.values()), **held_out}
    for part in SPLITS:
        count = counts[impression_count(part)] if explicit else clicks[part]
        if count:
            yield part, f"{count:,}", f"{'impressions' if explicit else 'events'} {which[part]}"


def _from(split: Mapping[str, Any], name: str) -> str:
    moment = split.get(f"{name}_from")
    return "none" if moment is None else in_words(moment)


def _number(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)

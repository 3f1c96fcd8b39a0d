"""What a dataset holds, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lookback.core.errors import UserError
from lookback.core.manifests import WHOLLY, Verification
from lookback.formats.dataset_info import (
    AGAIN,
    DATASET_FILE,
    WORKFLOW_DIRECTORY,
    is_tabular,
    read_info,
)
from lookback.formats.schema import read_schema
from lookback.formats.verification import TRUSTED, dataset_digest, verify_dataset


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
    for parts in (None, (WORKFLOW_DIRECTORY,)):
        verify_dataset(directory, verification, parts)
    schema = read_schema(directory)
    console = console or Console()
    console.print(f"[bold]{directory}[/bold]: {metadata['dataset']}, {metadata['content_hash']}")
    name, digest = dataset_digest(directory)
    console.print(f"digest: {digest} (of {name}, for --{TRUSTED})", soft_wrap=True)
    console.print(_schema_table(schema))
    console.print(_flat_table("counts", metadata["counts"]))
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


def _split_table(metadata: dict[str, Any]) -> Table:
    split = metadata["split"]
    users = metadata["counts"]["users"]
    events = metadata["counts"]["events"]
    held_out = split["test"] + split["validation"]
    # A user's first event has no history, so it is nobody's target; a history as long as what is
    # held out has no training target left.
    table = Table("part", "targets", "which", title=f"split: {split['rule']}", title_justify="left")
    short = "" if metadata["history_length"]["min"] > held_out else " (at most)"
    training = max(events - users * (1 + held_out), 0)
    table.add_row("train", f"{training:,}{short}", "each earlier event with a history")
    if split["validation"]:
        table.add_row("validation", f"{users:,}", "the event before the last of each user")
    table.add_row("test", f"{users:,}", "the last event of each user")
    negatives = metadata["negative_sampling"]
    table.add_section()
    table.add_row("negatives", "", f"{' or '.join(negatives['distributions'])}")
    return table


def _number(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)

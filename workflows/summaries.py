"""What the commands print of a dataset that they wrote."""

from __future__ import annotations

from lookback.workflows.order import Report


def print_tabular(report: Report) -> None:
    """Prints what a run or a transformation of tabular data did."""
    counts = report.metadata["counts"]
    rows = ", ".join(f"{split} {counts[split]:,}" for split in ("train", "validation", "test"))
    bad = sum(counts["bad_lines"].values())
    print(f"dataset: {report.directory}")
    print(f"rows: {rows}; rows of all tables: {sum(report.metadata['cardinalities'].values()):,}")
    if bad:
        print(f"left out {bad:,} bad lines: {counts['bad_lines']}")
    print(f"content hash: {report.metadata['content_hash']}")


def print_histories(report: Report) -> None:
    """Prints what a run or a transformation of histories did."""
    counts = report.metadata["counts"]
    bad = sum(counts["bad_lines"].values())
    unknown = {name: count for name, count in counts["unknown_ids"].items() if count}
    print(f"dataset: {report.directory}")
    print(
        f"kept {counts['users']:,} users, {counts['events']:,} events, {counts['items']:,} items; "
        f"dropped {counts['users_dropped']:,} users with {counts['events_dropped']:,} events"
    )
    if "duplicate_events" in counts:
        print(
            f"dropped {counts['duplicate_events']:,} repeated events (same user and item, later); "
            f"too few were left of {counts['users_dropped_for_duplicates']:,} of the dropped users"
        )
    if bad:
        print(f"left out {bad:,} bad lines: {counts['bad_lines']}")
    if unknown:
        print(f"out of vocabulary: {unknown}")
    if counts.get("duplicate_item_metadata"):
        print(f"{counts['duplicate_item_metadata']:,} repeated items in the metadata: first counts")
    for name, count in counts["events_without_features"].items():
        if count:
            print(f"{count:,} of the events read have no {name}: their id has no metadata")
    print(f"content hash: {report.metadata['content_hash']}")

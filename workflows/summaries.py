"""What the commands print of a dataset that they wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lookback.formats.dataset_info import (
    EXPLICIT,
    FEATURES,
    LABELS,
    LEAVE_LAST_OUT,
    LONGEST_BAGS,
    SPLITS,
    UPDATE,
    impression_count,
)
from lookback.formats.verification import TRUSTED, dataset_digest
from lookback.workflows.histories.continued import CHANGED
from lookback.workflows.log.columns import TIMES_AT_CLOCK_CHANGES
from lookback.workflows.log.parse import LEFT_OUT
from lookback.workflows.order import Report
from lookback.workflows.times import TIMES_WITHOUT_ZONE


def print_digest(directory: Path) -> None:
    """Prints the digest by which a dataset can be trusted."""
    name, digest = dataset_digest(directory)
    print(f"digest: {digest} (of {name}, for --{TRUSTED})")


def print_tabular(report: Report) -> None:
    """Prints what a run or a transformation of tabular data did."""
    counts = report.metadata["counts"]
    rows = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS)
    bad = sum(counts["bad_lines"].values())
    print(f"dataset: {report.directory}")
    print(f"rows: {rows}; rows of all tables: {sum(report.metadata['cardinalities'].values()):,}")
    if bad:
        print(f"left out {bad:,} bad lines: {counts['bad_lines']}")
    if "positives" in counts:
        shown = ", ".join(f"{split} {counts['positives'][split]:,}" for split in SPLITS)
        print(f"rows with label 1: {shown}; all that is fitted is of the rows to train on")
        for line in (*_missing(counts), *_of_files(counts)):
            print(line)
    print(f"content hash: {report.metadata['content_hash']}")
    print_digest(report.directory)


def print_histories(report: Report) -> None:
    """Prints what a run or a transformation of histories did."""
    counts = report.metadata["counts"]
    bad = sum(counts["bad_lines"].values())
    print(f"dataset: {report.directory}")
    print(
        f"kept {counts['users']:,} users, {counts['events']:,} events, {counts['items']:,} items; "
        f"dropped {counts['users_dropped']:,} users with {counts['events_dropped']:,} events"
    )
    least = report.metadata.get("options", {}).get("min_interactions")
    if counts["users_dropped"] and least is not None:
        print(
            f"a history of fewer than {least} events is dropped: --min_interactions, or "
            "filters.min_events_per_user of a log's YAML"
        )
    for line in _updated(report):
        print(line)
    if "duplicate_events" in counts:
        print(
            f"dropped {counts['duplicate_events']:,} repeated events (same user and item, later); "
            f"too few were left of {counts['users_dropped_for_duplicates']:,} of the dropped users"
        )
    if counts["exact_repeats"]:
        print(
            f"dropped {counts['exact_repeats']:,} exact repeats (same user, item and time); "
            "--duplicates all keeps them"
        )
    if "ratings_left_out" in counts:
        minimum = report.metadata["options"].get("min_rating")
        print(
            "every rating counts as an event, the lowest, too (--min_rating)"
            if minimum is None
            else f"left out {counts['ratings_left_out']:,} ratings below {minimum}"
        )
    if counts["held_out_ties"]:
        print(_ties(report))
    for line in _typed(report):
        print(line)
    if bad:
        print(f"left out {bad:,} bad lines: {counts['bad_lines']}")
    for line in _of_files(counts):
        print(line)
    print(f"content hash: {report.metadata['content_hash']}")
    print_digest(report.directory)


def _updated(report: Report) -> Iterator[str]:
    """What there is to say of an update."""
    counts, said = report.metadata["counts"], report.metadata.get(UPDATE)
    if said is None:
        return
    new_ids = ", ".join(f"{name} {count:,}" for name, count in said["new_ids"].items() if count)
    duplicates = report.metadata["options"]["duplicates"]
    new = f"{said['new_events']:,} events"
    if "new_impressions" in said:
        new += f", {said['new_impressions']:,} impressions"
    kept = "kept: --duplicates all" if duplicates == "all" else "left out"
    yield f"new in it: {new}; new ids: {new_ids or 'none'}; old ones are as they were"
    yield f"{said['seen_again']:,} of the events that came were there already ({kept})"
    yield (
        f"{said['new_training']:,} to train on that the dataset before did not train on"
        if said["new_training"]
        else "WARNING: nothing is new to train on: what came is held out (move a split by time: "
        "--test_from), or left out"
    )
    for name in CHANGED.values():
        if counts.get(name):
            yield f"{counts[name]:,} {name.replace('_', ' ')}: what came counts, in old events, too"
    fitted = [
        name
        for name, feature in report.metadata.get(FEATURES, {}).items()
        if feature["type"] in ("number", "buckets")
    ]
    if fitted:
        yield f"{', '.join(fitted)}: transformed as fitted before, not fitted again"


def _typed(report: Report) -> Iterator[str]:
    """What there is to say of rules, labels and typed features."""
    counts, split = report.metadata["counts"], report.metadata["split"]
    if "events_of_rare_items" in counts:
        yield f"left out {counts['events_of_rare_items']:,} events of items that have too few"
    if "users_of_sessions" in counts:
        yield f"each history is a session, of {counts['users_of_sessions']:,} users"
    if split["rule"] != LEAVE_LAST_OUT:
        yield (
            f"split by {split['rule']}: of the events {split['validation']:,} are for validation, "
            f"{split['test']:,} for the test; vocabularies and all that is fitted are of the "
            "training part alone"
        )
    if report.metadata.get(LABELS) == EXPLICIT:
        shown = ", ".join(f"{name} {counts[impression_count(name)]:,}" for name in SPLITS)
        yield f"impressions: {shown}; the events of the histories are the clicks"
    yield from _missing(counts)
    for name, cut in counts.get("bags_cut", {}).items():
        if cut:
            most = report.metadata[FEATURES][name]["bag"]["most"]
            yield (
                f"{name}: {cut:,} events have more than {most}, of which those first in the "
                "vocabulary are kept"
            )
    for name, longest in counts.get(LONGEST_BAGS, {}).items():
        if longest == 1:
            yield (
                f"WARNING: {name}: no row has more than one category. If some should, the "
                "separator is another one; if none should, type: category says so"
            )


def _of_files(counts: Mapping[str, Any]) -> Iterator[str]:
    """What there is to say of files of events, items and users, and of their values."""
    unknown = {name: count for name, count in counts["unknown_ids"].items() if count}
    if counts.get(TIMES_WITHOUT_ZONE):
        yield f"{counts[TIMES_WITHOUT_ZONE]:,} times name no zone: taken as UTC"
    if unknown:
        yield f"out of vocabulary: {unknown}"
    if counts.get(TIMES_AT_CLOCK_CHANGES):
        yield (
            f"{counts[TIMES_AT_CLOCK_CHANGES]:,} times are of an hour that clocks there show twice "
            "(taken as the first) or never (taken as the next)"
        )
    for name, count in counts.items():
        if name.startswith(LEFT_OUT) and count:
            yield f"left out {count:,} rows by the condition on {name.removeprefix(LEFT_OUT)}"
    for kind in ("item", "user"):
        if counts.get(f"duplicate_{kind}_metadata"):
            repeated = counts[f"duplicate_{kind}_metadata"]
            yield f"{repeated:,} repeated {kind}s in the metadata: first counts"
    if counts.get("items_without_category"):
        yield (
            f"WARNING: {counts['items_without_category']:,} of {counts['items_in_metadata']:,} "
            "items in the metadata have no category that was understood"
        )
    for name, count in counts["events_without_features"].items():
        if count:
            yield f"{count:,} of the events read have no {name}: their id has no metadata"


def _missing(counts: Mapping[str, Any]) -> Iterator[str]:
    """How many values are missing, if any."""
    missing = {name: count for name, count in counts.get("missing_values", {}).items() if count}
    if missing:
        yield f"missing values: {missing}"


def _ties(report: Report) -> str:
    """What says which events are held out where their times do not."""
    counts, split = report.metadata["counts"], report.metadata["split"]
    held_out = counts["users"] * (split["test"] + split["validation"])
    order = "raw item ids" if report.metadata["options"]["ties"] == "item" else "the input"
    return (
        f"{counts['held_out_ties']:,} of {held_out:,} held-out events have the time of the event "
        f"before them: the order of {order} says which is held out (--ties)"
    )

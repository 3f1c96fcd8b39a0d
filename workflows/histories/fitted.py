"""The typed features of one dataset: fitted to its events, or restored from a saved workflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from lookback.formats.history_columns import NEW, SPLIT, Column
from lookback.formats.impressions import LABEL
from lookback.formats.transforms import Bag, Buckets, Hashed, Transform, Vocabulary
from lookback.formats.vocabulary import read_ids
from lookback.workflows.cluster import Runner
from lookback.workflows.histories import ops
from lookback.workflows.histories.feature_specs import FeatureSpec
from lookback.workflows.histories.gather import Selection
from lookback.workflows.histories.rules import LeaveLast
from lookback.workflows.histories.typed import (
    Bags,
    Encoding,
    count_combinations,
    count_elements,
    fit_numbers,
    number_bags,
    read_features,
)
from lookback.workflows.histories.vocabulary_files import write_vocabularies


@dataclass(frozen=True)
class Before:
    """What an earlier fit gave: of a saved workflow, or of the dataset that an update goes on from.

    Attributes:
      transforms: of each feature that has a `FeatureSpec`, as saved.
      vocabularies: the files of the saved ones, by column.
    """

    transforms: Mapping[str, Transform] = field(default_factory=dict)
    vocabularies: Mapping[str, Path] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Known values of each vocabulary."""
        return {name: len(read_ids(path, name)) for name, path in self.vocabularies.items()}


def fitted_before(
    saved: Path, columns: Sequence[Column], specs: Mapping[str, FeatureSpec]
) -> Before:
    """What a saved workflow holds.

    Args:
      saved: its directory.
      columns: of the dataset.
      specs: of the features.

    Raises:
      UserError: if it is damaged, or of other features.
    """
    transforms = read_features(saved, specs) if specs else {}
    names = vocabulary_names(columns, transforms)
    return Before(transforms, ops.saved_vocabularies(saved, names))


@dataclass(frozen=True)
class FittedFeatures:
    """What is known of a dataset's features beside the ids.

    Attributes:
      transforms: of each that has a `FeatureSpec`.
      encoding: how they are encoded; None: no event has typed features, and all is the workflow's.
      bags: of the columns that are bags.
      elements: vocabularies of their elements: the files.
    """

    transforms: Mapping[str, Transform] = field(default_factory=dict)
    encoding: Encoding | None = None
    bags: Mapping[str, Bags] = field(default_factory=dict)
    elements: Mapping[str, Path] = field(default_factory=dict)

    def rows(self) -> dict[str, int]:
        """Rows of the tables of categories that have no vocabulary."""
        values = {
            name: made.elements if isinstance(made, Bag) else made
            for name, made in self.transforms.items()
        }
        return {
            name: made.rows for name, made in values.items() if isinstance(made, Buckets | Hashed)
        }


def fit_features(
    files: Sequence[Path],
    specs: Mapping[str, FeatureSpec],
    selection: Selection,
    frequency_threshold: int,
    directory: Path,
    runner: Runner,
    before: Before | None = None,
) -> FittedFeatures:
    """Fits all features but those that the workflow fits, the vocabularies of single categories.

    What was fitted before stays: numbers and buckets are transformed as they were, and ids go on.
    Where the last events are left out, vocabularies count all events, as they do of ids; with any
    other split, and where labels are explicit, those of the training part.

    Args:
      files: partitions of events.
      specs: of the features.
      selection: of the events.
      frequency_threshold: of values without a threshold of their own.
      directory: to write in.
      runner: where the tasks run.
      before: what the fit goes on from; None: nothing.
    """
    if selection.typed is None:
        return FittedFeatures()
    if before is None:
        numbers = fit_numbers(files, specs, selection.typed.explicit, runner)
        transforms = {name: spec.unfitted or numbers[name] for name, spec in specs.items()}
    else:
        transforms = dict(before.transforms)
    combinations = _combinations(files, specs, selection, runner)
    thresholds = min_counts(specs, frequency_threshold)
    thresholds = {name: thresholds[name] for name in _with_elements(transforms)}
    counts = {name: count_elements(combinations[name]) for name in thresholds}
    known = {} if before is None else before.vocabularies
    paths = write_vocabularies(counts, directory, thresholds, known)
    elements = {name: Path(path) for name, path in paths.items()}
    return _numbered(transforms, combinations, elements, directory)


def restore_features(
    files: Sequence[Path],
    specs: Mapping[str, FeatureSpec],
    selection: Selection,
    before: Before,
    directory: Path,
    runner: Runner,
) -> FittedFeatures:
    """Features that were fitted before; what bags there are is the dataset's own affair.

    Args:
      files: see `fit_features`.
      specs: likewise.
      selection: likewise.
      before: what they were fitted to.
      directory: see `fit_features`.
      runner: likewise.
    """
    if selection.typed is None:
        return FittedFeatures()
    combinations = _combinations(files, specs, selection, runner)
    elements = {name: before.vocabularies[name] for name in _with_elements(before.transforms)}
    return _numbered(before.transforms, combinations, elements, directory)


def min_counts(specs: Mapping[str, FeatureSpec], frequency_threshold: int) -> dict[str, int]:
    """Fewest events of a value with an id of its own, by feature."""
    return {
        name: (0 if spec.of == "user" else frequency_threshold)
        if spec.min_count is None
        else spec.min_count
        for name, spec in specs.items()
    }


def columns_of_workflow(
    columns: Sequence[Column],
    specs: Mapping[str, FeatureSpec],
    transforms: Mapping[str, Transform],
    selection: Selection,
    frequency_threshold: int,
) -> ops.TypedColumns:
    """What the workflow needs to know of the columns."""
    encoded = tuple(
        column.name
        for column in columns
        if column.name in (SPLIT, NEW)
        or not isinstance(transforms.get(column.name, Vocabulary()), Vocabulary)
    )
    if selection.typed is None:
        return ops.TypedColumns(encoded)
    return ops.TypedColumns(
        encoded=encoded,
        min_counts=min_counts(specs, frequency_threshold),
        label=LABEL if selection.typed.explicit else None,
    )


def vocabulary_names(
    columns: Sequence[Column], transforms: Mapping[str, Transform]
) -> tuple[str, ...]:
    """Columns that have a vocabulary: of their values, or of the elements of their bags."""
    bags = _with_elements(transforms)
    return tuple(
        column.name
        for column in columns
        if column.is_categorical
        and (
            column.name in bags or isinstance(transforms.get(column.name, Vocabulary()), Vocabulary)
        )
    )


def _with_elements(transforms: Mapping[str, Transform]) -> list[str]:
    return [
        name
        for name, made in transforms.items()
        if isinstance(made, Bag) and isinstance(made.elements, Vocabulary)
    ]


def _combinations(
    files: Sequence[Path], specs: Mapping[str, FeatureSpec], selection: Selection, runner: Runner
) -> dict[str, pa.Table]:
    assert selection.typed is not None
    return count_combinations(
        files,
        specs,
        selection.typed.explicit,
        runner,
        training=not isinstance(selection.split, LeaveLast),
    )


def _numbered(
    transforms: Mapping[str, Transform],
    combinations: Mapping[str, pa.Table],
    elements: Mapping[str, Path],
    directory: Path,
) -> FittedFeatures:
    """Numbers the bags of a dataset."""
    bags, files = {}, {}
    for name, made in transforms.items():
        if isinstance(made, Bag):
            files[name] = directory / f"bags-{name}.parquet"
            known = read_ids(elements[name], name) if name in elements else None
            bags[name] = number_bags(combinations[name], made, known, files[name])
    return FittedFeatures(transforms, Encoding(transforms, files), bags, elements)

"""What a model uses features as: the channels of a specification, for NVIDIA's models.

SIM, DIN and DIEN: samples of histories

    user_features, target_item_features, positive_history, negative_history, label

The three channels of items have as many features, in the same order; features of the same place
share a table, so their cardinality is the same. Ids lie in 1 to the cardinality, 0 pads histories
on the left, and ``dimensions`` is what they are padded to.

DLRM and DCNv2: rows of numbers and ids

    categorical, numerical, label

Ids lie in 0 to the cardinality less 1. Neither has a feature in two channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lookback.core.errors import UserError, shown
from lookback.core.options.nested import Problems
from lookback.formats.feature_spec import FeatureSpecification
from lookback.formats.materialised import Columns
from lookback.formats.tabular_schema import TabularFeatures

USER, TARGET, POSITIVE, NEGATIVE = (
    "user_features",
    "target_item_features",
    "positive_history",
    "negative_history",
)
CATEGORICAL, NUMERICAL = "categorical", "numerical"
LABEL = "label"

HISTORY_CHANNELS = (USER, TARGET, POSITIVE, NEGATIVE, LABEL)
TABULAR_CHANNELS = (CATEGORICAL, NUMERICAL, LABEL)


def channels_of(spec: FeatureSpecification) -> Columns | TabularFeatures:
    """The features of a specification by their role, for the kind of model that has its channels.

    Raises:
      UserError: if it has other channels, or features that theirs cannot hold.
    """
    found = set(spec.channels)
    if found == set(HISTORY_CHANNELS):
        return _history(spec)
    if LABEL in found and found <= set(TABULAR_CHANNELS):
        return _tabular(spec)
    raise UserError(
        f"{spec.file}: the channels are {shown(list(spec.channels))}. Expected SIM's "
        f"({', '.join(HISTORY_CHANNELS)}) or DLRM's ({', '.join(TABULAR_CHANNELS)}): give each "
        "feature the channel of the model that is to read it as such."
    )


def ids_rows(spec: FeatureSpecification, name: str) -> int:
    """The cardinality of a feature of which `channels_of` has made sure that it has one."""
    cardinality = spec.features[name].cardinality
    assert cardinality is not None
    return cardinality


def slots_of(spec: FeatureSpecification, columns: Columns) -> int:
    """T, what the histories of samples are padded to."""
    slots = spec.features[columns.history[0]].dimensions
    assert slots is not None
    return slots


def _history(spec: FeatureSpecification) -> Columns:
    problems = spec.problems()
    user, target, positive, negative = (
        spec.channels[channel] for channel in (USER, TARGET, POSITIVE, NEGATIVE)
    )
    if not len(target) == len(positive) == len(negative) > 0:
        problems.add(
            spec.channel_place(TARGET),
            f"has {len(target)} features, {POSITIVE} {len(positive)} and {NEGATIVE} "
            f"{len(negative)}. Expected as many, at least one, in the same order.",
        )
    columns = Columns(_label(spec, problems), user, target, positive, negative)
    for name in (*user, *target):
        _check_ids(spec, problems, name, lists=False)
    for name in (*positive, *negative):
        _check_ids(spec, problems, name, lists=True)
    for names in zip(target, positive, negative, strict=False):  # other numbers are said above
        rows = {spec.features[name].cardinality for name in names}
        if len(rows) > 1:
            problems.add(
                spec.feature_place(names[0], "cardinality"),
                f"{shown(list(names))} have the cardinalities {shown(list(rows))}. Expected the "
                "same: they share a table, as they have the same place in their channels.",
            )
    slots = {spec.features[name].dimensions for name in (*positive, *negative)}
    if len(slots) > 1:
        problems.add(
            spec.channel_place(POSITIVE),
            f"the lists have the dimensions {shown(list(slots))}. Expected the same.",
        )
    problems.raise_any()
    return columns


def _tabular(spec: FeatureSpecification) -> TabularFeatures:
    problems = spec.problems()
    numerical, categorical = (spec.channels.get(name, ()) for name in (NUMERICAL, CATEGORICAL))
    features = TabularFeatures(_label(spec, problems), numerical, categorical)
    if not numerical and not categorical:
        problems.add(spec.channel_place(), "no feature beside the label. Expected one at least.")
    for name in categorical:
        _check_ids(spec, problems, name, lists=False)
        if not name or name.startswith(".") or set(name) & set("/\0"):
            problems.add(
                spec.feature_place(name), "expected a name that a file may have: split_binary's do."
            )
    for name in numerical:
        feature = spec.features[name]
        if feature.dtype.kind == "b" or feature.dimensions is not None:
            problems.add(spec.feature_place(name), "expected single numbers, as it is numerical.")
    problems.raise_any()
    return features


def _label(spec: FeatureSpecification, problems: Problems) -> str:
    names = spec.channels[LABEL]
    twice = sorted(_repeated([name for channel in spec.channels.values() for name in channel]))
    if twice:
        problems.add(spec.channel_place(), f"{shown(twice)} stand in two channels. Choose one.")
    if len(names) != 1:
        problems.add(spec.channel_place(LABEL), f"has {shown(list(names))}. Expected one feature.")
    elif spec.features[names[0]].dimensions is not None:
        problems.add(spec.feature_place(names[0], "dimensions"), "a label is one value, no list.")
    return names[0] if names else ""


def _check_ids(spec: FeatureSpecification, problems: Problems, name: str, *, lists: bool) -> None:
    feature = spec.features[name]
    if feature.dtype.kind not in "iu":
        problems.add(
            spec.feature_place(name),
            f"{feature.dtype.name} holds no ids. Expected an integer type, such as int64.",
        )
    if feature.cardinality is None:
        problems.add(
            spec.feature_place(name, "cardinality"), "missing. Expected how many ids there are."
        )
    if (feature.dimensions is not None) != lists:
        expected = "the length of its lists, such as [100]" if lists else "none: it is no history"
        problems.add(spec.feature_place(name, "dimensions"), f"expected {expected}.")


def _repeated(names: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)

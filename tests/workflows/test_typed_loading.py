"""What the workflow writes of a log with typed features is what the loader takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lookback.dataloading.histories.resident import Histories
from lookback.formats.dataset_info import SPLITS, training_events
from lookback.workflows.histories.rules import EventRules, TimeSplit, UserSplit
from tests.workflows.typed_log import SPECS, START, make_log, run_log, write_log

BY_TIME = TimeSplit(START + 70 * 3600, START + 50 * 3600)


@pytest.mark.parametrize(
    "rules",
    [EventRules(), EventRules(split=BY_TIME), EventRules(split=UserSplit(0.2, 0.1))],
    ids=["last", "time", "users"],
)
def test_histories_are_loaded(tmp_path: Path, rules: EventRules) -> None:
    report = run_log(write_log(make_log(), tmp_path / "raw"), tmp_path / "out", rules=rules)
    histories = Histories.load(tmp_path / "out")
    counts, split = report.metadata["counts"], report.metadata["split"]
    held_out = split["validation"] + split["test"]
    if rules.split is None:
        held_out *= counts["users"]
    assert histories.in_training().sum() == counts["events"] - held_out > 0
    assert training_events(tmp_path / "out") == counts["events"] - held_out
    assert set(histories.bags) == {name for name, spec in SPECS.items() if spec.is_bag}
    assert {role: set(histories.features.of(role)) for role in ("context", "event")} == {
        role: {name for name, spec in SPECS.items() if spec.of == role}
        for role in ("context", "event")
    }
    assert np.isfinite(histories.item_features["price"]).all()


@pytest.mark.parametrize("session_gap", [None, 7200])
def test_impressions_are_loaded(tmp_path: Path, session_gap: int | None) -> None:
    raw = write_log(make_log(), tmp_path / "raw", label=True)
    rules = EventRules(split=BY_TIME, session_gap=session_gap)
    report = run_log(raw, tmp_path / "out", rules=rules, explicit=True)
    histories = Histories.load(tmp_path / "out")  # compares positions with times
    assert histories.impressions is not None
    found = {name: len(histories.impressions[name].labels) for name in SPLITS}
    counts = report.metadata["counts"]
    assert found == {name: counts[f"{name}_impressions"] for name in SPLITS}
    assert training_events(tmp_path / "out") == found["train"]

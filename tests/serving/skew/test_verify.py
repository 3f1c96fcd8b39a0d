"""What is the same is said to be; what differs is found, named, and fails."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookback.serving.bundle import Bundle
from lookback.serving.commands import PROGRAM
from lookback.serving.layouts.histories import requests as history_requests
from lookback.serving.requests import padded
from lookback.serving.skew.command import comparison_text
from lookback.serving.skew.comparison import Comparison, Difference, apart
from lookback.serving.skew.samples import spread


@pytest.fixture(scope="module")
def words(train_sim: Any, dataset_dir: Path) -> list[str]:
    return ["verify", str(train_sim(True).bundle), "--dataset_dir", str(dataset_dir)]


def test_numbers_are_apart_relatively_above_1():
    ours = np.float32([0, 0.5, 1000, np.nan, np.inf, 1, np.nan])
    theirs = np.float32([1e-7, 0.25, 1001, np.nan, np.inf, np.inf, 1])
    expected = [1e-7, 0.25, 1 / 1001, 0, 0, np.inf, np.inf]
    np.testing.assert_allclose(apart(ours, theirs), expected, rtol=1e-6)


def test_samples_are_spread():
    assert spread(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert spread(101, 3).tolist() == [0, 50, 100]
    assert spread(0, 3).tolist() == []


@pytest.mark.slow
def test_a_sound_bundle_is_the_same_as_training(words, capsys):
    assert PROGRAM.main([*words, "--samples", "100000"]) == 0
    out = capsys.readouterr().out
    numbers = re.findall(r"compared ([\d,]+) scores .* in ([\d,]+) requests", out)[0]
    samples, requests = (int(number.replace(",", "")) for number in numbers)
    # Every user's test and validation event and those of training, with 3 negatives each.
    assert samples == 4 * requests > 1000
    assert "the same: the largest difference of two logits is" in out and "(float32)" in out
    capsys.readouterr()
    assert PROGRAM.main([*words, "--samples", "40"]) == 0
    assert "compared 40 scores and their features, in 10 requests" in capsys.readouterr().out


def test_padding_on_the_wrong_side_is_found(words, capsys, monkeypatch):
    monkeypatch.setattr(history_requests, "padded", lambda *a, left=False: padded(*a))
    assert PROGRAM.main([*words, "--samples", "80"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["user", "candidate", "what", "differs", "training", "serving"]
    shown = [line.split() for line in lines[2:12]]
    assert all(re.fullmatch(r"U\d{3}", user) for user, *_ in shown)
    assert all(candidate == "-" and "_history[" in what for _, candidate, what, *_ in shown[:5])
    assert all("(of " in line and "_history" in line for line in lines[7:12])
    assert re.match(r"DIFFERENT: [\d,]+ values of features, \d+ scores; ", lines[12])


def test_scores_of_another_model_are_found(words, capsys, monkeypatch):
    predict = Bundle.predict

    def wrong(self: Bundle, inputs: Any) -> Any:
        logits, probabilities = predict(self, inputs)
        return logits + np.float32(3e-6) * (1 + np.abs(logits)), probabilities

    monkeypatch.setattr(Bundle, "predict", wrong)
    assert PROGRAM.main([*words, "--samples", "40"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8  # five of them
    assert all("logit (features are equal)" in line for line in lines[2:7])
    assert "DIFFERENT: 0 values of features, 40 scores" in lines[7]
    assert PROGRAM.main([*words, "--samples", "40", "--tolerance", "1e-4"]) == 0
    assert "the same" in capsys.readouterr().out


def test_what_is_found_is_told():
    shown = [
        Difference("U1", "B7", "price", 1.5, 2.0),
        Difference("test row 3", None, "numerical[2]", 1, 2),
    ]
    found = Comparison(12, 3, 4, 2, 0, 0.5, shown)
    assert comparison_text(found, "http://x", "1e-06 (float32)").splitlines() == [
        "compared 12 scores and their features, in 3 requests: training's against those of http://x",
        "left out 4 rows whose raw values the vocabularies lack",
        "  user        candidate  what differs  training  serving",
        "  U1          B7         price         1.5       2",
        "  test row 3  -          numerical[2]  1         2",
        "DIFFERENT: 2 values of features, 0 scores; the largest difference of two logits is "
        "5.00e-01, allowed 1e-06 (float32)",
    ]


def test_what_cannot_be_compared_is_refused(words, tmp_path, capsys):
    assert PROGRAM.main([*words[:3], str(tmp_path)]) == 2
    assert PROGRAM.main([*words, "--model", "sim"]) == 2
    assert "--server" in capsys.readouterr().err

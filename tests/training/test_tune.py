"""Searches of options: trials that train, a study that goes on, spaces that are refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from lookback import cli
from lookback.core.errors import UserError
from lookback.core.options import parse
from lookback.training.output.logging import RunLogger, read_log
from lookback.training.run import command_line as train_line
from lookback.training.tuning.command import main
from tests.training.test_trainer import dataset as dataset

pytestmark = pytest.mark.usefixtures("eagerly")

SPACE = """
model_type: din
dataset_dir: {dataset}
embedding_dim: 2
max_seq_length: 4
long_seq_length: 2
stage_two_mlp_dims: 4
global_batch_size: 64
epochs: 1
space:
  lr: {{low: 1e-4, high: 1e-1, log: true}}
  dropout_rate: {{low: 0.25, high: 0.75, step: 0.25}}
  optimizer: {{choices: [adam, sgd]}}
metric: test_auc
trials: 3
"""


@pytest.fixture
def space(dataset, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(SPACE.format(dataset=dataset))
    return path


def trains(words, terminal, ends):
    """Runs a trial in this process."""
    terminal.write_text("said\n")
    cli.train(words)
    return 0


def scores(value_of):
    """Makes a trial that takes no time: its log says what `value_of` makes of its options."""

    def start(words, terminal, ends):
        terminal.write_text("said\n")
        run, _, options = parse(words, train_line())
        with RunLogger(run.results_dir, tensorboard=False, enabled=True) as log:
            value = value_of(run, options)
            log.summary({"test_auc": value, "test_log_loss": -value})
        text = yaml.safe_dump({"lr": run.lr, "results_dir": str(run.results_dir)})
        (run.results_dir / "config.yaml").write_text(text)
        return 0

    return start


def trials_in(directory):
    with (directory / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_trials_are_runs_and_the_best_is_a_config(space, tmp_path, capsys):
    results = tmp_path / "tuned"
    best = main(["--config", str(space), "--results_dir", str(results)], start=trains)
    trials = trials_in(results)
    assert [row["state"] for row in trials] == ["complete"] * 3
    assert len({row["lr"] for row in trials}) == 3
    for row in trials:
        log = read_log(f"{row['directory']}/log.json")
        (summary,) = (record.data for record in log if not record.step)
        assert float(row["test_auc"]) == summary["test_auc"]
        config = yaml.safe_load((Path(row["directory"]) / "config.yaml").read_text())
        assert (config["lr"], config["optimizer"]) == (float(row["lr"]), row["optimizer"])
        assert config["dropout_rate"] == float(row["dropout_rate"]) in (0.25, 0.5, 0.75)
        assert config["seed"] == 0
        assert 1e-4 <= config["lr"] <= 1e-1
    found = max(trials, key=lambda row: float(row["test_auc"]))
    run, _, options = parse(["--config", str(best)], train_line())
    assert (run.lr, run.optimizer) == (float(found["lr"]), found["optimizer"])
    assert (run.results_dir, options.embedding_dim) == (None, 2)
    said = capsys.readouterr().out
    assert "warning: test_auc chooses by the test split" in said
    assert f"the best options are in {best}" in said


def test_a_search_goes_on_where_it_was_killed(space, tmp_path):
    results = tmp_path / "tuned"
    words = ["--config", str(space), "--results_dir", str(results), "--trials", "6"]
    value = scores(lambda run, options: -abs(np.log10(run.lr) + 2))

    def killed_in_the_third(trial_words, terminal, ends):
        if (results / "trials" / "2").exists():
            raise SystemExit(143)
        return value(trial_words, terminal, ends)

    with pytest.raises(SystemExit):
        main(words, start=killed_in_the_third)
    assert len(trials_in(results)) == 2
    best = main(words, start=value)
    trials = trials_in(results)
    assert [row["state"] for row in trials] == [*["complete"] * 2, "fail", *["complete"] * 4]
    assert len({row["lr"] for row in trials}) == 7
    values = {float(row["test_auc"]): float(row["lr"]) for row in trials if row["test_auc"]}
    assert yaml.safe_load(best.read_text()) == {"lr": values[max(values)]}
    main(words, start=None)  # nothing is left to run
    main([*words[:-1], "7"], start=value)
    assert len(trials_in(results)) == 8
    for more, what in (
        (("--epochs", "2"), "another words"),
        (("--metric", "test_log_loss"), "another metric and direction"),
    ):
        with pytest.raises(UserError, match=f"holds a search with {what}"):
            main([*words, *more], start=value)


def test_less_is_better_of_what_falls(space, tmp_path):
    words = ["--config", str(space), "--metric", "test_log_loss", "--results_dir"]
    best = main([*words, str(tmp_path / "a")], start=scores(lambda run, options: -run.lr))
    rates = [float(row["lr"]) for row in trials_in(tmp_path / "a")]
    assert yaml.safe_load(best.read_text())["lr"] == min(rates)


@pytest.mark.slow
def test_a_trial_below_the_others_median_is_ended_early(space, tmp_path):
    asked = []

    def start(words, terminal, ends):
        run, *_ = parse(words, train_line())
        terminal.write_text("")
        number = int(run.results_dir.name)
        with RunLogger(run.results_dir, tensorboard=False) as log:
            log.epoch(0, {"test_auc": 0.8 if number < 5 else 0.5})
            asked.append(ends())
            if asked[-1]:
                return 143
            log.summary({"test_auc": 0.8})
        (run.results_dir / "config.yaml").write_text(f"lr: {run.lr}")
        return 0

    words = ["--config", str(space), "--trials", "6", "--results_dir"]
    main([*words, str(tmp_path / "a")], start=start)
    assert asked == [False] * 5 + [True]
    assert trials_in(tmp_path / "a")[-1]["state"] == "pruned"
    asked.clear()
    main([*words, str(tmp_path / "b"), "--no_prune"], start=start)
    assert asked == [False] * 6


def test_trials_that_fail_are_told(space, tmp_path, capsys):
    words = ["--config", str(space), "--results_dir", str(tmp_path / "a")]

    def fails(words, terminal, ends):
        terminal.write_text("error: no room\n")
        return 2

    with pytest.raises(UserError, match=r"first trial .*exit status 2, see .*: error: no room"):
        main(words, start=fails)
    value = scores(lambda run, options: 0.5)

    def second_fails(trial_words, terminal, ends):
        done = value if "trials/2" not in str(terminal) else fails
        return done(trial_words, terminal, ends)

    main(words, start=second_fails)
    assert "ended with exit status 2, see" in capsys.readouterr().out
    assert [row["state"] for row in trials_in(tmp_path / "a")] == ["fail", "complete", "fail"]
    with pytest.raises(UserError, match=r"metric: expected a figure .*test_auc.*received test_hr"):
        more = ("--results_dir", str(tmp_path / "b"), "--metric", "test_hr@3")
        main([*words[:2], *more], start=value)


def test_choices_are_numbers_and_flags_too(space, tmp_path):
    text = space.read_text().replace("{low: 1e-4, high: 1e-1, log: true}", "{choices: [0.1, 1e-5]}")
    space.write_text(text.replace("optimizer: {choices: [adam, sgd]}", "amp: {choices: [no, yes]}"))
    seen = set()

    def note(run, options):
        seen.add((run.lr, run.amp))
        return 0.5

    main(
        ["--config", str(space), "--results_dir", str(tmp_path / "a"), "--trials", "6"],
        start=scores(note),
    )
    assert {lr for lr, _ in seen} == {0.1, 1e-5} and {amp for _, amp in seen} == {True, False}
    assert {row["amp"] for row in trials_in(tmp_path / "a")} == {"true", "false"}


def test_figures_that_are_no_numbers_are_trials_that_failed(space, tmp_path):
    words = ["--config", str(space), "--results_dir", str(tmp_path / "a")]
    values = iter([0.25, float("nan"), 0.5])
    main(words, start=scores(lambda run, options: next(values)))
    assert [row["state"] for row in trials_in(tmp_path / "a")] == ["complete", "fail", "complete"]
    nothing = scores(lambda run, options: float("inf"))
    with pytest.raises(UserError, match=r"no trial of .* came to its end"):
        main([*words[:2], "--results_dir", str(tmp_path / "b")], start=nothing)


@pytest.mark.parametrize("damage", [b"", b"no database" * 500])
def test_a_damaged_study_is_named(space, tmp_path, damage):
    words = ["--config", str(space), "--results_dir", str(tmp_path / "a")]
    main(words, start=scores(lambda run, options: 0.5))
    study = tmp_path / "a" / "tune.db"
    study.write_bytes(damage or study.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"expected .*tune\.db to be a search's database, but"):
        main([*words, "--trials", "4"], start=scores(lambda run, options: 0.5))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "lr: {low: 1e-4, high: 1e-1",
            "lr: {low: 1, high: 1e-1",
            r"space\.lr\.high \(line 11\): ex",
        ),
        (
            "log: true",
            "log: yes, step: 0.1",
            r"space\.lr\.log \(line 11\): expected with low above 0",
        ),
        (
            "step: 0.25",
            "step: 1e-300",
            r"rate\.step \(line 12\): expected .* no more than 2\^53 steps",
        ),
        ("step: 0.25", "step: 0.75", r"rate\.step \(line 12\): .*received 0\.75"),
        ("[adam, sgd]", "[0.5, true]", r"space\.optimizer \(line 13\): .*received '0\.5'"),
        ("lr: {", "lrr: {", r"space\.lrr \(line 11\): there is no such key\. Did you mean 'lr'"),
        (
            "high: 0.75",
            "high: 1.5",
            r"space\.dropout_rate \(line 12\): expected a number, .*received",
        ),
        ("[adam, sgd]", "[adam, sdg]", r"space\.optimizer \(line 13\): .*Did you mean 'sgd'"),
        (
            "choices: [adam, sgd]",
            "low: 1, high: 2",
            r"space\.optimizer \(line 13\): expected choices",
        ),
        ("[adam, sgd]", "[adam]", r"optimizer\.choices \(line 13\): expected two values or more"),
        ("low: 0.25,", "lowest: 0.25,", r"dropout_rate\.lowest \(line 12\): there is no such key"),
        ("epochs: 1", "epoch: 1", r"epoch \(line 9\): there is no such key. Did you mean 'epochs'"),
        ("epochs: 1", "lr: 0.1", r"space\.lr \(line 11\): expected in the space or beside it"),
        ("optimizer:", "mode:", r"space\.mode \(line 13\): there is no such key"),
        ("metric: test_auc", "metric: throughput", "direction: expected maximize or minimize"),
        ("epochs: 1", "seeds: 3", "seeds: trials would write over each other"),
        ("optimizer: {choices: [adam, sgd]}", "k: {low: 1, high: 2}", "k.* is an option of sim"),
        ("trials: 3", "trials: 0", "trials in .*expected an integer, 1 or more"),
        ("[adam, sgd]", "[adam, [sgd]]", r"optimizer\.choices \(line 13\): expected a list of nu"),
        ("[adam, sgd]", "adam", r"optimizer\.choices \(line 13\): expected a list of numbers"),
        ("step: 0.25", "step: 0.6", r"step \(line 12\): expected at most 0\.5, .* received 0\.6"),
        ("optimizer: {choices: [adam, sgd]}", "amp: {choices: [true, 1]}", r"\[true, false\]"),
        ("epochs: 1", "dry_run: true", "dry_run: trials would write over each other, or be no"),
    ],
)
def test_broken_spaces_are_refused_with_path_and_line(space, tmp_path, old, new, message):
    text = space.read_text()
    assert old in text
    space.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        main(["--config", str(space), "--results_dir", str(tmp_path / "a")], start=None)
    assert not (tmp_path / "a").exists()


def test_a_range_of_one_step_is_one_whatever_floats_make_of_it(space, tmp_path):
    space.write_text(
        space.read_text().replace(
            "low: 0.25, high: 0.75, step: 0.25", "low: 0.2, high: 0.3, step: 0.1"
        )
    )
    main(
        ["--config", str(space), "--results_dir", str(tmp_path / "a")],
        start=scores(lambda run, options: options.dropout_rate),
    )


def test_what_is_in_the_way_stays(space, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious").write_text("x")
    words = ["--config", str(space), "--results_dir", str(tmp_path / "a")]
    with pytest.raises(UserError, match="which holds precious"):
        main(words, start=None)
    with pytest.raises(UserError, match="space: expected in the file of --config"):
        main(["--dataset_dir", str(tmp_path)], start=None)
    from lookback.training.tuning import search

    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tune: expected optuna, an extra"):
        main(words, start=None)

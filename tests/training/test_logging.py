from __future__ import annotations

import datetime
import io
import json
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from lookback.core.errors import UserError
from lookback.core.faults import sentence
from lookback.training.output.logging import UNITS, LogRecord, RunLogger, read_log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logger(directory: Path, **options) -> RunLogger:
    options = {"tensorboard": False, "terminal": io.StringIO(), **options}
    return RunLogger(directory, **options)


def lines(directory: Path) -> list[dict]:
    text = (directory / "log.json").read_text()
    assert text.endswith("\n")
    assert all(line.startswith("DLLL {") for line in text.splitlines())
    return [json.loads(line.removeprefix("DLLL ")) for line in text.splitlines()]


def test_the_three_formats_of_step_and_the_keys_of_the_seed(tmp_path):
    before = time.time()
    with logger(tmp_path / "new" / "dir") as log:
        log.step(2, 79, {"total_loss": 0.5, "samples/s": 10})
        log.epoch(2, {"test_auc": 0.75})
        log.summary({"time_to_train": 3.0})
    written = lines(tmp_path / "new" / "dir")
    logs = [line for line in written if line["type"] == "LOG"]
    assert [(line["step"], line["data"]) for line in logs] == [
        ([2, 79], {"total_loss": 0.5, "samples/s": 10}),
        ([2], {"test_auc": 0.75}),
        ([], {"time_to_train": 3.0}),
    ]
    for line in logs:
        assert list(line) == ["timestamp", "datetime", "elapsedtime", "type", "step", "data"]
        assert before <= float(line["timestamp"]) <= time.time()
        moment = datetime.datetime.fromisoformat(line["datetime"])
        assert moment.timestamp() == pytest.approx(float(line["timestamp"]))
        assert 0 <= float(line["elapsedtime"]) < 10
    units = {line["metric"]: line["metadata"] for line in written if line["type"] == "METADATA"}
    assert units == {metric: {"unit": unit} for metric, unit in UNITS.items()}


def test_numpy_values_become_numbers_and_what_is_not_finite_null(tmp_path):
    with logger(tmp_path) as log:
        log.step(
            0,
            0,
            {
                "a": np.float32(0.5),
                "b": np.int64(3),
                "c": np.array(2.0),
                "d": float("nan"),
                "e": np.float32("inf"),
                "f": None,
                "g": "text",
            },
        )
    assert lines(tmp_path)[-1]["data"] == {
        **{"a": 0.5, "b": 3, "c": 2.0, "d": None, "e": None, "f": None, "g": "text"}
    }


def test_each_line_is_in_the_file_at_once(tmp_path):
    with logger(tmp_path) as log:
        log.step(0, 0, {"loss": 1.0})
        assert lines(tmp_path)[-1]["data"] == {"loss": 1.0}


def test_a_fresh_run_starts_anew_and_a_resumed_one_appends(tmp_path):
    for append in (False, False, True, True):
        with logger(tmp_path, append=append, identity="a") as log:
            log.epoch(0, {"append": append})
    written = lines(tmp_path)
    assert [line["data"]["append"] for line in written if line["type"] == "LOG"] == [
        *(False, True, True)
    ]
    assert sum(line["type"] == "METADATA" for line in written) == 1 + len(UNITS)
    (earlier,) = (tmp_path / "earlier").iterdir()
    assert [line["data"] for line in lines(earlier) if line["type"] == "LOG"] == [{"append": False}]


def test_what_another_run_left_is_moved_aside_and_never_mixed(tmp_path):
    with logger(tmp_path, identity="a") as log:
        log.epoch(0, {"of": "a"})
    for name in ("config.yaml", "report/roc.png", "tensorboard/events", "bad_batch.1.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a")
    (tmp_path / "checkpoints").mkdir()
    output = io.StringIO()
    with logger(tmp_path, append=True, identity="b", terminal=output) as log:
        log.epoch(0, {"of": "b"})
    began = datetime.datetime.now(datetime.timezone.utc)
    (earlier,) = (tmp_path / "earlier").iterdir()
    assert datetime.datetime.strptime(earlier.name[:11], "%Y%m%d-%H").date() == began.date()
    assert {path.name for path in earlier.iterdir()} == {
        *("log.json", "config.yaml", "report", "tensorboard", "bad_batch.1.json")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"log.json", "checkpoints", "earlier"}
    assert [line["data"] for line in lines(tmp_path) if line["type"] == "LOG"] == [{"of": "b"}]
    assert f"held the results of another run; they are in {earlier} now" in output.getvalue()


def test_a_full_disk_is_told_with_the_logs_path(tmp_path):
    size = resource.getrlimit(resource.RLIMIT_FSIZE)
    with logger(tmp_path) as log:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, size[1]))
            with pytest.raises(OSError) as full:
                for step in range(100):
                    log.step(0, step, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, size)
    assert sentence(full.value).startswith(f"{tmp_path / 'log.json'}: File too large. ")


def test_a_resumed_run_cuts_off_the_half_line_of_a_killed_one(tmp_path):
    with logger(tmp_path) as log:
        log.step(0, 0, {"loss": 1.0})
    with (tmp_path / "log.json").open("a") as file:
        file.write('DLLL {"timestamp": "17')
    with logger(tmp_path, append=True) as log:
        log.step(0, 1, {"loss": 0.5})
    assert [record.step for record in read_log(tmp_path / "log.json")] == [(0, 0), (0, 1)]


def test_read_log_gives_the_later_of_two_lines_of_a_step(tmp_path):
    with logger(tmp_path) as log:
        for step, loss in [(0, 3.0), (1, 2.0), (2, 1.5), (1, 2.5), (2, 1.0), (3, 0.5)]:
            log.step(0, step, {"loss": loss})
        log.summary({"time": 1.0})
    records = read_log(tmp_path / "log.json")
    assert [(r.step, r.data) for r in records] == [
        ((0, 0), {"loss": 3.0}),
        ((0, 1), {"loss": 2.5}),
        ((0, 2), {"loss": 1.0}),
        ((0, 3), {"loss": 0.5}),
        ((), {"time": 1.0}),
    ]
    assert isinstance(records[0], LogRecord)


def test_a_step_and_the_evaluation_after_it_are_one_record(tmp_path):
    with logger(tmp_path) as log:
        log.step(0, 0, {"total_loss": 1.0})
        log.step(0, 0, {"test_auc": 0.5})
    assert [r.data for r in read_log(tmp_path / "log.json")] == [
        {"total_loss": 1.0, "test_auc": 0.5}
    ]


def test_the_speed_that_is_shown_is_that_of_the_last_steps_together(tmp_path):
    output = io.StringIO()
    with logger(tmp_path, terminal=output, seconds_between_lines=0.0) as log:
        for speed in (100.0, 300.0):  # equal rows in 1 and 1/3 of the time: 2 in 4/3
            log.step(0, 0, {"total_loss": 1.0, "samples/s": speed})
    assert "150 samples/s" in output.getvalue().splitlines()[-1]
    assert lines(tmp_path)[-1]["data"]["samples/s"] == 300.0


def test_read_log_takes_other_lines_and_a_half_last_one_but_no_broken_line(tmp_path):
    path = tmp_path / "log.json"
    good = 'DLLL {"type": "LOG", "step": [0], "data": {}, "elapsedtime": "1.5"}\n'
    path.write_text("hello\n" + good + good[:30])
    assert read_log(path) == [LogRecord((0,), {}, 1.5)]
    path.write_text(good[:30] + "\n" + good)
    with pytest.raises(UserError, match=r"log\.json, line 1: expected 'DLLL' and a JSON object"):
        read_log(path)
    with pytest.raises(UserError, match=r"expected a log at .*No such file"):
        read_log(tmp_path / "none.json")


def test_plain_lines_where_the_output_is_no_terminal(tmp_path):
    output = io.StringIO()
    with logger(
        tmp_path, terminal=output, epochs=3, steps_per_epoch=2000, seconds_between_lines=0.05
    ) as log:
        for step in range(0, 400, 4):
            log.step(0, step, {"total_loss": 0.65432, "rows": 32, "samples/s": 12345.6})
            time.sleep(0.002)
        with log.track("evaluating", 50) as advance:
            for _ in range(50):
                advance(1)
                time.sleep(0.002)
        figures = {"throughput": 9312.4, "latency_p95": 9.0, "latency_p99": 12.3, "test_gauc": 0.78}
        log.epoch(0, {**figures, "test_auc": 0.79123, "test_rows": 7000})
        log.summary({"time_to_train": 4.25, "train_loss": float("nan")})
    printed = output.getvalue().splitlines()
    steps = [line for line in printed if "step " in line]
    assert 1 <= len(steps) <= 8
    assert steps[0].startswith("epoch 1/3  step ")
    assert "/2,000 (" in steps[0]
    assert "  total_loss 0.6543  12,346 samples/s  0:0" in steps[0]
    assert steps[0].endswith(" left in this epoch")
    assert any(line.startswith("evaluating  ") and "/50 (" in line for line in printed)
    assert printed[-3:] == [
        "epoch 1/3  test_auc 0.7912  test_gauc 0.78",
        "           throughput 9,312 samples/s  latency_p99 12.3 ms  test_rows 7,000",
        "summary  time_to_train 4.25 s  train_loss none",
    ]
    assert "\x1b" not in output.getvalue()


def test_a_progress_bar_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    output = Terminal()
    with logger(tmp_path, terminal=output, epochs=2, steps_per_epoch=10) as log:
        for epoch in range(2):
            for step in range(10):
                log.step(epoch, step, {"total_loss": 0.5, "aux": 1, "samples/s": 1000.0})
            with log.track("evaluating", 3) as advance:
                advance(3)
            log.epoch(epoch, {"test_auc": 0.8})
    text = output.getvalue()
    assert "\x1b[" in text
    for expected in ("epoch 1/2", "10/10", "total_loss 0.5  1,000 samples/s", "evaluating", "3/3"):
        assert expected in text
    assert "epoch 2/2  test_auc 0.8" in text


def test_a_disabled_logger_touches_nothing(tmp_path):
    with logger(tmp_path / "none", enabled=False) as log:
        log.step(0, 0, {"loss": 1.0})
        log.epoch(0, {})
        log.summary({})
        log.message("hello")
        with log.track("evaluating", 1) as advance:
            advance(1)
    assert not (tmp_path / "none").exists()


def test_a_step_costs_less_than_100_microseconds(tmp_path):
    data = {"total_loss": 0.5, "classification_loss": 0.3, "aux_loss": 0.2, "samples/s": 1e4}
    for terminal in (io.StringIO(), Terminal()):
        with logger(tmp_path, terminal=terminal, steps_per_epoch=2000) as log:
            log.step(0, 0, data)
            start = time.process_time()
            for step in range(1, 2000):
                log.step(0, step, data)
            microseconds = (time.process_time() - start) / 2000 * 1e6
        print(f"{microseconds:.1f} microseconds a step")
        assert microseconds < 100


def test_tensorboard_gets_every_step_and_epoch_and_the_options(tmp_path):
    with logger(tmp_path, tensorboard=True, steps_per_epoch=10, epochs=2) as log:
        log.options({"lr": 0.1, "amp": False, "dims": (3, 2), "plan": None})
        for epoch in range(2):
            for step in range(10):
                log.step(epoch, step, {"total_loss": 1 / (1 + 10 * epoch + step), "note": "text"})
            log.epoch(epoch, {"test_auc": 0.5 + epoch / 10, "gauc": None})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"step/total_loss", "epoch/test_auc"}
    steps = events.Scalars("step/total_loss")
    assert [event.step for event in steps] == list(range(20))
    assert steps[3].value == pytest.approx(1 / 4)
    assert [event.step for event in events.Scalars("epoch/test_auc")] == [1, 2]
    (said,) = events.PluginTagToContent("hparams").values()
    options = HParamsPluginData.FromString(said).session_start_info.hparams
    assert options["lr"].number_value == 0.1
    assert options["dims"].string_value == "(3, 2)"


def test_a_broken_tensorboard_costs_a_line_and_no_run(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("in the way")
    with logger(tmp_path, tensorboard=True) as log:
        for step in range(3):
            log.step(0, step, {"loss": 1.0})
    assert len(read_log(tmp_path / "log.json")) == 3
    said = capsys.readouterr().err
    assert said.count("warning: TensorBoard's events in ") == said.count("\n") == 1

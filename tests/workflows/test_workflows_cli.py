from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from lookback.core.errors import UserError
from lookback.formats.dataset_info import read_histories_info
from lookback.workflows.commands import PROGRAM
from lookback.workflows.describe import describe
from lookback.workflows.pipeline import run_dataset

main = PROGRAM.main
ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., pd.DataFrame]
Write = Callable[..., Path]


def _cli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workflows", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_run_fit_transform_describe(
    tmp_path: Path,
    make_events: Make,
    write_reviews: Write,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = write_reviews(make_events(), {"B000": "a"})
    done = _cli("run", "--dataset", "amazon", "--input", raw, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    assert "1 partition(s) of up to 1,000,000 events in this process" in done.stderr
    metadata = read_histories_info(tmp_path / "run")
    assert metadata["content_hash"] in done.stdout
    # The others in this process: an interpreter with NVTabular takes seconds to start.
    fit = ["fit", "--dataset", "amazon", "--input", str(raw), "--output", str(tmp_path / "fit")]
    assert main(fit) == 0
    assert json.loads((tmp_path / "fit/options.json").read_text())["dataset"] == "amazon"
    same = ["--input", str(raw), "--output", str(tmp_path / "same"), "--validation"]
    assert main(["transform", "--workflow", str(tmp_path / "fit"), *same]) == 0
    found = read_histories_info(tmp_path / "same")
    assert found["content_hash"] == metadata["content_hash"]
    assert found["split"]["validation"] == 1
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    assert main(["describe", str(tmp_path / "same")]) == 0
    printed = capsys.readouterr().out
    for text in (
        metadata["content_hash"],
        "list<int32>",
        "categorical, id, item, list, sequence",
        f"{metadata['cardinalities']['item_id']}",
        f"{metadata['counts']['events']:,}",
        "p99",
        "leave_last_out",
        "the event before the last of each user",
    ):
        assert text in printed, text


@pytest.mark.slow
def test_generated_data_is_read(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    status = main(["generate", "--dataset", "synthetic", "--preset", "tiny", "--output", str(raw)])
    assert status == 0
    report = run_dataset("synthetic", raw, tmp_path / "out")
    counts = report.metadata["counts"]
    assert (counts["users"], counts["events"]) == (300, 12_000)
    assert report.metadata["dataset"] == "synthetic"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--input", "nowhere"], "error: --input nowhere does not exist"),
        (["--input", "/dev/null"], "error: --input /dev/null is not a directory"),
        (["--dataset", "criteo", "--input", "nowhere"], "error: --input nowhere does not exist"),
        (["--input", ".", "--min_interaction", "5"], "Did you mean --min_interactions?"),
        (
            ["--input", ".", "--user_columns", "age"],
            "--user_columns is an option of movielens, not of amazon",
        ),
        (["--input", ".", "--memory_limit", "much"], "expected a size"),
        (
            ["--input", ".", "--min_interactions", "0"],
            "--min_interactions: expected an integer, 1 or more, received 0",
        ),
        (["--input", ".", "--numerical", "5"], "--numerical is an option of criteo, not of amazon"),
        (
            ["--input", ".", "--seed", "5"],
            "--seed is an option of criteo, tabular_log, not of amazon",
        ),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["run", "--dataset", "amazon", "--output", str(output), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and text in error
    assert not output.exists()


def test_a_yaml_file_says_what_the_command_line_does(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    """Of run and of transform; the command line wins over the file."""
    raw = write_reviews(make_events())
    config = tmp_path / "run.yaml"
    config.write_text(
        f"dataset: amazon\ninput: {raw}\nmin_interactions: 5\nduplicates: first\n"
        "memory_limit: 6GB\nvalidation: true\n"
    )
    run = ["run", "--config", str(config), "--min_interactions", "20"]
    assert main([*run, "--no-validation", "--output", str(tmp_path / "run")]) == 0
    given = {"min_interactions": 20, "duplicates": "first", "validation": False}
    written = read_histories_info(tmp_path / "run")
    assert {name: written["options"][name] for name in given} == given
    config.write_text(f"workflow: {tmp_path / 'run'}\ninput: {raw}\nduplicates: keep\n")
    assert main(["transform", "--config", str(config), "--output", str(tmp_path / "out")]) == 0
    given["duplicates"] = "keep"  # the rest as at the fit
    written = read_histories_info(tmp_path / "out")
    assert {name: written["options"][name] for name in given} == given


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("min_interaction: 5", "key 'min_interaction' in "),
        ("numerical: 5", "is an option of criteo, not of amazon"),
        ("min_interactions: many", "min_interactions in "),
    ],
)
def test_a_yaml_file_is_checked_like_the_command_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"dataset: amazon\n{text}\n")
    command = ["run", "--config", str(config), "--input", ".", "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert says in capsys.readouterr().err


def test_a_dataset_must_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--input", ".", "--output", "out"]) == 2
    assert "--dataset is required" in capsys.readouterr().err


def test_transform_takes_what_the_workflows_dataset_has(
    tmp_path: Path, make_events: Make, write_reviews: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = str(write_reviews(make_events()))
    assert main(["fit", "--dataset", "amazon", "--input", raw, "--output", f"{tmp_path}/fit"]) == 0
    command = ["transform", "--workflow", f"{tmp_path}/fit", "--input", raw, "--output", "out"]
    for arguments, says in (
        (["--block_size", "1MiB"], "Dataset 'amazon' has no option 'block_size'"),
        (["--frequency_threshold", "3"], "unknown option: --frequency_threshold"),
    ):
        assert main([*command, *arguments]) == 2
        assert says in capsys.readouterr().err


def test_help_is_fast() -> None:
    script = (
        "import sys\n"
        "from lookback.workflows.commands import PROGRAM\n"
        "PROGRAM.main(['run', '--help'])\n"
        "print([name for name in ('nvtabular', 'tensorflow', 'dask', 'pandas') "
        "if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--min_interactions" in done.stdout
    assert "--category" in done.stdout and "--user_columns" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_describe_refuses_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a dataset"):
        describe(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": "lookback-histories", "format_version": 9}')
    with pytest.raises(
        UserError, match=r"expected format 'lookback-histories' version 1, found .* version 9"
    ):
        describe(tmp_path)


def test_describe_counts_the_split(tmp_path: Path, make_events: Make, write_reviews: Write) -> None:
    report = run_dataset("amazon", write_reviews(make_events()), tmp_path / "out")
    console = Console(record=True, width=120, file=(tmp_path / "log").open("w"))
    describe(tmp_path / "out", console)
    counts = report.metadata["counts"]
    # Every event but a user's first and last two is a training target.
    assert f"{counts['events'] - 3 * counts['users']:,}" in console.export_text()


def _write_clicks(directory: Path) -> Path:
    """Three days of two integers and two values a line."""
    directory.mkdir()
    for day in range(3):
        lines = (f"{i % 2}\t{i}\t\t{i % 3:08x}\t{i % 7:08x}\n" for i in range(50 + day))
        (directory / f"day_{day}").write_text("".join(lines))
    return directory


SMALL_CLICKS = ["--numerical", "2", "--categorical", "2", "--workers", "0"]


def test_clicks_go_through_the_same_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = str(_write_clicks(tmp_path / "raw"))
    run = ["--dataset", "criteo", "--input", raw, *SMALL_CLICKS, "--frequency_threshold", "22"]
    assert main(["run", *run, "--output", str(tmp_path / "run")]) == 0
    metadata = json.loads((tmp_path / "run/dataset.json").read_text())
    printed = capsys.readouterr().out
    assert "rows: train 101, validation 26, test 26; rows of all tables: 8" in printed
    assert metadata["content_hash"] in printed
    # 153 rows: some 51 of each of 3 values; 24, 23, 22 and four times 21 of 7 values.
    assert metadata["cardinalities"] == {"cat_0": 4, "cat_1": 4}
    assert main(["fit", *run, "--output", str(tmp_path / "fit")]) == 0
    same = ["--input", raw, "--output", str(tmp_path / "same"), "--workers", "0"]
    assert main(["transform", "--workflow", str(tmp_path / "fit"), *same]) == 0
    assert metadata["content_hash"] in capsys.readouterr().out
    assert main(["describe", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert metadata["content_hash"] in printed and "frequency_threshold" in printed
    assert "history" not in printed
    export = ["export-feature-spec", str(tmp_path / "run")]
    assert main([*export, "--output", str(tmp_path / "binary")]) == 0
    assert "153 rows" in capsys.readouterr().out
    assert (tmp_path / "binary/train/label.bin").stat().st_size == 101


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--min_interactions", "5"], "--min_interactions is an option of amazon"),
        (["--no-validation"], "--no-validation is an option of amazon"),
        (["--partition_events", "9"], "--partition_events is an option of amazon"),
        (["--category", "Books"], "--category is an option of amazon, synthetic, not of criteo"),
        (["--block_size", "big"], "expected a size"),
        (["--vocabulary", "some"], "--vocabulary: expected one of all, train, received 'some'"),
    ],
)
def test_mistakes_with_clicks_are_one_line(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--dataset", "criteo", "--input", ".", "--output", str(tmp_path / "out")]
    assert main([*command, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and text in error
    assert list(tmp_path.iterdir()) == []


def _tree(directory: Path) -> dict[str, bytes | str | None]:
    """All paths below a directory: a file's content, where a link points, None of a directory."""
    return {
        path.relative_to(directory).as_posix(): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in directory.rglob("*")
    }


REFUSED = [
    # The input, what contains it, what lies in it.
    ("run", "data/raw", "is the input itself"),
    ("run", "data", "has the input"),
    ("run", "data/raw/out", "lies in the input"),
    ("run", "to_raw", "is a symbolic link"),
    ("fit", "data/raw", "is the input itself"),
    ("fit", "data", "has the input"),
    ("run_clicks", "clicks", "is the input itself"),
    ("run_clicks", ".", "has the input"),
    ("run_clicks", "clicks/out", "lies in the input"),
    ("run_clicks", "to_clicks", "is a symbolic link"),
    ("run_clicks", "dangling", "is a symbolic link"),
    ("run_clicks", "mine.txt/out", "is not a directory"),
    ("fit_clicks", "clicks", "is the input itself"),
    ("transform", "clicks", "is the input itself"),
    ("transform", "fitted", "is the input itself"),
    ("transform", "fitted/out", "lies in the input"),
    ("export", "dataset", "is the input itself"),
    ("export", "dataset/out", "lies in the input"),
    # What we did not write, or what is of another kind.
    *(
        (command, output, says)
        for command in ("run", "fit", "run_clicks", "fit_clicks", "transform", "generate", "export")
        for output, says in (
            ("mine", "nothing else is ever replaced"),
            ("mine.txt", "is not a directory"),
            ("dangling", "is a symbolic link"),
        )
    ),
    ("run", "fitted", "says it is a dataset of ours"),
    ("fit_clicks", "dataset", "says it is a saved workflow of ours"),
    ("generate", "dataset", "says it is a set of generated files of ours"),
    ("run_clicks", "mixed", "we did not write train/notes.txt in it"),
]


def test_overwrite_spares_all_that_we_did_not_write(
    tmp_path: Path,
    make_events: Make,
    write_reviews: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw = write_reviews(make_events(), directory=tmp_path / "data/raw")
    (tmp_path / "data/notes.txt").write_text("precious")
    clicks = _write_clicks(tmp_path / "clicks")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/dataset.json").write_text('{"format": "lookback-tabular"}')
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / "to_raw").symlink_to(raw)
    (tmp_path / "to_clicks").symlink_to("clicks")
    (tmp_path / "dangling").symlink_to("nowhere")
    of_clicks = ["--dataset", "criteo", *SMALL_CLICKS, "--input", str(clicks)]
    of_events = ["--dataset", "amazon", "--workers", "0", "--input", str(raw)]
    commands = {
        "run": ["run", *of_events],
        "fit": ["fit", *of_events],
        "run_clicks": ["run", *of_clicks],
        "fit_clicks": ["fit", *of_clicks],
        "transform": ["transform", "--workflow", f"{tmp_path}/fitted", "--input", str(clicks)],
        "generate": ["generate", "--dataset", "synthetic", "--preset", "tiny"],
        "export": ["export-feature-spec", f"{tmp_path}/dataset"],
    }
    for command, name in (("fit_clicks", "fitted"), ("run_clicks", "dataset")):
        assert main([*commands[command], "--output", str(tmp_path / name)]) == 0
    assert main([*commands["run_clicks"], "--output", str(tmp_path / "mixed")]) == 0
    (tmp_path / "mixed/train/notes.txt").write_text("precious")
    before = _tree(tmp_path)
    capsys.readouterr()
    for command, output, says in REFUSED:
        arguments = [*commands[command], "--output", str(tmp_path / output), "--overwrite"]
        assert main(arguments) == 2, (command, output)
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, (command, output, error)
        assert says in error, (command, output, error)
        assert _tree(tmp_path) == before, (command, output)


@pytest.mark.slow
def test_overwrite_replaces_our_own_and_says_so(
    tmp_path: Path,
    make_events: Make,
    write_reviews: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw, clicks = write_reviews(make_events()), _write_clicks(tmp_path / "clicks")
    of_clicks = ["--dataset", "criteo", *SMALL_CLICKS, "--input", str(clicks)]
    of_events = ["--dataset", "amazon", "--workers", "0", "--input", str(raw)]
    generated = ["generate", "--dataset", "criteo", "--variant", "custom", "--rows", "100"]
    generated += ["--cardinalities", "5,6", "--days", "2"]
    for kind, command in (
        ("dataset", ["run", *of_events]),
        ("saved workflow", ["fit", *of_events]),
        ("saved workflow", ["fit", *of_clicks]),
        ("dataset", ["transform", "--workflow", f"{tmp_path}/2", "--input", str(clicks)]),
        ("dataset", ["run", *of_clicks]),
        ("set of split_binary files", ["export-feature-spec"]),
        ("set of generated files", ["generate", "--dataset", "synthetic", "--preset", "tiny"]),
        ("set of generated files", generated),
        ("dataset", [*generated, "--format", "parquet"]),
    ):
        output = tmp_path / str(len(list(tmp_path.glob("[0-9]"))))
        if command == ["export-feature-spec"]:
            command = [*command, f"{tmp_path}/4"]
        written = [*command, "--output", str(output)]
        assert main(written) == 0, command
        first = sorted(_tree(output))
        assert "replaced" not in capsys.readouterr().err
        assert main(written) == 2, command
        assert "already exists" in capsys.readouterr().err
        assert main([*written, "--overwrite"]) == 0, command
        assert f"replaced the {kind} that was at {output}\n" in capsys.readouterr().err
        assert sorted(_tree(output)) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [*"012345678", "clicks", "raw"]


@pytest.mark.slow
def test_two_runs_to_one_output_are_one(
    tmp_path: Path, make_events: Make, write_reviews: Write
) -> None:
    """The second is refused while the first is at work, whatever it was told."""
    raw = write_reviews(make_events())
    output = tmp_path / "out"
    script = (
        "import sys, time\n"
        "from lookback.workflows.commands import PROGRAM\n"
        "from lookback.workflows.histories import pipeline as base\n"
        "fit = base._fit\n"
        "def slow(job):\n"
        "    print('fitting', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    return fit(job)\n"
        "base._fit = slow\n"
        "sys.exit(PROGRAM.main(sys.argv[1:]))\n"
    )
    command = ["run", "--dataset", "amazon", "--input", str(raw), "--output", str(output)]
    with subprocess.Popen(
        [sys.executable, "-c", script, *command],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as first:
        assert first.stdin is not None and first.stdout is not None
        assert first.stdout.readline() == "fitting\n"
        for more in ([], ["--overwrite"]):
            second = _cli(*command, "--min_interactions", "5", *more)
            assert second.returncode == 2
            assert f"Another process is writing {output}" in second.stderr
        first.stdin.write("go on\n")
        first.stdin.flush()
        first.stdout.read()
        assert first.wait() == 0
    assert read_histories_info(output)["options"]["min_interactions"] == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


@pytest.mark.parametrize("content", [{"notes.txt": "precious"}, {"identity.json": "[]"}])
def test_an_unfinished_run_that_is_not_ours_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, str]
) -> None:
    clicks = str(_write_clicks(tmp_path / "clicks"))
    partial = tmp_path / "out.partial"
    partial.mkdir()
    for name, text in content.items():
        (partial / name).write_text(text)
    command = ["run", "--dataset", "criteo", *SMALL_CLICKS, "--input", clicks]
    command += ["--output", str(tmp_path / "out"), "--overwrite"]
    assert main(command) == 2
    assert f"{partial} " in capsys.readouterr().err
    assert _tree(partial) == {name: text.encode() for name, text in content.items()}


def test_a_full_disk_is_a_sentence(
    tmp_path: Path, make_events: Make, write_reviews: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a disk's end, a limit on the size of files; what was written is removed."""
    clicks = _write_clicks(tmp_path / "clicks")
    run = ["run", "--dataset", "criteo", *SMALL_CLICKS, "--input", str(clicks)]
    assert main([*run, "--output", f"{tmp_path}/rows"]) == 0
    raw = str(write_reviews(make_events()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = _tree(tmp_path)
    capsys.readouterr()
    for limit, command in (
        (1000, ["run", "--dataset", "amazon", "--input", raw, "--workers", "0"]),
        (1000, ["fit", "--dataset", "amazon", "--input", raw, "--workers", "0"]),
        (1000, ["generate", "--dataset", "synthetic", "--preset", "tiny"]),
        (50, ["export-feature-spec", f"{tmp_path}/rows"]),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            assert main([*command, "--output", f"{tmp_path}/out"]) == 2, command
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        error = capsys.readouterr().err
        assert f"error: No space is left for {tmp_path}/out (" in error, error
        assert "What had been written is removed. Free some space" in error
        assert _tree(tmp_path) == before

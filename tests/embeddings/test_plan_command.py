"""`python -m embeddings plan`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lookback.checkpoints.commands import PROGRAM
from lookback.embeddings.plans import load_plan
from lookback.embeddings.types import TableSpec

ROOT = Path(__file__).resolve().parents[2]
main = PROGRAM.main


@pytest.fixture
def tables(tmp_path):
    path = tmp_path / "tables.yaml"
    path.write_text("item_id: {rows: 1000, dim: 8}\nuser_id: {rows: 100, dim: 8}\n")
    return str(path)


@pytest.fixture
def plan(tables, capsys):
    """Runs the command on the tables; gives exit status, output and errors."""

    def run(*arguments):
        status = main(["plan", "--tables", tables, *arguments])
        return status, *capsys.readouterr()

    return run


def test_a_plan_is_printed_and_written(plan, tmp_path):
    path = tmp_path / "plan.yaml"
    status, out, err = plan(
        "--ranks", "2", "--memory", "80GB", "--override", "user_id=table_wise:1",
        "--output", str(path),
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "131,072 rows a step, optimizer adam, 4 bytes a number" in out
    assert out.endswith(f"plan: {path}\n")
    written = load_plan(path)
    assert written.tables == (TableSpec("item_id", 1000, 8), TableSpec("user_id", 100, 8))
    assert written.placement("user_id").ranks == (1,)


def test_nothing_is_written_unless_asked(plan, tmp_path):
    plan("--ranks", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["tables.yaml"]


def test_the_options_of_the_step_count(plan):
    _, out, _ = plan(
        "--ranks", "2", "--global_batch_size", "8", "--optimizer", "sgd",
        "--wire_dtype", "bfloat16", "--planner", "largest_first", "--no-reserve_first_rank",
        "--hotness", "item_id=0.5",
    )  # fmt: skip
    assert "8 rows a step, optimizer sgd, 2 bytes a number on the wire" in out
    item, user = (line.split() for line in out.splitlines()[1:3])
    assert item[:3] == ["item_id", "table_wise", "0"]
    assert user[:3] == ["user_id", "table_wise", "1"]
    # 4 rows a rank: 2 items (1.998 distinct), sent by one of two ranks: 4 + 16 + 16 bytes each.
    assert item[-2:] == ["72", "B"]


def test_bandwidths_and_nodes_count(plan):
    slow = plan("--ranks", "4", "--ranks_per_node", "2", "--inter_bandwidth", "1MB")[1]
    fast = plan("--ranks", "4", "--ranks_per_node", "2", "--inter_bandwidth", "1GB")[1]

    def exchange(out):
        return float(re.search(r"exchange ([\d.]+) ms", out)[1])

    assert exchange(slow) == pytest.approx(1000 * exchange(fast), rel=0.05)


def test_what_does_not_fit_is_refused_with_numbers_and_fixes(plan):
    status, out, err = plan("--ranks", "2", "--memory", "50kB", "--strategies", "table_wise")
    assert (status, out) == (2, "")
    assert err.startswith("error: The tables do not fit on 2 ranks of 50.0 kB.\n")
    assert "More memory a rank: 96.0 kB." in err
    assert plan("--ranks", "3", "--memory", "50kB", "--strategies", "table_wise,row_wise")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ranks", "0"], "--ranks: expected an integer, 1 or more and 65536 or less, received 0"),
        (
            ["--ranks", "2", "--ranks_per_node", "0"],
            "--ranks_per_node: expected an integer, 1",
        ),
        (["--ranks", "2", "--memory", "80XB"], "--memory: expected a size above 0 like 80GB"),
        (["--ranks", "2", "--inter_bandwidth", "x"], "--inter_bandwidth: expected a size"),
        (["--ranks", "2", "--strategies", "diagonal"], "--strategies: expected one of "),
        (["--ranks", "2", "--override", "item_id"], "--override: expected a table's name, = and"),
        (["--ranks", "2", "--override", "x=row_wise"], "Override of unknown table 'x'"),
        (["--ranks", "2", "--hotness", "item_id=many"], "--hotness: expected a table's name, ="),
        (
            ["--ranks", "2", "--hotness", "item_id=-1"],
            "hotness must be at least 0 and at most 2,147,483,648, received (-1",
        ),
        (["--ranks", "2", "--hotness", "x=1"], "no table is named 'x'; the tables are ['item_id'"),
        (
            ["--ranks", "2", "--hotness", "item_id=1", "--hotness", "item_id=2"],
            "each table once; received 'item_id=2'",
        ),
        (
            ["--ranks", "2", "--embedding_dim", "0"],
            "--embedding_dim: expected an integer, 1 or more",
        ),
        (
            ["--ranks", "2", "--global_batch_size", "0"],
            "--global_batch_size: expected an integer, 1 or more",
        ),
        (["--ranks", "2", "--output", "missing/plan.yaml"], "missing/plan.yaml cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_status_2(plan, arguments, text):
    status, out, err = plan(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert text in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "expected a command, one of plan, inspect, reshard, export-table."),
        (["plam"], "has no command 'plam'. Did you mean plan?"),
        (["plan", "--ranks", "2"], "expected one of --dataset_dir and --tables, received none."),
        (["plan", "--tables", "t"], "--ranks is required: processes"),
        (
            ["plan", "--tables", "t", "--dataset_dir", "d", "--ranks", "2"],
            "received --dataset_dir and --tables.",
        ),
    ],
)
def test_bad_command_lines_are_one_line_too(arguments, text, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_placement_may_name_several_ranks(plan, tmp_path):
    path = tmp_path / "plan.yaml"
    override = ("--override", "item_id=column_wise:0,2", "--override", "user_id=row_wise")
    assert plan("--ranks", "3", *override, "--output", str(path))[0] == 0
    assert load_plan(path).placement("item_id").ranks == (0, 2)


# --- datasets ---


@pytest.fixture
def dataset(tmp_path, make_schema):
    """Writes a schema; gives its directory."""
    from lookback.formats.schema import write_schema

    def write(schema=None):
        schema = make_schema() if schema is None else schema
        write_schema(schema, tmp_path)
        return str(tmp_path)

    return write


def test_tables_come_from_the_dataset_s_schema(dataset, tmp_path, capsys):
    path = tmp_path / "plan.yaml"
    arguments = ["--ranks", "2", "--embedding_dim", "4", "--hotness", "item_id=7"]
    assert main(["plan", "--dataset_dir", dataset(), *arguments, "--output", str(path)]) == 0
    assert load_plan(path).tables == (
        TableSpec("user_id", 7, 4),
        TableSpec("country", 4, 4),
        TableSpec("item_id", 40, 4, hotness=(7,)),
        TableSpec("category_id", 6, 4, hotness=(100,)),
    )
    notes = capsys.readouterr().err
    assert "note: table 'category_id' has lists of no stated bound: assumed 100 ids" in notes
    assert "item_id'" not in notes.replace("category_id", "")


def test_bounded_lists_are_as_long_as_their_bound(make_schema):
    from merlin.schema import ColumnSchema, Schema, Tags

    from lookback.embeddings.tables import tables_with_hotness

    def column(name, **options):
        domain = {"min": 0, "max": 39, "name": "item"}
        return ColumnSchema(
            name, tags=[Tags.CATEGORICAL], dtype="int32", properties={"domain": domain}, **options
        )

    columns = [
        column("target"),
        column("short", dims=(None, 10)),
        column("long", dims=(None, None)),
    ]
    assert tables_with_hotness(Schema(columns[:2]), 4) == (
        [TableSpec("item", 40, 4, hotness=(1, 10))],
        [],
    )
    assert tables_with_hotness(Schema(columns), 4) == (
        [TableSpec("item", 40, 4, hotness=(1, 10, 100))],
        ["item"],
    )


def test_bags_count_all_that_they_hold():
    from merlin.schema import Schema

    from lookback.embeddings.tables import tables_with_hotness
    from lookback.formats.features import dataset_column
    from lookback.formats.history_columns import category

    domain = {"domain": {"min": 0, "max": 8, "name": "tags"}}
    columns = [
        dataset_column(category(name, role, most), domain)
        for name, role, most in (("likes", "user", 3), ("tags", "item", 2), ("tag", "item", None))
    ]
    assert tables_with_hotness(Schema(columns), 4) == (
        [TableSpec("tags", 9, 4, hotness=(3, 200, 100))],
        ["tags"],
    )


def test_directories_without_a_usable_schema_are_refused(dataset, tmp_path, make_schema, capsys):
    from merlin.schema import ColumnSchema, Schema

    arguments = ["plan", "--ranks", "2", "--dataset_dir", str(tmp_path)]
    assert main(arguments) == 2
    assert "There is no schema.pbtxt in" in capsys.readouterr().err
    (tmp_path / "schema.pbtxt").write_text("feature {")
    assert main(arguments) == 2
    assert "schema.pbtxt cannot be read" in capsys.readouterr().err
    dataset(Schema([ColumnSchema("price", dtype="float32")]))
    assert main(arguments) == 2
    assert "has no categorical column" in capsys.readouterr().err
    dataset(Schema([ColumnSchema("item_id", dtype="int32", tags=["categorical"])]))
    assert main(arguments) == 2
    assert "'item_id' has no int domain" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_needs_no_tensorflow(dataset):
    command = [sys.executable, "-X", "importtime", "-m", "embeddings"]
    for arguments in (
        ["--help"],
        ["plan", "--help"],
        ["plan", "--ranks", "2", "--dataset_dir", dataset()],
    ):
        result = subprocess.run(
            [*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr[-2000:]
        imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
        assert not any(name.startswith("tensorflow.") for name in imported), arguments
        messages = [line for line in result.stderr.splitlines() if "import time:" not in line]
        assert all(line.startswith("note: ") for line in messages), messages

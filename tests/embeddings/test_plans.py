"""Plans as files and text, and whether they belong to a run."""

from __future__ import annotations

import dataclasses

import pytest

from lookback.core.errors import UserError
from lookback.core.sizes import format_size, parse_size
from lookback.embeddings.plan_report import describe_plan
from lookback.embeddings.planner import plan_tables
from lookback.embeddings.plans import check_plan, load_plan, load_tables, save_plan
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec, Topology
from tests.embeddings.criteo_tables import BATCH_ROWS, MEMORY_A_RANK, criteo_tables

PLAN = ShardingPlan(
    ranks=3,
    tables=(
        TableSpec("item_id", 40, 8, init_scale=1e-05, hotness=(1.0, 100.5), distinct=0.25),
        TableSpec("user: id", 7, 8, optimizer="rowwise_adagrad"),
        TableSpec("brand", 5, 8, hotness=()),
        TableSpec("yes", 5, 8),
    ),
    placements=(
        Placement("item_id", "column_wise", (2, 0)),
        Placement("user: id", "row_wise"),
        Placement("brand", "table_wise", (1,)),
        Placement("yes", "data_parallel"),
    ),
)


# --- files ---


def test_a_plan_survives_its_file(tmp_path):
    save_plan(PLAN, tmp_path / "plan.yaml")
    assert load_plan(tmp_path / "plan.yaml") == PLAN
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


@pytest.mark.parametrize("name", ["1e5", "-.5", "1.5e3", "010", "1:30", "yes", "12"])
def test_a_table_named_like_a_number_survives(tmp_path, name):
    plan = ShardingPlan(1, (TableSpec(name, 4, 2),), (Placement(name, "table_wise", (0,)),))
    save_plan(plan, tmp_path / "plan.yaml")
    assert load_plan(tmp_path / "plan.yaml") == plan


def test_a_plan_s_file_is_readable(tmp_path):
    save_plan(PLAN, tmp_path / "plan.yaml")
    assert (tmp_path / "plan.yaml").read_text() == (
        "format: lookback-plan\n"
        "version: 1\n"
        "ranks: 3\n"
        "tables:\n"
        "  item_id:\n"
        "    strategy: column_wise\n"
        "    ranks: [2, 0]\n"
        "    rows: 40\n"
        "    dim: 8\n"
        "    init_scale: 1.0e-05\n"
        "    hotness: [1.0, 100.5]\n"
        "    distinct: 0.25\n"
        "  'user: id':\n"
        "    strategy: row_wise\n"
        "    rows: 7\n"
        "    dim: 8\n"
        "    optimizer: rowwise_adagrad\n"
        "  brand:\n"
        "    strategy: table_wise\n"
        "    ranks: [1]\n"
        "    rows: 5\n"
        "    dim: 8\n"
        "    hotness: []\n"
        "  'yes':\n"
        "    strategy: data_parallel\n"
        "    rows: 5\n"
        "    dim: 8\n"
    )


def test_criteo_plans_survive_their_files(tmp_path):
    topology = Topology(16, MEMORY_A_RANK)
    plan = plan_tables(criteo_tables("t0"), topology, batch_rows=BATCH_ROWS, optimizer="sgd")
    save_plan(plan, tmp_path / "plan.yaml")
    assert load_plan(tmp_path / "plan.yaml") == plan


def test_a_plan_that_cannot_be_written_is_a_user_s_error(tmp_path):
    with pytest.raises(UserError, match=r"missing/plan.yaml cannot be written \(No such file"):
        save_plan(PLAN, tmp_path / "missing" / "plan.yaml")


@pytest.mark.parametrize("text", ["precious", "format: mine\n", "", "{"])
def test_a_plan_replaces_a_plan_and_nothing_else(tmp_path, text):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="already exists, and only what we wrote"):
        save_plan(PLAN, path)
    assert path.read_text() == text
    path.unlink()
    save_plan(dataclasses.replace(PLAN, ranks=4), path)
    save_plan(PLAN, path)
    assert load_plan(path) == PLAN
    with pytest.raises(UserError, match="is the input itself"):
        save_plan(PLAN, path, inputs=[path])


HEAD = "format: lookback-plan\nversion: 1\nranks: 2\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected keys and values, received None"),
        ("- 1\n", r"expected keys and values, received \[1\]"),
        ("a: [1\n", "is not valid YAML"),
        ("ranks: 2\nranks: 3\n", "the key 'ranks' is there twice"),
        ("format: lookback-plan\n", r"expected format, version, ranks, tables; no \['version', "),
        (f"{HEAD}tables: {{}}\nwidth: 2\n", r"unknown \['width'\]"),
        (f"{HEAD}tables: {{}}\n".replace("1", "2"), "version: 1; received 'lookback-plan', 2"),
        (f"{HEAD}tables: {{}}\n", "expected tables by name, each with its fields; received {}"),
        (f"{HEAD}tables: [a]\n", "expected tables by name"),
        (f"{HEAD}tables: {{a: 3}}\n", "such as 'item_id: {rows: 100, dim: 16}'; received 'a': 3"),
        (f"{HEAD}tables: {{7: {{}}}}\n", "expected a table's name with its fields"),
        (f"{HEAD}tables: {{a: {{rows: 3, dim: 2}}}}\n", r"'a': expected strategy and, .* no \['st"),
        (
            f"{HEAD}tables: {{a: {{strategy: row_wise, rows: 3}}}}\n",
            r"table 'a': expected rows, dim and, if wanted, init_scale, .*; no \['dim'\]",
        ),
        (
            f"{HEAD}tables: {{a: {{strategy: row_wise, rows: 3, dim: 2, name: b}}}}\n",
            r"unknown \['name'\]",
        ),
        (
            f"{HEAD}tables: {{a: {{strategy: row_wise, rows: 3.0, dim: 2}}}}\n",
            "table 'a': rows: expected a whole number, received 3.0",
        ),
        (
            f"{HEAD}tables: {{a: {{strategy: row_wise, rows: true, dim: 2}}}}\n",
            "rows: expected a whole number, received True",
        ),
        (
            f"{HEAD}tables: {{a: {{strategy: row_wise, rows: 3, dim: 2, hotness: 1}}}}\n",
            "hotness: expected a list, received 1",
        ),
        (
            f"{HEAD}tables: {{a: {{strategy: row_wise, rows: 3, dim: 2, optimizer: 1}}}}\n",
            "optimizer: expected text, received 1",
        ),
        (
            f"{HEAD}tables: {{a: {{strategy: row_wise, rows: 0, dim: 2}}}}\n",
            "rows must be at least 1, received 0",
        ),
        (
            f"{HEAD}tables: {{a: {{strategy: diagonal, rows: 3, dim: 2}}}}\n",
            "unknown strategy 'diagonal'; choose one of",
        ),
        (
            f"{HEAD}tables: {{a: {{strategy: table_wise, ranks: [2], rows: 3, dim: 2}}}}\n",
            r"expected one rank in \[0, 2\), received ranks \[2\]",
        ),
        (
            f"{HEAD.replace('2', '0')}tables: {{a: {{strategy: row_wise, rows: 3, dim: 2}}}}\n",
            "Plan.ranks must be at least 1 and at most 65,536, received 0",
        ),
        ("[" * 5000, "nested too deeply"),
        ("a: &a [x]\nb: *a\n", r"aliases \(\*a\) are not read"),
        (
            f"{HEAD}tables: {{a: {{strategy: row_wise, rows: {10**23 - 1}, dim: 2}}}}\n",
            "rows: expected at most 9,223,372,036,854,775,807, received 99999999999999999999999",
        ),
        (
            f"{HEAD}tables: {{a: {{strategy: row_wise, rows: {2**62}, dim: {2**62}}}}}\n",
            "rows times dim must be at most 72,057,594,037,927,936, received 4611686018427387904",
        ),
        (
            f"{HEAD}tables: {{a: {{strategy: row_wise, rows: 3, dim: 2, distinct: {10**400}}}}}\n",
            "distinct: expected at most",
        ),
        (f"{HEAD}tables: {['x' * 10**5] * 5}\n", "expected tables by name"),
        (f"{HEAD}tables: {{a: {'x' * 10**5}}}\n", "expected a table's name"),
        (f"{HEAD}tables: {{a: {{{'x' * 900}: 1, strategy: row_wise}}}}\n", "expected rows, dim"),
    ],
)
def test_files_that_are_no_plans_are_refused(tmp_path, text, expected):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        load_plan(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_a_missing_file_is_a_user_s_error(tmp_path):
    with pytest.raises(UserError, match=r"plan.yaml: expected a YAML file, but .*No such file"):
        load_plan(tmp_path / "plan.yaml")


def test_tables_alone_can_be_read(tmp_path):
    path = tmp_path / "tables.yaml"
    path.write_text("item_id: {rows: 40, dim: 4, hotness: [1, 100]}\nuser_id: {rows: 7}\n")
    assert load_tables(path, dim=16) == [
        TableSpec("item_id", 40, 4, hotness=(1, 100)),
        TableSpec("user_id", 7, 16),
    ]
    with pytest.raises(UserError, match=r"'user_id': expected rows, dim .* no \['dim'\]"):
        load_tables(path)


# --- does it belong to the run? ---


def test_a_plan_belongs_to_its_tables_in_any_order():
    tables = [dataclasses.replace(table, hotness=(3,)) for table in PLAN.tables[::-1]]
    check_plan(PLAN, tables, 3, optimizer="adam")
    named = [dataclasses.replace(table, optimizer=None) for table in tables]
    check_plan(PLAN, named, 3)


@pytest.mark.parametrize(
    ("change", "ranks", "text"),
    [
        (lambda tables: tables, 4, "it is for 3 ranks, the run has 4"),
        (lambda tables: tables[1:], 3, r"it has the tables \['item_id'\], which the run has not"),
        (
            lambda tables: [*tables, TableSpec("shop", 4, 8)],
            3,
            r"it lacks the tables \['shop'\]",
        ),
        (
            lambda tables: [dataclasses.replace(tables[0], rows=41), *tables[1:]],
            3,
            "table 'item_id' has rows 40 in it, 41 in the run",
        ),
        (
            lambda tables: [dataclasses.replace(tables[0], dim=9), *tables[1:]],
            3,
            "table 'item_id' has dim 8 in it, 9 in the run",
        ),
        (
            lambda tables: [
                tables[0],
                dataclasses.replace(tables[1], optimizer="adam"),
                *tables[2:],
            ],
            3,
            "table 'user: id' has optimizer rowwise_adagrad in it, adam in the run",
        ),
    ],
)
def test_a_plan_of_others_is_refused(change, ranks, text):
    with pytest.raises(UserError, match=text):
        check_plan(PLAN, change(list(PLAN.tables)), ranks)


def test_an_optimizer_that_needs_whole_rows_is_refused():
    with pytest.raises(UserError, match="'item_id' is column_wise, where rowwise_adagrad cannot"):
        check_plan(PLAN, PLAN.tables, 3, optimizer="rowwise_adagrad")


# --- text ---


def test_a_plan_is_described_by_table_and_by_rank():
    plan = ShardingPlan(
        2,
        (TableSpec("item", 1000, 8, distinct=0.5), TableSpec("country", 10, 8, distinct=0.1)),
        (Placement("item", "row_wise"), Placement("country", "table_wise", (1,))),
    )
    # 40 rows a rank: 20 distinct items, of which half travel, and 4 countries.
    topology = Topology(2, 80e9, intra_bandwidth=1e6, lookup_bandwidth=1e6)
    text = describe_plan(plan, topology, batch_rows=80, optimizer="sgd").splitlines()
    assert [line.split() for line in text[:3]] == [
        ["table", "strategy", "ranks", "rows", "dim", "memory", "sent", "a", "step"],
        ["item", "row_wise", "all", "1,000", "8", "32.0", "kB", "1.36", "kB"],
        ["country", "table_wise", "1", "10", "8", "320", "B", "272", "B"],
    ]
    # Rank 0 sends 10 + 4 ids, 10 rows and 14 gradients; rank 1 10 ids, 14 rows and 10 gradients.
    assert [line.split()[:11] for line in text[5:7]] == [
        ["0", "16.0", "kB", "824", "B", "56", "B", "320", "B", "448", "B"],
        ["1", "16.3", "kB", "808", "B", "40", "B", "448", "B", "320", "B"],
    ]
    assert text[8:11] == [
        "80 rows a step, optimizer sgd, 4 bytes a number on the wire; memory a rank: 80.0 GB",
        "busiest rank: 16.3 kB of memory, 824 B sent; all ranks: 32.3 kB, 1.63 kB",
        "imbalance (largest / mean): memory 1.010, sent 1.010",
    ]
    # Exchanges at 1 MB/s: 56 us of ids, 448 us of rows, 448 us of gradients.
    assert "exchange 0.952 ms" in text[11]


def test_descriptions_stay_short_on_many_ranks():
    table = TableSpec("wide", 10, 32)
    plan = ShardingPlan(20, (table,), (Placement("wide", "column_wise", tuple(range(20))),))
    text = describe_plan(plan, Topology(20), batch_rows=80, optimizer="sgd")
    assert "20 of them" in text
    assert "memory a rank: not limited" in text


# --- sizes ---


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GB", 80e9), ("80 gb", 80e9), ("80G", 80e9), ("40GiB", 40 * 2**30), ("1.5k", 1500),
        ("2TiB", 2 * 2**40), ("1000000", 1e6), ("512B", 512),
    ],
)  # fmt: skip
def test_sizes_are_read(text, size):
    assert parse_size(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "GB", "0GB", "-1GB", "80XB", "8 0GB", "1e9", "1iB", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match="--memory: expected a size above 0 like 80GB, 40GiB or"):
        parse_size(text, "--memory")


@pytest.mark.parametrize(
    ("size", "text", "up"),
    [
        (0, "0 B", "0 B"), (999, "999 B", "999 B"), (1000, "1.00 kB", "1.00 kB"),
        (12341, "12.3 kB", "12.4 kB"), (999_999, "1000 kB", "1000 kB"),
        (80e9, "80.0 GB", "80.0 GB"), (449.7e9, "450 GB", "450 GB"),
        (5.121e12, "5.12 TB", "5.13 TB"),
    ],
)  # fmt: skip
def test_sizes_are_written(size, text, up):
    assert format_size(size) == text
    assert format_size(size, up=True) == up

from __future__ import annotations

import json

import pytest

from lookback.benchmarks.__main__ import main

SMALL = ["--users", "60", "--rows", "3000", "--global_batch_size", "128", "--rounds", "1"]


def run_loader(capsys, tmp_path, *options):
    assert main(["loader", "--quick", *SMALL, "--cache_dir", str(tmp_path), *options]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_all_layouts_are_measured(capsys, tmp_path):
    line = run_loader(capsys, tmp_path)
    figures = line["figures"]
    for name in ("windows", "materialised", "materialised_shuffled", "merlin"):
        rates = figures[f"{name}_samples_per_s"]
        assert 0 < rates["lowest"] <= rates["median"] <= rates["highest"]
    # Sixty users are enough to show the order of the sizes, if not the ratio of a large set.
    assert figures["histories_bytes_per_sample"] < figures["materialised_snappy_bytes_per_sample"]
    assert line["ratios"]["windows_over_merlin"] > 1
    assert line["config"]["training_samples"] >= 3000


def test_one_layout(capsys, tmp_path):
    line = run_loader(capsys, tmp_path, "--layout", "histories")
    assert [name for name in line["figures"] if name.endswith("per_s")] == ["windows_samples_per_s"]


def test_too_few_rows_for_a_batch(capsys, tmp_path):
    options = ["--users", "60", "--rows", "100", "--global_batch_size", "50000"]
    assert main(["loader", "--quick", *options, "--cache_dir", str(tmp_path)]) == 2
    assert "fewer than one batch of 50000. Raise --rows" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--layout=none", "--rows=x"])
def test_bad_options(option):
    with pytest.raises(SystemExit):
        main(["loader", option])

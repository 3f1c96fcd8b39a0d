from __future__ import annotations

import json

import pytest

from lookback.benchmarks.__main__ import main

SMALL = ["--rows", "3000", "--global_batch_size", "128", "--rounds", "1"]


def run_loader(capsys, tmp_path, *options):
    arguments = ["loader", "--quick", "--layout", "tabular", *SMALL, *options]
    assert main([*arguments, "--cache_dir", str(tmp_path)]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_tabular_rows_are_measured_and_generated_once(capsys, tmp_path):
    line = run_loader(capsys, tmp_path)
    for name in ("tabular", "tabular_shuffled", "merlin"):
        rates = line["figures"][f"{name}_rows_per_s"]
        assert 0 < rates["lowest"] <= rates["median"] <= rates["highest"]
    assert line["config"]["rows"] == 3000
    assert (line["config"]["numerical"], line["config"]["categorical"]) == (13, 26)
    # Uncompressed, 40 columns of four bytes.
    assert 0 < line["figures"]["tabular_bytes_per_row"] < 40 * 4
    (directory,) = tmp_path.iterdir()
    again = run_loader(capsys, tmp_path, "--dataset_dir", str(directory))
    assert again["config"]["rows"] == 3000
    assert list(tmp_path.iterdir()) == [directory]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layout", "tabular", "histories"], "Measure it by itself"),
        (
            ["--layout", "tabular", "--rows", "100", "--global_batch_size", "500"],
            "fewer than one batch of 500. Raise --rows",
        ),
    ],
)
def test_what_cannot_be_measured(capsys, tmp_path, options, message):
    assert main(["loader", "--quick", *options, "--cache_dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err

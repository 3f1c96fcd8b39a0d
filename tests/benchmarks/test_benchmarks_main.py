from __future__ import annotations

import argparse
import importlib
import subprocess
import sys

import pytest

from lookback.benchmarks import BENCHMARKS
from lookback.benchmarks.__main__ import main, question


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_question_options_and_run(name):
    module = importlib.import_module(BENCHMARKS[name])
    assert question(name) == module.QUESTION
    assert "\n" not in question(name) and question(name).endswith("?")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert callable(module.run)


def test_another_mode_of_a_benchmark_has_options_of_its_own(capsys):
    for words, option in (((), "--table_rows"), (("--predict",), "--fabric")):
        with pytest.raises(SystemExit):
            main(["scaling", *words, "--help"])
        assert option in capsys.readouterr().out
    assert main(["scaling", "--predict", "--no-measure", "--ranks", "8"]) == 0
    assert '"benchmark": "scaling --predict"' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["scaling", "--predict", "--table_rows", "10", "20"])
    assert "unrecognized arguments: --table_rows" in capsys.readouterr().err


def test_listing_is_instant_and_names_every_benchmark():
    # With imports reported: neither TensorFlow nor NumPy is needed to list.
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "benchmarks"], capture_output=True, text=True
    )
    assert result.returncode == 0
    for name in BENCHMARKS:
        assert f"{name} " in result.stdout
        assert question(name) in result.stdout
    assert "numpy" not in result.stderr and "tensorflow" not in result.stderr


def test_an_unknown_name_lists_the_known_ones(capsys):
    assert main(["nothing"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: no benchmark is named 'nothing'. Expected one of: accuracy, cold_start"
    )


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["loader", "--quik"])
    assert exit_info.value.code == 2
    assert "unrecognized arguments: --quik" in capsys.readouterr().err


def test_a_user_error_is_one_line(tmp_path, capsys):
    assert main(["loader", "--dataset_dir", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and "is not a dataset" in output.err
    assert output.out == ""

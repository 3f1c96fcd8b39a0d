"""Which operations a run computes with: it says so, and what it finds does not depend on them."""

from __future__ import annotations

import numpy as np
import pytest

from lookback.kernels import loader
from lookback.training.output.logging import read_log
from lookback.training.run import main

pytestmark = pytest.mark.usefixtures("eagerly")

RUN = (
    *("--model_type", "sim", "--embedding_dim", "16", "--max_seq_length", "9", "--k", "3"),
    *("--long_seq_length", "5", "--global_batch_size", "32", "--seed", "3", "--epochs", "1"),
)


@pytest.mark.skipif(loader.history_level("float32") is None, reason="no operations of ours here")
def test_with_and_without_operations_of_ours(make_histories, write_dataset, tmp_path, capsys):
    histories = make_histories(lengths=[20, 7, 3, 3, 12, 15, 30], items=40)
    dataset = write_dataset(histories, tmp_path / "dataset")
    steps, said = {}, {}
    for kernels in ("auto", "none"):
        results = tmp_path / kernels
        where = ("--dataset_dir", str(dataset), "--results_dir", str(results))
        main([*where, *RUN, "--kernels", kernels], exporter=None)
        said[kernels] = [s for s in capsys.readouterr().out.splitlines() if "fused step" in s]
        steps[kernels] = [r.data for r in read_log(results / "log.json") if len(r.step) == 2]
    (with_ours,), (without,) = said.values()
    assert with_ours.endswith(f"fused step: {loader.history_level('float32')}, float32")
    assert "fused step: not used" in without and "not wanted" in without
    assert len(steps["auto"]) == len(steps["none"]) > 1
    for ours, theirs in zip(steps["auto"], steps["none"], strict=True):
        for loss in ("head_loss", "gsu_loss", "aux_loss", "total_loss"):
            assert ours[loss] == pytest.approx(theirs[loss], rel=1e-4), loss
    assert np.isfinite([step["total_loss"] for step in steps["auto"]]).all()

"""What a run may write over in its results_dir."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookback.core.errors import UserError
from lookback.training.output.logging import RunLogger
from lookback.training.output.results import check_results


def test_a_new_directory_and_one_of_an_earlier_run_are_fine(tmp_path: Path) -> None:
    check_results(tmp_path / "new", "log.json")
    for _ in range(2):
        with RunLogger(tmp_path / "run", tensorboard=False) as log:
            log.summary({"time": 1.0})
        (tmp_path / "run" / "config.yaml").write_text("seed: 1")
    check_results(tmp_path / "run", "log.json")
    check_results(tmp_path / "run", "another.json")
    (tmp_path / "run" / "empty.json").touch()
    check_results(tmp_path / "run", "empty.json")


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("content", ["precious", "{}", "DLL"])
def test_a_file_that_is_no_log_is_kept(tmp_path: Path, content: str, append: bool) -> None:
    (tmp_path / "README.md").write_text(content)
    with pytest.raises(UserError, match=r"README\.md is there and is no log of a run"):
        RunLogger(tmp_path, "README.md", append=append, tensorboard=False)
    assert (tmp_path / "README.md").read_text() == content
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"link\.json is there"):
        RunLogger(tmp_path, "link.json", tensorboard=False)


@pytest.mark.parametrize("name", ["config.yaml", "scores.parquet", "report/roc.png"])
def test_what_no_run_wrote_is_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    (tmp_path / "empty.json").touch()  # no log
    with pytest.raises(UserError, match=f"holds {name}, as a run writes it, but no log"):
        check_results(tmp_path, "log.json")

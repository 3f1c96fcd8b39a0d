"""What TensorBoard's projector gets: rows of the tables, with their names."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import text_format

from lookback import cli
from lookback.checkpoints.store import Checkpoint, find_checkpoint
from lookback.core.errors import UserError
from lookback.training.output import projector
from lookback.training.state import MODEL_PREFIXES
from tests.test_api import WORDS
from tests.test_api import dataset as dataset

pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.mark.slow
def test_tables_are_written_with_raw_ids(dataset, tmp_path, monkeypatch, capsys):
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    from lookback.formats.raw_ids import raw_ids_of

    monkeypatch.setattr(projector, "MOST_ROWS", 7)
    saved = ("--save_checkpoint_path", str(tmp_path / "saved"))
    words = [*WORDS, "--dataset_dir", str(dataset), "--epochs", "1", *saved]
    cli.train([*words, "--results_dir", str(tmp_path / "run"), "--tensorboard_projector"])
    directory = tmp_path / "run" / "tensorboard"
    config = text_format.Parse((directory / projector.CONFIG).read_text(), ProjectorConfig())
    tables = {e.tensor_name: e for e in config.embeddings}
    assert set(tables) == {"user_id", "item_id"}
    checkpoint = Checkpoint(find_checkpoint(tmp_path / "saved"))
    raw = raw_ids_of(dataset, "item_id")
    (item,) = [n for n in checkpoint if "item_id" in n and n.startswith(MODEL_PREFIXES)]
    names = (directory / tables["item_id"].metadata_path).read_text().splitlines()
    vectors = np.loadtxt(directory / tables["item_id"].tensor_path, delimiter="\t")
    assert vectors.shape == (7, 4) and len(names) == 7
    # Every 13 events items 0, 1, 3, 4, 9, 10 and 12 are met: 0 once, the others twice.
    assert set(names) == {f"i{n}" for n in (0, 1, 3, 4, 9, 10, 12)}
    rows = [len(raw.special) + raw.known.to_pylist().index(name) for name in names]
    np.testing.assert_allclose(vectors, checkpoint[item][rows], rtol=1e-5)
    users = (directory / "user_id_names.tsv").read_text().splitlines()
    assert users == ["padding", "null", "unknown", "u0", "u1", "u2", "u3"]
    said = capsys.readouterr().out
    assert "for TensorBoard's projector" in said and "7 of 10 rows of item_id" in said


def test_ranks_do_not_have_tables_whole(dataset, monkeypatch):
    from lookback.training import run

    monkeypatch.setattr(run, "launched_size", lambda: 2)
    with pytest.raises(UserError, match="tensorboard_projector: expected in one process"):
        cli.train([*WORDS, "--dataset_dir", str(dataset), "--tensorboard_projector"])

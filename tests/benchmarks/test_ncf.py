"""What the benchmarks of NeuMF time, and what they compute beside times."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lookback.benchmarks import ncf_options, ncf_train, world_size
from lookback.benchmarks.data import resident_interactions
from lookback.benchmarks.ncf_accuracy import popularity_hit_ratio
from lookback.benchmarks.ncf_contenders import Contenders, make_histories
from lookback.benchmarks.peers.client import SOURCES, missing, peer_python
from lookback.dataloading.interactions.source import InteractionSource
from lookback.models.neumf_config import NeuMFConfig

ROOT = Path(__file__).resolve().parents[2]
SMALL = NeuMFConfig(factors=2, layers=(8, 6, 4))

needs_torch = pytest.mark.skipif(
    missing("torch_neumf") is not None, reason="benchmarks/peers/setup.sh torch was not run"
)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    ncf_options.add_arguments(parser)
    small = ("--users", "30", "--items", "200", "--events", "900")
    return parser.parse_args([*small, *arguments])


@pytest.fixture(scope="module")
def histories():
    return make_histories(parse())


@pytest.fixture(scope="module")
def contenders(histories):
    return Contenders(histories, batch_size=52, config=SMALL)


def test_generated_interactions():
    histories = resident_interactions(users=2000, items=50, events=100_000)
    lengths = np.diff(histories.offsets)
    assert histories.num_users == 2000
    assert lengths.min() >= 20
    assert histories.num_events == pytest.approx(100_000, rel=0.05)
    item = histories.item_features["item_id"]
    assert len(item) == histories.num_events
    np.testing.assert_array_equal(np.unique(item), histories.catalogue["item_id"])
    np.testing.assert_array_equal(histories.catalogue["item_id"], np.arange(3, 53))
    counts = np.sort(np.bincount(item)[3:])[::-1]
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.2)  # a power law of exponent 1
    assert histories.schema.column_names == ["user_id", "item_id"]
    assert histories.schema["user_id"].int_domain.max == 2002


def test_contenders_do_a_batch_a_call(contenders, eagerly):
    """52 rows hold 10 positives with 4 negatives, and no user with 101 candidates: so it is 1."""
    pairs = contenders.candidate_pairs()
    functions = [
        contenders.train(),
        contenders.train(amp=True),
        contenders.train("lazy_adam"),
        contenders.score_candidates(),
        contenders.score_pairs(pairs),
        contenders.score_pairs(contenders.random_pairs(9), amp=True),
    ]
    assert [function() for function in functions] == [50, 50, 50, 101, 101, 9]


def test_pairs_are_those_that_ours_get(contenders, histories):
    source = InteractionSource(histories, seed=0, batch_size=52)
    features, labels = source.train_batch(next(iter(source.train_feeds(0, 0))))
    pairs = contenders.train_pairs()
    assert {name: values.shape for name, values in pairs.items()} == dict.fromkeys(pairs, (4, 50))
    users = np.repeat(features["user_id"].numpy(), 5)
    np.testing.assert_array_equal(pairs["users"][0], users)
    np.testing.assert_array_equal(pairs["items"][0], features["item_id"].numpy().ravel())
    np.testing.assert_array_equal(pairs["labels"][0], labels.numpy().ravel())
    assert pairs["labels"].mean() == pytest.approx(1 / 5)
    assert contenders.candidate_pairs()["labels"].mean() == pytest.approx(1 / 101)


def test_popularity_ranks_by_training_events(make_histories):
    """Against a count of each user's better candidates, one by one."""
    histories = make_histories(lengths=[12, 9, 15, 7, 11], items=60)
    ends = histories.offsets[1:] - 1
    items = histories.item_features["item_id"]
    training = np.delete(items, ends)
    source = InteractionSource(histories, seed=0, batch_size=64, test_negatives=6)
    hits = users = 0
    for feed in source.eval_feeds("test"):
        for row in source.eval_batch("test", feed)[0]["item_id"].numpy():
            positive, *others = ((training == item).sum() for item in row)
            hits += sum(other >= positive for other in others) < 2
            users += 1
    assert 0 < hits < users
    assert popularity_hit_ratio(histories, test_negatives=6, k=2) == hits / users


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own():
    found = ncf_train.peak_memory(parse(), 100, ["ours"])
    assert list(found) == ["ours"]
    assert 100e6 < found["ours"] < 4e9


@needs_torch
def test_memory_of_pytorch():
    size = ncf_train.peak_of("torch", parse(), 100)
    assert size is not None
    assert 50e6 < size < 4e9


def test_options_of_neumf_by_world_size_are_those_of_train_py(tmp_path, monkeypatch):
    from lookback.core.options import parse
    from lookback.training.run import command_line

    ran = []
    monkeypatch.setattr(
        world_size.subprocess,
        "run",
        lambda command, **_: ran.append(command) or argparse.Namespace(returncode=0),
    )
    (tmp_path / "u.data").touch()
    monkeypatch.setattr("lookback.workflows.pipeline.run_dataset", lambda *_, **options: None)
    args = argparse.Namespace(model_type="neumf", input=tmp_path)
    world_size.train(1, {**world_size.training_options(args, tmp_path), "micro_batches": 4})
    run, _, options = parse(ran[0][2:], command_line())
    assert (run.model_type, run.optimizer, run.micro_batches) == ("neumf", "full_adam", 4)
    assert (run.beta1, options.layers) == (0.9, (64, 64, 32, 16))


ORACLE = """
import json, sys
import numpy as np
import torch
from lookback.benchmarks.peers.torch_neumf import NeuMF, contenders, given_batches

torch.manual_seed(0)
model = NeuMF(7, 9, factors=2, layers=(8, 6, 4), dropout=0.5)
batches = given_batches(sys.argv[1])
users, items, labels = batches[0]
model.eval()
with torch.no_grad():
    scores = model(users, items, sigmoid=True).view(-1).tolist()
weights = {name: value.tolist() for name, value in model.state_dict().items()}
before = model.mf_user_embed.weight.detach().clone()
functions = contenders(model, batches)
rows = [functions["train"](), functions["infer"](), functions["train"]()]
moved = (model.mf_user_embed.weight != before).any(1).tolist()
print(json.dumps([scores, weights, rows, moved]))
"""


@needs_torch
def test_pytorchs_neumf(tmp_path):
    """Its scores are the paper's formula; two steps move the rows of users that occurred."""
    users = np.array([[1, 2, 2, 5], [1, 3, 3, 3]], np.int32)
    items = np.array([[1, 8, 2, 2], [4, 4, 5, 6]], np.int32)
    np.savez(tmp_path / "b.npz", users=users, items=items, labels=np.eye(2, 4, dtype=np.float32))
    done = subprocess.run(
        [peer_python("torch_neumf"), "-c", ORACLE, str(tmp_path / "b.npz")],
        cwd=ROOT,
        env={"PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        check=True,
    )
    scores, weights, rows, moved = json.loads(done.stdout)
    w = {name: np.array(value) for name, value in weights.items()}
    mf = w["mf_user_embed.weight"][users[0]] * w["mf_item_embed.weight"][items[0]]
    x = np.concatenate(
        [w["mlp_user_embed.weight"][users[0]], w["mlp_item_embed.weight"][items[0]]], 1
    )
    for layer in range(2):
        x = np.maximum(x @ w[f"mlp.{layer}.weight"].T + w[f"mlp.{layer}.bias"], 0)
    logits = np.concatenate([mf, x], 1) @ w["final.weight"].T + w["final.bias"]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-5)
    assert rows == [4, 4, 4]
    assert moved == [False, True, True, False, False, True, False]

"""The package's public names: one list, and nothing imported before they are asked for."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lookback
from lookback import api, cli
from lookback.core.errors import UserError
from lookback.training.output.logging import read_log


def test_what_is_public_is_what_the_api_defines() -> None:
    defined = {
        name
        for name, value in vars(api).items()
        if getattr(value, "__module__", None) == api.__name__ and not name.startswith("_")
    }
    assert defined == set(lookback.__all__) - {"__version__"}
    for name in defined:
        assert getattr(lookback, name) is getattr(api, name)
        assert inspect.getdoc(getattr(lookback, name))
    assert dir(lookback) == sorted(lookback.__all__)
    with pytest.raises(AttributeError, match=r"'lookback' has no attribute 'recommend'"):
        lookback.recommend  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, lookback; lookback.load_bundle, lookback.train; import lookback.api; "
        "print(*sorted({'numpy', 'pandas', 'pyarrow', 'tensorflow', 'merlin'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


TINY = {
    "model_type": "din",
    "embedding_dim": 4,
    "max_seq_length": 6,
    "long_seq_length": 4,
    "stage_two_mlp_dims": (8, 4),
    "global_batch_size": 32,
}
WORDS = (
    *("--model_type", "din", "--embedding_dim", "4", "--max_seq_length", "6"),
    *("--long_seq_length", "4", "--stage_two_mlp_dims", "8,4", "--global_batch_size", "32"),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that the workflow wrote."""
    from lookback.workflows.pipeline import run_dataset

    place = tmp_path_factory.mktemp("api")
    rows = "".join(f"u{n % 8},i{n * n % 13},{1_500_000_000 + n}\n" for n in range(120))
    (place / "a.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    run_dataset("interactions", place / "a.csv", place / "dataset", min_interactions=4)
    return place / "dataset"


def test_every_option_given_by_keyword_refuses_values_of_other_types() -> None:
    from lookback.core.options import words_by_keyword
    from lookback.training.run import command_line

    line = command_line()
    known = [line.shared(), *(line.own(variant) for variant in line.variants)]
    options = {name: option for of in known for name, option in of.items()}
    assert len(options) > 100
    others = {
        bool: [1, 0.0, "yes"],
        int: [True, 1.5],
        float: [False, "0_1"],
        str: [True, 1.5],
        Path: [False, 3],
    }
    for name, option in options.items():
        wrong = [{}, {"a"}, object(), b"1", *others[option.kind]]
        of_its_own = option.choices[0] if option.choices else {bool: True, int: 1, float: 0.1}
        one = of_its_own.get(option.kind, "1") if isinstance(of_its_own, dict) else of_its_own
        wrong += [[[one]], [{}]] if option.is_tuple else [[one], (one,), []]
        for value in wrong:
            with pytest.raises(UserError, match=f"--{name}: expected"):
                words_by_keyword(line, {name: value})


def test_values_of_numpy_and_paths_are_as_good_as_pythons() -> None:
    from lookback.core.options import words_by_keyword
    from lookback.training.run import command_line

    given = {"lr": np.float32(0.5), "epochs": np.int64(3), "results_dir": Path("a"), "seed": None}
    words = ["--lr=0.5", "--epochs=3", "--results_dir=a", "--seed=none"]
    assert words_by_keyword(command_line(), given) == words
    with pytest.raises(UserError, match=r"--features: .*of which one has a comma"):
        words_by_keyword(command_line(), {"features": ["price,kind"]})


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_training_by_keyword_is_training_by_command(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = lookback.train(
        **TINY,
        dataset_dir=dataset,
        seed=3,
        epochs=1,
        amp=False,
        results_dir="a",
        save_checkpoint_path=Path("saved"),
    )
    more = ("--dataset_dir", str(dataset), "--seed", "3", "--epochs", "1", "--results_dir", "b")
    cli.train([*WORDS, *more, "--save_checkpoint_path", "other"])
    summaries = [read_log(Path(name) / "log.json")[-1] for name in "ab"]
    assert not summaries[0].step
    metrics = [n for n in done.metrics if n.startswith("test_")]
    assert len(metrics) >= 4
    for name in metrics:
        assert done.metrics[name] == summaries[0].data[name] == summaries[1].data[name]
    configs = [(Path(name) / "config.yaml").read_text().splitlines() for name in "ab"]
    assert [line for line in configs[0] if line not in configs[1]] == [
        *("results_dir: a", "save_checkpoint_path: saved")
    ]
    assert (done.results_dir, done.export_dir) == (Path("a"), None)
    assert done.checkpoint is not None and done.checkpoint.parent == Path("saved")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lenght": 9}, ("--lenght", "9")),
        ({"lr": -1}, ("--lr", "-1")),
        ({"gsu": "soft"}, ("--gsu", "soft")),
        ({"mode": "evaluate"}, ("--mode", "evaluate")),
        ({"dataset_dir": "nowhere"}, ("--dataset_dir", "nowhere")),
    ],
)
def test_mistakes_by_keyword_are_told_as_on_the_command_line(dataset, given, words):
    with pytest.raises(UserError) as by_command:
        cli.train([*WORDS, "--dataset_dir", str(dataset), *words])
    with pytest.raises(UserError) as by_keyword:
        lookback.train(**{**TINY, "dataset_dir": dataset, **given})
    assert str(by_keyword.value) == str(by_command.value)


def test_a_dataset_says_what_it_holds(dataset, capsys):
    found = lookback.load_dataset(dataset)
    assert found.counts["events"] == 120
    assert found.features.keys() == {"user_id", "item_id"}
    assert found.features["item_id"] == 3 + len({n * n % 13 for n in range(120)})
    assert [column.name for column in found.schema] == ["user_id", "item_id", "timestamp"]
    assert "events 120" in repr(found)
    found.describe()
    assert "history length" in capsys.readouterr().out
    with pytest.raises(UserError, match="trusted_dataset_digest"):
        lookback.load_dataset(dataset, trusted_digest="0" * 64)
    with pytest.raises(UserError, match=r"workflow is not a dataset: there is no dataset\.json"):
        lookback.load_dataset(dataset / "workflow")


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_keras_fits_on_the_batches_that_a_run_would_have(dataset):
    import tensorflow as tf

    found = lookback.load_dataset(dataset)
    batches = found.to_tf(**TINY, seed=5)
    first, second = ([*batches.as_numpy_iterator()] for _ in range(2))
    assert len(first) == len(batches) == len(second)
    assert not all(
        np.array_equal(a["item_id"], b["item_id"])
        for (a, _), (b, _) in zip(first, second, strict=True)
    ), "each time is another epoch"
    from lookback.core.options import from_values
    from lookback.training.data import open_source
    from lookback.training.run import command_line

    source = open_source(*from_values(command_line(), **TINY, dataset_dir=dataset, seed=5))
    for feed, (features, labels) in zip(source.train_feeds(0, 0), first, strict=True):
        expected, of_rows = source.train_batch(feed)
        np.testing.assert_array_equal(labels, of_rows)
        assert expected.keys() == features.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(features[name], values)
    held_out = found.to_tf(**TINY, split="test")
    (a, _), (b, _) = (next(held_out.as_numpy_iterator()) for _ in range(2))
    np.testing.assert_array_equal(a["item_id"], b["item_id"])

    tf.keras.utils.set_random_seed(1)
    model = found.model(**TINY)
    model.compile(tf.keras.optimizers.legacy.Adam(0.05), run_eagerly=True)
    losses = model.fit(batches, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert model.evaluate(held_out, verbose=0, return_dict=True)["loss"] > 0

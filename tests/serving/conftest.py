from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

LENGTHS = ("--max_seq_length", "12", "--long_seq_length", "8")
SMALL = (*LENGTHS, "--embedding_dim", "4", "--global_batch_size", "64", "--seed", "1")


class Raw(NamedTuple):
    """Raw reviews as a frame of user, item, time, and the items' categories."""

    events: pd.DataFrame
    categories: dict[str, str]

    def request(self, user: str, candidates: list[str]) -> dict[str, Any]:
        """A request that asks for the user's last event, made from the raw data alone."""
        events = self.events[self.events["user"] == user].sort_values(["time", "item"])
        past = events.iloc[:-1]
        return {
            "user_id": user,
            "history": {
                "item_id": past["item"].tolist(),
                "category_id": [self.categories[item] for item in past["item"]],
                "timestamp": past["time"].tolist(),
            },
            "candidates": {
                "item_id": candidates,
                "category_id": [self.categories[item] for item in candidates],
            },
            "timestamp": int(events["time"].iloc[-1]),
        }


@pytest.fixture(scope="session")
def raw() -> Raw:
    random = np.random.default_rng(0)
    items = [f"B{number:03d}" for number in range(40)]
    rows = []
    for user in range(30):
        count = int(random.integers(3, 30))
        times = 1_400_000_000 + np.cumsum(random.integers(0, 10**6, count))
        chosen = random.choice(items, count)
        rows += [(f"U{user:03d}", item, int(t)) for item, t in zip(chosen, times, strict=True)]
    events = pd.DataFrame(rows, columns=["user", "item", "time"])
    return Raw(events, {item: f"cat {number % 5} ü" for number, item in enumerate(items)})


@pytest.fixture(scope="session")
def dataset_dir(raw: Raw, once: Callable[..., Path]) -> Path:
    """The raw reviews, gone through the real workflow."""
    return once("reviews", lambda directory: _prepare(raw, directory)) / "dataset"


def _prepare(raw: Raw, directory: Path) -> None:
    from lookback.workflows.pipeline import run_dataset

    (directory / "raw").mkdir()
    reviews = [
        json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": time})
        for user, item, time in raw.events.itertuples(index=False)
    ]
    (directory / "raw" / "reviews_Test.json").write_text("\n".join(reviews) + "\n")
    items = [
        json.dumps({"asin": item, "categories": [["All", category]]})
        for item, category in raw.categories.items()
    ]
    (directory / "raw" / "meta_Test.json").write_text("\n".join(items) + "\n")
    run_dataset("amazon", directory / "raw", directory / "dataset", min_interactions=5, workers=0)


class Trained(NamedTuple):
    """A run's outputs, and its arguments but for where results go."""

    bundle: Path
    checkpoints: Path
    arguments: tuple[str, ...]


@pytest.fixture(scope="session")
def train_sim(
    dataset_dir: Path, once: Callable[..., Path], running_eagerly: Callable[[], Any]
) -> Callable[[bool], Trained]:
    """Trains SIM for one epoch with train.py and exports it, once for each kind."""

    def run(time_features: bool) -> Trained:
        def of(directory: Path) -> Trained:
            return Trained(
                directory / "export",
                directory / "checkpoints",
                (
                    *("--dataset_dir", str(dataset_dir), "--model_type", "sim", "--k", "3"),
                    *("--epochs", "1", *SMALL),
                    *(["--time_features"] if time_features else []),
                ),
            )

        def train(directory: Path) -> None:
            from lookback import cli

            trained = of(directory)
            with warnings.catch_warnings(), running_eagerly():
                warnings.simplefilter("ignore")
                cli.train(
                    [
                        *(*trained.arguments, "--results_dir", str(directory / "results")),
                        *("--save_checkpoint_path", str(trained.checkpoints)),
                        *("--export_dir", str(trained.bundle)),
                    ]
                )

        return of(once("sim-timed" if time_features else "sim", train))

    return run


@pytest.fixture(scope="session")
def sim_bundle(train_sim: Callable[[bool], Trained]) -> Path:
    return train_sim(False).bundle


@pytest.fixture
def reset_policy() -> Iterator[Callable[[], None]]:
    """Sets Keras's policy to float32, when called and after the test."""
    import tensorflow as tf

    def reset() -> None:
        tf.keras.mixed_precision.set_global_policy("float32")

    yield reset
    reset()


class Newer(NamedTuple):
    """A dataset that has gone on, and events of its users that came to a store meanwhile.

    Attributes:
      dataset: with the first two of `sent`, and an event that never went to the store.
      sent: by their ids a, b, c and d.
    """

    dataset: Path
    sent: list[dict[str, Any]]


@pytest.fixture(scope="session")
def newer(dataset_dir: Path, raw: Any, tmp_path_factory: pytest.TempPathFactory) -> Newer:
    from lookback.workflows.update import update_dataset

    place = tmp_path_factory.mktemp("newer")
    later = int(raw.events["time"].max()) + 1000
    sent = [
        {"user": "U001", "event_id": "a", "timestamp": later, "item_id": "B003"},
        {"user": "U001", "event_id": "b", "timestamp": later + 1, "item_id": "B900"},
        {"user": "U001", "event_id": "c", "timestamp": later + 2, "item_id": "B004"},
        {"user": "online", "event_id": "d", "timestamp": later, "item_id": "B005"},
    ]
    of_items = {**raw.categories, "B900": "cat 1 ü"}
    (place / "raw").mkdir()
    log = [("U001", "B003", later), ("U001", "B900", later + 1), ("U002", "B900", later + 5)]
    names = ("reviewerID", "asin", "unixReviewTime")
    (place / "raw" / "reviews_Test.json").write_text(
        "".join(json.dumps(dict(zip(names, event, strict=True))) + "\n" for event in log)
    )
    (place / "raw" / "meta_Test.json").write_text(
        json.dumps({"asin": "B900", "categories": [["All", "cat 1 ü"]]}) + "\n"
    )
    update_dataset(dataset_dir, place / "raw", place / "dataset", workers=0)
    every = [{**event, "category_id": of_items[event["item_id"]]} for event in sent]
    return Newer(place / "dataset", every)


@pytest.fixture(scope="session")
def newer_bundle(newer: Newer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of its vocabularies, with the weights of a seed."""
    import tensorflow as tf

    from lookback.formats.schema import read_schema
    from lookback.models import MODELS, SIMConfig
    from lookback.serving.export import export_bundle

    tf.keras.utils.set_random_seed(3)
    config = SIMConfig(max_seq_length=12, long_seq_length=8, embedding_dim=4)
    model = MODELS["sim"](read_schema(newer.dataset), config)
    names = ("item_id", "category_id")
    model(
        {
            "user_id": tf.ones([2], tf.int32),
            **{name: tf.ones([2, 1], tf.int32) for name in names},
            **{f"{name}_history": tf.ones([2, 12], tf.int32) for name in names},
        }
    )
    return export_bundle(model, newer.dataset, tmp_path_factory.mktemp("newer") / "bundle")

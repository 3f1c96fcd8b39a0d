"""A layout that nobody has seen trains and serves by files and entries in registries alone.

The toy: rows of one number and one label, in text files. Model, layout and its serving side stand
here; nothing of ours branches on any of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import merlin.models.tf as mm
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from merlin.models.tf.core.base import Block
from merlin.schema import ColumnSchema, Schema, Tags

from lookback import dataloading, models
from lookback.core.errors import UserError
from lookback.core.options import check_options, option, parse
from lookback.core.world import World
from lookback.dataloading.layout import BatchOptions, LayoutOptions
from lookback.dataloading.layout import Layout as DataLayout
from lookback.dataloading.sources import NumberedSource
from lookback.embeddings.collection import EmbeddingCollection
from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.types import TableSpec
from lookback.models.model_config import ModelConfig
from lookback.models.registry import ModelEntry
from lookback.serving import export, manifest
from lookback.serving.bundle import Bundle
from lookback.serving.export_dataset import ExportedDataset
from lookback.serving.layouts import registry
from lookback.serving.layouts.base import RequestLayout as ServingLayout
from lookback.serving.manifest import Manifest
from lookback.serving.requests import EncodedBatch, Request, check_keys
from lookback.serving.scores import Scores
from lookback.training import run
from lookback.training.output.logging import read_log

SCHEMA = Schema([ColumnSchema("x", tags=[Tags.CONTINUOUS], dtype="float32")])


# --- the layout: dataloading/numbers/


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumbersOptions(LayoutOptions):
    scale: float = option(1.0, help="What numbers are multiplied with", above=0, continued=True)


class NumbersSource(NumberedSource):
    schema = SCHEMA

    def __init__(self, directory: Path, batches: BatchOptions, scale: float) -> None:
        self._rows = {
            split: np.loadtxt(directory / f"{split}.numbers", np.float32, ndmin=2) * [scale, 1]
            for split in ("train", "test")
        }
        self._batches = batches
        self._part, self._micro_batches = batches.part, batches.micro_batches or 1
        self._steps = -(-len(self._rows["train"]) // batches.batch_size)
        self._repeat_count = batches.repeat_count

    def eval_steps(self, split: str) -> int:
        return -(-len(self._rows[split]) // self._batches.eval_batch_size)

    def train_batch(self, feed: tf.Tensor) -> Any:
        return self._batch("train", feed[1], self._batches.batch_size, self._part_of(feed))

    def eval_batch(self, split: str, feed: tf.Tensor) -> Any:
        return self._batch(split, feed, self._batches.eval_batch_size, self._part)

    def describe(self, feed: tf.Tensor) -> dict[str, list[Any]]:
        return {"x": self.train_batch(feed)[0]["x"].numpy().ravel().tolist()}

    def _batch(self, split: str, step: tf.Tensor, size: int, part: Any) -> Any:
        index = part.of_batch(step, size, len(self._rows[split]))
        rows = tf.gather(tf.constant(self._rows[split], tf.float32), index)
        return {"x": rows[:, :1]}, rows[:, 1:]


class NumbersLayout(DataLayout):
    options_class = NumbersOptions
    reads = "numbers"

    def found_in(self, directory: Path) -> str | None:
        return self.reads if (directory / "train.numbers").is_file() else None

    def open(
        self, directory: Path, batches: BatchOptions, options: Any, model: Any, world: World
    ) -> NumbersSource:
        return NumbersSource(directory, batches, options.scale)

    def training_rows(self, directory: Path, options: Any, model: Any) -> int:
        return (directory / "train.numbers").stat().st_size // 8

    def identity(self, directory: Path, options: Any, ranks: int) -> dict[str, Any]:
        return {"dataset": (directory / "train.numbers").stat().st_size}


# --- the model: models/line.py


@dataclasses.dataclass(frozen=True)
class LineConfig(ModelConfig):
    layout: ClassVar[str] = "numbers"
    run_defaults: ClassVar[Mapping[str, Any]] = {"lr": 0.2}
    width: int = option(2, help="width of the origin", at_least=1)

    def __post_init__(self) -> None:
        check_options(self)


@tf.keras.utils.register_keras_serializable(package="toy")
class LineBody(Block):
    config_class = LineConfig

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._width = width
        table = TableSpec("origin", rows=1, dim=width)
        self.embeddings = EmbeddingCollection([table], {"origin": "origin"}, name="embeddings")

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        ids = tf.zeros_like(inputs["x"][:, 0], tf.int32)
        return tf.concat([inputs["x"], self.embeddings({"origin": ids})["origin"]], 1)

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        return tf.TensorShape([None, 1 + self._width])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self._width, "config": {"width": self._width}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LineBody:
        return cls(**{name: value for name, value in config.items() if name != "config"})


@tf.keras.utils.register_keras_serializable(package="toy")
class Line(mm.Model):
    @property
    def body(self) -> LineBody:
        return self.blocks[0]


def tables(schema: Schema, config: LineConfig) -> list[TableSpec]:
    return [TableSpec("origin", rows=1, dim=config.width)]


def build(schema: Schema, config: LineConfig, sharding: Sharding = LOCAL) -> Line:
    loss = tf.keras.losses.BinaryCrossentropy(from_logits=True)
    head = mm.BinaryOutput("click", to_call=tf.keras.layers.Dense(1), default_loss=loss)
    return Line(LineBody(config.width), head, schema=schema)


# --- its requests: serving/layouts/numbers/


@dataclasses.dataclass(frozen=True)
class NumbersManifest(Manifest):
    layout = "numbers"
    output_axes = "[B, 1]"

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        return {"number": ("x",)}

    def input_type(self, name: str) -> Any:
        return "float32"


class NumberEncoder:
    def check(self, index: int, request: Request) -> int:
        check_keys(index, "the request", request, needed=("x",), allowed=())
        return 1

    def encode(
        self, requests: Sequence[Request], counts: Sequence[int] | None = None
    ) -> EncodedBatch:
        values = np.array([[request["x"]] for request in requests], np.float32)
        return EncodedBatch({"x": values}, (1,) * len(requests))


class ServedNumbers(ServingLayout):
    sample_options = ()

    def load_encoder(self, directory: Path, manifest: Any) -> NumberEncoder:
        return NumberEncoder()

    def answer(self, request: Request, manifest: Any, scores: Scores) -> dict[str, Any]:
        return {"probability": float(scores.probability[0])}

    def table(self, number: int, request: Request, manifest: Any, scores: Scores) -> str:
        return f"{scores.probability[0]}\n"

    def sample(self, *_: Any, **__: Any) -> Iterable[dict[str, Any]]:
        return [{"x": 1.0}]

    def draw(
        self, manifest: Any, batch_size: int, random: np.random.Generator
    ) -> dict[str, npt.NDArray[Any]]:
        return {"x": random.standard_normal((batch_size, 1), np.float32)}


class ExportedNumbers(ExportedDataset):
    layout = "numbers"

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        return (directory / "train.numbers").is_file()

    def require(self) -> None:
        pass

    def schema(self, body: Mapping[str, Any]) -> Schema:
        return SCHEMA

    def manifest(self, schema: Any, model_schema: Any, body: Any, **common: Any) -> Manifest:
        described = {"cardinalities": {}, "vocabularies": {}, "dataset": {"name": "numbers"}}
        return NumbersManifest(ids="raw", inputs={"x": (None, 1)}, **described, **common)

    def copy_parts(self, target: Path) -> None:
        pass


# --- their lines in the registries


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dataloading.LAYOUTS, "numbers", NumbersLayout())
    monkeypatch.setitem(models.MODELS, "line", ModelEntry(__name__, LineConfig))
    monkeypatch.setitem(registry.LAYOUTS, "numbers", ServedNumbers())
    monkeypatch.setitem(manifest.MANIFESTS, "numbers", NumbersManifest)
    monkeypatch.setattr(export, "DATASETS", (ExportedNumbers, *export.DATASETS))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Labels are 1 above 0: a line separates them."""
    directory = tmp_path / "data"
    directory.mkdir()
    x = np.linspace(-2, 2, 64)
    for split in ("train", "test"):
        np.savetxt(directory / f"{split}.numbers", np.stack([x, x > 0], 1))
    return directory


def line(dataset: Path, results: Path, *more: str) -> list[str]:
    run_of = ("--model_type", "line", "--dataset_dir", str(dataset), "--global_batch_size", "16")
    return [*run_of, "--results_dir", str(results), "--seed", "1", "--epochs", "5", *more]


def test_it_trains_continues_and_serves(dataset: Path, tmp_path: Path) -> None:
    saved = ("--save_checkpoint_path", str(tmp_path / "saved"))
    bundle = ("--export_dir", str(tmp_path / "bundle"))
    run.main(line(dataset, tmp_path / "run", *saved, *bundle), export)
    (summary,) = [r.data for r in read_log(tmp_path / "run" / "log.json") if r.step == ()][-1:]
    assert summary["test_auc"] == 1.0

    exported = Bundle.load(tmp_path / "bundle")
    below, at, above = exported.score([{"x": -2.0}, {"x": 0.0}, {"x": 2.0}])
    logits = [float(scores.logit[0]) for scores in (below, at, above)]
    assert logits[0] < 0 < logits[2]
    assert logits[1] == pytest.approx((logits[0] + logits[2]) / 2, abs=1e-5)  # it is a line
    assert float(above.probability[0]) == pytest.approx(1 / (1 + math.exp(-logits[2])), abs=1e-6)

    continues = ("--load_checkpoint_path", str(tmp_path / "saved"))
    run.main(line(dataset, tmp_path / "run", *continues), export)
    with pytest.raises(UserError, match=r"scale"):
        run.main(line(dataset, tmp_path / "run", *continues, "--scale", "2"), export)


def test_its_options_are_its_own(dataset: Path, tmp_path: Path) -> None:
    configs = parse(line(dataset, tmp_path, "--scale", "3"), run.command_line())
    assert configs[1:] == (NumbersOptions(scale=3.0), LineConfig())
    assert configs[0].lr == 0.2
    for argv, message in (
        (line(dataset, tmp_path, "--negatives", "uniform"), "--negatives is an option of sim, .*"),
        (line(dataset, tmp_path, "--scale", "0"), "--scale: expected a number, above 0, received"),
        (["--dataset_dir", "d", "--scale", "3"], "--scale is an option of line, not of sim"),
    ):
        with pytest.raises(UserError, match=message):
            parse(argv, run.command_line())


def test_other_models_do_not_read_its_data(dataset: Path, tmp_path: Path) -> None:
    argv = ["--model_type", "sim", "--dataset_dir", str(dataset), "--results_dir", str(tmp_path)]
    with pytest.raises(UserError, match=r"sim reads histories, and .* holds numbers"):
        run.main(argv, export)

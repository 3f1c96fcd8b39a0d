"""Writes a bundle: a trained model with all that turns raw values into its inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookback.core.digests import digest_of
from lookback.core.errors import UserError
from lookback.core.files import atomic_directory
from lookback.core.outputs import check_directory
from lookback.formats.schema import write_schema
from lookback.serving.attention import ATTENTION, attention_function
from lookback.serving.export_dataset import ExportedDataset
from lookback.serving.kernel_graph import KERNEL_GRAPH, write_kernel_graph
from lookback.serving.layouts.histories.export import ExportedHistories, ExportedMaterialised
from lookback.serving.layouts.interactions.export import ExportedInteractions
from lookback.serving.layouts.tabular.export import ExportedSplitBinary, ExportedTabular
from lookback.serving.manifest import BUNDLE, MANIFEST_FILE, MODEL_DIRECTORY, SIGNATURE, Manifest
from lookback.serving.tables import Blocks, rows_of, specs_of, write_tables

# Importing them takes seconds, and train.py checks its target before it sets TensorFlow up.
if TYPE_CHECKING:
    from lookback.models.click_model import ClickModel
    from lookback.training.start import Origin

DATASETS: tuple[type[ExportedDataset], ...] = (
    ExportedMaterialised,
    ExportedTabular,
    ExportedSplitBinary,
    ExportedHistories,
)
"""What a bundle can come from, in the order in which they are tried; the last takes all."""

OTHER_READINGS: Mapping[tuple[type[ExportedDataset], str], type[ExportedDataset]] = {
    (ExportedHistories, ExportedInteractions.layout): ExportedInteractions
}
"""Of a format, and the layout of a model that reads it in another way than its own."""

_ROWS_AT_ONCE = 1 << 18

TABLE_PREFIX = "table/"
"""Begins the names of tables among a model's tensors, as checkpoints have them."""

_PACKAGES = ("tensorflow", "tensorflow-cpu", "merlin-models", "merlin-core", "nvtabular")


def check_export_target(
    export_dir: Path, dataset_dir: Path | None = None, inputs: Sequence[Path] = ()
) -> None:
    """Checks, before hours of training, that a bundle could be written.

    Args:
      export_dir: must not exist, or be empty, or hold a bundle and nothing else (which the export
        will replace, in one step and only when the new one is complete).
      dataset_dir: if given, what a bundle needs of it is looked for, too.
      inputs: what else is read, which the bundle must keep apart from.

    Raises:
      UserError: saying what is in the way.
    """
    read = [*inputs, *([] if dataset_dir is None else [dataset_dir])]
    check_directory(export_dir, BUNDLE, overwrite=True, inputs=read)
    existing = export_dir.absolute().parent
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".lookback-", dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"export_dir: {export_dir} cannot be created ({error.strerror}: {existing}). Choose "
            "another directory."
        ) from error
    if dataset_dir is not None:
        open_dataset(dataset_dir).require()


def bundle_digest(export_dir: Path) -> str:
    """The digest by which a bundle can be trusted: that of its manifest, which has all others.

    Args:
      export_dir: a bundle.
    """
    return digest_of(export_dir / MANIFEST_FILE)


def is_bundle(directory: Path) -> bool:
    """Whether a directory holds a bundle, of whatever version or state."""
    return (directory / MANIFEST_FILE).is_file()


def load_origin(directory: Path, trusted_digest: str | None = None) -> Origin:
    """The model of a bundle, for one of other data to start from.

    Loading runs code that the bundle holds: see docs/trust.md. Of tables in files, only rows that
    are needed are read.

    Args:
      directory: of the bundle.
      trusted_digest: SHA-256 that bundle.json must have; None: any.

    Raises:
      UserError: if it is no bundle, another one than is trusted, or damaged.
    """
    from lookback.serving.origin import BundleOrigin
    from lookback.training.start import ModelOrigin

    manifest = Manifest.read(directory, trusted_digest)
    if manifest.tables:
        return BundleOrigin(directory, manifest)
    said = {"model_type": manifest.model_type, **manifest.options}
    return ModelOrigin(load_model(directory, manifest), said, directory)


def load_model(directory: Path, manifest: Manifest) -> ClickModel:
    """The model of a bundle as its class, all of it in this process.

    Loading runs code that the bundle holds: see docs/trust.md.

    Args:
      directory: of the bundle.
      manifest: of the bundle, whose tables are in the SavedModel.

    Raises:
      UserError: if it was written by another version.
    """
    import merlin.models.tf as mm

    from lookback.models import MODELS

    try:
        importlib.import_module(MODELS[manifest.model_type].module)  # Keras finds its classes then
        return mm.Model.load(str(directory / MODEL_DIRECTORY))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"The model in {directory} cannot be loaded as a {manifest.model_type} of this version "
            f"({type(error).__name__}: {error}). It was exported with TensorFlow "
            f"{manifest.versions['tensorflow']}; start from a checkpoint instead."
        ) from error


def take_tables(model: ClickModel, export_dir: Path) -> None:
    """Gives a model, or this process's part of it, the rows of a bundle's files, block by block.

    Args:
      model: that was exported.
      export_dir: with tables in files.
    """
    import tensorflow as tf

    from lookback.training.state import model_states

    states, tables = model_states(model), Manifest.read(export_dir).table_files
    for name, table in tables.items():
        for part in states[f"{TABLE_PREFIX}{name}"].parts:
            for begin in range(0, len(part.rows), _ROWS_AT_ONCE):
                wanted = np.asarray(part.rows[begin : begin + _ROWS_AT_ONCE])
                places = tf.range(part.start + begin, part.start + begin + len(wanted))
                rows = table.take(export_dir, wanted, part.columns)
                part.variable.scatter_update(tf.IndexedSlices(rows, places))


def export_bundle(
    model: ClickModel,
    dataset_dir: Path,
    export_dir: Path,
    *,
    table_dtype: str | None = None,
    tables: Mapping[str, Blocks] | None = None,
) -> Path:
    """Writes a bundle, whole or not at all.

    Args:
      model: built and trained on that dataset. No optimizer is saved.
      dataset_dir: of the dataset. From one without a workflow comes a bundle that scores encoded
        inputs only.
      export_dir: to write; an earlier bundle there is replaced, anything else is not.
      table_dtype: of tables in files of their own, a key of `serving.tables.DTYPES`; None: they
        stay in the SavedModel, and the model must have them whole in this process.
      tables: their rows, block after block, by name; None: as this process's model has them.

    Returns:
      `export_dir`.

    Raises:
      UserError: if the target is in the way, the dataset lacks a part or is another model's, or a
        table's numbers do not fit their type.
    """
    dataset_dir, export_dir = Path(dataset_dir), Path(export_dir)
    check_export_target(export_dir, dataset_dir)
    config_class = type(model.body).config_class
    dataset = open_dataset(dataset_dir, config_class.layout)
    if dataset.layout != config_class.layout:
        raise UserError(
            f"The model reads data of layout {config_class.layout!r}; {dataset_dir} is of layout "
            f"{dataset.layout!r}. Give the dataset that the model was trained on."
        )
    body = model.body.get_config()
    schema = dataset.schema(body)
    manifest = dataset.manifest(
        schema,
        model.schema,
        body,
        model_type=_model_type(config_class),
        options=_plain(body["config"]),
        versions=_versions(),
    )
    with atomic_directory(export_dir, BUNDLE, overwrite=True, inputs=[dataset_dir]) as directory:
        dataset.copy_parts(directory)
        write_schema(schema, directory)
        if table_dtype is None:
            save_model(model, manifest, directory)
        else:
            written = write_tables(
                directory,
                {t.name: (t.rows, t.dim) for t in model.body.embeddings.tables},
                tables or _own_tables(model),
                table_dtype,
            )
            said = {name: dataclasses.asdict(table) for name, table in written.items()}
            manifest = dataclasses.replace(manifest, tables=said)
            save_without_tables(model, manifest, directory)
        manifest.write(directory)  # last: its absence marks what is incomplete
    return export_dir


def save_model(model: ClickModel, manifest: Manifest, directory: Path) -> None:
    """Saves a model as a SavedModel without optimizer.

    The signature is the model's graph, so it runs where our code is not. The layers' configs are
    saved, too, so that `merlin.models.tf.Model.load` gives the model itself where our code is; the
    graph of each layer is not (`save_traces`): nobody could call it, and tracing takes longer than
    all the rest.

    Args:
      model: built.
      manifest: says the signature's inputs.
      directory: the bundle.
    """
    import tensorflow as tf

    with _signatures(model, manifest, directory) as signatures:
        tf.keras.models.save_model(
            model,
            str(directory / MODEL_DIRECTORY),
            include_optimizer=False,
            save_traces=False,
            signatures=signatures,
        )
    _save_metadata(model, directory / MODEL_DIRECTORY)


def save_without_tables(model: ClickModel, manifest: Manifest, directory: Path) -> None:
    """Saves a model's graph and its weights but for the tables, which the signature takes.

    The weights are `weights` of the object that `tf.saved_model.load` gives, by the names that
    checkpoints have for them. Tables may lie in any processes: none is read.

    Args:
      model: built.
      manifest: says the signature's inputs, and its tables'.
      directory: the bundle.
    """
    import tensorflow as tf

    from lookback.training.state import model_states

    module = tf.Module()
    module.weights = {
        name: state.parts[0].variable
        for name, state in model_states(model).items()
        if not name.startswith(TABLE_PREFIX)
    }
    with _signatures(model, manifest, directory) as signatures:
        tf.saved_model.save(module, str(directory / MODEL_DIRECTORY), signatures=signatures)
    _save_metadata(model, directory / MODEL_DIRECTORY)


@contextlib.contextmanager
def _signatures(model: ClickModel, manifest: Manifest, directory: Path) -> Iterator[dict[str, Any]]:
    """The graphs from a model's inputs, and the tables that it does not hold, by name.

    They are portable. Where the model has operations of ours besides, `kernel_graph` writes the
    graph with them, too, and a server that has them uses that.
    """
    import tensorflow as tf

    from lookback.kernels.loader import cpu_kernels, portable
    from lookback.models.click_model import logits_of

    def score(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        logit = logits_of(model, features)
        return {"logit": logit, "probability": tf.sigmoid(logit)}

    functions = {SIGNATURE: score, ATTENTION: attention_function(model, manifest)}
    with portable() as without:
        graphs = {n: _graph(of, model, manifest) for n, of in functions.items() if of is not None}
        yield graphs
    if without.asked and cpu_kernels() is not None:
        ours = _graph(score, model, manifest)
        write_kernel_graph(directory / KERNEL_GRAPH, graphs[SIGNATURE], ours)


def _graph(function: Any, model: ClickModel, manifest: Manifest) -> Any:
    import tensorflow as tf

    specs = {
        name: tf.TensorSpec(shape, tf.as_dtype(manifest.input_type(name)), name)
        for name, shape in manifest.inputs.items()
    }
    tables = manifest.table_files

    @tf.function(input_signature=[specs | specs_of(tables.values())], autograph=False)
    def serve(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        features = {name: inputs[name] for name in specs}
        source: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if tables:
            source = model.body.embeddings.rows_from(rows_of(tables, inputs))
        with source:
            found: dict[str, tf.Tensor] = function(features)
        return found

    return serve.get_concrete_function()


def _save_metadata(model: ClickModel, directory: Path) -> None:
    """Writes the schemas that Merlin's tools look for beside a model."""
    from merlin.models.io import save_merlin_metadata
    from merlin.schema import ColumnSchema, Schema

    outputs = Schema([ColumnSchema(name, dtype="float32") for name in ("logit", "probability")])
    save_merlin_metadata(directory, model.schema, outputs)


def _own_tables(model: ClickModel) -> dict[str, Blocks]:
    """The rows of tables that are whole in this process."""
    from lookback.training.state import model_states

    states = model_states(model)
    return {
        name.removeprefix(TABLE_PREFIX): state.parts[0].blocks
        for name, state in states.items()
        if name.startswith(TABLE_PREFIX)
    }


def open_dataset(dataset_dir: Path, layout: str | None = None) -> ExportedDataset:
    """What of a directory goes into a bundle, by what lies in it.

    Args:
      dataset_dir: of the dataset.
      layout: of the model, if it is known.
    """
    found = next(kind for kind in DATASETS if kind.recognises(dataset_dir))
    if layout is not None:
        found = OTHER_READINGS.get((found, layout), found)
    return found(dataset_dir)


def _model_type(config_class: type) -> str:
    from lookback.models import MODELS

    return next(name for name, entry in MODELS.items() if entry.config_class is config_class)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package.removesuffix("-cpu")] = version(package)
        except PackageNotFoundError:
            continue  # the CPU and GPU builds of TensorFlow have different names
    return found


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}

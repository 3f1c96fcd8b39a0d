"""Writes a bundle: a trained model with all that turns raw values into its inputs."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.core.digests import digest_of
from lookback.core.errors import UserError
from lookback.core.files import atomic_directory
from lookback.core.outputs import check_directory
from lookback.formats.schema import write_schema
from lookback.serving.export_dataset import ExportedDataset
from lookback.serving.layouts.histories.export import ExportedHistories, ExportedMaterialised
from lookback.serving.layouts.interactions.export import ExportedInteractions
from lookback.serving.layouts.tabular.export import ExportedSplitBinary, ExportedTabular
from lookback.serving.manifest import BUNDLE, MANIFEST_FILE, MODEL_DIRECTORY, SIGNATURE, Manifest

# Importing them takes seconds, and train.py checks its target before it sets TensorFlow up.
if TYPE_CHECKING:
    from lookback.models.click_model import ClickModel

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


def load_model(
    directory: Path, trusted_digest: str | None = None
) -> tuple[ClickModel, dict[str, Any]]:
    """The model of a bundle as its class, to train it further.

    Loading runs code that the bundle holds: see the README's "Whom to trust".

    Args:
      directory: of the bundle.
      trusted_digest: SHA-256 that bundle.json must have; None: any.

    Returns:
      The model, all of it in this process, and "model_type" with the model's options.

    Raises:
      UserError: if it is no bundle, another one than is trusted, or damaged.
    """
    manifest = Manifest.read(directory, trusted_digest)
    import merlin.models.tf as mm

    try:
        model = mm.Model.load(str(directory / MODEL_DIRECTORY))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"The model in {directory} cannot be loaded as a {manifest.model_type} of this version "
            f"({type(error).__name__}: {error}). It was exported with TensorFlow "
            f"{manifest.versions['tensorflow']}; start from a checkpoint instead."
        ) from error
    return model, {"model_type": manifest.model_type, **manifest.options}


def export_bundle(model: ClickModel, dataset_dir: Path, export_dir: Path) -> Path:
    """Writes a bundle, whole or not at all.

    Args:
      model: built and trained on that dataset. No optimizer is saved.
      dataset_dir: of the dataset. From one without a workflow comes a bundle that scores encoded
        inputs only.
      export_dir: to write; an earlier bundle there is replaced, anything else is not.

    Returns:
      `export_dir`.

    Raises:
      UserError: if the target is in the way, or the dataset lacks a part or is another model's.
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
        save_model(model, manifest, directory / MODEL_DIRECTORY)
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
      directory: to create.
    """
    import tensorflow as tf
    from merlin.models.io import save_merlin_metadata
    from merlin.schema import ColumnSchema, Schema

    from lookback.kernels.loader import portable

    specs = {
        name: tf.TensorSpec(shape, tf.as_dtype(manifest.input_type(name)), name)
        for name, shape in manifest.inputs.items()
    }

    @tf.function(input_signature=[specs], autograph=False)  # as training/steps.py, and why
    def serve(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        logit = model(features, training=False)
        return {"logit": logit, "probability": tf.sigmoid(logit)}

    with portable():
        tf.keras.models.save_model(
            model,
            str(directory),
            include_optimizer=False,
            save_traces=False,
            signatures={SIGNATURE: serve.get_concrete_function()},
        )
    outputs = Schema([ColumnSchema(name, dtype="float32") for name in ("logit", "probability")])
    save_merlin_metadata(directory, model.schema, outputs)


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

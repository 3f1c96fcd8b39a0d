"""Writes a bundle: a trained model with all that turns raw ids into its inputs."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from errors import UserError
from fs import atomic_directory
from serving.encoding import FIRST_KNOWN, Vocabulary
from serving.manifest import (
    CATALOGUE_FILE,
    MANIFEST_FILE,
    MODEL_DIRECTORY,
    SIGNATURE,
    Manifest,
    is_bundle,
)

# Importing them takes seconds, and train.py checks its target before it sets TensorFlow up.
if TYPE_CHECKING:
    from merlin.schema import Schema

    from models.base import HistoryModel

WORKFLOW_DIRECTORY = "workflow"
# Beside the whole workflow, `python -m workflows` saves its Categorify alone, as a workflow that
# loads without our code.
VOCABULARIES = f"{WORKFLOW_DIRECTORY}/encoder/categories"

_PACKAGES = ("tensorflow", "tensorflow-cpu", "merlin-models", "merlin-core", "nvtabular")


def check_export_target(export_dir: Path, dataset_dir: Path | None = None) -> None:
    """Checks, before hours of training, that a bundle could be written.

    Args:
      export_dir: must not exist, or be empty, or hold a bundle (which the export will replace, in
        one step and only when the new one is complete).
      dataset_dir: if given, its workflow is looked for, too.

    Raises:
      UserError: saying what is in the way.
    """
    if export_dir.is_symlink() or export_dir.exists():
        if export_dir.is_symlink() or not export_dir.is_dir():
            raise UserError(f"export_dir: {export_dir} is not a directory. Choose another.")
        if any(export_dir.iterdir()) and not is_bundle(export_dir):
            raise UserError(
                f"export_dir: {export_dir} exists and holds no {MANIFEST_FILE}, so it is not an "
                "exported bundle, and nothing else is ever replaced. Choose another directory, or "
                "remove this one."
            )
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
    if dataset_dir is not None and not _is_materialised(dataset_dir):
        _require_workflow(dataset_dir)


def export_bundle(model: HistoryModel, dataset_dir: Path, export_dir: Path) -> Path:
    """Writes a bundle, whole or not at all.

    Args:
      model: built and trained on that dataset. No optimizer is saved.
      dataset_dir: of the dataset. From materialised samples comes a bundle that scores encoded
        ids only, since they have no workflow.
      export_dir: to write; an earlier bundle there is replaced, anything else is not.

    Returns:
      `export_dir`.

    Raises:
      UserError: if the target is in the way, or the dataset lacks a part or is another model's.
    """
    dataset_dir, export_dir = Path(dataset_dir), Path(export_dir)
    check_export_target(export_dir, dataset_dir)
    materialised = _is_materialised(dataset_dir)
    body = model.body.get_config()
    options = dict(body["config"])
    user, item = tuple(body["features"]["user"]), tuple(body["features"]["item"])
    schema = _dataset_schema(dataset_dir, options, len(user))
    from dataloading.features import table_rows

    rows = {name: count for name, count in table_rows(schema).items() if name in (*user, *item)}
    wanted = table_rows(model.schema)
    if rows != {name: wanted[name] for name in (*user, *item)}:
        raise UserError(
            f"The model's tables have {wanted} rows and those of {dataset_dir} {rows}: it was not "
            "made for this dataset."
        )
    ids: Literal["raw", "encoded"] = "encoded" if materialised else "raw"
    vocabularies = {} if materialised else _vocabularies(dataset_dir, rows)
    manifest = Manifest(
        model_type=_model_type(model),
        options=_plain(options),
        ids=ids,
        user_features=user,
        item_features=item,
        max_seq_length=options["max_seq_length"],
        time_features=options["time_features"],
        inputs=_input_shapes(model.schema, user, item, options["max_seq_length"]),
        cardinalities=rows,
        vocabularies=vocabularies,
        dataset=_dataset_summary(dataset_dir),
        versions=_versions(),
    )
    with atomic_directory(export_dir, overwrite=True) as directory:
        _copy_dataset_parts(dataset_dir, directory, materialised)
        _write_schema(schema, directory)
        save_model(model, manifest.inputs, directory / MODEL_DIRECTORY)
        manifest.write(directory)  # last: its absence marks what is incomplete
    return export_dir


def save_model(
    model: HistoryModel, inputs: Mapping[str, tuple[int | None, ...]], directory: Path
) -> None:
    """Saves a model as a SavedModel without optimizer.

    The signature is the model's graph, so it runs where our code is not. The layers' configs are
    saved, too, so that `merlin.models.tf.Model.load` gives the model itself where our code is; the
    graph of each layer is not (`save_traces`): nobody could call it, and tracing takes longer than
    all the rest.

    Args:
      model: built.
      inputs: shape of each int32 input of the signature.
      directory: to create.
    """
    import tensorflow as tf
    from merlin.models.io import save_merlin_metadata
    from merlin.schema import ColumnSchema, Schema

    specs = {name: tf.TensorSpec(shape, tf.int32, name) for name, shape in inputs.items()}

    @tf.function(input_signature=[specs])
    def serve(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        logit = model(features, training=False)
        return {"logit": logit, "probability": tf.sigmoid(logit)}

    tf.keras.models.save_model(
        model,
        str(directory),
        include_optimizer=False,
        save_traces=False,
        signatures={SIGNATURE: serve.get_concrete_function()},
    )
    outputs = Schema([ColumnSchema(name, dtype="float32") for name in ("logit", "probability")])
    save_merlin_metadata(directory, model.schema, outputs)


def _is_materialised(dataset_dir: Path) -> bool:
    return (dataset_dir / "metadata.json").is_file()


def _model_type(model: HistoryModel) -> str:
    from models import MODELS

    config_class = type(model.body).config_class
    return next(name for name, entry in MODELS.items() if entry.config_class is config_class)


def _dataset_schema(dataset_dir: Path, options: Mapping[str, Any], users: int) -> Schema:
    if _is_materialised(dataset_dir):
        from dataloading.materialised import MaterialisedDataset

        return MaterialisedDataset(
            dataset_dir,
            user_features=users,
            max_seq_length=options["max_seq_length"],
            long_seq_length=options["long_seq_length"],
        ).schema
    from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

    return TensorflowMetadata.from_proto_text_file(str(dataset_dir)).to_merlin_schema()


def _dataset_summary(dataset_dir: Path) -> dict[str, Any]:
    if _is_materialised(dataset_dir):
        return {"name": "materialised"}
    from dataloading.histories import read_dataset_info

    info = read_dataset_info(dataset_dir)
    return {
        "name": info["dataset"],
        "content_hash": info["content_hash"],
        **{name: info["counts"][name] for name in ("users", "events", "items")},
    }


def _require_workflow(dataset_dir: Path) -> None:
    for name in (VOCABULARIES, CATALOGUE_FILE):
        if not (dataset_dir / name).exists():
            raise UserError(
                f"export_dir: {dataset_dir} has no {name}, which a bundle needs to encode raw ids. "
                "Write the dataset again with `python -m workflows run`."
            )


def _vocabularies(dataset_dir: Path, rows: Mapping[str, int]) -> dict[str, str]:
    """The file of each feature's vocabulary, checked against the size of its table."""
    files = {}
    for name, count in rows.items():
        files[name] = f"{VOCABULARIES}/unique.{name}.parquet"
        known = len(Vocabulary.read(dataset_dir / files[name], name))
        if FIRST_KNOWN + known != count:
            raise UserError(
                f"{dataset_dir / files[name]} knows {known} ids, and the schema has {count} rows "
                f"for {name!r} ({FIRST_KNOWN} of them reserved). Workflow and data do not belong "
                "together; run the workflow again."
            )
    return files


def _input_shapes(
    schema: Schema, user: tuple[str, ...], item: tuple[str, ...], length: int
) -> dict[str, tuple[int | None, ...]]:
    """Shapes of the model's inputs: ``[B]`` of users, ``[B, C]`` of items, ``[B, T]`` of events."""
    shapes: dict[str, tuple[int | None, ...]] = {}
    for name in schema.column_names:
        if name in user:
            shapes[name] = (None,)
        else:
            shapes[name] = (None, None) if name in item else (None, length)
    return shapes


def _copy_dataset_parts(dataset_dir: Path, directory: Path, materialised: bool) -> None:
    if materialised:
        shutil.copyfile(dataset_dir / "metadata.json", directory / "metadata.json")
        return
    for name in ("dataset.json", CATALOGUE_FILE):
        shutil.copyfile(dataset_dir / name, directory / name)
    shutil.copytree(
        dataset_dir / WORKFLOW_DIRECTORY,
        directory / WORKFLOW_DIRECTORY,
        copy_function=shutil.copyfile,
    )


def _write_schema(schema: Schema, directory: Path) -> None:
    from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

    TensorflowMetadata.from_merlin_schema(schema).to_proto_text_file(os.fspath(directory))


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

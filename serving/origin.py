"""A bundle whose tables lie in files, as what a model of other data starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lookback.checkpoints.manifest import TensorSpec
from lookback.core.errors import UserError
from lookback.serving.manifest import MODEL_DIRECTORY, Manifest
from lookback.training.ids import Ids
from lookback.training.start import Origin

_TABLE = "table/"


class BundleOrigin(Origin):
    """Weights of a bundle: tables from their files, as far as they are needed, the others whole."""

    optimizer = None

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        """Reads what is no table's.

        Args:
          directory: of the bundle.
          manifest: of it, its files verified.

        Raises:
          UserError: if TensorFlow cannot load its model.
        """
        from merlin.models.utils.schema_utils import tensorflow_metadata_json_to_schema

        self._directory = directory
        self._tables = {f"{_TABLE}{name}": t for name, t in manifest.table_files.items()}
        rounded = sorted({t.dtype for t in self._tables.values()} - {"float32"})
        self.where = f"the bundle {directory}" + (f" ({rounded[0]} tables)" if rounded else "")
        self.model = {"model_type": manifest.model_type, **manifest.options}
        path = directory / MODEL_DIRECTORY
        self.columns = tensorflow_metadata_json_to_schema(
            str(path / ".merlin" / "input_schema.json")
        ).column_names
        self.ids = Ids.of(directory)
        try:
            loaded = tf.saved_model.load(str(path))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise UserError(
                f"The model in {directory} cannot be loaded by TensorFlow {tf.__version__} "
                f"({error}). It was exported with {manifest.versions['tensorflow']}."
            ) from error
        self._dense: dict[str, npt.NDArray[Any]] = {
            name: variable.numpy() for name, variable in loaded.weights.items()
        }
        self.specs = {
            **{name: TensorSpec(t.shape, np.dtype(np.float32)) for name, t in self._tables.items()},
            **{
                name: TensorSpec(values.shape, values.dtype) for name, values in self._dense.items()
            },
        }

    def take(
        self, name: str, rows: npt.NDArray[np.int64], columns: range | None
    ) -> npt.NDArray[Any]:
        """As the contract says."""
        return self._tables[name].take(self._directory, rows, columns)

    def whole(self, name: str) -> npt.NDArray[Any]:
        """As the contract says."""
        return self._dense[name]

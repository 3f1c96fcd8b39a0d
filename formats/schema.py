"""``schema.pbtxt``: the columns of a dataset or bundle with their types, tags and domains.

The format is TensorFlow Metadata's, as all of Merlin reads and writes it. Importing this needs
nothing of Merlin; the functions do.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from lookback.core.errors import UserError
from lookback.core.imports import expect_no_pytorch
from lookback.core.paths import refuse_address
from lookback.formats.dataset_info import AGAIN

if TYPE_CHECKING:
    from merlin.schema import Schema
    from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

SCHEMA_FILE = "schema.pbtxt"


def read_schema(directory: str | os.PathLike[str]) -> Schema:
    """Reads a directory's schema.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    path = Path(directory) / SCHEMA_FILE
    refuse_address(directory)
    if not path.is_file():
        raise UserError(f"There is no {SCHEMA_FILE} in {directory}. {AGAIN}")
    try:
        read = _metadata().from_proto_text_file(os.fspath(directory), SCHEMA_FILE)
        schema: Schema = read.to_merlin_schema()
    except Exception as error:  # protobuf's own, and whatever Merlin stumbles over
        raise UserError(f"{path} cannot be read ({error}). {AGAIN}") from error
    if not schema.column_names:
        raise UserError(f"{path} names no column. {AGAIN}")
    return schema


def write_schema(schema: Schema, directory: str | os.PathLike[str]) -> None:
    """Writes a schema into a directory; equal ones as equal bytes."""
    metadata = _metadata().from_merlin_schema(schema)
    for feature in metadata.proto_schema.feature:
        feature.annotation.tag.sort()  # a set's, whose order is another in each process
    metadata.to_proto_text_file(os.fspath(directory), SCHEMA_FILE)


def _metadata() -> type[TensorflowMetadata]:
    with warnings.catch_warnings():
        expect_no_pytorch()
        from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

    return TensorflowMetadata

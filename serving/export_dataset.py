"""The contract of a dataset that a bundle comes from: what of it the bundle describes and holds."""

from __future__ import annotations

import abc
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lookback.core.errors import UserError
from lookback.core.manifests import visible_files
from lookback.formats.dataset_info import AGAIN, DATASET_FILE, WORKFLOW_DIRECTORY
from lookback.formats.raw_ids import ID_DIRECTORY
from lookback.formats.transforms import Bag, Buckets, Hashed, Vocabulary, transform_of
from lookback.formats.verification import verify_dataset
from lookback.formats.vocabulary import FIRST_KNOWN, id_file
from lookback.serving.encoding import VocabularyEncoder
from lookback.serving.manifest import Manifest

# Importing Merlin takes seconds, and train.py checks its target before it sets TensorFlow up.
if TYPE_CHECKING:
    from merlin.schema import Schema


class ExportedDataset(abc.ABC):
    """A dataset of one format.

    Args:
      directory: of the dataset.

    Attributes:
      layout: of the models that read it.
    """

    layout: ClassVar[str]

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    @abc.abstractmethod
    def recognises(cls, directory: Path) -> bool:
        """Whether a directory is of this format."""

    @abc.abstractmethod
    def require(self) -> None:
        """Checks, before hours of training, that all that a bundle needs is there.

        Raises:
          UserError: naming what is not.
        """

    @abc.abstractmethod
    def schema(self, body: Mapping[str, Any]) -> Schema:
        """The dataset's schema, as a model with this body (its config) reads it."""

    @abc.abstractmethod
    def manifest(
        self, schema: Schema, model_schema: Schema, body: Mapping[str, Any], **common: Any
    ) -> Manifest:
        """Describes a bundle.

        Args:
          schema: of the dataset.
          model_schema: of the model's inputs.
          body: config of the model's body.
          **common: attributes of the manifest that do not depend on the dataset.

        Raises:
          UserError: if the model is another dataset's, or the dataset's parts contradict each
            other.
        """

    @abc.abstractmethod
    def copy_parts(self, target: Path) -> None:
        """Copies what the bundle holds of the dataset to the directory `target`."""

    def copy_files(self, target: Path, *names: str) -> None:
        """Copies files by name."""
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.directory / name, target / name)

    def copy_workflow(self, target: Path) -> None:
        """Copies the saved workflow with its vocabularies.

        File by file: shutil.copytree hides what the system said, such as that the disk is full.
        """
        files = visible_files(self.directory / WORKFLOW_DIRECTORY)
        self.copy_files(target, *(f"{WORKFLOW_DIRECTORY}/{name}" for name in files))

    def require_parts(self, *names: str) -> None:
        """Checks that files and directories that encoding needs exist, and are as written.

        A bundle gets digests of its own: what is damaged must not get them.
        """
        for name in names:
            if not (self.directory / name).exists():
                raise UserError(
                    f"export_dir: {self.directory} has no {name}, which a bundle needs to encode "
                    "raw ids. Write the dataset again with `python -m workflows run`."
                )
        verify_dataset(self.directory, parts={name.partition("/")[0] for name in names})

    def require_same_tables(self, model: Mapping[str, int], rows: Mapping[str, int]) -> None:
        """Checks that the tables a model was built for are the dataset's."""
        if dict(model) != dict(rows):
            raise UserError(
                f"The model's tables have {dict(model)} rows and those of {self.directory} "
                f"{dict(rows)}: it was not made for this dataset."
            )

    def vocabularies_of(
        self, rows: Mapping[str, int], transforms: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, str]:
        """The files of the vocabularies of typed features, checked against the sizes of tables.

        So are the tables of features that have none.

        Args:
          rows: of each feature's table.
          transforms: what `formats.transforms` says of the features; of others: a vocabulary.
        """
        files = {}
        for name, count in rows.items():
            made = transform_of(transforms.get(name, Vocabulary().to_json()))
            ids = made.elements if isinstance(made, Bag) else made
            if isinstance(ids, Hashed | Buckets):
                if ids.rows != count:
                    raise UserError(
                        f"{self.directory / DATASET_FILE}: the transformation of {name!r} needs "
                        f"{ids.rows} rows, and the schema has {count}. {AGAIN}"
                    )
                continue
            files[name] = file = f"{ID_DIRECTORY}/{id_file(name)}"
            known = len(VocabularyEncoder.read(self.directory / file, name))
            self.require_known(name, file, known, FIRST_KNOWN, count)
        return files

    def require_known(self, name: str, file: str, known: int, reserved: int, rows: int) -> None:
        """Checks that a vocabulary of `known` ids fills a table of `rows`."""
        if reserved + known != rows:
            raise UserError(
                f"{self.directory / file} knows {known} ids, and the schema has {rows} rows for "
                f"{name!r} ({reserved} of them reserved). Workflow and data do not belong "
                "together; run the workflow again."
            )

"""Tabular datasets as bundles hold them: our format, with or without a workflow, and NVIDIA's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lookback.core.manifests import SIZES
from lookback.formats.dataset_info import (
    DATASET_FILE,
    FEATURES,
    SPLITS,
    WORKFLOW_DIRECTORY,
    is_tabular,
    read_tabular_info,
)
from lookback.formats.description import FEATURE_SPEC_FILE, is_split_binary
from lookback.formats.raw_ids import ID_DIRECTORY, KEY_DIRECTORY
from lookback.formats.schema import SCHEMA_FILE
from lookback.formats.tabular_columns import CATEGORICAL, NUMERICAL
from lookback.formats.transforms import Vocabulary, transform_of
from lookback.formats.vocabulary import UNKNOWN, key_file
from lookback.serving.export_dataset import ExportedDataset
from lookback.serving.layouts.tabular.encoding import KeyVocabulary
from lookback.serving.manifest import TabularManifest

if TYPE_CHECKING:
    from merlin.schema import Schema


class ExportedTabular(ExportedDataset):
    """What `python -m workflows` writes for tabular data; there is a workflow if `run` wrote it."""

    layout = "tabular"

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """By its description."""
        return is_tabular(directory)

    @property
    def ids(self) -> Literal["raw", "encoded"]:
        """Raw values if there is a workflow to encode them."""
        return "raw" if (self.directory / WORKFLOW_DIRECTORY).is_dir() else "encoded"

    def require(self) -> None:
        """Looks for the vocabularies of a workflow."""
        typed = self._transforms.values()
        keys = [KEY_DIRECTORY] if self.ids == "raw" and not typed else []
        ids = [ID_DIRECTORY] if any(transform_of(said) == Vocabulary() for said in typed) else []
        self.require_parts(*keys, *ids, SCHEMA_FILE)

    def schema(self, body: Mapping[str, Any]) -> Schema:
        """As the loader has it."""
        from lookback.dataloading.tabular.source import open_tabular

        return open_tabular(self.directory, SIZES).schema  # what the bundle takes, `require` has

    def manifest(
        self, schema: Schema, model_schema: Schema, body: Mapping[str, Any], **common: Any
    ) -> TabularManifest:
        """Describes a bundle; tables and vocabularies must agree."""
        from lookback.formats.features import table_rows

        numerical, categorical = (
            tuple(body["features"][part]) for part in (NUMERICAL, CATEGORICAL)
        )
        rows = table_rows(schema)
        self.require_same_tables(table_rows(model_schema), rows)
        return TabularManifest(
            ids=self.ids,
            numerical=numerical,
            categorical=categorical,
            inputs={NUMERICAL: (None, len(numerical)), CATEGORICAL: (None, len(categorical))},
            cardinalities=rows,
            vocabularies=self._vocabularies(rows) if self.ids == "raw" else {},
            transforms=self._transforms,
            dataset=self._summary(),
            **common,
        )

    def copy_parts(self, target: Path) -> None:
        """Description, and the workflow if there is one."""
        self.copy_files(target, DATASET_FILE)
        if self.ids == "raw":
            self.copy_workflow(target)

    @property
    def _transforms(self) -> dict[str, dict[str, Any]]:
        """That of each feature, if the dataset has raw values of typed ones."""
        if self.ids == "encoded":
            return {}
        return dict(read_tabular_info(self.directory).get(FEATURES, {}))

    def _vocabularies(self, rows: Mapping[str, int]) -> dict[str, str]:
        """The file of each feature's vocabulary, checked against the size of its table."""
        if self._transforms:
            return self.vocabularies_of(rows, self._transforms)
        files = {name: f"{KEY_DIRECTORY}/{key_file(name)}" for name in rows}
        for name, file in files.items():
            known = len(KeyVocabulary.read(self.directory / file))
            self.require_known(name, file, known, UNKNOWN + 1, rows[name])
        return files

    def _summary(self) -> dict[str, Any]:
        description = read_tabular_info(self.directory)
        counts = description["counts"]
        return {
            "name": description["dataset"],
            "content_hash": description["content_hash"],
            **{split: counts[split] for split in SPLITS if split in counts},
        }


class ExportedSplitBinary(ExportedTabular):
    """NVIDIA's split-binary files; they have no workflow."""

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """By their specification."""
        return is_split_binary(directory)

    @property
    def ids(self) -> Literal["raw", "encoded"]:
        """Encoded ones, whatever lies beside the files."""
        return "encoded"

    def require(self) -> None:
        """The specification alone is copied, and is read whenever the files are."""

    def copy_parts(self, target: Path) -> None:
        """The specification."""
        self.copy_files(target, FEATURE_SPEC_FILE)

    def _summary(self) -> dict[str, Any]:
        return {"name": "split_binary"}

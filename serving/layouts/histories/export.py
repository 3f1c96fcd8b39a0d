"""Datasets of histories as bundles hold them: with a workflow, or materialised samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lookback.formats.dataset_info import DATASET_FILE, read_histories_info
from lookback.formats.description import METADATA_FILE, is_materialised
from lookback.formats.histories import CATALOGUE_FILE
from lookback.formats.raw_ids import ID_DIRECTORY
from lookback.formats.schema import SCHEMA_FILE, read_schema
from lookback.formats.vocabulary import FIRST_KNOWN, id_file
from lookback.serving.encoding import VocabularyEncoder
from lookback.serving.export_dataset import ExportedDataset
from lookback.serving.manifest import CandidatesManifest, HistoriesManifest

if TYPE_CHECKING:
    from merlin.schema import Schema


class ExportedHistories(ExportedDataset):
    """What `python -m workflows run` writes for datasets of histories."""

    layout = "histories"
    ids: Literal["raw", "encoded"] = "raw"

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """Any directory: whether it is a dataset, reading it will show."""
        return True

    def require(self) -> None:
        """Looks for vocabularies and catalogue."""
        self.require_parts(ID_DIRECTORY, CATALOGUE_FILE, SCHEMA_FILE)

    def schema(self, body: Mapping[str, Any]) -> Schema:
        """Of the file."""
        return read_schema(self.directory)

    def manifest(
        self, schema: Schema, model_schema: Schema, body: Mapping[str, Any], **common: Any
    ) -> CandidatesManifest:
        """Describes a bundle; tables and vocabularies must agree."""
        user, item = tuple(body["features"]["user"]), tuple(body["features"]["item"])
        options = body["config"]
        rows = self.rows_of((*user, *item), schema, model_schema)
        return HistoriesManifest(
            ids=self.ids,
            user_features=user,
            item_features=item,
            max_seq_length=options["max_seq_length"],
            time_features=options["time_features"],
            inputs=_input_shapes(model_schema, user, item, options["max_seq_length"]),
            cardinalities=rows,
            vocabularies=self._vocabularies(rows),
            dataset=self._summary(),
            **common,
        )

    def rows_of(
        self, features: Sequence[str], schema: Schema, model_schema: Schema
    ) -> dict[str, int]:
        """Rows of the features' tables, which must be the model's."""
        from lookback.formats.features import table_rows

        rows = {name: count for name, count in table_rows(schema).items() if name in features}
        wanted = table_rows(model_schema)
        self.require_same_tables({name: wanted[name] for name in features}, rows)
        return rows

    def copy_parts(self, target: Path) -> None:
        """Description, catalogue and workflow."""
        self.copy_files(target, DATASET_FILE, CATALOGUE_FILE)
        self.copy_workflow(target)

    def _vocabularies(self, rows: Mapping[str, int]) -> dict[str, str]:
        """The file of each feature's vocabulary, checked against the size of its table."""
        files = {name: f"{ID_DIRECTORY}/{id_file(name)}" for name in rows}
        for name, file in files.items():
            known = len(VocabularyEncoder.read(self.directory / file, name))
            self.require_known(name, file, known, FIRST_KNOWN, rows[name])
        return files

    def _summary(self) -> dict[str, Any]:
        info = read_histories_info(self.directory)
        return {
            "name": info["dataset"],
            "content_hash": info["content_hash"],
            **{name: info["counts"][name] for name in ("users", "events", "items")},
        }


class ExportedMaterialised(ExportedHistories):
    """Samples written by another tool; they have no workflow."""

    ids = "encoded"

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """By the file that describes the samples."""
        return is_materialised(directory)

    def require(self) -> None:
        """Nothing more."""

    def schema(self, body: Mapping[str, Any]) -> Schema:
        """As the loader has it."""
        from lookback.dataloading.histories.materialised import MaterialisedDataset

        options = body["config"]
        return MaterialisedDataset(
            self.directory,
            user_features=len(body["features"]["user"]),
            max_seq_length=options["max_seq_length"],
            long_seq_length=options["long_seq_length"],
        ).schema

    def copy_parts(self, target: Path) -> None:
        """The file that describes the samples."""
        self.copy_files(target, METADATA_FILE)

    def _vocabularies(self, rows: Mapping[str, int]) -> dict[str, str]:
        return {}

    def _summary(self) -> dict[str, Any]:
        return {"name": "materialised"}


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

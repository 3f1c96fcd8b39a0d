"""Datasets of histories as bundles hold them: with a workflow, or materialised samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lookback.core.errors import UserError
from lookback.core.manifests import visible_files
from lookback.formats.bags import BAGS_DIRECTORY
from lookback.formats.dataset_info import (
    AGAIN,
    DATASET_FILE,
    FEATURES,
    is_explicit,
    read_histories_info,
)
from lookback.formats.description import METADATA_FILE, is_materialised
from lookback.formats.histories import CATALOGUE_FILE
from lookback.formats.history_columns import ROLES, Role
from lookback.formats.raw_ids import ID_DIRECTORY
from lookback.formats.schema import SCHEMA_FILE, read_schema
from lookback.formats.transforms import Vocabulary, transform_of
from lookback.serving.export_dataset import ExportedDataset
from lookback.serving.manifest import HISTORY_SUFFIX, CandidatesManifest, HistoriesManifest

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
        """Looks for vocabularies and catalogue, and for bags if there are any."""
        bags = [BAGS_DIRECTORY] if (self.directory / BAGS_DIRECTORY).is_dir() else []
        self.require_parts(ID_DIRECTORY, CATALOGUE_FILE, SCHEMA_FILE, *bags)

    def schema(self, body: Mapping[str, Any]) -> Schema:
        """Of the file."""
        return read_schema(self.directory)

    def manifest(
        self, schema: Schema, model_schema: Schema, body: Mapping[str, Any], **common: Any
    ) -> CandidatesManifest:
        """Describes a bundle; tables and vocabularies must agree."""
        features = _by_role(body["features"])
        options = body["config"]
        numbers, bags = body["features"]["numbers"], body["features"]["bags"]
        ids = [name for names in features.values() for name in names if name not in numbers]
        rows = self.rows_of(ids, schema, model_schema)
        transforms = self._transforms(features, [*numbers, *bags])
        return HistoriesManifest(
            ids=self.ids,
            user_features=features["user"],
            item_features=features["item"],
            context_features=features["context"],
            event_features=features["event"],
            max_seq_length=options["max_seq_length"],
            time_features=options["time_features"],
            inputs=_input_shapes(model_schema, features, bags),
            cardinalities=rows,
            vocabularies=self._vocabularies(rows, transforms),
            transforms=transforms,
            explicit_labels=self._explicit,
            dataset=self._summary(),
            **common,
        )

    def rows_of(
        self, features: Sequence[str], schema: Schema, model_schema: Schema
    ) -> dict[str, int]:
        """Rows of the features' tables, which must be the model's."""
        from lookback.formats.features import history_name, table_rows

        rows = {name: count for name, count in table_rows(schema).items() if name in features}
        wanted = table_rows(model_schema)  # of events' features it has the histories alone
        own = {n: wanted[n] if n in wanted else wanted[history_name(n)] for n in features}
        self.require_same_tables(own, rows)
        return rows

    def copy_parts(self, target: Path) -> None:
        """Description, catalogue with its bags, and workflow."""
        bags = visible_files(self.directory / BAGS_DIRECTORY)
        self.copy_files(target, DATASET_FILE, CATALOGUE_FILE)
        self.copy_files(target, *(f"{BAGS_DIRECTORY}/{name}" for name in bags))
        self.copy_workflow(target)

    @property
    def _explicit(self) -> bool:
        return is_explicit(self.directory)

    def _transforms(
        self, features: Mapping[Role, Sequence[str]], typed: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """What the dataset says of features that are not just ids of a vocabulary.

        Args:
          features: that a bundle has, by role.
          typed: those among them of which it must say something.
        """
        said = read_histories_info(self.directory).get(FEATURES, {})
        used = {n: said[n] for names in features.values() for n in names if n in said}
        missing = sorted(set(typed) - set(used))
        if missing:
            raise UserError(
                f"{self.directory / DATASET_FILE} does not say how the values of {missing} were "
                f"transformed, so a bundle could not encode them. {AGAIN}"
            )
        return {n: entry for n, entry in used.items() if transform_of(entry) != Vocabulary()}

    def _vocabularies(
        self, rows: Mapping[str, int], transforms: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, str]:
        """See `vocabularies_of`."""
        return self.vocabularies_of(rows, transforms)

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

    @property
    def _explicit(self) -> bool:
        return False

    def _transforms(
        self, features: Mapping[Role, Sequence[str]], typed: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        return {}

    def _vocabularies(
        self, rows: Mapping[str, int], transforms: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, str]:
        return {}

    def _summary(self) -> dict[str, Any]:
        return {"name": "materialised"}


def _by_role(features: Mapping[str, Any]) -> dict[Role, tuple[str, ...]]:
    """Names of the features of each role, its numbers last, from the config of a body's."""
    numbers = features["numbers"].items()
    return {
        role: (*features[role], *(name for name, whose in numbers if whose == role))
        for role in ROLES
    }


def _input_shapes(
    schema: Schema,
    features: Mapping[Role, tuple[str, ...]],
    bags: Mapping[str, int],
) -> dict[str, tuple[int | None, ...]]:
    """Shapes of the model's inputs, see `formats.features`; None where any size goes."""
    names = {name for own in features.values() for name in own}
    shapes: dict[str, tuple[int | None, ...]] = {}
    for name in schema.column_names:
        feature = name if name in names else name.removesuffix(HISTORY_SUFFIX)
        bag = (bags[feature],) if feature in bags else ()
        if name not in names:
            shapes[name] = (None, None, *bag)
        else:
            shapes[name] = (None, None, *bag) if name in features["item"] else (None, *bag)
    return shapes

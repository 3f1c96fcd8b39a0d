"""bundle.json: what a bundle holds, and the digest of every file in it.

A bundle is one directory that scoring needs and nothing else::

    DIR/
      bundle.json     this file, written last: a directory without it is no bundle
      model/          SavedModel; signature `serving_default`: inputs -> logit, probability
      kernels.pb      the signature's graph with our operations, where it has some: `kernel_graph`
      tables/         embedding tables, where they are not in the SavedModel: `serving.tables`
      schema.pbtxt    of the dataset
      dataset.json    of the dataset (metadata.json where the samples came materialised,
                      feature_spec.yaml where the rows came as split-binary files)
      workflow/       the saved NVTabular workflow; its vocabularies lie in workflow/encoder/
                      (histories) or workflow/vocabulary/ (tabular)
      items.parquet   the catalogue, encoded (of histories and interactions)
      bags/           (of histories) what its numbers of bags stand for

Where the dataset has no workflow (materialised samples, split-binary files, rows generated straight
to parquet), workflow and catalogue are absent: such a bundle scores encoded inputs. Nothing here
needs TensorFlow, NVTabular or Merlin.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from lookback.core.digests import digest_of, is_file, read_trusted
from lookback.core.errors import UserError, shown
from lookback.core.json_files import load_object, read_json
from lookback.core.manifests import BYTES, FILES, SIZES, entries_of, fault_of, is_whole, sealed
from lookback.core.outputs import FOLDER, OutputKind
from lookback.core.sizes import format_size
from lookback.formats.tabular_columns import CATEGORICAL, NUMERICAL
from lookback.formats.transforms import BAG, TYPE, Number
from lookback.serving.tables import TABLE_DIRECTORY, TableFile

_log = logging.getLogger(__name__)

FORMAT = "lookback-bundle"
FORMAT_VERSION = 2
FIRST_VERSION = 1  # knew one layout and did not name it
TYPED_VERSION = 3  # of bundles that what reads version 2 would read wrongly
TABLES_VERSION = 4  # of bundles whose tables lie beside the model
MANIFEST_FILE = "bundle.json"
MODEL_DIRECTORY = "model"
EMPTY_DIRECTORY = f"{MODEL_DIRECTORY}/assets"  # every SavedModel has it
SIGNATURE = "serving_default"
HISTORY_SUFFIX = "_history"
"""Ends the names of inputs that are histories of a feature."""

AGAIN = (
    "Copy the bundle again from where it was exported, or export it again (train.py --export_dir)."
)
"""The way out for whoever has a bundle that is damaged."""


@dataclasses.dataclass(frozen=True)
class Manifest(abc.ABC):
    """Content of bundle.json but for the digests; one subclass a layout.

    Attributes:
      layout: what the model reads, as its config class says.
      output_axes: of logit and probability.
      model_type: name of the model.
      options: of the model.
      ids: "raw" if the bundle encodes values itself, "encoded" if requests must bring them encoded.
      inputs: shape of each input of the signature, None where any size goes.
      cardinalities: rows of each feature's table.
      vocabularies: file of each feature's vocabulary, relative to the bundle.
      dataset: name, content hash and counts of the dataset.
      versions: of what wrote the bundle.
      tables: those that lie in files of their own, by name, see `serving.tables`; none: all are in
        the SavedModel.
    """

    layout: ClassVar[str]
    output_axes: ClassVar[str]

    model_type: str
    options: Mapping[str, Any]
    ids: Literal["raw", "encoded"]
    inputs: Mapping[str, tuple[int | None, ...]]
    cardinalities: Mapping[str, int]
    vocabularies: Mapping[str, str]
    dataset: Mapping[str, Any]
    versions: Mapping[str, str]
    tables: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict, kw_only=True)

    @property
    def table_files(self) -> dict[str, TableFile]:
        """`tables`, as they are read."""
        return {name: TableFile.from_json(said) for name, said in self.tables.items()}

    @property
    @abc.abstractmethod
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the features by role."""

    @abc.abstractmethod
    def input_type(self, name: str) -> Literal["float32", "int32"]:
        """Type of an input's values."""

    def axes_of(self, name: str) -> str:
        """An input's shape, for people; B, C: of any size."""
        axes = ["C" if axis is None else str(axis) for axis in self.inputs[name][1:]]
        return f"[{', '.join(['B', *axes])}]"

    def write(self, directory: Path) -> None:
        """Writes bundle.json, with the digests of all files that are in `directory` now."""
        later = _later(type(self))
        own = {k: v for k, v in dataclasses.asdict(self).items() if v or k not in later}
        content: dict[str, Any] = {
            "format": FORMAT,
            "format_version": self._version(later & set(own)),
            "layout": self.layout,
            **own,
            FILES: entries_of(
                directory,
                (
                    path.relative_to(directory).as_posix()
                    for path in sorted(directory.rglob("*"))
                    if path.is_file()
                ),
            ),
        }
        (directory / MANIFEST_FILE).write_text(json.dumps(sealed(content), indent=1) + "\n")

    def _version(self, later: set[str]) -> int:
        if self.tables:
            return TABLES_VERSION
        return TYPED_VERSION if later else FORMAT_VERSION

    @staticmethod
    def read(
        directory: Path, trusted_digest: str | None = None, most_table_bytes: int | None = None
    ) -> Manifest:
        """Reads bundle.json and compares every file of the bundle with its digest.

        Args:
          directory: of the bundle.
          trusted_digest: SHA-256 that bundle.json must have, compared before anything else is
            read; None: any.
          most_table_bytes: of files of tables that are compared with their digests, which reads
            them whole; of more, the sizes alone are compared, and a warning says so, unless a
            digest is trusted. None: all are.

        Raises:
          UserError: if the directory is no bundle, is another one than is trusted, is of another
            version or layout, or is damaged; the text names the file.
        """
        content = _read(directory, trusted_digest)
        files = content[FILES]
        tables = {n: entry for n, entry in files.items() if n.startswith(f"{TABLE_DIRECTORY}/")}
        size = sum(entry[BYTES] for entry in tables.values())
        if trusted_digest is None and most_table_bytes is not None and size > most_table_bytes:
            files = {name: entry for name, entry in files.items() if name not in tables}
            _log.warning(
                "%s: its tables (%s) are mapped as they are, and were not compared with their "
                "digests, which would read them whole. `lookback serving inspect` compares them; "
                "so does whoever gives --trusted_digest.",
                directory,
                format_size(size),
            )
        fault = fault_of(directory, tables, verification=SIZES) or fault_of(directory, files)
        if fault is not None:
            raise _damaged(directory, fault)
        # TensorFlow Serving reads files that no manifest names (assets.extra/).
        if trusted_digest is not None and (extra := BUNDLE.foreign(directory)):
            raise _damaged(directory, f"{extra[0]} is not of the bundle that is trusted")
        kind = MANIFESTS[content["layout"]]
        absent = _later(kind) - set(content)
        names = {field.name for field in dataclasses.fields(kind)} - absent
        values = {name: content[name] for name in names}
        values["inputs"] = {name: tuple(shape) for name, shape in values["inputs"].items()}
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@dataclasses.dataclass(frozen=True)
class CandidatesManifest(Manifest):
    """Of a model that scores candidates of a user; its inputs are ids.

    Attributes:
      user_features: names of the user features, each an input ``[B]``.
      item_features: names of the item features, the id first, each an input ``[B, C]``.
    """

    output_axes = "[B, C]"

    user_features: tuple[str, ...]
    item_features: tuple[str, ...]

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """User and item features."""
        return {"user": self.user_features, "item": self.item_features}

    def input_type(self, name: str) -> Literal["float32", "int32"]:
        """Ids, all of them."""
        return "int32"


@dataclasses.dataclass(frozen=True)
class HistoriesManifest(CandidatesManifest):
    """Of a model over histories: what is of events is also, as ``<name>_history``, an input.

    Such an input is ``[B, T']`` of any T' from `least_slots` to T. Of earlier versions it is
    ``[B, T]``.

    Features are in the order of their role's categories (the id first, bags among them), then its
    numbers. Of bags, inputs have an axis more, ``[..., M]``.

    Attributes:
      max_seq_length: history slots (T).
      time_features: whether the model reads time gaps, from `time_gap_history` ``[B, T]``.
      context_features: names of what is known of the moment of a request, each an input ``[B]``,
        and was known of past events.
      event_features: names of what is known of past events alone.
      transforms: of features that are not just ids of a vocabulary: what `formats.transforms` says
        of them, by name.
      explicit_labels: whether the labels were of items as they were shown, and none was drawn.
    """

    layout = "histories"

    max_seq_length: int
    time_features: bool
    context_features: tuple[str, ...] = ()
    event_features: tuple[str, ...] = ()
    transforms: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    explicit_labels: bool = False

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """User, item, context and event features."""
        return {
            **super().roles,
            "context": self.context_features,
            "event": self.event_features,
        }

    @property
    def least_slots(self) -> int:
        """The fewest history slots of a batch: models read the last of them apart."""
        slots = self.inputs[f"{self.item_features[0]}{HISTORY_SUFFIX}"][1]
        if slots is not None:
            return slots
        return 1 + self.max_seq_length - int(self.options["long_seq_length"])

    @property
    def bags(self) -> Mapping[str, int]:
        """The features that are bags, and how many ids they hold (M)."""
        return {n: said[BAG]["most"] for n, said in self.transforms.items() if said.get(BAG)}

    @property
    def item_bags(self) -> tuple[str, ...]:
        """Those of items, of which the catalogue has the number."""
        return tuple(name for name in self.item_features if name in self.bags)

    def input_type(self, name: str) -> Literal["float32", "int32"]:
        """Numbers are float32, ids int32."""
        numbers = {n for n, said in self.transforms.items() if said[TYPE] == Number.kind}
        return "float32" if self.feature_of(name) in numbers else "int32"

    def axes_of(self, name: str) -> str:
        """Of histories also from how many slots to how many they may have."""
        said = super().axes_of(name)
        if self.feature_of(name) == name:
            return said
        return said.replace("C", f"{self.least_slots}..{self.max_seq_length}", 1)

    def feature_of(self, name: str) -> str:
        """The feature that an input of the signature is of."""
        features = [feature for names in self.roles.values() for feature in names]
        return name if name in features else name.removesuffix(HISTORY_SUFFIX)


@dataclasses.dataclass(frozen=True)
class InteractionsManifest(CandidatesManifest):
    """Of a model over pairs of one user id and one item id; it reads nothing else."""

    layout = "interactions"


@dataclasses.dataclass(frozen=True)
class TabularManifest(Manifest):
    """Of a model over rows of N numbers and M ids.

    Attributes:
      numerical: names of the numbers, the columns of the input `numerical` ``[B, N]``.
      categorical: names of the ids, the columns of the input `categorical` ``[B, M]``.
      transforms: of each feature what `formats.transforms` says of it, by name, where each has its
        own; else all numbers have one, and all ids a vocabulary of keys.
    """

    layout = "tabular"
    output_axes = "[B, 1]"

    numerical: tuple[str, ...]
    categorical: tuple[str, ...]
    transforms: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """Numerical and categorical features, named as the inputs are."""
        return {NUMERICAL: self.numerical, CATEGORICAL: self.categorical}

    def input_type(self, name: str) -> Literal["float32", "int32"]:
        """Numbers are float32, ids int32."""
        return "float32" if name == NUMERICAL else "int32"


MANIFESTS: Mapping[str, type[Manifest]] = {
    "histories": HistoriesManifest,
    "tabular": TabularManifest,
    "interactions": InteractionsManifest,
}


def _later(kind: type[Manifest]) -> set[str]:
    """What bundles of earlier versions do not say, nor those of today where it is empty."""
    absent = dataclasses.MISSING
    return {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is not absent or field.default_factory is not absent
    }


def _entries(directory: Path) -> dict[str, int | None] | None:
    """What a bundle of whatever version or state holds; None of what is none."""
    try:
        content = read_json(directory / MANIFEST_FILE)
    except UserError:
        return None
    if content.get("format") != FORMAT:
        return None
    files = content.get(FILES)
    listed = files.items() if isinstance(files, dict) else ()
    sizes = {name: said.get("bytes") if isinstance(said, dict) else None for name, said in listed}
    return {**sizes, EMPTY_DIRECTORY: FOLDER}


BUNDLE = OutputKind("bundle", MANIFEST_FILE, _entries)


def require_same_workflow(manifest: Manifest, export_dir: Path, dataset_dir: Path) -> None:
    """Checks that a dataset was written with a bundle's vocabularies.

    Raises:
      UserError: if not.
    """
    for name in manifest.vocabularies.values():
        path = dataset_dir / name
        if not path.is_file():
            raise UserError(f"{path} does not exist: {path.parent} is not part of a dataset.")
        if digest_of(path) != digest_of(export_dir / name):
            raise UserError(
                f"{dataset_dir} was not written with the workflow in {export_dir} ({name} "
                "differs). Give the dataset that the model was trained on."
            )


def bundle_bytes(directory: Path) -> int:
    """Size of a bundle's files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _read(directory: Path, trusted_digest: str | None) -> dict[str, Any]:
    path = directory / MANIFEST_FILE
    if not is_file(path):
        raise UserError(
            f"{directory} is not an exported bundle: there is no {MANIFEST_FILE} in it. Expected "
            "the directory that train.py --export_dir wrote."
        )
    text, _ = read_trusted(path, trusted_digest)
    content = load_object(text, str(path), AGAIN)
    found = (content.get("format"), content.get("format_version"))
    versions = (FIRST_VERSION, FORMAT_VERSION, TYPED_VERSION, TABLES_VERSION)
    if found[0] != FORMAT or found[1] not in versions:
        raise UserError(
            f"{path}: expected format {FORMAT!r} version {FIRST_VERSION} to {TABLES_VERSION}, "
            f"found {shown(found[0])} version {shown(found[1])}. Export the model again with this "
            "version's train.py."
        )
    if not is_whole(content):
        raise _damaged(directory, f"the content of {MANIFEST_FILE} is not what was written")
    if found[1] == FIRST_VERSION:
        content["layout"] = HistoriesManifest.layout
    if content["layout"] not in MANIFESTS:
        raise UserError(
            f"{path}: the layout {content['layout']!r} is unknown; expected "
            f"{' or '.join(MANIFESTS)}. Use the version of Lookback that exported it."
        )
    return content


def _damaged(directory: Path, what: str) -> UserError:
    return UserError(f"The bundle {directory} is damaged: {what}. {AGAIN}")

"""bundle.json: what a bundle holds, and the digest of every file in it.

A bundle is one directory that scoring needs and nothing else::

    DIR/
      bundle.json     this file, written last: a directory without it is no bundle
      model/          SavedModel; signature `serving_default`: ids -> logit, probability
      schema.pbtxt    of the dataset
      dataset.json    of the dataset (metadata.json where the samples came materialised)
      workflow/       the saved NVTabular workflow, and in workflow/encoder/ its vocabularies
      items.parquet   the catalogue, encoded

Workflow and catalogue are absent where the samples came materialised: such a bundle scores encoded
ids. Nothing here needs TensorFlow, NVTabular or Merlin.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from errors import UserError

FORMAT = "lookback-bundle"
FORMAT_VERSION = 1
MANIFEST_FILE = "bundle.json"
MODEL_DIRECTORY = "model"
SIGNATURE = "serving_default"
CATALOGUE_FILE = "items.parquet"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Content of bundle.json but for the digests.

    Attributes:
      model_type: name of the model.
      options: of the model.
      ids: "raw" if the bundle encodes ids itself, "encoded" if requests must bring them encoded.
      user_features: names of the user features, each an input ``[B]``.
      item_features: names of the item features, the id first, each an input ``[B, C]`` and, as
        ``<name>_history``, one ``[B, T]``.
      max_seq_length: history slots (T).
      time_features: whether the model reads time gaps, from `time_gap_history` ``[B, T]``.
      inputs: shape of each int32 input of the signature, None where any size goes.
      cardinalities: rows of each feature's table.
      vocabularies: file of each feature's vocabulary, relative to the bundle.
      dataset: name, content hash and counts of the dataset.
      versions: of what wrote the bundle.
    """

    model_type: str
    options: Mapping[str, Any]
    ids: Literal["raw", "encoded"]
    user_features: tuple[str, ...]
    item_features: tuple[str, ...]
    max_seq_length: int
    time_features: bool
    inputs: Mapping[str, tuple[int | None, ...]]
    cardinalities: Mapping[str, int]
    vocabularies: Mapping[str, str]
    dataset: Mapping[str, Any]
    versions: Mapping[str, str]

    def write(self, directory: Path) -> None:
        """Writes bundle.json, with the digests of all files that are in `directory` now."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(self),
            "files": {
                path.relative_to(directory).as_posix(): {
                    "bytes": path.stat().st_size,
                    "sha256": _sha256(path),
                }
                for path in sorted(directory.rglob("*"))
                if path.is_file()
            },
        }
        content["sha256"] = _digest_of(content)
        (directory / MANIFEST_FILE).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Reads bundle.json and compares every file of the bundle with its digest.

        Raises:
          UserError: if the directory is no bundle, is of another version, or is damaged; the text
            names the file.
        """
        content = _read(directory)
        for name, expected in content["files"].items():
            path = directory / name
            if not path.is_file():
                raise _damaged(directory, f"{name} is missing")
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise _damaged(directory, f"{name} has {size} bytes instead of {expected['bytes']}")
            if _sha256(path) != expected["sha256"]:
                raise _damaged(directory, f"the content of {name} is not what was exported")
        values = {field.name: content[field.name] for field in dataclasses.fields(cls)}
        values["inputs"] = {name: tuple(shape) for name, shape in values["inputs"].items()}
        for name in ("user_features", "item_features"):
            values[name] = tuple(values[name])
        return cls(**values)


def is_bundle(directory: Path) -> bool:
    """Whether `directory` holds a bundle.json of ours, of whatever version or state."""
    try:
        content = json.loads((directory / MANIFEST_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def bundle_bytes(directory: Path) -> int:
    """Size of a bundle's files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _read(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise UserError(
            f"{directory} is not an exported bundle: there is no {MANIFEST_FILE} in it. Expected "
            "the directory that train.py --export_dir wrote."
        )
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        found = (content.get("format"), content.get("format_version"))
    except (ValueError, AttributeError) as error:
        raise _damaged(directory, f"{MANIFEST_FILE} is not valid JSON ({error})") from error
    if found != (FORMAT, FORMAT_VERSION):
        raise UserError(
            f"{path}: expected format {FORMAT!r} version {FORMAT_VERSION}, found {found[0]!r} "
            f"version {found[1]!r}. Export the model again with this version's train.py."
        )
    if content.pop("sha256", None) != _digest_of(content):
        raise _damaged(directory, f"the content of {MANIFEST_FILE} is not what was exported")
    return content


def _damaged(directory: Path, what: str) -> UserError:
    return UserError(
        f"The bundle {directory} is damaged: {what}. Copy it again from where it was exported, or "
        "export it again (train.py --export_dir)."
    )


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

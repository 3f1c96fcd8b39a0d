"""Datasets compared with what they say of their files: names, sizes, digests.

``dataset.json`` says it of our formats, ``feature_spec.yaml`` of split_binary files that we
exported. Datasets of earlier versions, and what other tools wrote, say nothing: see `unverified`.
Nothing here needs Merlin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lookback.core.digests import digest_of, read_trusted
from lookback.core.errors import UserError
from lookback.core.manifests import FILES, WHOLLY, Verification, fault_of, visible_files
from lookback.core.options import option
from lookback.core.paths import refuse_address
from lookback.formats.dataset_info import (
    AGAIN,
    DATASET_FILE,
    FEATURES,
    UPDATE_DIRECTORY,
    VOCABULARIES,
    WORKFLOW_DIRECTORY,
    read_info,
)
from lookback.formats.description import (
    FEATURE_SPEC_FILE,
    METADATA_FILE,
    is_materialised,
    is_split_binary,
    read_specification,
)

TRUSTED = "trusted_dataset_digest"

_UNREAD = (WORKFLOW_DIRECTORY, UPDATE_DIRECTORY)
"""Of a dataset, what only `python -m workflows` reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetChecks:
    """Options of the commands that open a dataset."""

    scope = "what to read"

    no_verify: bool = option(
        False,
        help="do not compare the dataset's files with their digests; names, sizes and counts are "
        "compared all the same (flag)",
    )
    trusted_dataset_digest: str | None = option(
        None,
        help="SHA-256 that dataset.json of the dataset must have (of split_binary files: "
        "feature_spec.yaml), as `python -m workflows` prints it; none: any",
        none=("",),
    )

    @property
    def verification(self) -> Verification:
        """How far the files are compared."""
        return Verification(digests=not self.no_verify)

    def begin(self, directory: Path) -> str | None:
        """Checks what must hold before anything is read of a dataset.

        Args:
          directory: of the dataset.

        Returns:
          What is not verified, in a line; None if all is.

        Raises:
          UserError: if it is another dataset than is trusted, or both options are given.
        """
        require_trusted(directory, self.trusted_dataset_digest, verified=not self.no_verify)
        return unverified(directory, no_verify=self.no_verify)


def verify_dataset(
    directory: Path,
    verification: Verification = WHOLLY,
    parts: Collection[str] | None = None,
    unread: Collection[str] = (),
) -> None:
    """Compares a dataset with what it says of its files, if it says anything.

    Args:
      directory: of the dataset.
      verification: how far.
      parts: files and directories in it; None: all but the saved workflow and the kept log.
      unread: of these, what is left out.

    Raises:
      UserError: naming the first file that is missing, was not there or is another than was
        written; or if the description itself is damaged.
    """
    compare(*_manifest_of(directory), verification, parts, unread)


def compare(
    manifest: Path,
    content: Mapping[str, Any],
    verification: Verification,
    parts: Collection[str] | None = None,
    unread: Collection[str] = (),
) -> None:
    """As `verify_dataset`, for callers that have read the description already.

    Args:
      manifest: the file that says what the dataset is.
      content: what it says of the other files, if anything.
      verification: see `verify_dataset`.
      parts: likewise.
      unread: likewise.
    """
    if FILES not in content:
        return
    directory = manifest.parent

    def chosen(name: str) -> bool:
        first = name.partition("/")[0]
        asked = first not in _UNREAD if parts is None else first in parts or name in parts
        return asked and first not in unread

    present = [name for name in visible_files(directory) if "/" in name and chosen(name)]
    files = {name: entry for name, entry in content[FILES].items() if chosen(name)}
    fault = fault_of(directory, files, present=present, verification=verification)
    if fault is not None:
        raise UserError(
            f"The dataset {directory} is not as {manifest.name} says: {fault}. Copy it again from "
            f"where it was written. Or: {AGAIN}"
        )


def unverified(directory: Path, *, no_verify: bool = False) -> str | None:
    """What is not verified of a dataset, in a line for people; None if all is.

    Args:
      directory: of the dataset.
      no_verify: whether the user wants no digest compared.
    """
    manifest, content = _manifest_of(directory)
    if not manifest.exists():
        return None  # whatever reads it reports that
    if FILES not in content:
        return (
            f"warning: {manifest} has no digests of the dataset's files (an earlier version or "
            "another tool wrote it): they cannot be verified, and damage may go unnoticed."
        )
    if no_verify:
        return f"--no_verify: the files of {directory} are not compared with their digests."
    return None


def vocabularies_of(directory: Path) -> dict[str, str]:
    """What the ids of a dataset's columns stand for: a digest of each vocabulary.

    Empty where the dataset does not say, as it has none or an earlier version wrote it.
    """
    return dict(_manifest_of(directory)[1].get(VOCABULARIES) or {})


def features_of(directory: Path) -> dict[str, Any]:
    """How a dataset's typed features were made (`formats.transforms`), by name.

    Empty where it has none.
    """
    return dict(_manifest_of(directory)[1].get(FEATURES) or {})


def dataset_digest(directory: Path) -> tuple[str, str]:
    """The file whose digest stands for a dataset, as it has all others, and that digest."""
    manifest, _ = _manifest_of(directory)
    return manifest.name, digest_of(manifest)


def require_trusted(directory: Path, trusted: str | None, *, verified: bool = True) -> None:
    """Refuses another dataset than is trusted.

    Args:
      directory: of the dataset.
      trusted: SHA-256 that its manifest must have; None: any.
      verified: whether the other files will be compared with the manifest.

    Raises:
      UserError: if it has not, or says nothing of the dataset's files, or that does not matter.
    """
    if trusted is None:
        return
    if not verified:
        raise UserError(
            f"{TRUSTED}: expected without --no_verify, received both: the digest stands for files "
            "that are compared with it. Remove one of them."
        )
    manifest, content = _manifest_of(directory)
    read_trusted(manifest, trusted, TRUSTED)
    if FILES not in content:
        raise UserError(
            f"{TRUSTED}: expected a dataset with digests of its files, but {manifest} has none: an "
            f"earlier version or another tool wrote it. {AGAIN}"
        )


def _manifest_of(directory: Path) -> tuple[Path, Mapping[str, Any]]:
    """The file that says what a dataset is, and what it says of files and vocabularies, if it does.

    Data of a layout that is not ours says nothing.

    Raises:
      UserError: if it is damaged.
    """
    refuse_address(directory)
    if is_materialised(directory):
        return directory / METADATA_FILE, {}
    if (directory / DATASET_FILE).exists():
        return directory / DATASET_FILE, read_info(directory)
    if is_split_binary(directory):
        return directory / FEATURE_SPEC_FILE, read_specification(directory / FEATURE_SPEC_FILE)[1]
    return directory, {}

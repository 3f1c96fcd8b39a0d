"""What the ids of a dataset stand for, as a run knows it and its checkpoints carry it along."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lookback.checkpoints.raw_ids import raw_id_tensors, raw_ids_in
from lookback.checkpoints.store import Checkpoint
from lookback.formats.dataset_info import FEATURES, VOCABULARIES, WORKFLOW_DIRECTORY
from lookback.formats.raw_ids import RawIds, feature_of, keys_of
from lookback.formats.verification import features_of, verify_dataset, vocabularies_of

COLUMNS = "columns"
"""Key of a checkpoint's facts: what its model reads."""


@dataclasses.dataclass(frozen=True)
class Ids:
    """What ids stand for, by feature.

    Attributes:
      vocabularies: digests of vocabularies.
      features: how typed features were made (`formats.transforms`), where the dataset says it.
      raw: gives the raw ids of a feature; None where nobody knows them.
    """

    vocabularies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    features: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    raw: Callable[[str], RawIds | None] = lambda feature: None

    @classmethod
    def of(cls, directory: Path, *, verified: bool = True) -> Ids:
        """Those of a dataset, or of a bundle.

        Args:
          directory: of it.
          verified: compare vocabularies with their digests before they are read.
        """
        raw = functools.partial(keys_of, directory)
        if verified:
            raw = functools.partial(_verified, functools.cache(_verify), directory)
        return cls(vocabularies_of(directory), features_of(directory), raw)

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> Ids:
        """Those that a checkpoint says; of earlier versions it says less."""
        meta, raw = checkpoint.meta, functools.partial(raw_ids_in, checkpoint)
        return cls(meta.get(VOCABULARIES, {}), meta.get(FEATURES, {}), raw)

    @property
    def meta(self) -> dict[str, Any]:
        """What a checkpoint says of them beside the tensors."""
        return {VOCABULARIES: dict(self.vocabularies), FEATURES: dict(self.features)}

    def tensors(self, tables: Iterable[str]) -> dict[str, NDArray]:
        """The raw ids of tables, as far as they are known, as tensors of a checkpoint.

        Raises:
          UserError: if a vocabulary is damaged.
        """
        found: dict[str, NDArray] = {}
        for feature in sorted({feature_of(table) for table in tables}):
            ids = self.raw(feature)
            if ids is not None:
                found |= raw_id_tensors(feature, ids)
        return found


def _verified(verify: Callable[[Path], None], directory: Path, feature: str) -> RawIds | None:
    verify(directory)
    return keys_of(directory, feature)


def _verify(directory: Path) -> None:
    if (directory / WORKFLOW_DIRECTORY).is_dir():
        verify_dataset(directory, parts={WORKFLOW_DIRECTORY})

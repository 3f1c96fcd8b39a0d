"""Datasets of histories as bundles of models over interactions hold them: two ids, no histories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lookback.serving.layouts.histories.export import ExportedHistories
from lookback.serving.manifest import InteractionsManifest

if TYPE_CHECKING:
    from merlin.schema import Schema


class ExportedInteractions(ExportedHistories):
    """What `python -m workflows run` writes, of which such models read the user and the item id."""

    layout = "interactions"

    def manifest(
        self, schema: Schema, model_schema: Schema, body: Mapping[str, Any], **common: Any
    ) -> InteractionsManifest:
        """Describes a bundle; tables and vocabularies must agree."""
        user, item = body["features"]["user"], body["features"]["item"]
        rows = self.rows_of((user, item), schema, model_schema)
        return InteractionsManifest(
            ids=self.ids,
            user_features=(user,),
            item_features=(item,),
            inputs={user: (None,), item: (None, None)},
            cardinalities=rows,
            vocabularies=self._vocabularies(rows, {}),
            dataset=self._summary(),
            **common,
        )

"""The JSON Schemas of a bundle: what it takes and what it gives."""

from __future__ import annotations

from typing import Any

from lookback.serving.json_schemas import DIALECT
from lookback.serving.layouts.registry import LAYOUTS
from lookback.serving.manifest import Manifest
from lookback.serving.requests import RequestEncoder


def schemas_of(
    manifest: Manifest, encoder: RequestEncoder, most_candidates: int | None = None
) -> dict[str, Any]:
    """What a bundle is asked and what it answers.

    Args:
      manifest: of the bundle.
      encoder: of the bundle.
      most_candidates: that a request may name; None: any number.

    Returns:
      "model_type", "layout", "roles" (names of features by role), and the schemas of a "request"
      and of an "answer".

    Raises:
      UserError: if its layout has none.
    """
    layout = LAYOUTS[manifest.layout]
    request = layout.request_schema(manifest, encoder, most_candidates)
    answer = layout.answer_schema(manifest, encoder)
    return {
        "model_type": manifest.model_type,
        "layout": manifest.layout,
        "roles": {role: list(names) for role, names in manifest.roles.items() if names},
        "request": {"$schema": DIALECT, "title": f"request to {manifest.model_type}", **request},
        "answer": {"$schema": DIALECT, "title": f"answer of {manifest.model_type}", **answer},
    }

"""The models by name: ``MODELS["sim"](schema, SIMConfig())`` is a `merlin.models.tf.Model`."""

from __future__ import annotations

from models.config import DIENConfig, DINConfig, SIMConfig
from models.registry import ModelEntry

MODELS = {
    "sim": ModelEntry("models.sim", SIMConfig),
    "din": ModelEntry("models.din", DINConfig),
    "dien": ModelEntry("models.dien", DIENConfig),
}

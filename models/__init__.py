"""The models by name: ``MODELS["sim"](schema, SIMConfig())`` is a `merlin.models.tf.Model`."""

from __future__ import annotations

from models.config import DIENConfig, DINConfig, SIMConfig
from models.neumf_config import NeuMFConfig
from models.registry import ModelEntry
from models.tabular_config import DCNv2Config, DLRMConfig

MODELS = {
    "sim": ModelEntry("models.sim", SIMConfig),
    "din": ModelEntry("models.din", DINConfig),
    "dien": ModelEntry("models.dien", DIENConfig),
    "dlrm": ModelEntry("models.dlrm", DLRMConfig),
    "dcnv2": ModelEntry("models.dcnv2", DCNv2Config),
    "neumf": ModelEntry("models.neumf", NeuMFConfig),
}

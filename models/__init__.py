"""The models by name: ``MODELS["sim"](schema, SIMConfig())`` is a `ClickModel`."""

from __future__ import annotations

from lookback.models.config import DIENConfig, DINConfig, SIMConfig
from lookback.models.neumf_config import NeuMFConfig
from lookback.models.registry import ModelEntry
from lookback.models.tabular_config import DCNv2Config, DLRMConfig

MODELS = {
    "sim": ModelEntry("lookback.models.sim", SIMConfig),
    "din": ModelEntry("lookback.models.din", DINConfig),
    "dien": ModelEntry("lookback.models.dien", DIENConfig),
    "dlrm": ModelEntry("lookback.models.dlrm", DLRMConfig),
    "dcnv2": ModelEntry("lookback.models.dcnv2", DCNv2Config),
    "neumf": ModelEntry("lookback.models.neumf", NeuMFConfig),
}

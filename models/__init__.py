"""The models: MODELS maps a name to what builds it; CONFIGS to its options."""

from __future__ import annotations

from models import dien, din, sim

MODELS = {
    "dien": dien.build,
    "din": din.build,
    "sim": sim.build,
}

CONFIGS = {
    "dien": dien.DIENConfig,
    "din": din.DINConfig,
    "sim": sim.SIMConfig,
}

"""Options of DLRM and DCNv2: NVIDIA's defaults, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from lookback.core.errors import UserError
from lookback.models.tabular_config import DCNv2Config, DLRMConfig, TabularModelConfig

CLASSES = (DLRMConfig, DCNv2Config)


@pytest.mark.parametrize("config_class", CLASSES)
def test_defaults_are_the_seeds(config_class):
    config = config_class()
    assert config.layout == "tabular"
    assert config.embedding_dim == 128
    assert config.bottom_mlp_sizes == (512, 256, 128)
    assert config.top_mlp_sizes == (1024, 1024, 512, 256, 1)
    assert not config.hash_indices
    assert config.max_table_size is None
    assert all("help" in field.metadata for field in dataclasses.fields(config_class))


def test_nvidias_recipes_are_the_defaults_of_seed_002s_code():
    common = {
        "global_batch_size": 65536,
        "epochs": 1,
        "decay_start_step": 48000,
        "decay_steps": 24000,
    }
    assert DLRMConfig.recipes["nvidia"] == {
        **common,
        "optimizer": "sgd",
        "lr": 24.0,
        "warmup_steps": 8000,
    }
    assert DCNv2Config.recipes["nvidia"] == {
        **common,
        "optimizer": "adam",
        "lr": 1e-4,
        "warmup_steps": 100,
    }
    assert (DCNv2Config().num_cross_layers, DCNv2Config().cross_layer_projection_dim) == (3, 512)


@pytest.mark.parametrize(
    ("config_class", "options", "message"),
    [
        (TabularModelConfig, {"embedding_dim": 0}, "embedding_dim: expected an integer, 1 or more"),
        (TabularModelConfig, {"bottom_mlp_sizes": ()}, "bottom_mlp_sizes: .* received nothing"),
        (TabularModelConfig, {"top_mlp_sizes": (8, 2)}, "then 1, the logit"),
        (TabularModelConfig, {"top_mlp_sizes": (1,)}, "one hidden width"),
        (TabularModelConfig, {"max_table_size": 5}, "Add --hash_indices"),
        (TabularModelConfig, {"max_table_size": 0, "hash_indices": True}, "1 or more"),
        (DLRMConfig, {"embedding_dim": 64}, "--interaction_op cat"),
        (DLRMConfig, {"interaction_op": "cuda_dot"}, "one of dot, cat"),
        (DCNv2Config, {"num_cross_layers": 0}, "num_cross_layers: expected an integer, 1 or more"),
        (DCNv2Config, {"cross_layer_projection_dim": 0}, "cross_layer_projection_dim"),
        (DCNv2Config, {"structure": "both"}, "one of stacked, parallel"),
    ],
)
def test_refuses(config_class, options, message):
    with pytest.raises(UserError, match=message):
        config_class(**options)


def test_cat_needs_no_equal_widths():
    assert DLRMConfig(embedding_dim=64, interaction_op="cat").embedding_dim == 64

"""`--beta1`, `--beta2` and `--eps`: who has them, and that they reach the optimizer."""

from __future__ import annotations

import pytest
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.core.options import continued, options_of
from lookback.embeddings.optimizers import TABLE_OPTIMIZERS
from lookback.training.config import RunConfig
from lookback.training.optimizers import DENSE_OPTIMIZERS

NAMES = {"beta1": "beta_1", "beta2": "beta_2", "eps": "epsilon"}
"""The run's options -> the optimizers' arguments."""


def config(**options):
    return RunConfig(model_type="sim", dataset_dir="data", **options)


def takes(name, argument):
    """Whether both of the optimizers of a name have an argument."""
    taken = []
    for make in (
        lambda more: DENSE_OPTIMIZERS[name](learning_rate=0.1, **more),
        lambda more: TABLE_OPTIMIZERS[name](tf.constant(0.1), **more),
    ):
        try:
            make({argument: 0.5})
        except TypeError:
            taken.append(False)
        else:
            taken.append(True)
    assert taken[0] == taken[1]
    return taken[0]


@pytest.mark.parametrize("option", NAMES)
def test_a_run_may_set_what_its_optimizer_has(option):
    choices = options_of(RunConfig)["optimizer"].choices
    assert set(choices) == set(DENSE_OPTIMIZERS)
    for name in choices:
        if takes(name, NAMES[option]):
            assert getattr(config(optimizer=name, **{option: 0.5}), option) == 0.5
            continue
        with pytest.raises(
            UserError,
            match=f"{option}: expected with --optimizer adam, .* received it with "
            f"--optimizer {name}",
        ):
            config(optimizer=name, **{option: 0.5})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("beta1", 1.0, r"beta1: .* 0 or more and below 1, or none, received 1\.0"),
        ("beta1", -0.1, "beta1: .* 0 or more and below 1"),
        ("beta2", 1.5, "beta2: .* 0 or more and below 1"),
        ("beta2", float("nan"), "beta2: .* 0 or more and below 1, or none, received nan"),
        ("eps", 0.0, r"eps: expected a number, above 0, or none, received 0\.0"),
        ("eps", -1e-8, "eps: expected a number, above 0"),
    ],
)
def test_values_out_of_range_are_refused(option, value, message):
    with pytest.raises(UserError, match=message):
        config(**{option: value})


def test_a_run_goes_on_only_with_the_options_it_began_with():
    assert set(NAMES) <= set(continued(config()))
    assert all(getattr(config(), option) is None for option in NAMES)
    assert config(beta1=0.0, beta2=0.0).beta1 == 0

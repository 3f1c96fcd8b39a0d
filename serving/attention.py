"""What a model attends to in a request's history: a second signature of its SavedModel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from lookback.serving.manifest import HISTORY_SUFFIX, Manifest

if TYPE_CHECKING:
    import tensorflow as tf

    from lookback.models.click_model import ClickModel

ATTENTION = "attention"
"""Name of the signature: inputs of the bundle -> `Attention`."""


class Attention(NamedTuple):
    """Of a batch, in as many history slots as its inputs have, T, padded as they are.

    Attributes:
      weights: float32 ``[B, C, T]``, of each candidate 1 in sum, or 0 without events.
      found: bool ``[B, C, T]``: what a search chose; of models without one, all that is looked at.
      slots: bool ``[T]``: where the model looks at all.
    """

    weights: npt.NDArray[np.float32]
    found: npt.NDArray[np.bool_]
    slots: npt.NDArray[np.bool_]


def attention_function(
    model: ClickModel, manifest: Manifest
) -> Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]] | None:
    """The function of the signature; None of a model that attends to nothing.

    Args:
      model: built.
      manifest: says its inputs.
    """
    import tensorflow as tf

    from lookback.models.click_body import ClickBody

    body = model.body
    if not isinstance(body, ClickBody) or type(body).attended is ClickBody.attended:
        return None
    events = f"{manifest.roles['item'][0]}{HISTORY_SUFFIX}"

    def attend(features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        attended = body.attended(features)
        assert attended is not None  # of a body that has a method of its own
        exists = features[events] > 0  # [B, T]
        places = tf.range(tf.shape(exists)[1])
        looked = places[attended.slots]
        around = [[0, 0], [0, 0], [looked[0], places[-1] - looked[-1]]]
        weights = tf.pad(tf.cast(attended.weights, tf.float32), around)  # [B, C, T]
        slots = (places >= looked[0]) & (places <= looked[-1])
        if attended.found is None:
            found = slots & tf.expand_dims(exists, 1)  # [B, 1, T]
        else:
            found = tf.pad(attended.found, around)
        return {
            "weights": weights,
            "found": tf.broadcast_to(found, tf.shape(weights)),
            "slots": slots,
        }

    return attend

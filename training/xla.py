"""One XLA computation of all that lies between a step's lookups and its exchange.

TensorFlow's own clusters (TF_XLA_FLAGS, `--tf_xla_auto_jit`) are no use here. They take in the
tables' updates, of as many rows as a batch has distinct ids: another number in each step, so that
each step is compiled anew until TensorFlow gives the cluster up. And they give back each variable
that they update as a copy, a whole table (tensorflow/compiler/jit/kernels/xla_ops.cc, 2.12:
`may_alias_resource_update` is false of XlaCompile). So rows are looked up in front of the
computation and updated behind it, and in it all shapes follow from the batch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from lookback.core.errors import UserError
from lookback.kernels.loader import portable
from lookback.models.click_model import Lookups

NOTE = "xla: what follows the lookups is compiled, anew for each shape of batch"

Rows = Mapping[str, tf.Tensor]


class Compiled:
    """A computation on rows that have been looked up, compiled for each shape of batch.

    Each shape takes seconds, or minutes of a CPU: an epoch has two, of its last batch the other.
    """

    def __init__(self, lookups: Lookups | None, compute: Callable[..., Any]) -> None:
        """Takes what is compiled when it is first called.

        Args:
          lookups: of the model that `compute` calls.
          compute: from rows by table, a batch's features and more tensors to a nest of tensors.

        Raises:
          UserError: if the model does not say which ids it looks up.
        """
        if lookups is None:
            raise UserError(
                "xla: expected a model that says which ids it looks up (`lookups`), in one "
                "collection. Leave --xla out."
            )
        self._lookups, self._compute = lookups, compute
        self.function = tf.function(
            self._trace, jit_compile=True, reduce_retracing=True, autograph=False
        )

    def __call__(self, features: Mapping[str, tf.Tensor]) -> Any:
        """Looks a batch's rows up, and computes what needs nothing more."""
        return self.function(self._lookups.rows(features), features)

    def _trace(self, rows: Rows, features: Mapping[str, tf.Tensor], *more: Any) -> Any:
        # XLA knows none of our operations.
        with portable(), self._lookups.embeddings.rows_from(lambda table, _: rows[table]):
            return self._compute(rows, features, *more)

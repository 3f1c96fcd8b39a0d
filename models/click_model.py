"""What a model is to those who train, store and serve it: a body, heads by task, a contract.

A model is a `merlin.models.tf.Model` of a `ClickBody`, which turns a batch into a representation
of each candidate ``[B, C, D]`` (or row ``[B, D]``), and of a Merlin output for each task, which
turns that into logits. What a model adds to the heads' loss it adds with `add_loss`, so that Keras'
`fit` trains it, too; what nobody can see from outside, its `Contract` declares.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import merlin.models.tf as mm
import tensorflow as tf
from merlin.schema import Schema

from lookback.core.errors import UserError
from lookback.embeddings.collection import EmbeddingCollection, collections_of
from lookback.models.blocks.click_loss import ClickLoss, click_metrics
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.click_body import Attended, ClickBody
from lookback.models.fused import FusedStep, fused_step
from lookback.models.stored_names import stored_as

TARGET = "click"
"""The task of all our models."""

Inputs: TypeAlias = Mapping[str, tf.Tensor]
Loss: TypeAlias = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Lookups:
    """The ids that a model looks up, known before it is called.

    Attributes:
      embeddings: in which; the model's only collection.
      ids: from a batch's features, those of the call, by the collection's features.
    """

    embeddings: EmbeddingCollection
    ids: Callable[[Inputs], dict[str, tf.Tensor]]

    def route(self, inputs: Inputs) -> Any:
        """The part of a call's lookups that needs no row, for `ahead`."""
        return self.embeddings.route(self.ids(inputs))

    def rows(self, inputs: Inputs) -> dict[str, tf.Tensor]:
        """All rows of a call's lookups: float32 ``[N, D]`` by table."""
        return self.embeddings.rows(self.ids(inputs))

    def ahead(self, route: Any) -> contextlib.AbstractContextManager[None]:
        """Within it, the model takes `route` instead of computing it."""
        return self.embeddings.ahead(route)


@dataclasses.dataclass(frozen=True)
class Contract:
    """What a model declares to those who train it.

    Attributes:
      tasks: its outputs by task, each of which brings its loss.
      added_losses: names of what the model adds by `add_loss` in training, in that order.
      loss_counts: from a batch's features and labels, of how many terms added losses are the
        mean, float32 [] by name. One that it does not name, or all without it, are means over
        the labels, as a head's loss is.
      lookups: None where the model does not say which ids it looks up, or has several
        collections: it trains, but its ids cannot travel ahead of it.
      head_weight: of the head's cross entropy in its loss.
      attended: from a batch's features, what the model attends to in histories; None where it
        does not say.
      fused: operations that do a step's losses and gradients at once; None: there are none here.
      fused_said: which they are, or why there are none, in a line; "" of a model without any.
    """

    tasks: Mapping[str, mm.ModelOutput]
    added_losses: tuple[str, ...] = ()
    loss_counts: Callable[[Inputs, tf.Tensor], dict[str, tf.Tensor]] | None = None
    lookups: Lookups | None = None
    head_weight: float = 1.0
    attended: Callable[[Inputs], Attended | None] | None = None
    fused: FusedStep | None = None
    fused_said: str = ""

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The losses of a step, in order: the head's, then those that the model adds."""
        return ("head_loss", *self.added_losses)

    @property
    def head_loss(self) -> Loss:
        """The mean loss of the one task; 0 for a batch without rows, which a process can get.

        Raises:
          UserError: if the model has more tasks, or none.
        """
        if len(self.tasks) != 1:
            raise UserError(
                f"Expected a model of one task, received one of {sorted(self.tasks) or 'none'}: a "
                "batch has the labels of one. Build a model for each."
            )
        (output,) = self.tasks.values()
        loss = tf.keras.losses.get(output.default_loss)
        if isinstance(loss, tf.keras.losses.Loss):
            return loss

        def mean(labels: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
            losses = loss(labels, predictions)  # Keras' functions give one a row
            rows = tf.cast(tf.size(losses), losses.dtype)
            return tf.math.divide_no_nan(tf.reduce_sum(losses), rows)

        return mean

    def counts(self, inputs: Inputs, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        """Of how many terms each of `loss_names` is the mean: float32 [], in that order.

        Raises:
          ValueError: if the model counts the terms of a loss that it does not name.
        """
        rows = tf.cast(tf.size(labels), tf.float32)
        own = self.loss_counts(inputs, labels) if self.loss_counts else {}
        unknown = sorted(set(own) - set(self.loss_names))
        if unknown:
            raise ValueError(
                f"loss_counts: expected names among the losses {self.loss_names}, received "
                f"{unknown}. Name them in `added_losses`, too."
            )
        return dict.fromkeys(self.loss_names, rows) | own


@stored_as("ClickModel", "HistoryModel", "TabularModel", "NeuMFModel")
class ClickModel(mm.Model):
    """A Merlin model of a body and its heads."""

    def __init__(self, body: ClickBody, *heads: mm.ModelOutput, **kwargs: Any) -> None:
        """Joins the parts.

        Args:
          body: in front of the heads.
          *heads: one for each task.
          **kwargs: of `mm.Model`, among them the `schema` of what serving brings.
        """
        super().__init__(body, *heads, **{"name": body.scopes[0], **kwargs})

    @property
    def body(self) -> ClickBody:
        """The network in front of the heads."""
        return self.blocks[0]

    @property
    def contract(self) -> Contract:
        """What the body and the heads declare.

        Raises:
          ValueError: if the model has tables of which its body's declaration does not speak.
        """
        body = self.body
        if collections_of(self) != [body.embeddings]:
            raise ValueError(
                f"{type(body).__name__}: expected `embeddings` to be the model's only collection, "
                f"found {[c.name for c in collections_of(self)]}. Join their tables in it."
            )
        fused = self._fused
        return Contract(
            tasks=_tasks(self),
            added_losses=body.added_losses,
            loss_counts=body.loss_counts,
            lookups=Lookups(body.embeddings, body.lookups),
            head_weight=self._head_weight,
            attended=body.attended,
            fused=None if isinstance(fused, str) else fused,
            fused_said=fused if isinstance(fused, str) else fused.said,
        )

    def score(self, inputs: Inputs) -> tf.Tensor:
        """Logits of a call without training, by one operation of ours where there is one.

        Args:
          inputs: as of a call.

        Returns:
          float32 ``[B, C]``, of rows ``[B, 1]``; the same as a call's but for the last digits.
        """
        fused = self._fused
        if isinstance(fused, str) or not fused.takes(inputs):
            return self(inputs, training=False)
        self._check_schema_and_inputs_matching(inputs)
        return fused.score(inputs)

    @property
    def _fused(self) -> FusedStep | str:
        """The operations for all of the model, or why there are none: decided at each call."""
        heads = list(_tasks(self).values())
        own = type(self) is ClickModel and len(heads) == 1  # a class of its own may call more
        if not own or not isinstance(heads[0].default_loss, ClickLoss):
            return ""
        if not isinstance(heads[0].to_call, LogitHead):
            return ""
        model = self.body.fused(heads[0].to_call, self._head_weight)
        return "" if model is None else fused_step(model)

    @property
    def _head_weight(self) -> float:
        losses = [head.default_loss for head in _tasks(self).values()]
        return losses[0].weight if len(losses) == 1 and isinstance(losses[0], ClickLoss) else 1.0

    def _check_schema_and_inputs_matching(self, inputs: Inputs) -> None:
        # Merlin demands the schema's columns, one by one and no others (models/base.py:1730); a
        # body takes some as one matrix, and in training more than in serving.
        expected = self.body.serving_inputs
        missing = expected - set(inputs)
        unknown = set(inputs) - expected - self.body.training_inputs
        if missing or unknown:
            raise ValueError(
                f"The model takes {sorted(expected)}. Missing: {sorted(missing)}; unknown: "
                f"{sorted(unknown)}."
            )


def click_model(
    body: ClickBody, schema: Schema, logit: LogitHead, head_weight: float = 1.0
) -> ClickModel:
    """Joins a body and the click head.

    Args:
      body: from a batch to representations.
      schema: of what serving brings.
      logit: from a representation to a logit.
      head_weight: weight of the head's cross entropy in the loss.

    Returns:
      A model from a batch to float32 logits ``[B, C]``.
    """
    head = mm.BinaryOutput(
        TARGET,
        to_call=logit,
        default_loss=ClickLoss(head_weight),
        default_metrics_fn=click_metrics,
    )
    return ClickModel(body, head, schema=schema)


def contract_of(model: mm.Model) -> Contract:
    """What a model declares; of a Merlin model of somebody's own, what can be seen of it.

    That is its outputs. Such a model trains, with tables of ours in any number of collections;
    losses that it adds need names (`dataclasses.replace(contract_of(model), added_losses=...)`).
    """
    return model.contract if isinstance(model, ClickModel) else Contract(_tasks(model))


def logits_of(model: mm.Model, inputs: Inputs) -> tf.Tensor:
    """A model's logits of a batch, in the way that is the fastest here.

    Args:
      model: built.
      inputs: as of its call.
    """
    return model.score(inputs) if isinstance(model, ClickModel) else model(inputs, training=False)


def _tasks(model: mm.Model) -> dict[str, mm.ModelOutput]:
    return {output.target or output.name: output for output in model.model_outputs}

"""The graphs that a run repeats: one training step, one evaluation step."""

from __future__ import annotations

from typing import Any

import merlin.models.tf as mm
import tensorflow as tf

from dataloading.sources import BatchSource
from training.optimizers import Optimizer
from training.precision import LossScale, all_finite


class Steps:
    """Compiled steps of one model over one source of batches.

    The model owns its loss: the default loss of its one `ModelOutput`, on labels and what the
    model returns, plus whatever the model added with `add_loss`. If the model's body names what it
    adds (`added_losses`), the names appear in the log.
    """

    def __init__(
        self,
        model: mm.Model,
        optimizer: Optimizer | None,
        source: BatchSource,
        loss_scale: LossScale | None,
    ) -> None:
        """Prepares the steps; they are traced when first run.

        Args:
          model: built.
          optimizer: of the model; None if only `evaluate` will be called.
          source: of batches.
          loss_scale: for fp16; None elsewhere.
        """
        self._model = model
        self._optimizer = optimizer
        self._source = source
        self._loss_scale = loss_scale
        self._head_loss = head_loss(model)
        self._added_losses = tuple(getattr(model.first, "added_losses", ()))
        # Nothing here branches or loops on tensors' values, so AutoGraph would only cost time
        # (measured: a training step is traced in 1.9 s of CPU without it, 6.2 s with it).
        self.train = tf.function(self._train, reduce_retracing=True, autograph=False)
        self._evaluations: dict[str, Any] = {}

    def evaluate(self, split: str, feed: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Scores one batch of a split.

        Args:
          split: to which the feed belongs.
          feed: of the source.

        Returns:
          Labels ``[B, C]``, logits ``[B, C]`` and the group of each history ``[B]`` (None if the
          data has no user feature).
        """
        if split not in self._evaluations:

            def step(feed: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
                features, labels = self._source.eval_batch(split, feed)
                logits = self._model(features, training=False)
                group = self._source.group_feature
                return labels, logits, None if group is None else features[group]

            self._evaluations[split] = tf.function(step, reduce_retracing=True, autograph=False)
        scores: tuple[tf.Tensor, tf.Tensor, tf.Tensor | None] = self._evaluations[split](feed)
        return scores

    def _train(self, feed: Any) -> dict[str, tf.Tensor]:
        """Updates the model by one batch.

        Returns:
          Losses [] by name, the batch's "rows", and whether all gradients were "finite".
        """
        if self._optimizer is None:
            raise ValueError("Training steps need an optimizer.")
        features, labels = self._source.train_batch(feed)
        variables = self._optimizer.variables_to_differentiate
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            logits = self._model(features, targets=labels, training=True)
            head = self._head_loss(labels, logits)
            added = [tf.cast(loss, tf.float32) for loss in self._model.losses]
            total = tf.add_n([head, *added])
            scaled = total if self._loss_scale is None else self._loss_scale.scaled(total)
        gradients = tape.gradient(scaled, variables)
        finite = tf.constant(True)
        if self._loss_scale is None:
            finite = all_finite(gradients)
            self._optimizer.apply(gradients)
        else:
            gradients = self._loss_scale.unscaled(gradients)
            optimizer = self._optimizer
            # An overflow is part of dynamic scaling: it skips the step, and is no fault.
            tf.cond(
                self._loss_scale.update(gradients), lambda: optimizer.apply(gradients), lambda: None
            )
        self._optimizer.check_covers(self._model)  # the trace has made what weights there are
        names = self._added_losses or tuple(f"added_loss_{i}" for i in range(len(added)))
        losses = {"total_loss": total, "head_loss": head}
        return losses | dict(zip(names, added)) | {"rows": tf.size(labels), "finite": finite}


def head_loss(model: mm.Model) -> tf.keras.losses.Loss:
    """The loss of a model's one output, which the model brings along."""
    (output,) = model.model_outputs
    return tf.keras.losses.get(output.default_loss)

"""The graphs that training repeats: one step, whole or in parts.

Every loss is a mean over n terms: over labels, or over what the model counts (`Contract.counts`).
A process, or a part of its batch, has the mean over its own m. It differentiates its share of the
batch's mean, ``mean * m / n``; so shares are added, never averaged, however unevenly the batch is
cut, and who has nothing adds nothing (docs/decisions/0012). A step exchanges three things:

1. the counts m, to know n: a few numbers, before anything is differentiated;
2. ids, to the owners of their rows, and the rows back; when the lookup is differentiated, the rows'
   gradients take the way of the ids, so a sharded table's are with their owner when the tape ends;
3. what all processes must know alike, in one message: shares of the losses, `_facts`, gradients of
   dense variables (`Optimizer.reduced`). By it all take the same step, or none.

In parts (`in_parts`), the second goes once a part and the third waits for all of them. A sum of
floats depends on its order, so the parts' are added in the order that they have in the batch,
whoever computed them: the dense gradients here, those of a table's row by its owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import merlin.models.tf as mm
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.core.world import SOLO, World
from lookback.dataloading.draws import compiled_draws
from lookback.dataloading.sources import Batch, BatchSource, as_tensors
from lookback.models.click_model import Contract, Lookups, contract_of
from lookback.training.optimizers import Gradients, Optimizer
from lookback.training.precision import LossScale, all_finite
from lookback.training.xla import NOTE, Compiled


class Prepared(NamedTuple):
    """A batch whose ids have been exchanged already.

    Attributes:
      batch: features and labels.
      route: of the model's one collection.
    """

    batch: Batch
    route: Any


class Steps:
    """Compiled steps of one model over one source of batches.

    The model owns its loss: its head's, on labels and what the model returns, plus what it adds
    with `add_loss`, which its contract names.

    Attributes:
      compiled: what XLA compiles of a step; None without XLA.
    """

    def __init__(
        self,
        model: mm.Model,
        optimizer: Optimizer | None,
        source: BatchSource,
        loss_scale: LossScale | None,
        *,
        world: World = SOLO,
        prefetch_ids: bool = False,
        in_parts: Sequence[str] = (),
        xla: bool = False,
        contract: Contract | None = None,
    ) -> None:
        """Prepares the steps; they are traced when first run.

        Args:
          model: built.
          optimizer: of the model; None if nothing will be trained.
          source: of batches.
          loss_scale: for fp16; None elsewhere.
          world: the processes that train together.
          prefetch_ids: exchange the ids of the next batch while this one is computed.
          in_parts: the options, if any, that ask to differentiate the parts of each batch
            (`BatchSource.parts_of`) one after another, and to add their gradients up in the order
            of the batch: the result is then the same, bit for bit, on every number of processes
            that share the parts evenly.
          xla: compile what lies between lookups and exchange with XLA (`training.xla`).
          contract: what the model declares; None: `contract_of` it.

        Raises:
          UserError: if the model does not say which ids it looks up, and that needs to be known;
            or if it has several tasks.
        """
        self._model = model
        self._optimizer = optimizer
        self._source = source
        self._loss_scale = loss_scale
        self._world = world
        self._contract = contract or contract_of(model)
        self._head_loss = self._contract.head_loss
        self._prefetch_ids, self._in_parts = prefetch_ids, bool(in_parts)
        for option in (*(["prefetch_ids"] if prefetch_ids else []), *in_parts):
            if self._contract.lookups is None:
                raise UserError(
                    f"{option}: expected a model that says which ids it looks up (`lookups`), in "
                    f"one collection. Leave --{option} out."
                )
        self.compiled: Compiled | None = None
        if xla:
            self.compiled = Compiled(self._contract.lookups, self._differentiate_rows)
        # Nothing here branches or loops on tensors' values, so AutoGraph would only cost time
        # (measured: a training step is traced in 1.9 s of CPU without it, 6.2 s with it).
        compiled = {"reduce_retracing": True, "autograph": False}
        self._train = tf.function(self._train_batch, **compiled)
        self._prepare = tf.function(self._prepare_batch, **compiled)
        self._train_and_prepare = tf.function(self._train_and_prepare_batch, **compiled)
        self._count = tf.function(self._count_part, **compiled)
        self._differentiate = tf.function(self._differentiate_part, **compiled)
        self._combine = tf.function(self._combine_parts, **compiled)

    @property
    def notes(self) -> list[str]:
        """What computes the steps, in a line or none."""
        if self.compiled is not None:
            return [NOTE]
        return [self._contract.fused_said] if self._contract.fused_said else []

    def train(
        self, feeds: Iterator[Any], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Any, dict[str, tf.Tensor]]]:
        """Updates the model by one batch after another.

        Args:
          feeds: of the source.
          stop: asked before each step whether this process wants to stop.

        Yields:
          Each feed, and what came of it, summed over all processes: losses [] by name, the batch's
          "rows", whether all gradients were "finite", whether the loss scale "adapts" to it where
          they were not, and how many processes want to "stop".
        """
        if self._in_parts:
            for feed in feeds:
                yield feed, self._train_in_parts(self._source.parts_of(feed), tf.constant(stop()))
            return
        if not self._prefetch_ids:
            for feed in feeds:
                yield feed, self._train(feed, tf.constant(stop()))
            return
        feed = next(feeds, None)
        prepared = None if feed is None else self._prepare(feed)
        while feed is not None:
            following = next(feeds, None)
            # After the last batch, its own ids once more: a graph of its own would cost seconds.
            result, prepared = self._train_and_prepare(
                prepared, feed if following is None else following, tf.constant(stop())
            )
            yield feed, result
            feed = following

    def _train_batch(self, feed: Any, stop: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._update(self._batch(feed), stop)

    def _prepare_batch(self, feed: Any) -> Prepared:
        features, labels = self._batch(feed)
        return Prepared((features, labels), self._needed_lookups().route(features))

    def _train_and_prepare_batch(
        self, prepared: Prepared, following: Any, stop: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], Prepared]:
        """Neither half needs the other, so that the exchange hides behind the computation."""
        ahead = self._prepare_batch(following)
        with self._needed_lookups().ahead(prepared.route):
            result = self._update(prepared.batch, stop)
        return result, ahead

    def _train_in_parts(self, feeds: Sequence[Any], stop: tf.Tensor) -> dict[str, tf.Tensor]:
        """Updates the model by a batch in parts; needs the memory of one part.

        Three graphs, each run once a part but for the last: what a part leaves behind is its
        gradients, and of tables only those of rows.
        """
        totals = tf.add_n([self._count(feed) for feed in feeds])  # whole numbers: exact
        (totals,) = self._world.sum([totals])
        return self._combine([self._differentiate(feed, totals) for feed in feeds], stop)

    def _update(self, batch: Batch, stop: tf.Tensor) -> dict[str, tf.Tensor]:
        """Updates the model by this process's part of a batch; returns what `train` yields."""
        optimizer = self._needed_optimizer()
        counts = self._contract.counts(*batch)
        totals = dict(zip(counts, self._world.sum(list(counts.values()))))
        # Scaled gradients are what can overflow; they are unscaled when all have been added.
        shares, gradients, finite = self._gradients(batch, counts, totals)
        told = [*shares.values(), *_facts(batch, finite, stop)]
        gradients, summed = optimizer.reduced(gradients, told)
        result = _result(list(shares), summed)
        return {**result, "adapts": self._apply(self._unscaled(gradients), result["finite"])}

    def _count_part(self, feed: Any) -> tf.Tensor:
        return tf.stack(list(self._contract.counts(*self._batch(feed)).values()))

    def _differentiate_part(self, feed: Any, totals: tf.Tensor) -> _Part:
        batch = self._batch(feed)
        counts, lookups = self._contract.counts(*batch), self._needed_lookups()
        route = lookups.route(batch[0])
        with lookups.ahead(route):
            shares, gradients, finite = self._gradients(
                batch, counts, dict(zip(counts, tf.unstack(totals, len(counts))))
            )
        dense, tables = self._needed_optimizer().split(gradients)
        told = [*shares.values(), *_facts(batch, finite, tf.constant(False))]
        flat = tf.concat([tf.reshape(value, [-1]) for value in (*told, *dense)], 0)
        return _Part(flat, tables, lookups.embeddings.backend.senders(route))

    def _combine_parts(self, parts: Sequence[_Part], stop: tf.Tensor) -> dict[str, tf.Tensor]:
        optimizer = self._needed_optimizer()
        names, backend = self._contract.loss_names, self._needed_lookups().embeddings.backend
        # Stacked, not added: the world adds all parts of all processes, in the batch's order.
        total = self._world.sum_in_order(tf.stack([part.told_and_dense for part in parts]))
        told, dense = tf.split(total, [len(names) + _FACTS, -1])
        # The rows of all parts by place in the batch, so that a row's sum has that order, too.
        joined = backend.joined([part.tables for part in parts], [part.senders for part in parts])
        tables = backend.reduce_gradients(joined, distinct=True)
        gradients = self._unscaled(optimizer.joined(dense, tables))
        # Of a batch, not of a part, so it goes by itself.
        (stopping,) = self._world.sum([tf.cast(stop, tf.float32)])
        result = _result(names, [*tf.unstack(told, len(names) + _FACTS)[:-1], stopping])
        return {**result, "adapts": self._apply(gradients, result["finite"])}

    def _gradients(
        self,
        batch: Batch,
        counts: Mapping[str, tf.Tensor],
        totals: Mapping[str, tf.Tensor],
    ) -> tuple[dict[str, tf.Tensor], Gradients, tf.Tensor]:
        """Shares of the losses, by name, the gradients of their sum, and whether they are finite.

        Args:
          batch: features and labels, or a part of them.
          counts: by loss, of how many terms it is the mean here.
          totals: the same over the whole batch.
        """
        if self.compiled is not None:
            return self._compiled_gradients(self.compiled, batch, counts, totals)
        features, labels = batch
        variables = self._needed_optimizer().variables_to_differentiate
        fused = self._contract.fused
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            # Losses that the operations do not know are those of the layers.
            if fused and fused.losses == self._contract.loss_names and fused.takes(features):
                shares, total = fused.shares(features, labels, totals)
            else:
                shares = self._shares(batch, counts, totals)
                total = tf.add_n(list(shares.values()))
            scaled = self._scaled(total)
        gradients = tape.gradient(scaled, variables)
        return shares, gradients, all_finite(gradients)

    def _compiled_gradients(
        self,
        compiled: Compiled,
        batch: Batch,
        counts: Mapping[str, tf.Tensor],
        totals: Mapping[str, tf.Tensor],
    ) -> tuple[dict[str, tf.Tensor], Gradients, tf.Tensor]:
        """As `_gradients`: rows are looked up and their gradients given back outside of XLA."""
        features, labels = batch
        optimizer, lookups = self._needed_optimizer(), self._needed_lookups()
        tables = optimizer.variables_to_differentiate[len(optimizer.dense) :]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tables)
            rows = lookups.rows(features)
        shares, of_dense, of_rows, finite = compiled.function(
            rows, features, labels, counts, totals
        )
        of_tables = tape.gradient(rows, tables, output_gradients=of_rows)
        return shares, [*of_dense, *of_tables], finite

    def _differentiate_rows(
        self,
        rows: Mapping[str, tf.Tensor],
        features: dict[str, tf.Tensor],
        labels: tf.Tensor,
        counts: Mapping[str, tf.Tensor],
        totals: Mapping[str, tf.Tensor],
    ) -> tuple[dict[str, tf.Tensor], Gradients, dict[str, tf.Tensor], tf.Tensor]:
        """Shares of the losses, gradients of dense variables and of rows, whether all are finite.

        Arguments as of `_gradients`, and rows ``[N, D]`` by table.
        """
        dense = self._needed_optimizer().dense
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*dense, *rows.values()])
            shares = self._shares((dict(features), labels), counts, totals)
            scaled = self._scaled(tf.add_n(list(shares.values())))
        of_dense, of_rows = tape.gradient(scaled, [dense, rows])
        # What nothing reads has a gradient all the same: None would be ones to the next tape.
        of_rows = {n: tf.zeros_like(rows[n]) if g is None else g for n, g in of_rows.items()}
        # One sum of all, where each would be a kernel of its own.
        flat = tf.concat([tf.reshape(g, [-1]) for g in of_dense if g is not None], 0)
        return shares, of_dense, of_rows, all_finite([flat, *of_rows.values()])

    def _scaled(self, total: tf.Tensor) -> tf.Tensor:
        return total if self._loss_scale is None else self._loss_scale.scaled(total)

    def _shares(
        self, batch: Batch, counts: Mapping[str, tf.Tensor], totals: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Shares of the losses as the model's layers compute them; arguments of `_gradients`."""
        features, labels = batch
        logits = self._model(features, targets=labels, training=True)
        losses = [self._head_loss(labels, logits), *self._model.losses]
        names = self._contract.loss_names
        if len(losses) != len(names):
            raise ValueError(
                f"The model declares losses {list(names)}, but a training call gave the head's "
                f"and {len(losses) - 1} added ones. Name in `added_losses` what it adds."
            )
        weights = [tf.math.divide_no_nan(counts[name], totals[name]) for name in names]
        return {
            name: weight * tf.cast(loss, tf.float32)
            for name, weight, loss in zip(names, weights, losses)
        }

    def _unscaled(self, gradients: Gradients) -> Gradients:
        return gradients if self._loss_scale is None else self._loss_scale.unscaled(gradients)

    def _apply(self, gradients: Gradients, finite: tf.Tensor) -> tf.Tensor:
        """Takes the step, if it can be taken; whether the loss scale adapts where it cannot."""
        optimizer, adapts = self._needed_optimizer(), tf.constant(False)
        if self._loss_scale is None:
            optimizer.apply(gradients)
        else:
            self._loss_scale.update(finite)
            # An overflow is part of dynamic scaling: it skips the step, and is no fault.
            tf.cond(finite, lambda: optimizer.apply(gradients), lambda: None)
            adapts = self._loss_scale.can_fall
        optimizer.check_covers(self._model)  # the trace has made what weights there are
        return adapts

    def _batch(self, feed: Any) -> Batch:
        with compiled_draws(wanted=self.compiled is not None):
            return self._source.train_batch(as_tensors(feed))

    def _needed_lookups(self) -> Lookups:
        if self._contract.lookups is None:
            raise ValueError("Ids travel ahead of a model only if it declares its lookups.")
        return self._contract.lookups

    def _needed_optimizer(self) -> Optimizer:
        if self._optimizer is None:
            raise ValueError("Training steps need an optimizer.")
        return self._optimizer


class _Part(NamedTuple):
    """The results of a part of a batch.

    Attributes:
      told_and_dense: shares of the losses, `_facts`, and dense gradients, one after another.
      tables: gradients by variable of the collection.
      senders: of the backend.
    """

    told_and_dense: tf.Tensor
    tables: dict[str, tf.IndexedSlices]
    senders: tf.Tensor


_FACTS = 3


def _facts(batch: Batch, finite: tf.Tensor, stop: tf.Tensor) -> list[tf.Tensor]:
    """What is added up over processes beside losses; float32, to travel with them."""
    rows = tf.cast(tf.size(batch[1]), tf.float32)
    return [rows, tf.cast(tf.logical_not(finite), tf.float32), tf.cast(stop, tf.float32)]


def _result(names: Sequence[str], told: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
    """A step's result from losses and `_facts`, summed over processes."""
    *losses, rows, infinite, stopping = told
    return {
        "total_loss": tf.add_n(losses),
        **dict(zip(names, losses)),
        "rows": tf.cast(rows, tf.int64),
        "finite": tf.equal(infinite, 0),
        "stop": tf.cast(stopping, tf.int64),
    }

"""The training loop: epochs of steps, and what happens between them.

It knows no model and no dataset. How a run evaluates (`training.evaluation.run_evaluation`), what
it does with evaluations on the way (`training.validation`), how it is saved
(`training.checkpointing`) and how its steps are checked and logged (`training.step_monitor`) are
objects of their own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import merlin.models.tf as mm
import tensorflow as tf

from lookback.checkpoints.data_file import bytes_of, layout_of
from lookback.checkpoints.store import Checkpoint
from lookback.core.world import SOLO, World
from lookback.dataloading.evaluations import EvaluationPass
from lookback.dataloading.sources import BatchSource
from lookback.embeddings.collection import collections_of
from lookback.models.click_model import contract_of
from lookback.training.checkpointing import RunCheckpoints
from lookback.training.config import RunConfig
from lookback.training.config_checks import cutting_options
from lookback.training.contents import RunContents
from lookback.training.evaluation.attention import attention_found
from lookback.training.evaluation.found import AttentionFound
from lookback.training.evaluation.run_evaluation import RunEvaluation
from lookback.training.evaluation.splits import note_on_splits
from lookback.training.ids import Ids
from lookback.training.inference import Inference
from lookback.training.milestones import Milestones, Position
from lookback.training.optimizers import Optimizer
from lookback.training.outcome import Outcome
from lookback.training.output.logging import RunLogger
from lookback.training.output.performance import PerformanceMeter
from lookback.training.output.warnings import warnings_of
from lookback.training.parallel.gathering import build_variables, use_streams_of
from lookback.training.precision import LossScale
from lookback.training.rehearsal import Rehearsal, rehearse
from lookback.training.schedule import Schedule
from lookback.training.signals import TerminatedError, TerminationRequest, catch_termination
from lookback.training.start import Origin
from lookback.training.step_monitor import StepMonitor
from lookback.training.steps import Steps
from lookback.training.traffic import TrafficMeter
from lookback.training.validation import Validation

_MANY_ROWS = 1 << 15
"""Of a batch: SIM's layers keep some 90 kB of a row with 100 events, so 3 GB of these."""


class Trainer:
    """Trains, evaluates and scores with one model on one source of batches.

    Where several processes train together, each has a trainer and calls the same methods.

    Attributes:
      contents: what the run's checkpoints hold.
      evaluation: of the run's splits.
      optimizer: of all weights; None where nothing is trained.
      position: where the run stands.
    """

    def __init__(
        self,
        model: mm.Model,
        source: BatchSource,
        config: RunConfig,
        *,
        model_identity: Mapping[str, Any],
        run_identity: Mapping[str, Any],
        ids: Ids | None = None,
        goals: Mapping[str, float] | None = None,
        checkpoint: Checkpoint | None = None,
        origin: Origin | None = None,
        world: World = SOLO,
    ) -> None:
        """Builds the model's variables and, if asked to, restores them.

        Args:
          model: maps features to logits ``[B, C]``.
          source: of batches.
          config: of the run.
          model_identity: what a checkpoint must agree on to be used, for JSON.
          run_identity: what it must agree on besides to be continued.
          ids: what the dataset's ids stand for, which a checkpoint carries along
            (`training.data.compare_vocabularies`, `training.start`).
          goals: figures of an evaluation, by name, at any of which training ends.
          checkpoint: to continue (mode train), or to take the model from.
          origin: a trained model to start from instead, on other data.
          world: the processes that train together.

        Raises:
          UserError: if the checkpoint belongs to another model, dataset or configuration, or the
            origin does not suit the model.
        """
        self._model, self._source, self._config = model, source, config
        self._goals, self._world = goals or {}, world
        self.evaluation = RunEvaluation(model, source, config, self._goals, world)
        self._build()
        self.optimizer = None
        if config.mode == "train":  # its state is as large as the tables, or twice as large
            self.optimizer = Optimizer(
                config.optimizer,
                Schedule.of(config),
                config.weight_decay,
                model,
                world=world,
                wire_dtype=config.gradient_wire_dtype,
                beta1=config.beta1,
                beta2=config.beta2,
                eps=config.eps,
            )
        # Gradients of a mean over a large batch are too small for half precision as they are.
        computed = tf.keras.mixed_precision.global_policy().compute_dtype
        fp16 = "float16" in (computed, config.wire_dtype, config.gradient_wire_dtype)
        self._loss_scale = LossScale.of(config) if fp16 else None
        self._steps = Steps(
            model,
            self.optimizer,
            source,
            self._loss_scale,
            world=world,
            prefetch_ids=config.prefetch_ids,
            in_parts=cutting_options(config),
            xla=config.xla,
        )
        self.contents = RunContents(
            model,
            self.optimizer,
            self._loss_scale,
            model_identity=model_identity,
            run_identity=run_identity,
            ids=ids or Ids(),
            world=world,
        )
        self._checkpoints = RunCheckpoints(config, self.contents, self.evaluation.best, world)
        self._traffic = TrafficMeter(model, world)
        self.position = Position()
        self._started = [] if origin is None else self._start(origin)
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def notes(self) -> list[str]:
        """Lines to show before the first step."""
        contract, config = contract_of(self._model), self._config
        lines = [*self._started, *self._steps.notes]
        by_layers = contract.fused_said and contract.fused is None and not cutting_options(config)
        rows = config.batch_rows // self._world.size if config.mode == "train" and by_layers else 0
        if rows > _MANY_ROWS:
            lines.append(
                f"layers keep what they compute of {rows:,} rows at once; --micro_batches N "
                "computes a batch in N parts, in the memory of one"
            )
        return lines

    def train(self, log: RunLogger) -> Outcome:
        """Trains to the configured number of epochs, evaluating and saving on the way.

        Raises:
          UserError: if a loss is not finite; the last checkpoint stays.
          SystemExit: with status 143 after SIGTERM, 130 after Ctrl-C, and a checkpoint.
        """
        self._checkpoints.begin(log)
        self._warn_of_idle_options(log)
        self.evaluation.log_left_out(log)
        began = time.perf_counter()
        with catch_termination() as termination:
            try:
                outcome = self._train(log, termination)
            except TerminatedError:
                self._checkpoints.save_and_leave(self.position, log)
                raise SystemExit(termination.status) from None
        seconds = time.perf_counter() - began
        return dataclasses.replace(outcome, summary={**outcome.summary, "time_to_train": seconds})

    def _train(self, log: RunLogger, termination: TerminationRequest) -> Outcome:
        config, source, splits = self._config, self._source, self.evaluation.splits
        note = note_on_splits(config, splits, self._goals)
        if note:
            log.message(note)
        # Half of a short epoch still leaves something to measure.
        warmup = min(config.benchmark_warmup_steps, source.train_steps() // 2)
        meter = PerformanceMeter(warmup_steps=warmup)
        monitor = self._monitor(log, meter)
        milestones = Milestones(config, source.train_steps(), self._goals, splits.watched)
        validation = Validation(config, self.evaluation, self._checkpoints, milestones, log)
        losses = None if self.position.total_steps else monitor.losses
        figures: dict[str, Any] = {}
        found: Outcome | None = None
        resumed = validation.run_if_missed(self.position, termination)
        finished = milestones.out_of_steps(self.position) or validation.exhausted
        while self.position.epoch < config.epochs and not finished:
            found = self._train_epoch(monitor, meter, milestones, validation, termination)
            done = self.position.epoch
            if self.position.step == source.train_steps():
                self.position = self.position.next_epoch
            self._checkpoints.save(self.position)  # a killed evaluation must not cost the epoch
            figures = meter.results() if meter.measured_steps else {}
            figures |= self._traffic.figures(self.position.total_steps)
            ended = self.position.step == 0
            if found is None and ended and milestones.evaluation_is_due(self.position):
                found = validation.run(self.position, termination)
            finished = milestones.out_of_steps(self.position) or validation.ends(found)
            figures |= {} if found is None else found.summary
            if finished or self.position.epoch >= config.epochs:
                found = validation.finish(found, self.position, termination)
                figures |= found.summary
            log.epoch(done, figures)
        if found is None:  # a finished run, resumed, had no epoch
            found = validation.finish(resumed, self.position, termination)
        summary = {**figures, **found.summary}
        best = self.evaluation.best
        if best is not None and best.step is not None:
            summary["best_step"] = best.step
        warnings = warnings_of(summary, splits.all, source.train_steps(), losses, config)
        return dataclasses.replace(found, summary=summary, warnings=warnings)

    def _train_epoch(
        self,
        monitor: StepMonitor,
        meter: PerformanceMeter,
        milestones: Milestones,
        validation: Validation,
        termination: TerminationRequest,
    ) -> Outcome | None:
        """Trains to the end of the epoch, or of the run if that comes first.

        Returns:
          The evaluation after the last step, if `--test_freq` asked for one.

        Raises:
          UserError: if a loss is not finite.
          TerminatedError: if a signal asked for it, of all processes after the same step.
        """
        meter.start()
        self._traffic.figures(self.position.total_steps)  # evaluation's is not training's
        found: Outcome | None = None
        feeds = self._source.train_feeds(self.position.epoch, self.position.step)
        every = self._config.checkpoint_every if self._checkpoints.saves else None
        # Several processes end together, after their next step.
        alone = termination if self._world.size == 1 else None
        for _, result in self._steps.train(feeds, lambda: bool(termination)):
            found = None
            at, self.position = self.position, self.position.after_a_step
            saves = every is not None and self.position.total_steps % every == 0
            validates = milestones.test_is_due(self.position)
            ends = milestones.out_of_steps(self.position)
            if monitor.add(at, result, wait=saves or validates or ends or bool(alone)):
                raise TerminatedError
            if saves:
                self._checkpoints.save(self.position)
            if validates:
                found = validation.run_within_epoch(self.position, alone)
                meter.resume()
            if ends or validation.ends(found):
                break
        if monitor.read():
            raise TerminatedError
        return found

    def benchmark(self, log: RunLogger) -> Outcome:
        """Trains for the configured number of steps, or epochs, and reports their speed.

        Evaluates nothing and saves nothing.
        """
        meter = PerformanceMeter(self._config.benchmark_warmup_steps, self._config.benchmark_steps)
        monitor = self._monitor(log, meter)
        self._warn_of_idle_options(log)
        meter.start()
        while not meter.completed:
            for _, result in self._steps.train(self._source.train_feeds(self.position.epoch, 0)):
                at, self.position = self.position, self.position.after_a_step
                monitor.add(at, result)
                if meter.completed:
                    break
            monitor.read()
            self.position = self.position.next_epoch
            if meter.steps is None and self.position.epoch >= self._config.epochs:
                break
        return Outcome(meter.results(), {})

    def rehearse(self, log: RunLogger, began: float) -> Rehearsal:
        """Takes some steps of everything; the trainer is of no use afterwards.

        Args:
          log: a disabled one.
          began: when the run began (`time.perf_counter`).
        """

        def takes(evaluation: EvaluationPass) -> Callable[[int], Any]:
            return lambda steps: self.evaluation.evaluator.evaluated(evaluation, log, most=steps)

        contents, splits = self.contents, self.evaluation.splits
        return rehearse(
            self._steps,
            self._source,
            self._config,
            {found.name: takes(found) for found in self.evaluation.passes(splits.all)},
            splits.watched,
            (bytes_of(layout_of(contents.pieces)), bytes_of(layout_of(contents.model_pieces))),
            began,
            self._world,
        )

    def attention(self) -> AttentionFound | None:
        """What the model attends to in the split that is evaluated last; None if to nothing."""
        split = self.evaluation.splits.all[-1]
        return attention_found(contract_of(self._model), self._source, split, self._world)

    @property
    def inference(self) -> Inference:
        """Scores the evaluation split, and measures how fast."""
        scored = self.evaluation.splits.scored
        return Inference(self._model, self._source, self._config, scored, self._world)

    def _warn_of_idle_options(self, log: RunLogger) -> None:
        """Says which options this machine gives no meaning to."""
        if self._config.loss_scale is not None and self._loss_scale is None:
            log.message(
                f"warning: loss_scale {self._config.loss_scale:g} has no effect: --amp is bfloat16 "
                "here, whose gradients need no scale; on a GPU it would be fp16."
            )

    def _build(self) -> None:
        """Creates the model's variables; those that all ranks hold are alike."""
        use_streams_of(self._model, self._world.rank)
        build_variables(self._model, self._source)
        tables = {id(v) for c in collections_of(self._model) for v in c.backend.variables.values()}
        self._world.broadcast([v for v in self._model.variables if id(v) not in tables])

    def _monitor(self, log: RunLogger, meter: PerformanceMeter) -> StepMonitor:
        optimizer = self.optimizer
        assert optimizer is not None, "nothing is trained but in mode train"
        return StepMonitor(
            self._source,
            log,
            meter,
            log_every=self._config.log_every,
            learning_rate=lambda: float(optimizer.learning_rate),
            world=self._world,
        )

    def _start(self, origin: Origin) -> list[str]:
        """Takes what a trained model has learnt; gives lines on what was taken."""
        notes = self.contents.start(origin)
        assert self.optimizer is not None
        self.position = Position(updates_before=self.optimizer.begin_schedule())
        return notes

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Restores everything to continue a run; only the model to use it."""
        self.position = self._checkpoints.restore(checkpoint)
        if self.optimizer is not None:
            self.optimizer.begin_schedule(self.position.updates_before)

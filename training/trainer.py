"""The training loop: steps, evaluation, checkpoints, logs. It knows no model and no dataset."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import merlin.models.tf as mm
import tensorflow as tf

from lookback.checkpoints.data_file import bytes_of, layout_of
from lookback.checkpoints.store import BEST, Checkpoint, CheckpointStore, Tensor
from lookback.core.devices import has_gpu
from lookback.core.errors import UserError
from lookback.core.files import atomic_file, inside_ours
from lookback.core.world import SOLO, World
from lookback.dataloading.evaluations import EvaluationPass
from lookback.dataloading.modes import EVALUATION_MODES
from lookback.dataloading.sources import BatchSource
from lookback.embeddings.collection import collections_of
from lookback.models.click_model import contract_of
from lookback.training.best import BestEvaluation, best_by
from lookback.training.config import RunConfig
from lookback.training.config_checks import cutting_options
from lookback.training.contents import RunContents
from lookback.training.evaluation.attention import attention_found
from lookback.training.evaluation.choice import check_cutoffs, check_goals, choose
from lookback.training.evaluation.found import AttentionFound
from lookback.training.evaluation.passes import Evaluations
from lookback.training.evaluation.popularity import told
from lookback.training.evaluation.splits import choose_splits, say_what_is_seen
from lookback.training.ids import Ids
from lookback.training.inference import Inference
from lookback.training.milestones import Milestones, Position
from lookback.training.optimizers import Optimizer
from lookback.training.outcome import Outcome
from lookback.training.output.logging import RunLogger
from lookback.training.output.performance import PerformanceMeter
from lookback.training.output.warnings import LossTrend, warnings_of
from lookback.training.parallel.gathering import build_variables, use_streams_of
from lookback.training.precision import LossScale
from lookback.training.rehearsal import Rehearsal, rehearse
from lookback.training.schedule import Schedule
from lookback.training.signals import TerminatedError, TerminationRequest, catch_termination
from lookback.training.start import Origin
from lookback.training.steps import Steps

_ABSENT = {
    "auc": "its rows are all of one class",
    "gauc": "no user has rows of both classes",
    "calibration": "none of its rows is labelled 1",
}
"""Figures that what was evaluated may not have -> why."""

_MANY_ROWS = 1 << 15
"""Of a batch: SIM's layers keep some 90 kB of a row with 100 events, so 3 GB of these."""


class Trainer:
    """Trains, evaluates and scores with one model on one source of batches.

    Where several processes train together, each has a trainer and calls the same methods.

    Attributes:
      evaluator: of the splits.
      optimizer: of all weights; None where nothing is trained.
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
        self._model = model
        self._source = source
        self._config = config
        self._goals = goals
        self._world = world
        self.splits = choose_splits(config, source.held_out, goals or {})
        passes = self._passes(self.splits.all)
        self._choice = choose(passes, config.metrics, grouped=source.grouped)
        self._said: set[str] = set()
        self._best: BestEvaluation | None = None
        self._check_evaluations(passes)
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
        )
        self._contents = RunContents(
            model,
            self.optimizer,
            self._loss_scale,
            model_identity=model_identity,
            run_identity=run_identity,
            ids=ids or Ids(),
            world=world,
        )
        self.evaluator = Evaluations(model, source, self._choice, world)
        self.position = Position()
        self._saved: Position | None = None
        self._losses: LossTrend | None = None
        self._traffic_since = (0, 0)  # bytes, steps
        self._unread: list[tuple[Position, Mapping[str, tf.Tensor]]] = []
        # All alike, as what a step says of stopping must be known to all after the same step.
        self._runs_ahead = any(world.gather(has_gpu()))
        self._resumed_from = checkpoint
        self.started = [] if origin is None else self._start(origin)
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def said(self) -> list[str]:
        """What there is to tell before the first step, in lines."""
        contract, config = contract_of(self._model), self._config
        lines = [*self.started, *([contract.fused_said] if contract.fused_said else [])]
        by_layers = contract.fused_said and contract.fused is None and not cutting_options(config)
        if config.mode == "train" and by_layers:
            rows = config.batch_rows // self._world.size
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
        store = self._open_store(log)
        self._warn_of_idle_options(log)
        self._say_what_is_left_out(log)
        began = time.perf_counter()
        with catch_termination() as termination:
            try:
                outcome = self._train(store, log, termination)
            except TerminatedError:
                self._save_and_leave(store, log)
                raise SystemExit(termination.status) from None
        seconds = time.perf_counter() - began
        return dataclasses.replace(outcome, summary={**outcome.summary, "time_to_train": seconds})

    def _train(
        self, store: CheckpointStore | None, log: RunLogger, termination: TerminationRequest
    ) -> Outcome:
        said = say_what_is_seen(self._config, self.splits, self._goals or {})
        if said:
            log.message(said)
        # Half of a short epoch still leaves something to measure.
        warmup = min(self._config.benchmark_warmup_steps, self._source.train_steps() // 2)
        meter = PerformanceMeter(warmup_steps=warmup)
        milestones = Milestones(
            self._config, self._source.train_steps(), self._goals, self.splits.watched
        )
        figures: dict[str, Any] = {}
        evaluation: Outcome | None = None
        resumed = self._validate_resumed(store, milestones, log, termination)
        finished = milestones.out_of_steps(self.position) or self._exhausted
        self._losses = LossTrend() if not self.position.total_steps else None
        while self.position.epoch < self._config.epochs and not finished:
            evaluation = self._train_epoch(store, meter, milestones, log, termination)
            done = self.position.epoch
            if self.position.step == self._source.train_steps():
                self.position.epoch, self.position.step = done + 1, 0
            self._save(store)  # first: an evaluation that is killed must not cost the epoch
            figures = meter.results() if meter.measured_steps else {}
            figures |= self._traffic()
            finished = milestones.out_of_steps(self.position)
            ended = self.position.step == 0
            if evaluation is None and ended and milestones.evaluation_is_due(self.position):
                evaluation = self._validate(log, termination)
                self._keep_best(evaluation, store)
            if evaluation is not None:
                figures |= evaluation.summary
                finished = finished or milestones.reached(evaluation.summary) or self._exhausted
            if finished or self.position.epoch >= self._config.epochs:
                evaluation = self._evaluate_last(evaluation, store, log, termination)
                figures |= evaluation.summary
            log.epoch(done, figures)
        if evaluation is None:  # a finished run, resumed, had no epoch
            evaluation = self._evaluate_last(resumed, store, log, termination)
        summary = {**figures, **evaluation.summary}
        if self._best is not None and self._best.step is not None:
            summary["best_step"] = self._best.step
        warnings = warnings_of(
            summary, self.splits.all, self._source.train_steps(), self._losses, self._config
        )
        return dataclasses.replace(evaluation, summary=summary, warnings=warnings)

    def _validate(self, log: RunLogger, termination: TerminationRequest | None) -> Outcome | None:
        """Evaluates what is watched on the way; None if nothing is."""
        watched = () if self.splits.watched is None else (self.splits.watched,)
        if not watched and not self._config.eval_train:
            return None
        return self.evaluate(log, termination, watched)

    @property
    def _exhausted(self) -> bool:
        """Whether training ends as nothing better was found for long."""
        return self._best is not None and self._best.exhausted

    def _keep_best(self, evaluation: Outcome | None, store: CheckpointStore | None) -> None:
        """Keeps the checkpoint of the best evaluation so far."""
        if self._best is None or evaluation is None:
            return
        if self._best.add(self.position.total_steps, evaluation.summary) and store is not None:
            if not store.holds(self.position.total_steps):
                self._save(store)
            store.keep_best(self.position.total_steps)

    def _validate_resumed(
        self,
        store: CheckpointStore | None,
        milestones: Milestones,
        log: RunLogger,
        termination: TerminationRequest,
    ) -> Outcome | None:
        """Evaluates where a run was saved: a checkpoint is written before its evaluation."""
        best, step = self._best, self.position.total_steps
        if best is None:
            return None
        within = self.position.step
        due = milestones.test_is_due if within else milestones.evaluation_is_due
        if not step or best.knows(step) or not due(self.position):
            return None
        evaluation = self._validate(log, termination)
        self._keep_best(evaluation, store)
        return evaluation

    def _evaluate_last(
        self,
        validation: Outcome | None,
        store: CheckpointStore | None,
        log: RunLogger,
        termination: TerminationRequest,
    ) -> Outcome:
        """Evaluates what was not yet, at the end of training: what will be exported."""
        best = self._best
        if validation is None and best is not None:
            validation = self._validate(log, termination)
            self._keep_best(validation, store)
        if best is not None and (best.exhausted or self._config.export_best):
            ended = "early stopping: " if best.exhausted else ""
            log.message(f"{ended}the best {best}")
        if store is not None and best is not None and self._config.export_best:
            if best.step is None or store.best_step != best.step:
                said = f"{store.directory / BEST} does not hold it: a run was saved elsewhere"
                said = "no evaluation had the figure" if best.step is None else said
                log.message(f"warning: {said}; the last checkpoint counts")
            elif best.step != self.position.total_steps:
                self._contents.take_model(store.load(store.best))
                validation = None
        if validation is None:
            return self.evaluate(log, termination)
        found = self.evaluate(log, termination, self.splits.last, and_train=False)
        summary = {**validation.summary, **found.summary}
        return dataclasses.replace(
            found,
            summary=summary,
            curves={**validation.curves, **found.curves},
            strata={**validation.strata, **found.strata},
        )

    def _train_epoch(
        self,
        store: CheckpointStore | None,
        meter: PerformanceMeter,
        milestones: Milestones,
        log: RunLogger,
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
        self._traffic()  # evaluation's is not training's
        evaluation: Outcome | None = None
        feeds = self._source.train_feeds(self.position.epoch, self.position.step)
        every = self._config.checkpoint_every
        for _, result in self._steps.train(feeds, lambda: bool(termination)):
            evaluation = None
            after = self.position.after_a_step
            saves = store is not None and every is not None and after.total_steps % every == 0
            validates, ends = milestones.test_is_due(after), milestones.out_of_steps(after)
            # Several processes end together, after their next step.
            alone = termination if self._world.size == 1 else None
            if self.took_step(result, log, meter, wait=saves or validates or ends or bool(alone)):
                raise TerminatedError
            if saves:
                self._save(store)
            if validates:
                evaluation = self._validate(log, alone)
                self._keep_best(evaluation, store)
            if evaluation is not None:
                log.step(self.position.epoch, self.position.step - 1, evaluation.summary)
                meter.resume()
                if milestones.reached(evaluation.summary) or self._exhausted:
                    break
            if ends:
                break
        if self._read_steps(log, meter):
            raise TerminatedError
        return evaluation

    def benchmark(self, log: RunLogger) -> Outcome:
        """Trains for the configured number of steps, or epochs, and reports their speed.

        Evaluates nothing and saves nothing.
        """
        meter = self._benchmark_meter()
        self._warn_of_idle_options(log)
        meter.start()
        while not meter.completed:
            for _, result in self._steps.train(self._source.train_feeds(self.position.epoch, 0)):
                self.took_step(result, log, meter)
                if meter.completed:
                    break
            self._read_steps(log, meter)
            self.position.epoch, self.position.step = self.position.epoch + 1, 0
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
            return lambda steps: self.evaluator.evaluated(evaluation, log, most=steps)

        return rehearse(
            self._steps,
            self._source,
            self._config,
            {found.name: takes(found) for found in self._passes(self.splits.all)},
            self.splits.watched,
            (bytes_of(layout_of(self.pieces())), bytes_of(layout_of(self._contents.model_pieces))),
            began,
            self._world,
        )

    def evaluate(
        self,
        log: RunLogger,
        termination: TerminationRequest | None = None,
        splits: Sequence[str] | None = None,
        *,
        and_train: bool = True,
    ) -> Outcome:
        """Evaluates splits; figures carry the split's name in front.

        Args:
          log: shows the progress.
          termination: ends the evaluation between two batches.
          splits: which; None: all of the run's.
          and_train: on the training set, too, if the run is to.

        Raises:
          TerminatedError: if termination was requested.
        """
        self._say_what_is_left_out(log)
        splits = self.splits.all if splits is None else splits
        passes = self._passes(splits, and_train=and_train)
        outcome = self.evaluator.run(passes, log, termination)
        figures = outcome.summary
        for name, value in figures.items():
            for figure, reason in _ABSENT.items():
                if value is None and name.endswith(f"_{figure}"):
                    self._say(log, f"{name} is absent: {reason}")
        self._say(log, told({n: v for n, v in outcome.baselines.items() if n in figures}))
        return outcome

    def attention(self) -> AttentionFound | None:
        """What the model attends to in the split that is evaluated last; None if to nothing."""
        return attention_found(
            contract_of(self._model), self._source, self.splits.all[-1], self._world
        )

    @property
    def inference(self) -> Inference:
        """Scores the evaluation split, and measures how fast."""
        return Inference(self._model, self._source, self._config, self.splits.scored, self._world)

    def _warn_of_idle_options(self, log: RunLogger) -> None:
        """Says which options this machine gives no meaning to."""
        if self._config.loss_scale is not None and self._loss_scale is None:
            log.message(
                f"warning: loss_scale {self._config.loss_scale:g} has no effect: --amp is bfloat16 "
                "here, whose gradients need no scale; on a GPU it would be fp16."
            )

    def _say_what_is_left_out(self, log: RunLogger) -> None:
        """Says of which samples neither training nor the evaluations say anything, and why."""
        for name in ("train", *(found.name for found in self._choice)):
            left_out = str(self._source.left_out(name))
            self._say(log, left_out and f"left out of {name}: {left_out}")

    def _say(self, log: RunLogger, text: str) -> None:
        """Says something once; nothing of ""."""
        if text and text not in self._said:
            self._said.add(text)
            log.message(text)

    def _passes(self, splits: Sequence[str], *, and_train: bool = True) -> list[EvaluationPass]:
        """How splits are evaluated, each in the ways that the source has."""
        of_train = ["train"] if self._config.eval_train and and_train else []
        return [f for split in (*splits, *of_train) for f in self._source.evaluations(split)]

    def _check_evaluations(self, passes: Sequence[EvaluationPass]) -> None:
        """Refuses now what could not be evaluated, or would say nothing, after training.

        Raises:
          UserError: naming the split, the metric or the goal.
        """
        config, source = self._config, self._source
        trains = config.mode == "train" and not config.benchmark
        if trains or config.mode != "train":
            for evaluation in passes:
                source.eval_steps(evaluation.name)
        if trains or config.mode in EVALUATION_MODES:
            check_cutoffs(self._choice)
        watched = self.splits.watched
        if trains and watched is not None:
            classes = source.both_classes(watched)
            check_goals(self._goals or {}, self._choice, watched, both_classes=classes)
            self._best = best_by(
                config.early_stopping,
                config.patience,
                self._choice,
                watched,
                both_classes=classes,
            )

    def _build(self) -> None:
        """Creates the model's variables; those that all ranks hold are alike."""
        use_streams_of(self._model, self._world.rank)
        build_variables(self._model, self._source)
        tables = {id(v) for c in collections_of(self._model) for v in c.backend.variables.values()}
        self._world.broadcast([v for v in self._model.variables if id(v) not in tables])

    def took_step(
        self,
        tensors: Mapping[str, tf.Tensor],
        log: RunLogger,
        meter: PerformanceMeter,
        *,
        wait: bool = False,
    ) -> bool:
        """Counts a step; returns whether the run is to stop, as far as is known.

        A CPU has computed a step when its call returns. A GPU has only been told of it, and to look
        at what came of it is to wait for it: so one looks when the step is logged, or on demand.

        Args:
          tensors: of `Steps.train`.
          log: gets every `--log_every`th step.
          meter: of steps.
          wait: look at once, at this step and those before.
        """
        position = self.position
        self._unread.append((dataclasses.replace(position), tensors))
        wait = wait or not self._runs_ahead or position.total_steps % self._config.log_every == 0
        position.step += 1
        position.total_steps += 1
        return wait and self._read_steps(log, meter)

    def _read_steps(self, log: RunLogger, meter: PerformanceMeter) -> bool:
        """Books the steps that were taken since the last call; returns whether one says to stop.

        Raises:
          UserError: if a loss is not finite: of the first step that has such a one.
        """
        taken, self._unread = self._unread, []
        if not taken:
            return False
        results = [{name: v.numpy().item() for name, v in tensors.items()} for _, tensors in taken]
        stopping = [result.pop("stop") for result in results]
        speed = meter.step(*(result["rows"] for result in results))
        for (position, _), result in zip(taken, results, strict=True):
            self._book(position, result, speed, log)
        return any(stopping)

    def _book(self, at: Position, result: dict[str, Any], speed: float, log: RunLogger) -> None:
        """Checks and logs the result of the step that was taken at a position."""
        # An overflow is part of dynamic scaling: it skips a step, and is no fault.
        sound = result.pop("finite") | result.pop("adapts")
        if not sound or not math.isfinite(result["total_loss"]):
            raise self._not_finite(at, result["total_loss"], log.directory)
        if self._losses is not None:
            self._losses.add(result["total_loss"])
        if at.total_steps % self._config.log_every == 0:
            rate = {} if self.optimizer is None else {"lr": float(self.optimizer.learning_rate)}
            rows = result.pop("rows")
            log.step(at.epoch, at.step, {**result, **rate, "rows": rows, "samples/s": speed})

    def _not_finite(self, at: Position, loss: float, directory: Path) -> UserError:
        """The error of a step that broke the model; writes which samples the step had."""
        feeds = self._source.train_feeds(at.epoch, at.step)
        samples = self._source.describe(next(feeds))
        directory.mkdir(parents=True, exist_ok=True)
        suffix = "" if self._world.size == 1 else f".{self._world.rank}"
        path = directory / f"bad_batch{suffix}.json"
        with atomic_file(path, replaces=inside_ours) as temporary:
            temporary.write_text(json.dumps(samples))
        shown = "; ".join(f"{name}={values[:3]}" for name, values in samples.items())
        return UserError(
            f"The loss is {loss}, or its gradient is not finite, in epoch "
            f"{at.epoch + 1}, step {at.step + 1}. The batch's samples are in "
            f"{path}; the first: {shown}. "
            "The last checkpoint is unharmed. Lower --lr, or look at these samples."
        )

    def _benchmark_meter(self) -> PerformanceMeter:
        return PerformanceMeter(self._config.benchmark_warmup_steps, self._config.benchmark_steps)

    def _traffic(self) -> dict[str, float]:
        """Bytes of table rows, ids and gradients that all ranks sent, a step since the last call.

        Empty if nothing travels.
        """
        sent = sum(sum(c.backend.sent_bytes.values()) for c in collections_of(self._model))
        steps = self.position.total_steps
        since, self._traffic_since = self._traffic_since, (sent, steps)
        if self._world.size == 1 or steps == since[1]:
            return {}
        mine = (sent - since[0]) / (steps - since[1])
        return {"sent_bytes_a_step": sum(self._world.gather(mine))}

    def _open_store(self, log: RunLogger) -> CheckpointStore | None:
        if self._config.save_checkpoint_path is None:
            return None
        store = CheckpointStore(
            self._config.save_checkpoint_path,
            keep=self._config.keep_checkpoints,
            best=self._best is not None,
            world=self._world,
        )
        store.begin(self._resumed_from)
        warning = store.check_room(self.pieces())
        if warning is not None:
            log.message(f"warning: {warning}")
        return store

    def _save(self, store: CheckpointStore | None) -> None:
        if store is not None:
            store.save(self.position.total_steps, self.pieces(), self.meta)
            self._saved = dataclasses.replace(self.position)

    def _save_and_leave(self, store: CheckpointStore | None, log: RunLogger) -> None:
        """Saves what is not saved yet, and says how to go on."""
        place = f"told to end after {self.position}"
        if store is None:
            log.message(f"{place}; nothing is saved without --save_checkpoint_path")
            return
        log.message(
            f"{place}; its checkpoint goes to {store.directory}, to go on from with "
            "--load_checkpoint_path (Ctrl-C again: without it)"
        )
        if self._saved != self.position:
            self._save(store)

    @property
    def identity(self) -> str:
        """The same for the processes of one run, however often it is resumed, on however many."""
        return self._contents.identity

    @property
    def meta(self) -> dict[str, Any]:
        """Facts that a checkpoint of now would carry."""
        position = dataclasses.asdict(self.position)
        best = {} if self._best is None else {"evaluations": self._best.meta}
        return {**self._contents.meta, "position": position, **best}

    def pieces(self) -> dict[str, Tensor]:
        """What this rank would write of a checkpoint of now, by tensor."""
        return self._contents.pieces

    def _start(self, origin: Origin) -> list[str]:
        """Takes what a trained model has learnt; gives what to say of it."""
        said = self._contents.start(origin)
        assert self.optimizer is not None
        self.position.updates_before = self.optimizer.begin_schedule()
        return said

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Restores everything to continue a run; only the model to use it."""
        self._contents.restore(checkpoint)
        self.position = Position(**checkpoint.meta["position"])
        if self.optimizer is not None:
            self.optimizer.begin_schedule(self.position.updates_before)
        self._saved = dataclasses.replace(self.position)
        if self._best is not None:
            self._best.restore(checkpoint.meta.get("evaluations", {}))

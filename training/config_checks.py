"""What is refused of a run's configuration, before anything is opened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.training.evaluation.names import check_names
from lookback.training.output.results import OTHER_NAMES

EVALUATION_MODES = ("evaluate", "test")
"""Two names of one mode: those of seed 000 and of seed 004."""

_ADAMS = ("adam", "lazy_adam", "full_adam")
_OPTIONS_OF_OPTIMIZERS = {
    "beta1": _ADAMS,
    "beta2": _ADAMS,
    "eps": (*_ADAMS, "adagrad", "rowwise_adagrad"),
}
"""Options of the optimizer -> the optimizers that have them."""


def check_run(run: Any) -> None:
    """Refuses combinations of values that make no sense; each alone is within its bounds.

    Raises:
      UserError: naming the option, what it may be and what came.
    """
    _check_schedule(run)
    _check_loss_scale(run)
    _check_optimizer(run)
    if Path(run.log_filename).name != run.log_filename:
        raise UserError(
            f"log_filename: expected the name of a file in results_dir, received "
            f"{run.log_filename!r}. The directory is --results_dir."
        )
    if run.log_filename in OTHER_NAMES:
        raise UserError(
            f"log_filename: expected a name that no other file of a run has (they are "
            f"{', '.join(sorted(OTHER_NAMES))}), received {run.log_filename}. Choose another."
        )
    check_names(run.metrics or ())
    _check_mode(run)
    _check_outputs(run)
    _check_plan(run)


def _check_schedule(run: Any) -> None:
    start = run.decay_start_step
    if run.decay_steps and start is not None and start < run.warmup_steps:
        raise UserError(
            f"decay_start_step: expected the {run.warmup_steps} steps of the warm-up or more, "
            f"received {start}: the warm-up must end before the decay begins."
        )
    if run.decay_end_lr > run.lr:
        raise UserError(
            f"decay_end_lr: expected at most --lr ({run.lr}), received {run.decay_end_lr}."
        )


def _check_optimizer(run: Any) -> None:
    for name, optimizers in _OPTIONS_OF_OPTIMIZERS.items():
        value = getattr(run, name)
        if value is not None and run.optimizer not in optimizers:
            raise UserError(
                f"{name}: expected with --optimizer {', '.join(optimizers[:-1])} or "
                f"{optimizers[-1]}, received {value} with {run.optimizer}, which has no such "
                f"parameter. Leave it out, or write --{name} none if it is the model's default."
            )


def _check_loss_scale(run: Any) -> None:
    wires = (run.wire_dtype, run.gradient_wire_dtype)
    if run.loss_scale is not None and not run.amp and "float16" not in wires:
        raise UserError(
            "loss_scale: expected with what may compute or travel in fp16: --amp (on a GPU), "
            "--wire_dtype float16 or --gradient_wire_dtype float16; received it with none of "
            "them. float32 and bfloat16 gradients need no scale: remove --loss_scale."
        )


def _check_outputs(run: Any) -> None:
    if run.export_dir is not None:
        if run.random_weights or run.benchmark:
            raise UserError(
                "export_dir: expected with a trained model, received --random_weights or "
                "--benchmark. Remove --export_dir."
            )
        target = run.export_dir.absolute()
        for name in ("results_dir", "save_checkpoint_path"):
            other = getattr(run, name)
            if other is not None and target in (other.absolute(), *other.absolute().parents):
                raise UserError(
                    f"export_dir: expected a directory of its own, as an export replaces it "
                    f"whole; received {run.export_dir}, which is or holds {name} ({other})."
                )
    if run.save_checkpoint_path is not None and (run.mode != "train" or run.benchmark):
        raise UserError(
            "save_checkpoint_path: expected with --mode train and without --benchmark, which "
            "alone save anything. Remove it."
        )
    if run.eval_train and run.mode not in ("train", *EVALUATION_MODES):
        raise UserError("eval_train: expected with --mode train or evaluate. Remove it.")


def _check_plan(run: Any) -> None:
    if run.mode != "train":
        for name in (
            *("prefetch_ids", "micro_batches", "grads_accumulated", "gradient_wire_dtype"),
        ):
            default = next(f.default for f in dataclasses.fields(run) if f.name == name)
            if getattr(run, name) != default:
                raise UserError(
                    f"{name}: expected with --mode train only, received --mode {run.mode}. "
                    f"Remove --{name}."
                )
    for option in _cutting_options(run):
        if run.prefetch_ids:
            raise UserError(
                f"{option}: expected without --prefetch_ids, received both. Remove one."
            )
        if run.gradient_wire_dtype != "float32":
            raise UserError(
                f"gradient_wire_dtype: expected float32 with --{option}, whose sums are "
                f"exact to the bit, received {run.gradient_wire_dtype}. Remove one of them."
            )
    for name in ("planner", "strategies", "placements"):
        default = next(f.default for f in dataclasses.fields(run) if f.name == name)
        if run.plan is not None and getattr(run, name) != default:
            raise UserError(
                f"{name}: expected without --plan, which says already where tables lie. Remove "
                f"one of them."
            )
    for number, entry in enumerate(run.placements or ()):
        if "=" not in entry and (number == 0 or not entry.isdecimal()):
            raise UserError(
                f"placements: expected entries such as item_id=row_wise, received {entry!r}."
            )


def _cutting_options(run: Any) -> list[str]:
    """The options given that cut a batch into parts."""
    names = [] if run.micro_batches is None else ["micro_batches"]
    return [*names, *(["grads_accumulated"] if run.grads_accumulated > 1 else [])]


def _check_mode(run: Any) -> None:
    inference = run.mode in ("inference", "inference_benchmark")
    if not inference and run.random_weights:
        raise UserError(
            f"random_weights: expected with --mode inference only, received --mode "
            f"{run.mode}. Remove --random_weights."
        )
    if run.mode != "train" and not run.random_weights and run.load_checkpoint_path is None:
        hint = ", or --random_weights to measure speed only" * inference
        raise UserError(
            f"mode: {run.mode} needs a trained model and received none. Give "
            f"--load_checkpoint_path DIR{hint}."
        )
    if run.metrics is not None and (inference or run.benchmark):
        raise UserError(
            "metrics: expected with --mode train or evaluate and without --benchmark: nothing else "
            "evaluates. Remove --metrics."
        )
    if run.random_weights and run.load_checkpoint_path is not None:
        raise UserError(
            "random_weights: expected without --load_checkpoint_path, received both. Remove "
            "one of them."
        )
    if run.mode not in ("train", "inference") and run.benchmark:
        raise UserError(
            f"benchmark: expected with --mode train or inference, received --mode {run.mode}. "
            "Use --mode inference, which runs the same forward pass."
        )
    if run.trusted_digest is not None and run.load_checkpoint_path is None:
        raise UserError(
            "trusted_digest: expected with a checkpoint to open, received without one. Add "
            "--load_checkpoint_path DIR, or remove --trusted_digest."
        )
    if run.checkpoint_every is not None and run.save_checkpoint_path is None:
        raise UserError(
            "checkpoint_every: expected together with a directory to save to. Give "
            "--save_checkpoint_path DIR."
        )

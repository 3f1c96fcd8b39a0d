"""What is refused of a run's configuration, before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lookback.core.errors import UserError, shown
from lookback.dataloading.modes import INFERENCE
from lookback.training.evaluation.names import check_names
from lookback.training.output.results import OTHER_NAMES


def check_run(run: Any) -> None:
    """Refuses combinations of values that make no sense; each alone is within its bounds.

    Raises:
      UserError: naming the option, what it may be and what came.
    """
    _check_schedule(run)
    if Path(run.log_filename).name != run.log_filename:
        raise UserError(
            f"log_filename: expected the name of a file in results_dir, received "
            f"{run.log_filename!r}. The directory is --results_dir."
        )
    if run.log_filename in OTHER_NAMES or run.log_filename.startswith("bad_batch."):
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


def _check_outputs(run: Any) -> None:
    if run.export_dir is None:
        return
    target = run.export_dir.absolute()
    for name in ("results_dir", "save_checkpoint_path"):
        other = getattr(run, name)
        if other is not None and target in (other.absolute(), *other.absolute().parents):
            raise UserError(
                f"export_dir: expected a directory of its own, as an export replaces it "
                f"whole; received {run.export_dir}, which is or holds {name} ({other})."
            )


def _check_plan(run: Any) -> None:
    for option in cutting_options(run):
        if run.prefetch_ids:
            raise UserError(
                f"{option}: expected without --prefetch_ids, received both. Remove one."
            )
        if run.gradient_wire_dtype != "float32":
            raise UserError(
                f"gradient_wire_dtype: expected float32 with --{option}, whose sums are "
                f"exact to the bit, received {run.gradient_wire_dtype}. Remove one of them."
            )
    for number, entry in enumerate(run.placements or ()):
        if "=" not in entry and (number == 0 or not entry.isdecimal()):
            raise UserError(
                f"placements: expected entries such as item_id=row_wise, received {shown(entry)}."
            )


def cutting_options(run: Any) -> list[str]:
    """The options given that cut a batch into parts."""
    names = [] if run.micro_batches is None else ["micro_batches"]
    return [*names, *(["grads_accumulated"] if run.grads_accumulated > 1 else [])]


def _check_mode(run: Any) -> None:
    if run.mode != "train" and not run.random_weights and run.load_checkpoint_path is None:
        hint = ", or --random_weights to measure speed only" * (run.mode in INFERENCE)
        raise UserError(
            f"mode: {run.mode} needs a trained model and received none. Give "
            f"--load_checkpoint_path DIR{hint}."
        )

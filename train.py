"""Trains, evaluates or runs a recommender: configuration, data, model, fit, export.

python train.py --dataset_dir DIR --model_type sim --mode train ...
python train.py --help
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from errors import UserError
from models import MODELS
from serving.export import check_export_target, export_bundle
from training.checkpoint import Checkpoint, find_checkpoint
from training.cli import parse_run, save_yaml
from training.config import REMOVED, RunConfig
from training.logging import RunLogger, read_log
from training.process import prepare_environment, set_up_tensorflow
from training.report import write_report, write_scores

# What needs TensorFlow, which takes seconds to import and reads the environment that
# `prepare_environment` sets, is imported where it is used: --help and mistakes answer at once.
if TYPE_CHECKING:
    from training.trainer import Outcome, Trainer


def main(argv: Sequence[str]) -> None:
    """Runs one command line: configuration, data, model, fit, report, export."""
    configs = {name: entry.config_class for name, entry in MODELS.items()}
    run, options = parse_run(
        argv, RunConfig, configs, removed=REMOVED, prog="train.py", description=__doc__
    )
    checkpoint = None
    if run.load_checkpoint_path is not None:
        checkpoint = Checkpoint(find_checkpoint(run.load_checkpoint_path))
    if run.export_dir is not None:
        check_export_target(run.export_dir, run.dataset_dir)
    run = dataclasses.replace(run, seed=choose_seed(run, checkpoint))
    prepare_environment(run)
    set_up_tensorflow(run)
    from training.data import model_identity, open_source, run_identity
    from training.trainer import Trainer

    source = open_source(run, options)
    model = MODELS[run.model_type](source.schema, options)
    plain_options = json.loads(json.dumps(dataclasses.asdict(options)))
    trainer = Trainer(
        model,
        source,
        run,
        model_identity=model_identity(run, plain_options, source),
        run_identity=run_identity(run, source),
        checkpoint=checkpoint,
    )
    with RunLogger(
        run.results_dir,
        run.log_filename,
        append=checkpoint is not None and run.mode == "train",
        epochs=run.epochs,
        steps_per_epoch=source.train_steps(),
    ) as log:
        save_yaml(run.results_dir / "config.yaml", run, options)
        log.message(f"{run.mode} {run.model_type}: seed {run.seed}, results in {run.results_dir}")
        if checkpoint is not None:
            log.message(f"loaded {checkpoint.path} ({trainer.position})")
        outcome = execute(trainer, run, log)
        log.summary(outcome.summary)
    directory = write_report(
        run.results_dir,
        read_log(run.results_dir / run.log_filename),
        metrics=outcome.summary,
        roc=outcome.roc,
        title=f"{run.model_type} on {run.dataset_dir.name}",
    )
    print(f"report in {directory}")
    if run.export_dir is not None:
        export_bundle(model, run.dataset_dir, run.export_dir)
        print(f"exported to {run.export_dir}")


def choose_seed(run: RunConfig, checkpoint: Checkpoint | None) -> int:
    """The seed asked for, else that of the run to continue, else a new one."""
    if run.seed is not None:
        return run.seed
    if checkpoint is not None:
        return int(checkpoint.meta["run"]["seed"])
    return secrets.randbelow(1 << 31)


def execute(trainer: Trainer, run: RunConfig, log: RunLogger) -> Outcome:
    """Does what the mode says."""
    if run.mode == "evaluate":
        return trainer.evaluate(log)
    if run.mode == "train":
        return trainer.benchmark(log) if run.benchmark else trainer.train(log)
    outcome, scores = trainer.inference(log)
    if not run.benchmark:
        path = write_scores(run.results_dir / "scores.parquet", scores)
        log.message(f"scores of the {run.eval_split} split in {path}")
    return outcome


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

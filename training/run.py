"""Trains, evaluates or runs a recommender: configuration, data, model, fit, export."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lookback.checkpoints.manifest import MANIFEST, checkpoints_in, read_manifest
from lookback.checkpoints.store import Checkpoint, find_checkpoint, open_checkpoint
from lookback.core.digests import digest_of
from lookback.core.faults import REPORTS
from lookback.core.options import CommandLine, parse, save_yaml
from lookback.core.world import World, require_same
from lookback.dataloading import LAYOUTS, require_data
from lookback.dataloading.layout import LayoutOptions
from lookback.embeddings.config import LOCAL
from lookback.models import MODELS
from lookback.training.config import RunConfig
from lookback.training.config_checks import EVALUATION_MODES
from lookback.training.output.logging import RunLogger, read_log
from lookback.training.output.report import write_report, write_scores
from lookback.training.output.results import check_results
from lookback.training.parallel.horovod_world import start_world
from lookback.training.process import prepare_environment, set_up_tensorflow
from lookback.training.removed import REMOVED

# What needs TensorFlow, which takes seconds to import and reads the environment that
# `prepare_environment` sets, is imported where it is used: --help and mistakes answer at once.
if TYPE_CHECKING:
    from lookback.dataloading.sources import BatchSource
    from lookback.models.click_model import ClickModel
    from lookback.training.trainer import Outcome, Trainer


class Exporter(Protocol):
    """Writes trained models for serving, which lies above training: the doors hand it down."""

    def check_export_target(
        self, export_dir: Path, dataset_dir: Path, inputs: Sequence[Path] = ()
    ) -> None:
        """Refuses a directory that a bundle must not replace, before any work."""

    def bundle_digest(self, export_dir: Path) -> str:
        """The digest by which a bundle can be trusted."""

    def export_bundle(self, model: ClickModel, dataset_dir: Path, export_dir: Path) -> Path:
        """Writes a bundle of `model` and what its dataset says about raw values."""


def command_line() -> CommandLine:
    """What can be given to a run: its own options, its model's, and those of the model's layout."""
    models = {
        name: (LAYOUTS[entry.config_class.layout].options_class, entry.config_class)
        for name, entry in MODELS.items()
    }
    return CommandLine((RunConfig,), "model_type", models, removed=REMOVED)


def main(argv: Sequence[str], exporter: Exporter, prog: str = "train.py") -> None:
    """Runs one command line: configuration, data, plan, model, fit, report, export.

    Args:
      argv: the arguments, without the program's name.
      exporter: of `serving`.
      prog: how it was called.
    """
    run, data, options = parse(argv, command_line(), prog=prog, description=__doc__)
    REPORTS.set(run.results_dir)
    # What is mistyped, not trusted or in the way fails before the long imports.
    loaded = [] if run.load_checkpoint_path is None else [find_checkpoint(run.load_checkpoint_path)]
    for path in loaded:
        read_manifest(path, run.trusted_digest)
    require_data(options.layout, run.dataset_dir, run.model_type)
    check_results(run.results_dir, run.log_filename)
    if run.export_dir is not None:
        exporter.check_export_target(run.export_dir, run.dataset_dir, loaded)
    prepare_environment(run)
    world = start_world(prefetch_ids=run.prefetch_ids)
    with world.together():
        set_up_tensorflow(run, world)
        run_on(world, run, data, options, exporter)


def run_on(
    world: World, run: RunConfig, data: LayoutOptions, options: Any, exporter: Exporter
) -> None:
    """Does what the configuration says, on one of the processes of `world`.

    Args:
      world: the processes that run together.
      run: the run's own options.
      data: options of the layout.
      options: of the model.
      exporter: of `serving`.
    """
    import tensorflow as tf

    from lookback.training.data import model_identity, open_source, run_identity
    from lookback.training.parallel.sharding import choose_sharding
    from lookback.training.trainer import Trainer

    plain_options = json.loads(json.dumps(dataclasses.asdict(options)))
    given = dataclasses.asdict(run) | dataclasses.asdict(data)
    require_same(world, json.loads(json.dumps(given, default=str)) | plain_options)
    checkpoint = None
    if run.load_checkpoint_path is not None:
        checkpoint = open_checkpoint(
            run.load_checkpoint_path, world=world, trusted_digest=run.trusted_digest
        )
    run = dataclasses.replace(run, seed=world.gather(choose_seed(run, checkpoint))[0])
    tf.keras.utils.set_random_seed(run.seed)
    source = open_source(run, data, options, world)
    identity = run_identity(run, data, options, world.size)
    require_same(world, identity)  # each host has its own copy of the data, maybe another one
    sharding, plan = choose_sharding(
        run, MODELS[run.model_type].tables(source.schema, options), world
    )
    model = MODELS[run.model_type](source.schema, options, sharding)
    trainer = Trainer(
        model,
        source,
        run,
        model_identity=model_identity(run, plain_options, source),
        run_identity=identity,
        goals=data.goals,
        checkpoint=checkpoint,
        world=world,
    )
    with RunLogger(
        run.results_dir,
        run.log_filename,
        append=checkpoint is not None and run.mode == "train",
        epochs=run.epochs,
        steps_per_epoch=source.train_steps(),
        enabled=world.rank == 0,
    ) as log:
        log.message(f"{run.mode} {run.model_type}: seed {run.seed}, results in {run.results_dir}")
        if world.rank == 0:
            save_yaml(run.results_dir / "config.yaml", run, data, options)
        if plan:
            log.message(f"{world.size} processes\n{plan}")
        if checkpoint is not None:
            log.message(f"loaded {checkpoint.path} ({trainer.position})")
        outcome = execute(trainer, run, data, options, log, world)
        log.summary(outcome.summary)
    if world.rank == 0:
        directory = write_report(
            run.results_dir,
            read_log(run.results_dir / run.log_filename),
            metrics=outcome.summary,
            roc=outcome.roc,
            title=f"{run.model_type} on {run.dataset_dir.name}",
        )
        print(f"report in {directory}")
    export(model, source, run, options, world, exporter)
    if world.rank == 0:
        print_digests(run, exporter)


def export(
    model: ClickModel,
    source: BatchSource,
    run: RunConfig,
    options: Any,
    world: World,
    exporter: Exporter,
) -> None:
    """Exports the model: on one process as it is, a sharded one after putting it together."""
    if run.export_dir is None:
        return
    dataset_dir, export_dir = run.dataset_dir, run.export_dir
    if model.body.embeddings.sharding.backend == LOCAL.backend:
        exporter.export_bundle(model, dataset_dir, export_dir)
        return
    from lookback.training.parallel.gathering import with_whole_model

    with_whole_model(
        model,
        lambda: MODELS[run.model_type](source.schema, options),
        source,
        export_dir.absolute().parent,
        world,
        lambda whole: exporter.export_bundle(whole, dataset_dir, export_dir),
    )


def print_digests(run: RunConfig, exporter: Exporter) -> None:
    """Prints what there is to hand on, with the digests by which it will be known again."""
    if run.save_checkpoint_path is not None:
        for path in checkpoints_in(run.save_checkpoint_path)[-1:]:
            print(f"saved {path}, digest {digest_of(path / MANIFEST)}")
    if run.export_dir is not None:
        print(f"exported to {run.export_dir}, digest {exporter.bundle_digest(run.export_dir)}")


def choose_seed(run: RunConfig, checkpoint: Checkpoint | None) -> int:
    """The seed asked for, else that of the run to continue, else a new one."""
    if run.seed is not None:
        return run.seed
    if checkpoint is not None:
        return int(checkpoint.meta["run"]["seed"])
    return secrets.randbelow(1 << 31)


def execute(
    trainer: Trainer,
    run: RunConfig,
    data: LayoutOptions,
    options: Any,
    log: RunLogger,
    world: World,
) -> Outcome:
    """Does what the mode says."""
    if run.mode in EVALUATION_MODES:
        return trainer.evaluate(log)
    if run.mode == "train":
        return trainer.benchmark(log) if run.benchmark else trainer.train(log)
    if run.mode == "inference_benchmark":
        from lookback.training.data import open_benchmark_sources

        sources = open_benchmark_sources(run, data, options, world)
        return trainer.inference_benchmark(sources, log)
    outcome, scores = trainer.inference(log)
    if not run.benchmark and world.rank == 0:
        path = write_scores(run.results_dir / "scores.parquet", scores)
        log.message(f"scores of the {run.eval_split} split in {path}")
    return outcome

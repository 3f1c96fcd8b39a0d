"""Trains, evaluates or runs a recommender: configuration, data, model, fit, export."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.checkpoints.manifest import MANIFEST, checkpoints_in, read_manifest
from lookback.checkpoints.store import (
    Checkpoint,
    CheckpointStore,
    find_checkpoint,
    open_checkpoint,
)
from lookback.core.digests import digest_of
from lookback.core.errors import UserError
from lookback.core.faults import REPORTS
from lookback.core.files import held
from lookback.core.imports import import_tensorflow
from lookback.core.json_files import read_json
from lookback.core.options import CommandLine, idle, parse, save_yaml
from lookback.core.world import World, agree, require_same
from lookback.dataloading import LAYOUTS, require_data
from lookback.dataloading.layout import LayoutOptions
from lookback.dataloading.modes import EVALUATION_MODES
from lookback.formats.verification import require_trusted
from lookback.models import MODELS
from lookback.training.config import RunConfig
from lookback.training.exporting import WHOLE, Exporter, cost_in_auc, export
from lookback.training.output.logging import RunLogger, read_log
from lookback.training.output.mlflow_tracker import check_tracker, trackers_of
from lookback.training.output.report import (
    INDEX,
    RunDescription,
    category_names,
    write_report,
)
from lookback.training.output.results import check_results, new_results
from lookback.training.output.scores import write_scores
from lookback.training.parallel.horovod_world import launched_rank, launched_size, start_world
from lookback.training.parallel.sharding import check_placements, choose_sharding
from lookback.training.process import prepare_environment, set_up_tensorflow
from lookback.training.removed import REMOVED
from lookback.training.seeds import ALONE, run_seeds, sides_of

# What needs TensorFlow, which takes seconds to import and reads the environment that
# `prepare_environment` sets, is imported where it is used: --help and mistakes answer at once.
if TYPE_CHECKING:
    from lookback.dataloading.sources import BatchSource
    from lookback.models.click_model import ClickModel
    from lookback.training.outcome import Outcome
    from lookback.training.start import Origin
    from lookback.training.trainer import Trainer


def command_line() -> CommandLine:
    """What can be given to a run: its own options, its model's, and those of the model's layout."""
    models = {
        name: (LAYOUTS[entry.config_class.layout].options_class, entry.config_class)
        for name, entry in MODELS.items()
    }
    return CommandLine((RunConfig,), "model_type", models, recipe="recipe", removed=REMOVED)


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a run leaves.

    Attributes:
      metrics: figures by name, as in the log's summary; of several seeds, those of seeds.json:
        mean, standard deviation, least and most of each.
      results_dir: log, configuration, report.
      checkpoint: the last one that was saved; None: none was, or this is not the first process.
      export_dir: the bundle; None: nothing was exported.
    """

    metrics: Mapping[str, Any]
    results_dir: Path
    checkpoint: Path | None = None
    export_dir: Path | None = None


def main(argv: Sequence[str], exporter: Exporter, prog: str = "train.py") -> Finished:
    """Runs one command line: configuration, data, plan, model, fit, report, export.

    Args:
      argv: the arguments, without the program's name.
      exporter: of `serving`.
      prog: how it was called.

    Returns:
      What it found, and where it is.
    """
    run, data, options = parse(argv, command_line(), prog=prog, description=__doc__)
    if run.seeds is not None:
        return train_seeds(argv, run)
    # What is mistyped, not trusted or in the way fails before the long imports.
    loaded: dict[Path, int] = {}
    read: list[Path] = []
    if run.load_checkpoint_path is not None:
        path = find_checkpoint(run.load_checkpoint_path)
        loaded[path] = read_manifest(path, run.trusted_digest)[0]["content"]["step"]
        read.append(path)
    if run.init_from is not None:
        read.append(run.init_from)
        if not exporter.is_bundle(run.init_from):
            read_manifest(find_checkpoint(run.init_from), run.trusted_digest)
    require_trusted(run.dataset_dir, run.trusted_dataset_digest, verified=not run.no_verify)
    if launched_rank() == 0:  # what others lack, they say when all can hear it
        require_data(options.layout, run.dataset_dir, run.model_type)
    check_placements(run)
    check_tracker(run)
    if run.tensorboard_projector and launched_size() > 1:
        raise UserError(
            "tensorboard_projector: expected in one process, which has the tables whole, received "
            f"{launched_size()} processes. Leave it out."
        )
    if run.export_dir is not None:
        exporter.check_export_target(run.export_dir, run.dataset_dir, read)
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        if launched_rank() == 0:  # for all of them
            run = hold_outputs(run, stack, loaded)
        REPORTS.set(None if run.dry_run else run.results_dir)
        prepare_environment()
        import_tensorflow()
        world = start_world(prefetch_ids=run.prefetch_ids)
        with world.together():
            set_up_tensorflow(run, world)
            if run.kernels == "none":
                from lookback.kernels.loader import portable

                stack.enter_context(portable())
            finished = run_on(world, run, data, options, exporter, began)
    return finished


def train_seeds(argv: Sequence[str], run: RunConfig) -> Finished:
    """Runs the same command line with several seeds.

    Raises:
      UserError: if what is compared makes no sense, or this is one of several processes.
    """
    if launched_size() > 1:
        raise UserError(
            "seeds: expected in one process, which starts the runs one after another, received "
            f"{launched_size()} processes. Run them with --seed, one launch each."
        )
    line = command_line()
    for more in sides_of(run.compare).values():  # what is mistyped fails before the first run
        _, _, options = parse([*argv, *more, *ALONE], line)
        require_data(options.layout, run.dataset_dir, run.model_type)
    with contextlib.ExitStack() as stack:
        results = hold_outputs(run, stack, {}).results_dir
        assert results is not None
        found = run_seeds(argv, run, results)
    return Finished(read_json(found)["metrics"], found.parent)


def hold_outputs(
    run: RunConfig, stack: contextlib.ExitStack, loaded: Mapping[Path, int]
) -> RunConfig:
    """Makes sure, before any work, that results and checkpoints can be written, by us alone.

    Args:
      run: may leave the choice of `results_dir` to us.
      stack: until its end other runs are refused.
      loaded: the checkpoint that the run continues from, if any, and its step.

    Returns:
      `run`, with a `results_dir`; a dry run makes none.

    Raises:
      UserError: if something is in the way, or another run writes there.
    """
    if run.results_dir is None and not run.dry_run:
        run = dataclasses.replace(run, results_dir=stack.enter_context(new_results(run.model_type)))
    places: dict[str, str] = {}  # one directory may be both
    for name in ("results_dir", "save_checkpoint_path"):
        if getattr(run, name) is not None:
            places.setdefault(os.path.realpath(getattr(run, name)), name)
    for name in () if run.dry_run else places.values():
        stack.enter_context(held(getattr(run, name), name, [run.dataset_dir]))
    if run.results_dir is not None:
        check_results(run.results_dir, run.log_filename)
    if run.save_checkpoint_path is not None:
        store = CheckpointStore(run.save_checkpoint_path)
        store.refuse_another_run(*next(iter(loaded.items()), ()))
    return run


def run_on(
    world: World,
    run: RunConfig,
    data: LayoutOptions,
    options: Any,
    exporter: Exporter,
    began: float,
) -> Finished:
    """Does what the configuration says, on one of the processes of `world`.

    Args:
      world: the processes that run together.
      run: the run's own options.
      data: options of the layout.
      options: of the model.
      exporter: of `serving`.
      began: when it began (`time.perf_counter`).
    """
    import tensorflow as tf

    from lookback.training.data import model_identity, notes_on_data, open_source, run_identity
    from lookback.training.ids import Ids
    from lookback.training.trainer import Trainer

    results_dir = Path(world.gather(str(run.results_dir))[0])
    run = dataclasses.replace(run, results_dir=results_dir)
    plain_options = json.loads(json.dumps(dataclasses.asdict(options)))
    given = {**dataclasses.asdict(run), **dataclasses.asdict(data), **plain_options}
    require_same(world, json.loads(json.dumps(given, default=str)))
    checkpoint = checkpoint_of(run, world)
    run, chosen = resolved(run, data, options, checkpoint, world)
    tf.keras.utils.set_random_seed(run.seed)
    source = open_source(run, data, options, world)
    ids = Ids.of(run.dataset_dir, verified=not run.no_verify)
    notes = notes_on_data(run, options, source, ids.vocabularies, checkpoint)
    identity = run_identity(run, data, options, world.size)
    require_same(world, identity)  # each host has its own copy of the data, maybe another one
    entry = MODELS[run.model_type]
    sharding, plan = choose_sharding(run, entry.tables(source.schema, options), world)
    model = entry(source.schema, options, sharding)
    trainer = Trainer(
        model,
        source,
        run,
        model_identity=model_identity(run, plain_options, source),
        run_identity=identity,
        ids=ids,
        goals=data.goals,
        checkpoint=checkpoint,
        origin=origin_of(run, exporter, world),
        world=world,
    )
    if run.dry_run:
        for line in (*chosen, *notes, *trainer.notes):
            print(line)
        return rehearsed(trainer, results_dir, began, world)
    logger = make_logger(run, results_dir, trainer, source, world)
    with last_checkpoint_named(run, world), logger as log:
        log.message(f"{run.mode} {run.model_type}: seed {run.seed}, results in {results_dir}")
        if world.rank == 0:
            save_yaml(results_dir / "config.yaml", run, data, options)
        log.options({**given, "seed": run.seed})
        placed = f"{world.size} processes\n{plan}" if plan else ""
        loaded = "" if checkpoint is None else resumption(checkpoint, log, trainer, source)
        for line in filter(None, (*chosen, *notes, placed, loaded, *trainer.notes)):
            log.message(line)
        outcome = execute(trainer, run, data, options, log, world)
        log.summary(outcome.summary, outcome.warnings)
    try:
        with last_checkpoint_named(run, world):
            dtype = export(model, source, run, options, world, exporter)
    finally:
        if world.rank == 0:
            report(run, data, options, outcome, model)
    if run.tensorboard_projector:
        project(run, source, model)
    if dtype not in (None, WHOLE):
        print_export_cost(trainer, model, run, exporter, world)
    saved = print_digests(run, exporter, world)
    return Finished(outcome.summary, results_dir, saved, run.export_dir)


def print_export_cost(
    trainer: Trainer, model: ClickModel, run: RunConfig, exporter: Exporter, world: World
) -> None:
    """Evaluates with the tables as exported, which the model keeps; prints the change in AUC."""
    assert run.results_dir is not None and run.export_dir is not None
    silent = RunLogger(run.results_dir, tensorboard=False, enabled=False)
    before = trainer.evaluation.run(silent, and_train=False).summary
    exporter.take_tables(model, run.export_dir)
    after = trainer.evaluation.run(silent, and_train=False).summary
    if world.rank == 0:
        print(f"tables exported as {run.table_dtype}: {cost_in_auc(before, after)}")


def rehearsed(trainer: Trainer, results_dir: Path, began: float, world: World) -> Finished:
    """Prints what a run would take; nothing is written."""
    log = RunLogger(results_dir, tensorboard=False, enabled=False)
    found = trainer.rehearse(log, began)
    if world.rank == 0:
        print("\n".join(found.lines()))
    return Finished({"seconds": found.seconds, "peak_bytes": max(found.peak)}, results_dir)


def make_logger(
    run: RunConfig, results_dir: Path, trainer: Trainer, source: BatchSource, world: World
) -> RunLogger:
    """The log of a run, which goes on where that of a run to continue ended."""
    identity = trainer.contents.identity
    trackers, failure = trackers_of(run, identity) if world.rank == 0 else ((), None)
    made = RunLogger(
        results_dir,
        run.log_filename,
        append=run.load_checkpoint_path is not None and run.mode == "train",
        identity=identity,
        epochs=run.epochs,
        steps_per_epoch=source.train_steps(),
        trackers=trackers,
        enabled=world.rank == 0,
    )
    if failure:
        made.message(failure)
    return made


def resumption(
    checkpoint: Checkpoint, log: RunLogger, trainer: Trainer, source: BatchSource
) -> str:
    """A line on where a run resumes, and on logged steps that are lost."""
    line = f"loaded {checkpoint.path} ({trainer.position})"
    if log.reached is None:
        return line
    epoch, step = log.reached
    lost = epoch * source.train_steps() + step + 1 - trainer.position.total_steps
    if lost > 0:
        line += f"; {lost:,} logged steps after that are lost, and trained again"
    return line


def checkpoint_of(run: RunConfig, world: World) -> Checkpoint | None:
    """The checkpoint that a run goes on from, or uses, if it does; every rank opens it."""
    path = run.load_checkpoint_path
    if path is None:
        return None
    return open_checkpoint(path, world=world, trusted_digest=run.trusted_digest)


def origin_of(run: RunConfig, exporter: Exporter, world: World) -> Origin | None:
    """The trained model that a run starts from, if it does; every rank opens it."""
    if run.init_from is None:
        return None
    from lookback.training.start import CheckpointOrigin

    path, trusted = run.init_from, run.trusted_digest
    found: list[Origin] = []

    def load() -> None:
        found.append(exporter.load_origin(path, trusted))

    if any(world.gather(exporter.is_bundle(path))):
        agree(world, load)
        return found[0]
    return CheckpointOrigin(open_checkpoint(path, world=world, trusted_digest=trusted))


@contextlib.contextmanager
def last_checkpoint_named(run: RunConfig, world: World) -> Iterator[None]:
    """Prints, if a run fails, from which checkpoint it can be continued."""
    try:
        yield
    except Exception:
        directory = run.save_checkpoint_path
        saved = [] if directory is None or world.rank else checkpoints_in(directory)
        if saved:
            print(
                f"The last checkpoint is {saved[-1]}: go on with --load_checkpoint_path "
                f"{directory}.",
                file=sys.stderr,
            )
        raise


def report(
    run: RunConfig,
    data: LayoutOptions,
    options: Any,
    outcome: Outcome,
    model: ClickModel,
) -> None:
    """Writes the report; a failure costs a warning, never the run."""
    results_dir = run.results_dir
    assert results_dir is not None
    try:
        records = read_log(results_dir / run.log_filename)
        description = described(run, data, options, outcome, model)
        directory = write_report(results_dir, records, outcome, description)
    except Exception as error:  # of matplotlib or the system, whatever it is
        print(
            f"warning: the report in {results_dir / 'report'} is not complete: "
            f"{type(error).__name__}: {error}",
            file=sys.stderr,
        )
    else:
        print(f"report in {directory / INDEX}")


def project(run: RunConfig, source: BatchSource, model: ClickModel) -> None:
    """Writes the tables for TensorBoard's projector."""
    from lookback.training.output.projector import write_projector

    assert run.results_dir is not None
    items = source.id_features[-1] if source.id_features else None
    directory, embeddings = run.results_dir / "tensorboard", model.body.embeddings
    print(write_projector(directory, embeddings, run.dataset_dir, items, source.item_counts()))


def described(
    run: RunConfig, data: LayoutOptions, options: Any, outcome: Outcome, model: ClickModel
) -> RunDescription:
    """The description of a run in its report."""
    from lookback.models.click_model import contract_of

    known = command_line().options(run.model_type, run.recipe)
    given = {**vars(options), **vars(data), **vars(run)}
    return RunDescription(
        title=f"{run.model_type} on {run.dataset_dir.resolve().name}, seed {run.seed}",
        subtitle=f"{run.optimizer}, lr {run.lr:g}, batch of {run.update_batch_size:,} rows",
        options=given,
        changed=[name for name, value in given.items() if value != known[name].default],
        head_weight=contract_of(model).head_weight,
        category_names=category_names(outcome, run.dataset_dir),
    )


def print_digests(run: RunConfig, exporter: Exporter, world: World) -> Path | None:
    """Prints the last checkpoint and the bundle, with their digests.

    Returns:
      The last checkpoint.
    """
    if world.rank != 0:
        return None
    saved = [] if run.save_checkpoint_path is None else checkpoints_in(run.save_checkpoint_path)
    for path in saved[-1:]:
        print(f"saved {path}, digest {digest_of(path / MANIFEST)}")
    if run.export_dir is not None:
        print(f"exported to {run.export_dir}, digest {exporter.bundle_digest(run.export_dir)}")
    return saved[-1] if saved else None


def resolved(
    run: RunConfig, data: LayoutOptions, options: Any, checkpoint: Checkpoint | None, world: World
) -> tuple[RunConfig, list[str]]:
    """The run with what follows from data and checkpoint, and lines that say what was chosen."""
    from lookback.training.batch_size import choose_batch_size

    rows, note = choose_batch_size(run, data, options, checkpoint)
    seed, rows = world.gather([choose_seed(run, checkpoint), rows])[0]
    known = command_line().options(run.model_type, run.recipe)
    idle_ones = idle(known, run, data, options).items()
    lines = [f"{name}: {why}; it has no effect" for name, why in idle_ones]
    run = dataclasses.replace(run, seed=seed, global_batch_size=rows)
    return run, [*([note] if note else []), *lines]


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
    """Trains, evaluates or scores, by the mode."""
    if run.mode == "train" and run.benchmark:
        return trainer.benchmark(log)
    if run.mode in (*EVALUATION_MODES, "train"):
        outcome = trainer.train(log) if run.mode == "train" else trainer.evaluation.run(log)
        return dataclasses.replace(outcome, attention=trainer.attention())
    if run.mode == "inference_benchmark":
        from lookback.training.data import open_benchmark_sources

        sources = open_benchmark_sources(run, data, options, world)
        return trainer.inference.benchmark(sources, log)
    outcome, rows = trainer.inference.score(log)
    if not run.benchmark and world.rank == 0:
        path = write_scores(log.directory / "scores.parquet", rows.columns(), run.dataset_dir)
        log.message(f"scores of the {trainer.evaluation.splits.scored} split in {path}")
    return outcome

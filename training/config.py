"""The configuration of a run: every parameter that belongs to no one model and no one layout.

Names are those of NVIDIA's SIM for TensorFlow 2 (its README's parameter tables and its `main.py`),
and of its DLRM for TensorFlow 2 and PyTorch, wherever the meaning survives. So are defaults, except
those that belong to its data: they are the `recipes` of the models' configs. `training.removed`
says what became of the other options. Where those tables write a sentinel (-1, 0, "") for
"absent", the value here is None, and the sentinel is still read. Options of a model (embedding_dim,
dropout_rate, ...) are the fields of that model's own config dataclass, those of the layout in which
it reads data (negatives, dataset_subset, ...) those of the layout's (`dataloading.layout`);
`core.options.parse` puts the three together.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

from lookback.core.limits import (
    MOST_BYTES,
    MOST_PARTS,
    MOST_PASSES,
    MOST_ROWS,
    MOST_STEPS,
    MOST_THREADS,
)
from lookback.core.options import SET, UNSET, check_options, option
from lookback.dataloading import modes
from lookback.embeddings.config import WIRE_DTYPES
from lookback.embeddings.planners import PLANNERS
from lookback.embeddings.sharding import STRATEGIES
from lookback.training.config_checks import check_run
from lookback.training.learning_options import LearningOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(LearningOptions):
    """One run: what to do, with which data, how, and where the results go.

    The text of each field stands in its metadata, so that `--help`, the documents and this class
    say the same. `None` means absent.

    Raises:
      UserError: if a value or a combination of values makes no sense.
    """

    scope: ClassVar[str] = "training"  # of the fields that name none

    # --- several processes
    backend: Literal["local", "horovod", "sok"] | None = option(
        None,
        scope="several processes",
        help="Where table rows live; none: local with one process, horovod with several",
    )
    plan: Path | None = option(
        None,
        scope="several processes",
        help="Plan of `python -m embeddings plan`; none: one is made",
    )
    planner: str = option(
        "cost",
        choices=tuple(PLANNERS),
        scope="several processes",
        help="How a plan is made",
        needs={"plan": UNSET},
    )
    strategies: tuple[str, ...] | None = option(
        None,
        scope="several processes",
        help="Sharding strategies that the planner may use; none: all",
        choices=tuple(STRATEGIES),
        needs={"plan": UNSET},
    )
    placements: tuple[str, ...] | None = option(
        None,
        scope="several processes",
        help="Tables that the planner is to place so, such as "
        "item_id=row_wise,user_id=table_wise:1",
        needs={"plan": UNSET},
    )
    memory: int | None = option(
        None,
        scope="several processes",
        help="What tables and their optimizer state may take on each rank, such as 80GB; "
        "none: four fifths of a GPU's, and on CPUs no limit",
        above=0,
        unit="bytes",
        limit=MOST_BYTES,
    )
    wire_dtype: str = option(
        "float32",
        choices=WIRE_DTYPES,
        scope="several processes",
        help="Type in which embedding vectors and their gradients travel",
        continued=True,
    )
    gradient_wire_dtype: str = option(
        "float32",
        choices=WIRE_DTYPES,
        scope="several processes",
        help="Type in which dense gradients travel",
        continued=True,
        needs=modes.TRAINS,
    )
    prefetch_ids: bool = option(
        False,
        scope="several processes",
        help="Exchange the ids of the next batch while this one is computed (flag)",
        needs=modes.TRAINS,
    )
    micro_batches: int | None = option(
        None,
        scope="several processes",
        help="Cut each training batch into N parts, shared by all processes, and add their "
        "gradients up in order: the same to the bit on every number of processes that "
        "divides N (with equally many threads each, and no dropout that does not follow "
        "the sample), in the memory of one part",
        at_least=1,
        continued=True,
        none=(0,),
        needs=modes.TRAINS,
        limit=MOST_PARTS,
    )

    # --- results
    results_dir: Path | None = option(
        None,
        scope="results",
        help="Directory for logs, the resolved configuration and the report; what another run "
        "wrote there is moved to earlier/ in it; none: a new one, runs/<UTC time>-<model>",
    )
    log_filename: str = option(
        "log.json",
        scope="results",
        help="Name of the file in results_dir to store logger output",
        nonempty=True,
    )
    log_every: int = option(
        1,
        scope="results",
        help="Log every N training steps; a GPU is not waited for at those in between",
        at_least=1,
        suits=modes.TRAINS,
        limit=MOST_STEPS,
    )
    tracker: Literal["auto", "mlflow", "none"] = option(
        "auto",
        scope="results",
        help="Where options and metrics go besides: mlflow (an extra), at MLFLOW_TRACKING_URI or "
        "in ./mlruns; auto: mlflow if that variable is set",
    )
    tensorboard_projector: bool = option(
        False,
        scope="results",
        help="Write the trained tables for TensorBoard's embedding projector, of long ones "
        "10,000 rows: of items the most frequent (one process; flag)",
        needs=modes.LEARNS,
    )
    save_checkpoint_path: Path | None = option(
        None, scope="results", help="Directory to save checkpoints", none=("",), needs=modes.LEARNS
    )
    load_checkpoint_path: Path | None = option(
        None,
        scope="results",
        help="Checkpoint, or directory of checkpoints (the latest counts), to continue from",
        none=("",),
    )
    init_from: Path | None = option(
        None,
        scope="results",
        help="Checkpoint (or directory of them, of which the latest counts) or exported bundle to "
        "start from on other data: rows of tables are matched by raw id, new ones begin as in any "
        "run, and learning rate, batch, optimizer and seed are free; of a bundle, weights only",
        none=("",),
        needs={**modes.LEARNS, "load_checkpoint_path": UNSET},
    )
    checkpoint_every: int | None = option(
        None,
        scope="results",
        help="Save every N steps as well as at the end of each epoch",
        at_least=1,
        none=(0,),
        needs={"save_checkpoint_path": SET},
        limit=MOST_STEPS,
    )
    trusted_digest: str | None = option(
        None,
        scope="results",
        help="SHA-256 that manifest.json of the checkpoint to continue or start from must have (of "
        "a bundle: bundle.json), as saving, exporting and `python -m embeddings inspect` print it; "
        "none: any",
        none=("",),
        needs=({"load_checkpoint_path": SET}, {"init_from": SET}),
    )
    keep_checkpoints: int = option(
        3,
        scope="results",
        help="Number of latest checkpoints to keep",
        at_least=1,
        needs={"save_checkpoint_path": SET},
        limit=MOST_PASSES,
    )
    export_dir: Path | None = option(
        None,
        scope="results",
        help="Directory to export the model to, for serving",
        none=("",),
        needs={"random_weights": UNSET, "benchmark": UNSET},
    )
    table_files: Literal["auto", "all", "none"] = option(
        "auto",
        scope="results",
        help="Embedding tables of the export: in files that servers map to memory and share; in "
        "the SavedModel, which then scores alone; auto: in files beyond 256 MB, or if rounded",
        needs={"export_dir": SET},
    )
    table_dtype: Literal["fp32", "fp16", "int8"] = option(
        "fp32",
        scope="results",
        help="Type of the exported tables' numbers; int8 has a scale for each row. What rounding "
        "costs in AUC is measured, and printed",
        needs={"export_dir": SET, "table_files": ("auto", "all")},
    )
    export_best: bool = option(
        False,
        scope="results",
        help="Export, and evaluate in the end, the best checkpoint (best/ in "
        "save_checkpoint_path) instead of the last (flag)",
        needs={"export_dir": SET, "save_checkpoint_path": SET, **modes.LEARNS},
    )

    # --- run mode
    mode: Literal["train", "evaluate", "test", "inference", "inference_benchmark"] = option(
        "train",
        scope="run mode",
        help="Train and evaluate; evaluate (or test) a checkpoint; score and measure the "
        "speed; or measure it for each of inference_benchmark_batch_sizes",
    )
    inference_benchmark_batch_sizes: tuple[int, ...] = option(
        (1, 64, 4096),
        scope="run mode",
        help="Rows of the batches that --mode inference_benchmark measures",
        at_least=1,
        nonempty=True,
        needs=modes.MEASURES_SIZES,
        limit=MOST_ROWS,
    )
    inference_benchmark_steps: int = option(
        200,
        scope="run mode",
        help="Number of steps to measure for each of these batch sizes",
        at_least=1,
        needs=modes.MEASURES_SIZES,
        limit=MOST_STEPS,
    )
    random_weights: bool = option(
        False,
        scope="run mode",
        help="Run inference with an untrained model, to measure its speed (flag)",
        needs={"mode": modes.INFERENCE, "load_checkpoint_path": UNSET},
    )
    dry_run: bool = option(
        False,
        scope="run mode",
        help="Take some steps, say how much time, memory and disk the run would take, and write "
        "nothing (flag)",
        needs={"mode": ("train",), "benchmark": UNSET, "seeds": UNSET},
    )
    benchmark: bool = option(
        False,
        scope="run mode",
        help="Measure throughput and latency over benchmark_steps, then stop (flag)",
        needs={"mode": ("train", "inference")},
    )
    benchmark_warmup_steps: int = option(
        20,
        scope="run mode",
        help="Number of first steps that are not measured",
        at_least=0,
        needs=(modes.TRAINS, modes.MEASURES, modes.MEASURES_SIZES),
        limit=MOST_STEPS,
    )
    benchmark_steps: int | None = option(
        200,
        scope="run mode",
        help="Number of steps to measure; none (or 0): all of them",
        at_least=1,
        none=(0,),
        needs=modes.MEASURES,
        limit=MOST_STEPS,
    )
    kernels: Literal["auto", "none"] = option(
        "auto",
        scope="run mode",
        help="Compute with our C++ operations where they are there (`lookback setup-kernels`); "
        "none: with TensorFlow's alone, to compare",
    )
    inter_op_parallelism: int | None = option(
        None,
        scope="run mode",
        help="Number of inter op threads; none (or 0): TensorFlow decides",
        at_least=1,
        none=(0,),
        limit=MOST_THREADS,
    )
    intra_op_parallelism: int | None = option(
        None,
        scope="run mode",
        help="Number of intra op threads; none (or 0): TensorFlow decides",
        at_least=1,
        none=(0,),
        limit=MOST_THREADS,
    )

    # --- reproducibility
    seed: int | None = option(
        None,
        scope="reproducibility",
        help="Random seed; none (or -1): a new one, which is recorded",
        at_least=0,
        below=1 << 32,
        continued=True,
        none=(-1,),
    )
    seeds: int | None = option(
        None,
        scope="reproducibility",
        help="Train so many times, with seeds from --seed (or 0) on, each in a process of its own, "
        "and sum up how the metrics scatter",
        at_least=2,
        none=(0,),
        needs={**modes.LEARNS, "save_checkpoint_path": UNSET, "export_dir": UNSET},
        limit=MOST_PARTS,
    )
    compare: str | None = option(
        None,
        scope="reproducibility",
        help='Options that a second side of runs has besides, such as "--amp", to compare the two',
        none=("",),
        needs={"seeds": SET},
    )

    def __post_init__(self) -> None:
        check_options(self)
        check_run(self)

    @property
    def batch_rows(self) -> int:
        """Rows of a batch, once they are chosen (`training.batch_size`)."""
        if self.global_batch_size is None:
            raise ValueError("The batch size must be chosen before its data is opened.")
        return self.global_batch_size

    @property
    def update_batch_size(self) -> int:
        """Rows whose gradients go into one update."""
        return self.batch_rows * self.grads_accumulated

    def parts(self, ranks: int) -> int | None:
        """Into how many parts they are cut, all processes' together; None: they are not."""
        if self.micro_batches is None and self.grads_accumulated == 1:
            return None
        return (self.micro_batches or ranks) * self.grads_accumulated

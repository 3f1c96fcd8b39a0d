"""The configuration of a run: every parameter that does not belong to one model.

Names and defaults are those of NVIDIA's SIM for TensorFlow 2 (its README's parameter tables and its
`main.py`), and of its DLRM for TensorFlow 2 and PyTorch, wherever the meaning survives;
`training.removed` says what became of the others. Where those tables write a sentinel (-1, 0, "")
for "absent", the value here is None, and the sentinel is still read. Options of a model
(embedding_dim, dropout_rate, ...) are the fields of that model's own config dataclass;
`core.options.parse_run` puts the two together.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from lookback.training.config_checks import check_run


def _option(scope: str, help: str, **more: Any) -> dict[str, Any]:
    """Field metadata as `core.options` reads it."""
    return {"scope": scope, "help": help, **more}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: what to do, with which data, how, and where the results go.

    The text of each field stands in its metadata, so that `--help`, the README and this class say
    the same. `None` means absent.

    Raises:
      UserError: if a value or a combination of values makes no sense.
    """

    # --- model
    model_type: str = dataclasses.field(metadata=_option("model", "Model type"))

    # --- datasets
    dataset_dir: Path = dataclasses.field(
        metadata=_option(
            "datasets", "Directory of the dataset, as `python -m workflows run` writes it"
        )
    )
    negatives: Literal["popularity", "uniform"] = dataclasses.field(
        default="popularity",
        metadata=_option("datasets", "Distribution from which negative items are drawn"),
    )
    test_negatives: int = dataclasses.field(
        default=1,
        metadata=_option("datasets", "Negatives for each positive in evaluation"),
    )
    negative_samples: int = dataclasses.field(
        default=4,
        metadata=_option(
            "datasets", "Negatives for each positive in training (models of users and items only)"
        ),
    )
    exact_negatives: bool = dataclasses.field(
        default=False,
        metadata=_option(
            "datasets",
            "Draw no training negative that the user has met; without it they are drawn from the "
            "whole catalogue (models of users and items only; flag)",
        ),
    )
    full_catalogue: bool = dataclasses.field(
        default=False,
        metadata=_option(
            "datasets",
            "Rank the held-out item among all items that the user has not met, too (models of "
            "users and items only; flag)",
        ),
    )
    repeatable: bool = dataclasses.field(
        default=False,
        metadata=_option(
            "datasets", "Draw the same training negatives in every epoch, not fresh ones (flag)"
        ),
    )
    eval_split: Literal["test", "validation"] = dataclasses.field(
        default="test",
        metadata=_option(
            "datasets", "Part on which to evaluate; validation needs a dataset made with one"
        ),
    )

    dataset_subset: float | None = dataclasses.field(
        default=None,
        metadata=_option(
            "datasets",
            "Train on the first part of the training set, from 0 to 1 (tabular data only); none: "
            "all of it",
        ),
    )
    shuffle_batch_order: bool = dataclasses.field(
        default=False,
        metadata=_option(
            "datasets",
            "Shuffle tabular training data anew in each epoch, as histories always are; without "
            "it, it is read as it lies on disk (flag)",
        ),
    )

    number_of_user_features: int = dataclasses.field(
        default=1,
        metadata=_option(
            "datasets", "Columns after the label that are user features (materialised samples only)"
        ),
    )

    # --- training
    optimizer: Literal[
        "adam", "lazy_adam", "full_adam", "adagrad", "rowwise_adagrad", "sgd", "momentum", "ftrl"
    ] = dataclasses.field(default="adam", metadata=_option("training", "Optimizer to use"))
    lr: float = dataclasses.field(
        default=0.01, metadata=_option("training", "Learning rate for the optimizer selected")
    )
    weight_decay: float = dataclasses.field(
        default=0.0,
        metadata=_option("training", "Decoupled weight decay of the optimizer selected"),
    )
    beta1: float | None = dataclasses.field(
        default=None,
        metadata=_option("training", "Decay of Adam's first moment; none: the optimizer's 0.9"),
    )
    beta2: float | None = dataclasses.field(
        default=None,
        metadata=_option("training", "Decay of Adam's second moment; none: the optimizer's 0.999"),
    )
    eps: float | None = dataclasses.field(
        default=None,
        metadata=_option(
            "training",
            "What Adam and Adagrad add to the root that they divide by; none: the optimizer's 1e-7",
        ),
    )
    epochs: int = dataclasses.field(
        default=3, metadata=_option("training", "Train for the following number of epochs")
    )
    global_batch_size: int = dataclasses.field(
        default=131072,
        metadata=_option(
            "training",
            "Rows (labels) in a batch of training, evaluation and inference, over all processes",
        ),
    )
    valid_batch_size: int | None = dataclasses.field(
        default=None,
        metadata=_option(
            "training",
            "Rows in a batch of evaluation and inference; none: as many as global_batch_size",
        ),
    )
    grads_accumulated: int = dataclasses.field(
        default=1,
        metadata=_option(
            "training",
            "Batches whose gradients are added up for one update, which is that of one batch as "
            "many times as large",
        ),
    )
    warmup_steps: int = dataclasses.field(
        default=0,
        metadata=_option(
            "training", "Number of first steps in which the learning rate grows linearly to --lr"
        ),
    )
    warmup_factor: int = dataclasses.field(
        default=0,
        metadata=_option(
            "training", "The warm-up begins at 1 - 2**-N of --lr: with 0 near nothing"
        ),
    )
    decay_start_step: int | None = dataclasses.field(
        default=None,
        metadata=_option(
            "training", "Step after which the learning rate decays; none: after the warm-up"
        ),
    )
    decay_steps: int = dataclasses.field(
        default=0,
        metadata=_option("training", "Number of steps of the polynomial decay; 0: no decay"),
    )
    decay_power: float = dataclasses.field(
        default=2.0,
        metadata=_option("training", "Power of the polynomial decay"),
    )
    decay_end_lr: float = dataclasses.field(
        default=0.0,
        metadata=_option("training", "Learning rate at the end of the decay"),
    )
    max_steps: int | None = dataclasses.field(
        default=None,
        metadata=_option("training", "Stop training after this many steps", none=(0, -1)),
    )
    test_freq: int | None = dataclasses.field(
        default=None,
        metadata=_option(
            "training", "Evaluate after every N steps as well as after epochs", none=(0,)
        ),
    )
    test_after: float = dataclasses.field(
        default=0.0,
        metadata=_option("training", "Evaluate only once this many epochs are done, such as 0.5"),
    )
    auc_threshold: float | None = dataclasses.field(
        default=None,
        metadata=_option("training", "Stop training once an evaluation has reached this AUC"),
    )
    topk: int = dataclasses.field(
        default=10,
        metadata=_option("training", "K of HR@K and NDCG@K (models of users and items only)"),
    )
    threshold: float | None = dataclasses.field(
        default=None,
        metadata=_option(
            "training",
            "Stop training once an evaluation has reached this HR@K (models of users and items "
            "only)",
        ),
    )
    amp: bool = dataclasses.field(
        default=False,
        metadata=_option("training", "Mixed precision: bf16 on CPU, fp16 on GPU (flag)"),
    )
    loss_scale: float | None = dataclasses.field(
        default=None,
        metadata=_option("training", "Static scale of fp16 losses; none: it adapts (dynamic)"),
    )
    xla: bool = dataclasses.field(
        default=False, metadata=_option("training", "Compile the step with XLA (flag)")
    )
    drop_remainder: bool = dataclasses.field(
        default=False,
        metadata=_option("training", "Drop the last, smaller batch of the training set (flag)"),
    )
    repeat_count: int | None = dataclasses.field(
        default=None,
        metadata=_option(
            "training", "Go over the training set this number of times in an epoch", none=(0,)
        ),
    )
    prefetch_train_size: int | None = dataclasses.field(
        default=10,
        metadata=_option(
            "training",
            "Batches to read ahead in training (materialised samples only); none (or -1): the "
            "reader decides",
            none=(-1,),
        ),
    )
    prefetch_test_size: int | None = dataclasses.field(
        default=2,
        metadata=_option(
            "training",
            "Batches to read ahead in evaluation (materialised samples only); none (or -1): the "
            "reader decides",
            none=(-1,),
        ),
    )
    eval_every: int | None = dataclasses.field(
        default=1,
        metadata=_option(
            "training",
            "Evaluate after every N epochs, and after the last; none (or 0): only after the last",
            none=(0,),
        ),
    )
    eval_train: bool = dataclasses.field(
        default=False,
        metadata=_option("training", "Evaluate on the training set as well (flag)"),
    )

    # --- several processes
    backend: Literal["local", "horovod", "sok"] | None = dataclasses.field(
        default=None,
        metadata=_option(
            "several processes",
            "Where table rows live; none: local with one process, horovod with several",
        ),
    )
    plan: Path | None = dataclasses.field(
        default=None,
        metadata=_option(
            "several processes", "Plan of `python -m embeddings plan`; none: one is made"
        ),
    )
    planner: Literal["cost", "largest_first"] = dataclasses.field(
        default="cost", metadata=_option("several processes", "How a plan is made")
    )
    strategies: tuple[str, ...] | None = dataclasses.field(
        default=None,
        metadata=_option(
            "several processes",
            "Sharding strategies that the planner may use, of data_parallel, table_wise, row_wise, "
            "column_wise; none: all",
        ),
    )
    placements: tuple[str, ...] | None = dataclasses.field(
        default=None,
        metadata=_option(
            "several processes",
            "Tables that the planner is to place so, such as item_id=row_wise,user_id=table_wise:1",
        ),
    )
    memory: str | None = dataclasses.field(
        default=None,
        metadata=_option(
            "several processes",
            "What tables and their optimizer state may take on each rank, such as 80GB; none: not "
            "limited",
        ),
    )
    wire_dtype: Literal["float32", "bfloat16", "float16"] = dataclasses.field(
        default="float32",
        metadata=_option(
            "several processes", "Type in which embedding vectors and their gradients travel"
        ),
    )
    gradient_wire_dtype: Literal["float32", "bfloat16", "float16"] = dataclasses.field(
        default="float32",
        metadata=_option("several processes", "Type in which dense gradients travel"),
    )
    prefetch_ids: bool = dataclasses.field(
        default=False,
        metadata=_option(
            "several processes",
            "Exchange the ids of the next batch while this one is computed (flag)",
        ),
    )
    micro_batches: int | None = dataclasses.field(
        default=None,
        metadata=_option(
            "several processes",
            "Cut each training batch into N parts, shared by all processes, and add their "
            "gradients up in order: the same to the bit on every number of processes that "
            "divides N (with equally many threads each, and no dropout that does not follow the "
            "sample), in the memory of one part",
            none=(0,),
        ),
    )
    shard_histories: bool = dataclasses.field(
        default=False,
        metadata=_option(
            "several processes",
            "Each process loads the histories of its users only, and trains on them (flag)",
        ),
    )

    # --- results
    results_dir: Path = dataclasses.field(
        default=Path("runs/latest"),
        metadata=_option(
            "results", "Directory for logs, the resolved configuration and the report"
        ),
    )
    log_filename: str = dataclasses.field(
        default="log.json",
        metadata=_option("results", "Name of the file in results_dir to store logger output"),
    )
    log_every: int = dataclasses.field(
        default=1, metadata=_option("results", "Log every N training steps")
    )
    save_checkpoint_path: Path | None = dataclasses.field(
        default=None,
        metadata=_option("results", "Directory to save checkpoints", none=("",)),
    )
    load_checkpoint_path: Path | None = dataclasses.field(
        default=None,
        metadata=_option(
            "results",
            "Checkpoint, or directory of checkpoints (the latest counts), to continue from",
            none=("",),
        ),
    )
    trusted_digest: str | None = dataclasses.field(
        default=None,
        metadata=_option(
            "results",
            "SHA-256 that manifest.json of the checkpoint to continue from must have, as saving "
            "and `python -m embeddings inspect` print it; none: any",
            none=("",),
        ),
    )
    checkpoint_every: int | None = dataclasses.field(
        default=None,
        metadata=_option(
            "results", "Save every N steps as well as at the end of each epoch", none=(0,)
        ),
    )
    keep_checkpoints: int = dataclasses.field(
        default=3, metadata=_option("results", "Number of latest checkpoints to keep")
    )
    export_dir: Path | None = dataclasses.field(
        default=None,
        metadata=_option("results", "Directory to export the model to, for serving", none=("",)),
    )

    # --- run mode
    mode: Literal["train", "evaluate", "test", "inference", "inference_benchmark"] = (
        dataclasses.field(
            default="train",
            metadata=_option(
                "run mode",
                "Train and evaluate; evaluate (or test) a checkpoint; score and measure the speed; "
                "or measure it for each of inference_benchmark_batch_sizes",
            ),
        )
    )
    inference_benchmark_batch_sizes: tuple[int, ...] = dataclasses.field(
        default=(1, 64, 4096),
        metadata=_option(
            "run mode", "Rows of the batches that --mode inference_benchmark measures"
        ),
    )
    inference_benchmark_steps: int = dataclasses.field(
        default=200,
        metadata=_option("run mode", "Number of steps to measure for each of these batch sizes"),
    )
    random_weights: bool = dataclasses.field(
        default=False,
        metadata=_option(
            "run mode", "Run inference with an untrained model, to measure its speed (flag)"
        ),
    )
    benchmark: bool = dataclasses.field(
        default=False,
        metadata=_option(
            "run mode", "Measure throughput and latency over benchmark_steps, then stop (flag)"
        ),
    )
    benchmark_warmup_steps: int = dataclasses.field(
        default=20,
        metadata=_option("run mode", "Number of first steps that are not measured"),
    )
    benchmark_steps: int | None = dataclasses.field(
        default=200,
        metadata=_option(
            "run mode", "Number of steps to measure; none (or 0): all of them", none=(0,)
        ),
    )
    inter_op_parallelism: int | None = dataclasses.field(
        default=None,
        metadata=_option(
            "run mode", "Number of inter op threads; none (or 0): TensorFlow decides", none=(0,)
        ),
    )
    intra_op_parallelism: int | None = dataclasses.field(
        default=None,
        metadata=_option(
            "run mode", "Number of intra op threads; none (or 0): TensorFlow decides", none=(0,)
        ),
    )

    # --- reproducibility
    seed: int | None = dataclasses.field(
        default=None,
        metadata=_option(
            "reproducibility", "Random seed; none (or -1): a new one, which is recorded", none=(-1,)
        ),
    )

    def __post_init__(self) -> None:
        check_run(self)

    @property
    def update_batch_size(self) -> int:
        """Rows whose gradients go into one update."""
        return self.global_batch_size * self.grads_accumulated

    def parts(self, ranks: int) -> int | None:
        """Into how many parts they are cut, all processes' together; None: they are not."""
        if self.micro_batches is None and self.grads_accumulated == 1:
            return None
        return (self.micro_batches or ranks) * self.grads_accumulated

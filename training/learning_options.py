"""The options of a run about what is learnt, from which data, how and for how long."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

from lookback.core.limits import MOST_PARTS, MOST_PASSES, MOST_ROWS, MOST_STEPS
from lookback.core.options import SET, option
from lookback.dataloading import modes
from lookback.embeddings.types import OPTIMIZER_STATE

ADAMS = ("adam", "lazy_adam", "full_adam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """The first part of `RunConfig`."""

    scope: ClassVar[str] = "training"  # of the fields that name none

    # --- model
    model_type: str = option(scope="model", help="Model type")

    recipe: Literal["nvidia"] | None = option(
        None,
        scope="model",
        help="Whose values options have that are not given; none: values for small data, too",
    )

    # --- datasets
    dataset_dir: Path = option(
        scope="datasets", help="Directory of the dataset, as `python -m workflows run` writes it"
    )
    eval_split: Literal["test", "validation"] | None = option(
        None,
        scope="datasets",
        help="Part on which to evaluate; none: test, and on the way through training validation "
        "where the dataset has it. Training ends with test in any case",
        needs=(*modes.EVALUATES, modes.INFERS),
    )
    no_verify: bool = option(
        False,
        scope="datasets",
        help="Do not compare the dataset's files with their digests; names, sizes and counts are "
        "compared all the same (flag)",
    )
    trusted_dataset_digest: str | None = option(
        None,
        scope="datasets",
        help="SHA-256 that dataset.json of the dataset must have (of split_binary files: "
        "feature_spec.yaml), as `python -m workflows` prints it; none: any",
        none=("",),
    )

    # --- training
    optimizer: str = option(
        "adam",
        choices=tuple(OPTIMIZER_STATE),
        help="Optimizer to use",
        continued=True,
        suits=modes.TRAINS,
    )
    lr: float = option(
        0.001,
        help="Learning rate for the optimizer selected",
        above=0,
        continued=True,
        suits=modes.TRAINS,
        limit=1e6,
    )
    weight_decay: float = option(
        0.0,
        help="Decoupled weight decay of the optimizer selected",
        at_least=0,
        continued=True,
        suits=modes.TRAINS,
        limit=1e6,
    )
    beta1: float | None = option(
        None,
        help="Decay of Adam's first moment; none: the optimizer's 0.9",
        at_least=0,
        below=1,
        continued=True,
        needs={"optimizer": ADAMS},
        suits=modes.TRAINS,
    )
    beta2: float | None = option(
        None,
        help="Decay of Adam's second moment; none: the optimizer's 0.999",
        at_least=0,
        below=1,
        continued=True,
        needs={"optimizer": ADAMS},
        suits=modes.TRAINS,
    )
    eps: float | None = option(
        None,
        help="What Adam and Adagrad add to the root that they divide by; none: the "
        "optimizer's 1e-7",
        above=0,
        continued=True,
        needs={"optimizer": (*ADAMS, "adagrad", "rowwise_adagrad")},
        suits=modes.TRAINS,
        limit=1,
    )
    epochs: int = option(
        3,
        help="Train for the following number of epochs",
        at_least=1,
        suits=modes.TRAINS,
        limit=MOST_PASSES,
    )
    global_batch_size: int | None = option(
        None,
        help="Rows (labels) in a batch, over all processes; none: that of the checkpoint to load, "
        "else a power of two that follows from the rows",
        at_least=1,
        continued=True,
        limit=MOST_ROWS,
    )
    valid_batch_size: int | None = option(
        None,
        help="Rows in a batch of evaluation and inference; none: as many as global_batch_size",
        at_least=1,
        needs=(*modes.EVALUATES, modes.INFERS),
        suits=(*modes.EVALUATES, modes.SCORES),
        limit=MOST_ROWS,
    )
    grads_accumulated: int = option(
        1,
        help="Batches whose gradients are added up for one update, which is that of one batch "
        "as many times as large",
        at_least=1,
        continued=True,
        needs=modes.TRAINS,
        limit=MOST_PARTS,
    )
    warmup_steps: int = option(
        0,
        help="Number of first steps in which the learning rate grows linearly to --lr",
        at_least=0,
        continued=True,
        suits=modes.TRAINS,
        limit=MOST_STEPS,
    )
    warmup_factor: int = option(
        0,
        help="The warm-up begins at 1 - 2**-N of --lr: with 0 near nothing",
        at_least=0,
        continued=True,
        needs={"warmup_steps": SET},
        suits=modes.TRAINS,
        limit=64,
    )
    decay_start_step: int | None = option(
        None,
        help="Step after which the learning rate decays; none: after the warm-up",
        at_least=0,
        continued=True,
        needs={"decay_steps": SET},
        suits=modes.TRAINS,
        limit=MOST_STEPS,
    )
    decay_steps: int = option(
        0,
        help="Number of steps of the polynomial decay; 0: no decay",
        at_least=0,
        continued=True,
        suits=modes.TRAINS,
        limit=MOST_STEPS,
    )
    decay_power: float = option(
        2.0,
        help="Power of the polynomial decay",
        above=0,
        continued=True,
        needs={"decay_steps": SET},
        suits=modes.TRAINS,
        limit=100,
    )
    decay_end_lr: float = option(
        0.0,
        help="Learning rate at the end of the decay",
        at_least=0,
        continued=True,
        needs={"decay_steps": SET},
        suits=modes.TRAINS,
    )
    max_steps: int | None = option(
        None,
        help="Stop training after this many steps",
        at_least=1,
        none=(0, -1),
        suits=modes.LEARNS,
        limit=MOST_STEPS,
    )
    test_freq: int | None = option(
        None,
        help="Evaluate after every N steps as well as after epochs",
        at_least=1,
        none=(0,),
        needs=modes.LEARNS,
        limit=MOST_STEPS,
    )
    test_after: float = option(
        0.0,
        help="Evaluate only once this many epochs are done, such as 0.5",
        at_least=0,
        needs=({**modes.LEARNS, "eval_every": SET}, {**modes.LEARNS, "test_freq": SET}),
        limit=MOST_PASSES,
    )
    amp: bool = option(
        False, help="Mixed precision: bf16 on CPU, fp16 on GPU (flag)", continued=True
    )
    loss_scale: float | None = option(
        None,
        help="Static scale of fp16 losses; none: it adapts (dynamic)",
        above=0,
        continued=True,
        needs=({"amp": SET}, {"wire_dtype": ("float16",)}, {"gradient_wire_dtype": ("float16",)}),
        limit=2.0**64,
    )
    xla: bool = option(False, help="Compile the step with XLA (flag)", continued=True)
    drop_remainder: bool = option(
        False,
        help="Drop the last, smaller batch of the training set (flag)",
        continued=True,
        suits=modes.TRAINS,
    )
    repeat_count: int | None = option(
        None,
        help="Go over the training set this number of times in an epoch",
        at_least=1,
        continued=True,
        none=(0,),
        suits=modes.TRAINS,
        limit=MOST_PASSES,
    )
    eval_every: int | None = option(
        1,
        help="Evaluate after every N epochs, and after the last; none (or 0): only after the last",
        at_least=1,
        none=(0,),
        suits=modes.LEARNS,
        limit=MOST_PASSES,
    )
    early_stopping: str | None = option(
        None,
        help="End training once this metric of the split evaluated on the way (auc, gauc, "
        "log_loss, hr@K, ndcg@K, mrr) is no better for --patience evaluations in a row",
        none=("",),
        needs=modes.LEARNS,
    )
    patience: int = option(
        3,
        help="Evaluations in a row without a better one after which early_stopping ends training",
        at_least=1,
        needs={"early_stopping": SET},
        limit=MOST_STEPS,
    )
    eval_train: bool = option(
        False, help="Evaluate on the training set as well (flag)", needs=modes.EVALUATES
    )
    metrics: tuple[str, ...] | None = option(
        None,
        help="Metrics of evaluations, of auc, gauc, log_loss, calibration, hr@K, ndcg@K, mrr with "
        "any K, as far as the data allows them; none: those that the layout is for",
        nonempty=True,
        needs=modes.EVALUATES,
    )

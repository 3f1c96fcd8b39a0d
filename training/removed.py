"""Parameters of NVIDIA's command lines that are absent here, and what replaces them."""

from __future__ import annotations

REMOVED: dict[str, str] = {
    "feature_spec": (
        "the dataset describes itself, by schema.pbtxt and dataset.json (materialised samples: by "
        "metadata.json) in --dataset_dir"
    ),
    "prebatch_train_size": (
        "histories stay in memory and each batch is built from them, so there are no prebatched "
        "files; --global_batch_size alone sets the batch size"
    ),
    "prebatch_test_size": (
        "histories stay in memory and each batch is built from them, so there are no prebatched "
        "files; --global_batch_size alone sets the batch size"
    ),
    "train_dataset_size": (
        "the number of training samples follows from the dataset; `python -m workflows describe "
        "DIR` prints it"
    ),
    "disable_cache": (
        "histories are loaded once and stay in memory, so no sample is cached (or computed from "
        "a file twice)"
    ),
    "num_parallel_calls": (
        "batches are built inside the training step, and materialised samples are decoded by Arrow "
        "with one thread a core; --intra_op_parallelism sets the step's threads"
    ),
    "affinity": (
        "processes are bound to cores by what starts them: scripts/run_model.sh binds each to its "
        "share of the machine's; --intra_op_parallelism and --inter_op_parallelism set the number "
        "of threads"
    ),
    "base_device": "a GPU is used where TensorFlow finds one; CUDA_VISIBLE_DEVICES= hides them",
    "cpu": "a GPU is used where TensorFlow finds one; CUDA_VISIBLE_DEVICES= hides them",
    "batch_size": "it is --global_batch_size, over all processes",
    "test_batch_size": "it is --valid_batch_size",
    "learning_rate": "it is --lr",
    "data": "it is --dataset_dir",
    "dataset": "it is --dataset_dir",
    "dataset_path": "it is --dataset_dir",
    "dataset_type": (
        "--dataset_dir says by its files what it holds: `python -m workflows export-feature-spec` "
        "writes, and train.py reads, NVIDIA's split binary files"
    ),
    "num_numerical_features": "the dataset's schema says it",
    "synthetic_dataset_dir": (
        "`python -m workflows generate --dataset criteo --format parquet` writes such a dataset"
    ),
    "synthetic_dataset_num_entries": "`python -m workflows generate --dataset criteo --rows N`",
    "synthetic_dataset_table_sizes": (
        "`python -m workflows generate --dataset criteo --variant custom --cardinalities ...`"
    ),
    "log_path": "it is --results_dir and --log_filename",
    "output_dir": "it is --save_checkpoint_path",
    "checkpoint_dir": "it is --save_checkpoint_path",
    "local_rank": "horovodrun, or scripts/run_model.sh, tells every process its rank",
    "print_freq": "it is --log_every",
    "restore_checkpoint_path": "it is --load_checkpoint_path",
    "evals_per_epoch": "it is --test_freq, in steps",
    "auc_thresholds": "the AUC is exact, not a sum over thresholds",
    "optimized_mlp": "it chose an extension of PyTorch; there is one implementation here",
    "bottom_mlp_dims": "it is --bottom_mlp_sizes",
    "top_mlp_dims": "it is --top_mlp_sizes",
    "interaction": "it is --interaction_op; cross layers are a --model_type of their own",
    "dist_strategy": "it is --planner, --strategies and --placements",
    "column_slice_threshold": "the planner cuts tables by cost; --placements overrides it",
    "row_slice_threshold": "the planner cuts tables by cost; --placements overrides it",
    "data_parallel_threshold": "the planner replicates by cost; --placements overrides it",
    "cuda_graphs": (
        "TensorFlow 2.12 has them as an experiment within XLA alone, untried here: --xla, with "
        "XLA_FLAGS=--xla_gpu_enable_cuda_graphs in the environment"
    ),
    "data_parallel_input": "every process reads its share of each batch",
}
"""Parameters of the older command line that are absent here -> what replaces them."""


def removed_table() -> str:
    """`REMOVED` as a Markdown table, for the documents."""
    lines = ["| Parameter | Why it is not needed, and what replaces it |", "|---|---|"]
    lines += [f"| `{name}` | {text[0].upper()}{text[1:]} |" for name, text in REMOVED.items()]
    return "\n".join(lines) + "\n"

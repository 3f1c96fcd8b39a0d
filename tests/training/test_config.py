from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lookback.core import options
from lookback.core.errors import UserError
from lookback.core.options import from_values, options_of, save_yaml
from lookback.dataloading import LAYOUTS
from lookback.models import MODELS
from lookback.training.config import RunConfig
from lookback.training.removed import REMOVED, removed_table
from lookback.training.run import command_line

# Every parameter of the tables in NVIDIA's README (both editions) -> its default here, as its
# meaning survives: None where the table has a sentinel.
SEED_DEFAULTS: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 0.01,
    "weight_decay": 0,
    "epochs": 3,
    "global_batch_size": 131072,
    "amp": False,
    "xla": False,
    "drop_remainder": False,
    "repeat_count": None,
    "prefetch_train_size": 10,
    "prefetch_test_size": 2,
    "log_filename": "log.json",
    "save_checkpoint_path": None,
    "load_checkpoint_path": None,
    "mode": "train",
    "benchmark": False,
    "benchmark_warmup_steps": 20,
    "benchmark_steps": 200,
    "inter_op_parallelism": None,
    "intra_op_parallelism": None,
    "seed": None,
}
OF_LAYOUTS = {"prefetch_train_size", "prefetch_test_size"}
SEED_WITHOUT_OUR_DEFAULT = {"model_type", "dataset_dir", "results_dir"}
SEED_ABSENT = {
    *("feature_spec", "disable_cache", "prebatch_train_size", "prebatch_test_size"),
    *("train_dataset_size", "affinity", "num_parallel_calls"),
}
# Of NVIDIA's DLRM for TensorFlow 2 (and the command line that its README describes) and PyTorch,
# beside those that are fields here or of the models' own configs.
DLRM_ABSENT = {
    *("base_device", "cpu", "batch_size", "test_batch_size", "learning_rate"),
    *("dataset", "dataset_path", "dataset_type", "num_numerical_features", "log_path"),
    *("synthetic_dataset_dir", "synthetic_dataset_num_entries", "synthetic_dataset_table_sizes"),
    *("output_dir", "print_freq", "restore_checkpoint_path", "evals_per_epoch", "auc_thresholds"),
    *("optimized_mlp", "bottom_mlp_dims", "top_mlp_dims", "interaction", "dist_strategy"),
    *("column_slice_threshold", "row_slice_threshold", "data_parallel_threshold"),
    "data_parallel_input",
}
DLRM_FIELDS = {
    *("amp", "auc_threshold", "benchmark_warmup_steps", "dataset_subset", "decay_end_lr"),
    *("decay_power", "decay_start_step", "decay_steps", "epochs", "inference_benchmark_steps"),
    *("inference_benchmark_batch_sizes", "load_checkpoint_path", "loss_scale", "lr", "max_steps"),
    *("mode", "optimizer", "save_checkpoint_path", "seed", "shuffle_batch_order", "test_after"),
    *("test_freq", "warmup_factor", "warmup_steps", "xla"),
}
OF_PYTORCH = {"cuda_graphs"}  # of NVIDIA's DLRM for PyTorch
# Of NVIDIA's NCF (its `data` is --dataset_dir), likewise.
NCF_ABSENT = {"data", "checkpoint_dir", "local_rank", "batch_size", "learning_rate", "log_path"}
NCF_FIELDS = {
    *("epochs", "valid_batch_size", "negative_samples", "topk", "seed", "threshold", "beta1"),
    *("beta2", "eps", "load_checkpoint_path", "mode", "grads_accumulated", "amp"),
}
# What those tables list under "model", with dropout_rate: fields of the models' own configs.
SEED_OF_MODELS = {
    *("embedding_dim", "stage_one_mlp_dims", "stage_two_mlp_dims", "aux_mlp_dims"),
    *("dropout_rate", "long_seq_length"),
}


def config(**values: Any) -> RunConfig:
    return RunConfig(**{"model_type": "any", "dataset_dir": Path("d"), **values})


def parse(*argv: str) -> tuple[Any, ...]:
    # Of one model, so that no other's option has the name of one that is absent.
    variants = {"sim": command_line().variants["sim"]}
    line = dataclasses.replace(command_line(), variants=variants)
    return options.parse(("--dataset_dir", "d", *argv), line)


def valued(name: str, *configs: Any) -> Any:
    """The value of an option, whoever has it."""
    (value,) = {getattr(config, name) for config in configs if hasattr(config, name)}
    return value


def test_every_parameter_of_the_seed_is_here_or_has_a_replacement():
    line = command_line()
    fields = {*line.shared()}
    assert fields >= SEED_DEFAULTS.keys() - OF_LAYOUTS | SEED_WITHOUT_OUR_DEFAULT
    assert set(line.own("sim")) >= SEED_DEFAULTS.keys() & OF_LAYOUTS
    assert fields | set(line.own("dlrm")) >= DLRM_FIELDS
    assert fields | set(line.own("neumf")) >= NCF_FIELDS
    assert set(REMOVED) == SEED_ABSENT | DLRM_ABSENT | NCF_ABSENT | OF_PYTORCH
    assert not fields & (SEED_ABSENT | DLRM_ABSENT | NCF_ABSENT | SEED_OF_MODELS)


@pytest.mark.parametrize("name", SEED_DEFAULTS)
def test_defaults_of_nvidias_recipe_are_those_of_the_seed(name):
    assert valued(name, *parse("--recipe", "nvidia")) == SEED_DEFAULTS[name]


@pytest.mark.parametrize("model_type", MODELS)
def test_defaults_are_adams_and_leave_the_batch_to_the_data(model_type):
    run, *_ = options.parse(["--dataset_dir", "d", "--model_type", model_type], command_line())
    assert (run.global_batch_size, run.optimizer, run.lr) == (None, "adam", 0.001)
    assert (run.warmup_steps, run.decay_steps) == (0, 0)


def test_options_win_over_the_recipe_and_its_values_come_back_from_a_file(tmp_path):
    line, argv = command_line(), ["--dataset_dir", "d", "--model_type", "dlrm", "--lr", "2"]
    configs = options.parse([*argv, "--recipe", "nvidia"], line)
    run = configs[0]
    assert (run.recipe, run.global_batch_size, run.optimizer) == ("nvidia", 65536, "sgd")
    assert (run.lr, run.warmup_steps, run.decay_start_step) == (2.0, 8000, 48000)
    save_yaml(tmp_path / "config.yaml", *configs)
    assert options.parse(["--config", str(tmp_path / "config.yaml")], line) == configs
    (tmp_path / "own.yaml").write_text("recipe: nvidia\nmodel_type: neumf\ndataset_dir: d\n")
    run, *_ = options.parse(["--config", str(tmp_path / "own.yaml"), "--beta1", "none"], line)
    assert (run.optimizer, run.beta1, run.beta2) == ("full_adam", None, 0.5)


def test_help_shows_the_values_of_recipes(capsys):
    for argv, text in (
        (("--help",), "default: 0.001; --recipe nvidia: 24.0)"),
        (("--recipe", "nvidia", "--help"), "selected (default: 24.0)"),
        (("--help-all",), "0.001; --recipe nvidia: 0.01 for sim, din, dien"),
    ):
        with pytest.raises(SystemExit):
            options.parse(["--model_type", "dlrm", *argv], command_line())
        assert text in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("seed", "-1"),
        ("repeat_count", "0"),
        ("prefetch_train_size", "-1"),
        ("prefetch_test_size", "-1"),
        ("inter_op_parallelism", "0"),
        ("intra_op_parallelism", "0"),
        ("save_checkpoint_path", ""),
        ("load_checkpoint_path", ""),
    ],
)
def test_sentinels_of_the_seed_mean_none(flag, value):
    assert valued(flag, *parse(f"--{flag}", value)) is None


def test_no_number_of_benchmark_steps_means_all():
    assert parse("--benchmark", "--benchmark_steps", "0")[0].benchmark_steps is None


@pytest.mark.parametrize("name", REMOVED)
def test_absent_parameters_are_refused_with_their_replacement(name):
    with pytest.raises(UserError) as error:
        parse(f"--{name}", "1")
    assert f"--{name} is not needed here: {REMOVED[name]}" in str(error.value)
    assert f"| `{name}` |" in removed_table()


def test_a_command_line_of_the_seed_is_read():
    line = (
        "--mode train --model_type sim --embedding_dim 16 --drop_remainder --optimizer adam "
        "--lr 0.01 --epochs 3 --global_batch_size 131072 --amp"
    )
    run, *_ = parse(*line.split())
    assert run == config(
        model_type="sim", drop_remainder=True, amp=True, lr=0.01, global_batch_size=131072
    )


@pytest.mark.parametrize("model_type", MODELS)
def test_a_config_file_with_everybodys_options_is_read(tmp_path, model_type):
    """As runs wrote it when every run had the options of all layouts."""
    line, given = command_line(), {"model_type": model_type, "dataset_dir": Path("d")}
    configs = from_values(line, **given)
    others = [layout.options_class() for layout in LAYOUTS.values()]
    save_yaml(tmp_path / "config.yaml", *configs, *others)
    assert options.parse(["--config", str(tmp_path / "config.yaml")], line) == configs


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"epochs": 0}, "epochs: expected an integer, 1 or more, received 0"),
        ({"lr": 0.0}, r"lr: expected a number, above 0, received 0\.0"),
        ({"lr": -1.0}, "lr: expected a number, above 0"),
        ({"loss_scale": 8.0}, "loss_scale: expected with --amp, or with --wire_dtype float16"),
        (
            {"loss_scale": 8.0, "wire_dtype": "bfloat16"},
            "received it without --amp and with --wire_dtype bfloat16.*remove",
        ),
        ({"weight_decay": -0.1}, r"weight_decay: expected a number, 0 or more, received -0\.1"),
        ({"seed": -2}, "seed: expected an integer, 0 or more"),
        ({"seed": 1 << 32}, "seed: .* below 4294967296, or none, received 4294967296"),
        ({"export_dir": Path("a"), "results_dir": Path("a/b")}, "a directory of its own.*results"),
        (
            {"export_dir": Path("a"), "save_checkpoint_path": Path("a")},
            "a directory of its own.*save_checkpoint_path",
        ),
        ({"export_dir": Path("a"), "benchmark": True}, "export_dir: .* without --benchmark"),
        (
            {"save_checkpoint_path": Path("a"), "benchmark": True},
            "save_checkpoint_path: expected with --mode train and without --benchmark, received it "
            "with --benchmark. It would have no effect: remove --save_checkpoint_path",
        ),
        (
            {"mode": "inference", "random_weights": True, "eval_train": True},
            "eval_train: expected with --mode train .* with --mode evaluate or test, received",
        ),
        ({"benchmark_steps": -1}, "benchmark_steps: expected an integer, 1 or more"),
        ({"keep_checkpoints": 0}, "keep_checkpoints: expected an integer, 1 or more"),
        ({"global_batch_size": 0}, "global_batch_size: expected an integer, 1 or more"),
        (
            {"warmup_steps": 9, "decay_start_step": 8, "decay_steps": 1},
            "decay_start_step: expected the 9 steps of the warm-up or more, received 8",
        ),
        ({"decay_end_lr": 1.0, "decay_steps": 1}, "decay_end_lr: expected at most --lr"),
        ({"log_filename": "a/b.json"}, "name of a file in results_dir, received 'a/b.json'"),
        ({"log_filename": ""}, "log_filename: expected text, received nothing"),
        ({"mode": "evaluate"}, "evaluate needs a trained model.*--load_checkpoint_path DIR"),
        ({"mode": "inference"}, "inference needs a trained model.*--random_weights"),
        (
            {"random_weights": True},
            "with --mode inference or inference_benchmark .* with --mode train",
        ),
        (
            {"mode": "inference", "random_weights": True, "load_checkpoint_path": Path("c")},
            "without --load_checkpoint_path, received it with --load_checkpoint_path",
        ),
        (
            {"mode": "evaluate", "benchmark": True, "load_checkpoint_path": Path("c")},
            "benchmark: expected with --mode train or inference, received it with --mode eval",
        ),
        ({"checkpoint_every": 10}, "checkpoint_every: .* without --save_checkpoint_path"),
        ({"keep_checkpoints": 1}, "keep_checkpoints: expected with --save_checkpoint_path"),
        ({"decay_power": 1.0}, "decay_power: expected with --decay_steps"),
        ({"decay_start_step": 5}, "decay_start_step: expected with --decay_steps"),
        ({"warmup_factor": 1}, "warmup_factor: expected with --warmup_steps"),
        ({"benchmark_steps": 10}, "benchmark_steps: expected with --benchmark"),
        ({"inference_benchmark_steps": 10}, "with --mode inference_benchmark, received it with"),
        ({"beta1": 0.5, "optimizer": "sgd"}, "beta1: .*lazy_adam or full_adam.*--optimizer sgd"),
        ({"test_after": 1.0, "eval_every": None}, "test_after: .* without --eval_every"),
        ({"log_filename": "config.yaml"}, "log_filename: expected a name that no other file"),
        (
            {"metrics": ("auc",), "benchmark": True},
            "metrics: expected with --mode train and without --benchmark",
        ),
        ({"micro_batches": 1, "prefetch_ids": True}, "micro_batches: .* without --prefetch_ids"),
        ({"trusted_digest": "ab"}, "trusted_digest: expected with --load_checkpoint_path"),
        ({"micro_batches": 0}, "micro_batches: expected an integer, 1 or more"),
        ({"micro_batches": 2, "prefetch_ids": True}, "micro_batches: .* without --prefetch_ids"),
        (
            {"micro_batches": 2, "gradient_wire_dtype": "bfloat16"},
            "gradient_wire_dtype: expected float32 with --micro_batches.*received bfloat16",
        ),
        ({"plan": Path("p"), "planner": "largest_first"}, "planner: expected without --plan"),
        ({"plan": Path("p"), "strategies": ("row_wise",)}, "strategies: expected without --plan"),
        ({"plan": Path("p"), "placements": ("a=row_wise",)}, "placements: expected without --plan"),
        ({"metrics": ("auc", "f1")}, "metrics: expected of auc, gauc, .* received 'f1'"),
        ({"placements": ("item_id",)}, "entries such as item_id=row_wise, received 'item_id'"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, text):
    with pytest.raises(UserError, match=text):
        config(**values)


def test_values_that_make_sense_are_accepted():
    config(mode="inference", random_weights=True, benchmark=True)
    config(mode="evaluate", load_checkpoint_path=Path("c"))
    config(checkpoint_every=10, save_checkpoint_path=Path("c"))
    config(benchmark_warmup_steps=0, weight_decay=0.1)
    config(micro_batches=6, wire_dtype="bfloat16")
    config(plan=Path("p"), wire_dtype="float16", memory=80 * 10**9)
    config(placements=("a=row_wise", "b=table_wise:1"), strategies=("row_wise", "data_parallel"))


def test_every_option_has_help_and_a_scope():
    scopes = {
        *("model", "datasets", "training", "results", "run mode", "reproducibility"),
        "several processes",
    }
    for option in options_of(RunConfig).values():
        assert option.help and option.scope in scopes, option.name


def test_what_only_training_reads_is_named_in_other_modes():
    line, argv = (
        command_line(),
        ["--dataset_dir", "d", "--model_type", "dlrm", "--mode", "evaluate"],
    )
    argv += ["--load_checkpoint_path", "c"]
    known = line.options("dlrm")
    assert options.idle(known, *options.parse(argv, line)) == {}
    said = options.idle(known, *options.parse([*argv, "--lr", "2", "--shuffle_batch_order"], line))
    assert set(said) == {"lr", "shuffle_batch_order"}
    assert said["lr"] == "expected with --mode train, received it with --mode evaluate"


def test_options_that_contradict_across_classes_are_refused():
    line = command_line()
    for words, text in (
        (["--topk", "5"], "topk: expected .* with --full_catalogue, received it without"),
        (["--category_feature", "category_id"], "with --gsu hard, received it with --gsu soft"),
        (["--k", "95"], "k: expected at most the 90 events of --long_seq_length"),
        (["--auc_threshold", "0.7", "--benchmark"], "auc_threshold: .* without --benchmark"),
        (["--model_type", "neumf", "--factors", "8", "--branches", "mlp"], "--branches both or mf"),
        (["--model_type", "neumf", "--dropout", "0", "--branches", "mf"], "dropout: expected"),
        (["--model_type", "neumf", "--topk", "5", "--metrics", "mrr"], "topk: .*with --metrics"),
    ):
        with pytest.raises(UserError, match=text):
            options.parse(["--dataset_dir", "d", *words], line)
    options.parse(["--dataset_dir", "d", "--topk", "5", "--full_catalogue"], line)
    options.parse(["--dataset_dir", "d", "--gsu", "hard", "--category_feature", "c"], line)


def test_a_recipes_default_that_has_no_effect_gives_way(tmp_path):
    """Nobody gave it, so nobody can take it away; and what is written is read back."""
    line = command_line()
    argv = ["--dataset_dir", "d", "--model_type", "neumf", "--recipe", "nvidia"]
    configs = options.parse([*argv, "--optimizer", "sgd"], line)
    assert (configs[0].beta1, configs[0].eps) == (None, None)
    save_yaml(tmp_path / "config.yaml", *configs)
    assert options.parse(["--config", str(tmp_path / "config.yaml")], line) == configs

"""Our datasets in the layout that NVIDIA's recipes read, with their feature_spec.yaml.

Materialised samples become SIM's TFRecord files, a tabular dataset DLRM's split-binary files: what
`workflows.feature_spec_import` reads back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lookback.core.errors import UserError
from lookback.core.manifests import WHOLLY, Verification
from lookback.formats.dataset_info import is_tabular
from lookback.formats.description import METADATA_FILE, is_materialised
from lookback.formats.feature_spec import (
    PARQUET,
    TFRECORD,
    Chunk,
    FeatureSpecification,
    SpecFeature,
    write_feature_spec,
)
from lookback.workflows.cluster import recall_tensorflow
from lookback.workflows.output import FEATURE_SPEC, Output
from lookback.workflows.tabular.export import export_split_binary

# Importing Merlin takes seconds, TensorFlow as long.
if TYPE_CHECKING:
    from lookback.formats.materialised import Columns
    from lookback.formats.tabular_rows import Array

_PART, _REMAINDER = "part_0.tfrecord", "remainder.tfrecord"
"""NVIDIA's reader of prebatched samples knows by its name the file whose record is not full."""


def export_feature_spec(
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    prebatch: Mapping[str, int | None] | None = None,
    overwrite: bool = False,
    verification: Verification = WHOLLY,
) -> int:
    """Writes a dataset for NVIDIA's recipes, block by block; gives the number of rows.

    Args:
      input_dir: materialised samples, or a tabular dataset.
      output_dir: to create.
      prebatch: (samples) by split, how many stand in a record; None: one.
      overwrite: replace such files of ours at `output_dir`.
      verification: how far the dataset's files are compared with what it says of them.

    Raises:
      UserError: if it is neither, or `output_dir` is there.
    """
    directory = Path(input_dir)
    batched = {split: size for split, size in (prebatch or {}).items() if size is not None}
    if not is_materialised(directory):
        if not is_tabular(directory):
            raise UserError(
                f"{directory} holds neither materialised samples ({METADATA_FILE}, train, test) "
                "nor a tabular dataset. Expected one of them: NVIDIA's recipes know no other."
            )
        if batched:
            raise UserError(
                "--prebatch_train_size and --prebatch_test_size are of samples of histories; "
                f"{directory} is a tabular dataset, which has no records. Remove them."
            )
        return export_split_binary(
            directory, output_dir, overwrite=overwrite, verification=verification
        )
    target = Output(Path(output_dir), FEATURE_SPEC, overwrite, (directory,))
    target.check()
    from lookback.formats.feature_channels import HISTORY_CHANNELS
    from lookback.formats.feature_rows import read_samples
    from lookback.formats.materialised import SPLITS

    spec, columns = _specification(directory)
    channels = (columns.user, columns.target, columns.history, columns.negatives, (columns.label,))
    rows, mappings = 0, {}
    recall_tensorflow()
    with target.create() as output:
        for split in SPLITS:
            samples = read_samples(spec, columns, split)
            written = _write_split(output / split, samples, batched.get(split))
            rows += sum(written.values())
            files = tuple(Path(split, name) for name in written)
            mappings[split] = [Chunk(TFRECORD, columns.every(), files)]
        named = dict(zip(HISTORY_CHANNELS, channels, strict=True))
        write_feature_spec(output, spec.features, mappings, named, {})
    return rows


def _write_split(
    directory: Path, blocks: Iterable[Mapping[str, Array]], samples: int | None
) -> dict[str, int]:
    """Writes the files of a split, which is created, and gives the number of rows of each."""
    from lookback.formats.tfrecord import write_tfrecord

    directory.mkdir()
    if samples is None:
        return {_PART: write_tfrecord(directory / _PART, blocks)}
    left: list[Mapping[str, Array]] = []
    whole = _regrouped(blocks, samples, left)
    rows = {_PART: write_tfrecord(directory / _PART, whole, samples)}
    rows[_REMAINDER] = write_tfrecord(directory / _REMAINDER, left, samples)
    for name, count in rows.items():
        if not count:
            (directory / name).unlink()
    return {name: count for name, count in rows.items() if count}


def _regrouped(
    blocks: Iterable[Mapping[str, Array]], size: int, left: list[Mapping[str, Array]]
) -> Iterator[Mapping[str, Array]]:
    """Blocks of multiples of `size` rows; what is left at the end goes to `left`."""
    held: Mapping[str, Array] = {}
    for block in blocks:
        held = {
            name: np.concatenate([held[name], values]) if held else values
            for name, values in block.items()
        }
        whole = len(next(iter(held.values()))) // size * size
        if whole:
            yield {name: values[:whole] for name, values in held.items()}
            held = {name: values[whole:] for name, values in held.items()}
    if held and len(next(iter(held.values()))):
        left.append(held)


def _specification(directory: Path) -> tuple[FeatureSpecification, Columns]:
    """Materialised samples as NVIDIA would describe them where they are: columns are features."""
    from lookback.formats.materialised import (
        SPLITS,
        assign_columns,
        check_types,
        longest_list,
        read_cardinalities,
        read_footers,
        user_features_of,
    )

    cardinalities = read_cardinalities(directory, 0)
    footers = {split: read_footers(directory, split) for split in SPLITS}
    names = footers["train"][1].names
    users = user_features_of(directory, names, len(cardinalities))
    features = list(cardinalities)
    user, item = tuple(features[:users]), tuple(features[users:])
    columns = assign_columns(directory, names, user, item)
    for split, (_, schema) in footers.items():
        assign_columns(directory, schema.names, user, item)
        check_types(directory / split, schema, columns)
    slots = max(longest_list(groups, columns.history[0]) for groups, _ in footers.values())
    if not slots:
        raise UserError(f"{directory}: no sample has a history. Expected some, to say how long.")
    int64 = np.dtype(np.int64)
    by_name = {columns.label: SpecFeature(np.dtype(bool))}
    for roles, length in (
        ((columns.user,), None),
        ((columns.target,), None),
        ((columns.history, columns.negatives), slots),
    ):
        for role in roles:
            owners = user if role is columns.user else item
            for name, feature in zip(role, owners, strict=True):
                by_name[name] = SpecFeature(int64, cardinalities[feature], length)
    mappings = {
        split: (Chunk(PARQUET, columns.every(), tuple(dict.fromkeys(g.file for g in groups))),)
        for split, (groups, _) in footers.items()
    }
    spec = FeatureSpecification(
        file=directory / METADATA_FILE, features=by_name, mappings=mappings, channels={}
    )
    return spec, columns

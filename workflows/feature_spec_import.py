"""Datasets of NVIDIA's recipes, by their feature_spec.yaml, turned into ours.

SIM's samples become materialised samples, DLRM's rows a tabular dataset; what becomes of which part
`formats.feature_rows` says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lookback.core.errors import UserError
from lookback.core.manifests import WHOLLY
from lookback.formats.dataset_info import SPLITS, VOCABULARIES
from lookback.formats.feature_spec import (
    NAMED_SPLITS,
    TFRECORD,
    FeatureSpecification,
    read_feature_spec,
)
from lookback.formats.verification import compare
from lookback.workflows.cluster import recall_tensorflow
from lookback.workflows.output import DATASET, Output

# Importing Merlin takes seconds.
if TYPE_CHECKING:
    from lookback.formats.materialised import Columns
    from lookback.formats.tabular_schema import TabularFeatures

_TARGET_ENDING = "_trgt"
"""What NVIDIA's preprocessing has behind the names of target features."""
_NAMED = 10  # places of a specification that are named of those that are not read


@dataclasses.dataclass(frozen=True)
class Import:
    """What an import did.

    Attributes:
      kind: what was written, in words.
      rows: by split.
      trained_by: options of train.py that suit it.
      notes: what is to be known of it, such as what was not read.
    """

    kind: str
    rows: Mapping[str, int]
    trained_by: str
    notes: tuple[str, ...]


def import_feature_spec(
    path: str | Path, output_dir: str | Path, *, overwrite: bool = False
) -> Import:
    """Writes what a specification describes as a dataset of ours, block by block.

    Args:
      path: the specification, or the directory with its feature_spec.yaml.
      output_dir: to create.
      overwrite: replace a dataset of ours at `output_dir`.

    Raises:
      UserError: if something is not as described, by file and row; nothing is left behind.
    """
    spec = read_feature_spec(path)
    target = Output(Path(output_dir), DATASET, overwrite, (spec.file.parent,))
    target.check()
    compare(spec.file, spec.facts, WHOLLY)
    from lookback.formats.feature_channels import channels_of
    from lookback.formats.split_binary import with_unnamed
    from lookback.formats.tabular_schema import TabularFeatures

    channels = channels_of(spec)
    spec = with_unnamed(spec)
    splits = [split for split in SPLITS if split in spec.mappings]
    missing = [split for split in NAMED_SPLITS if split not in splits]
    if missing:
        raise UserError(
            f"{spec.file}: source_spec has no mapping {missing[0]!r}. Expected 'train' and 'test'; "
            f"it has {', '.join(spec.mappings)}. Rename one of them."
        )
    if not isinstance(channels, TabularFeatures):
        splits = list(NAMED_SPLITS)
    unread = [*(f"source_spec.{n}" for n in spec.mappings if n not in splits), *spec.unread]
    more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
    notes = [f"not read of {spec.file.name}: {', '.join(unread[:_NAMED])}{more}"] if unread else []
    if any(chunk.type == TFRECORD for split in splits for chunk in spec.mappings[split]):
        recall_tensorflow()
    with target.create() as directory:
        if isinstance(channels, TabularFeatures):
            done = _write_tabular(spec, channels, splits, directory)
        else:
            done = _write_samples(spec, channels, splits, directory)
    return dataclasses.replace(done, notes=(*done.notes, *notes))


def _write_samples(
    spec: FeatureSpecification, columns: Columns, splits: list[str], directory: Path
) -> Import:
    from lookback.formats.feature_channels import ids_rows, slots_of
    from lookback.formats.feature_rows import read_samples
    from lookback.formats.materialised import (
        MaterialisedWriter,
        assign_columns,
        write_cardinalities,
    )

    cardinalities = {name: ids_rows(spec, name) for name in columns.user}
    cardinalities |= {
        name.removesuffix(_TARGET_ENDING): ids_rows(spec, name) for name in columns.target
    }
    names = tuple(cardinalities)
    users = len(columns.user)
    if len(names) < users + len(columns.target):
        raise UserError(
            f"{spec.file}: two of the features {', '.join((*columns.user, *columns.target))} have "
            f"the same name without {_TARGET_ENDING!r}. Rename one of them."
        )
    # Names that contradict their places would be refused when the samples are read.
    assign_columns(spec.file, list(columns.every()), names[:users], names[users:])
    rows = {}
    for split in splits:
        writer = MaterialisedWriter(directory, split)
        for block in read_samples(spec, columns, split):
            writer.write(block)
        rows[split] = _some(writer.close(), split, spec)
    write_cardinalities(directory, cardinalities)
    option = "" if users == 1 else f" --number_of_user_features {users}"
    slots = slots_of(spec, columns)
    return Import(
        "materialised samples",
        rows,
        f"--model_type sim --max_seq_length {slots}{option}",
        (f"{users} user feature(s), {len(columns.target)} item feature(s), histories of {slots}",),
    )


def _write_tabular(
    spec: FeatureSpecification, features: TabularFeatures, splits: list[str], directory: Path
) -> Import:
    from lookback.formats.feature_channels import ids_rows
    from lookback.formats.feature_rows import read_rows
    from lookback.formats.split_binary import plain_name
    from lookback.formats.tabular_files import TabularWriter, write_description
    from lookback.formats.tabular_schema import tabular_schema

    numerical = [plain_name(name) for name in features.numerical]
    cardinalities = {plain_name(name): ids_rows(spec, name) for name in features.categorical}
    if len(cardinalities) < len(features.categorical):
        raise UserError(f"{spec.file}: two categorical features have one name without '.bin'.")
    tabular_schema(numerical, cardinalities)  # refuses names that occur twice
    rows = {}
    for split in splits:
        writer = TabularWriter(directory, split, numerical, list(cardinalities))
        for block in read_rows(spec, features, split):
            writer.write(block.labels[:, 0], block.numerical, block.categorical)
        rows[split] = _some(writer.close(), split, spec)
    write_description(
        directory,
        dataset="feature_spec",
        options={},
        counts=rows,
        cardinalities=cardinalities,
        numerical=numerical,
        vocabularies=spec.facts.get(VOCABULARIES),
    )
    return Import(
        "tabular data",
        rows,
        "--model_type dlrm",
        (f"{len(numerical)} number(s) as float32, {len(cardinalities)} categorical feature(s)",),
    )


def _some(rows: int, split: str, spec: FeatureSpecification) -> int:
    if not rows and split in NAMED_SPLITS:
        raise UserError(
            f"{spec.file}: the files of the mapping {split!r} hold no rows. Expected some."
        )
    return rows

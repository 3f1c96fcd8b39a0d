"""Starts a model from a trained one, on other data (`--init_from`).

A row of a table belongs to an id, and another dataset numbers ids otherwise. So rows are matched by
what they stand for: those of ids that both know keep their values and their optimizer's state to
the bit, those of new ids are as they are in any new run, a function of (seed, table, row). Special
rows (padding, missing, unknown) are matched by what they are.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from lookback.checkpoints.manifest import listed
from lookback.checkpoints.store import Checkpoint, TensorSpec
from lookback.core.errors import UserError
from lookback.formats.history_columns import TIME_GAP
from lookback.formats.raw_ids import RawIds, feature_of
from lookback.formats.transforms import BAG, OF, TYPE, Buckets, Hashed, Number
from lookback.training.ids import COLUMNS, Ids
from lookback.training.state import State, TensorShard, model_states

Int64 = npt.NDArray[np.int64]

_ROWS_A_BLOCK = 1 << 18
_TABLE, _MODEL, _OPTIMIZER = "table/", "model/", "optimizer/"
_DENSE = "optimizer/dense/"


class Origin(abc.ABC):
    """A trained model to start from.

    Attributes:
      where: what it is, in words.
      model: "model_type", and the model's options.
      columns: that the model reads, in its order; None: unknown.
      ids: what its ids stand for.
      optimizer: name of the optimizer whose state there is; None: there is none.
      specs: shape and type of each tensor.
    """

    where: str
    model: Mapping[str, Any]
    columns: Sequence[str] | None
    ids: Ids
    optimizer: str | None
    specs: Mapping[str, TensorSpec]

    @abc.abstractmethod
    def take(self, name: str, rows: Int64, columns: range | None) -> npt.NDArray[Any]:
        """Rows ``[N]`` of a table, or of its optimizer's state: ``[N, D]``, or some columns."""

    @abc.abstractmethod
    def whole(self, name: str) -> npt.NDArray[Any]:
        """A tensor that is no table's."""


class CheckpointOrigin(Origin):
    """A checkpoint: weights and the state of their optimizer, read as far as they are needed."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Reads what the checkpoint says of itself."""
        self._checkpoint = checkpoint
        self.where = f"the checkpoint {checkpoint.path}"
        self.model = {k: v for k, v in checkpoint.meta.get("model", {}).items() if k != "tables"}
        self.columns = checkpoint.meta.get(COLUMNS)
        self.ids = Ids.of_checkpoint(checkpoint)
        self.optimizer = checkpoint.meta.get("run", {}).get("optimizer")
        self.specs = checkpoint.specs

    def take(self, name: str, rows: Int64, columns: range | None) -> npt.NDArray[Any]:
        """As the contract says."""
        return self._checkpoint.take(name, rows, columns)

    def whole(self, name: str) -> npt.NDArray[Any]:
        """As the contract says."""
        return self._checkpoint[name]


class ModelOrigin(Origin):
    """A model in memory, as a bundle has it: weights only."""

    optimizer = None

    def __init__(self, model: tf.keras.Model, options: Mapping[str, Any], directory: Path) -> None:
        """Takes a model that is in one process.

        Args:
          model: built.
          options: of the model, and its "model_type".
          directory: of the bundle.
        """
        self.where = f"the bundle {directory}"
        self.model, self.columns = options, model.schema.column_names
        self.ids = Ids.of(directory)
        self._states = model_states(model)
        self.specs = {name: state.spec for name, state in self._states.items()}

    def take(self, name: str, rows: Int64, columns: range | None) -> npt.NDArray[Any]:
        """As the contract says."""
        (part,) = self._states[name].parts
        found: npt.NDArray[Any] = tf.gather(part.variable, part.start + rows).numpy()
        return found if columns is None else found[:, columns.start : columns.stop]

    def whole(self, name: str) -> npt.NDArray[Any]:
        """As the contract says."""
        (part,) = self._states[name].parts
        found: npt.NDArray[Any] = part.variable.numpy()
        return found


@dataclasses.dataclass(frozen=True)
class Here:
    """The model that starts.

    Attributes:
      model: as of `Origin`.
      columns: that it reads, in its order.
      ids: what the ids of its dataset stand for.
      optimizer: name of its optimizer.
    """

    model: Mapping[str, Any]
    columns: Sequence[str]
    ids: Ids
    optimizer: str


def start_from(origin: Origin, here: Here, states: Mapping[str, State]) -> list[str]:
    """Gives a new model, and its optimizer, what a trained one has learnt.

    Nothing is written before all has been found to fit. A rank reads the rows that it holds; it
    needs eight bytes for each row of a table, and the raw ids of one at a time, besides.

    Args:
      origin: the trained model.
      here: the new one.
      states: its tensors, as built; all or this rank's parts.

    Returns:
      What was kept, what is new and what was dropped, in lines.

    Raises:
      UserError: if the model is another one, or what its ids stand for is not known.
    """
    _require_same_type(origin, here)
    tables = _tables(states)
    theirs = _tables(origin.specs)
    notes = _differing_options(origin, here)
    rows, matches = _matched(origin, here, tables, theirs)
    notes += matches + _changed_numbers(origin.ids.features, here.ids.features)
    fresh, without = _fresh_dense(origin, here, states)
    notes += without
    keeps_state = origin.optimizer == here.optimizer
    if not keeps_state:
        had = f"had {origin.optimizer}" if origin.optimizer else "has weights only"
        notes.append(f"optimizer: {origin.where} {had}; the state of {here.optimizer} starts anew")
    for name, state in states.items():
        if not name.startswith((_TABLE, _MODEL, *((_OPTIMIZER,) if keeps_state else ()))):
            continue
        table = _table_of(name, rows)  # first: a table may be called "dense"
        if table is not None and name in origin.specs:
            for part in state.parts:
                _take_rows(name, part, rows[table], origin)
        elif name.startswith((_MODEL, _DENSE)) and name not in fresh:
            for part in state.parts:
                part.variable.assign(origin.whole(name))
    return notes


def _require_same_type(origin: Origin, here: Here) -> None:
    ours, theirs = here.model["model_type"], origin.model.get("model_type")
    if ours != theirs:
        raise UserError(
            f"init_from: expected a trained {ours}, received {origin.where}, which is of "
            f"{theirs}. Give --model_type {theirs}, or another model to start from."
        )


def _tables(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {n.removeprefix(_TABLE): e for n, e in entries.items() if n.startswith(_TABLE)}


def _table_of(name: str, tables: Mapping[str, Any]) -> str | None:
    """The table whose rows a tensor is of; None of one that is not matched."""
    if name.startswith(_TABLE):
        table = name.removeprefix(_TABLE)
        return table if table in tables else None
    owner = name.removeprefix(_OPTIMIZER).rpartition("/")[0]
    return owner if owner in tables else None


def _options_that_differ(origin: Origin, here: Here) -> list[str]:
    return [
        f"{name} {here.model[name]} (was {origin.model[name]})"
        for name in here.model
        if name in origin.model and _plain(here.model[name]) != _plain(origin.model[name])
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _differing_options(origin: Origin, here: Here) -> list[str]:
    differing = _options_that_differ(origin, here)
    return [f"options of the model that differ: {', '.join(differing)}"] if differing else []


def _matched(
    origin: Origin, here: Here, ours: Mapping[str, State], theirs: Mapping[str, TensorSpec]
) -> tuple[dict[str, Int64], list[str]]:
    """Of each row of tables that both have, which row it was (-1: of none), and what to say."""
    notes, rows, maps = [], dict[str, Int64](), dict[tuple[str, int, int], tuple[Int64, str]]()
    for name, state in ours.items():
        if name not in theirs:
            notes.append(f"table {name}: new, all {state.shape[0]:,} rows")
            continue
        was, (count, dim) = theirs[name], state.shape
        if was.shape[1] != dim:
            raise UserError(
                f"init_from: table {name!r} has vectors of {dim} numbers here, and of "
                f"{was.shape[1]} in {origin.where}. Give the options that it was trained with "
                "(such as --embedding_dim), or start without --init_from."
            )
        key = (feature_of(name), was.shape[0], count)
        if key not in maps:
            maps[key] = _rows_of(origin, here, *key)
        rows[name], note = maps[key]
        kept = int((rows[name] >= 0).sum())
        notes.append(
            f"table {name}: {kept:,} rows kept, {count - kept:,} new, "
            f"{was.shape[0] - kept:,} dropped{note}"
        )
    gone = [name for name in theirs if name not in ours]
    if gone:
        notes.append(f"tables of {origin.where} that this model has not: {', '.join(gone)}")
    return rows, notes


def _rows_of(origin: Origin, here: Here, feature: str, was: int, count: int) -> tuple[Int64, str]:
    """Of each of `count` rows, which of `was` it is, -1 if none; and a note on how that is known.

    Raises:
      UserError: if it is not known.
    """
    equal = np.arange(count, dtype=np.int64)
    fitted = [_numbering(ids.features.get(feature)) for ids in (here.ids, origin.ids)]
    if fitted != [None, None]:
        if fitted[0] != fitted[1] or count != was:
            raise UserError(
                f"init_from: the ids of {feature!r} are made otherwise here than in {origin.where}:"
                f" {_how(fitted[0])} and {_how(fitted[1])}, so that their rows stand for other "
                "values. Make the feature as it was, or leave it out (--features)."
            )
        return equal, ""
    ours, theirs = (ids.vocabularies.get(feature) for ids in (here.ids, origin.ids))
    if ours is not None and ours == theirs and count == was:
        return equal, ""
    known, knew = here.ids.raw(feature), origin.ids.raw(feature)
    if known is not None and knew is not None:
        for who, ids, number in (("the dataset", known, count), (origin.where, knew, was)):
            if len(ids) != number:
                raise UserError(
                    f"init_from: {who} numbers {len(ids):,} values of {feature!r}, and its table "
                    f"has {number:,} rows, so they do not belong together."
                )
        return _by_raw_id(feature, known, knew, origin.where)
    if known is None and knew is None and ours == theirs and count == was:
        return equal, "" if feature == TIME_GAP else "; by number, as neither says what rows mean"
    silent = origin.where if knew is None else "the dataset"
    raise UserError(
        f"init_from: {silent} does not say which values the rows of {feature!r} stand for, so they "
        f"cannot be matched ({was:,} rows there, {count:,} here). Of a checkpoint of an earlier "
        "version, export a bundle with its dataset (train.py --mode evaluate --load_checkpoint_path"
        " CHECKPOINT --dataset_dir DATASET --export_dir BUNDLE), and start from that. A dataset "
        "says it if `python -m workflows run` wrote it."
    )


def _by_raw_id(feature: str, ours: RawIds, theirs: RawIds, where: str) -> tuple[Int64, str]:
    """Matches rows by what they stand for: special ones by name, the others by raw id."""
    new, old = ours.known, theirs.known
    numbers = [pa.types.is_integer(ids.type) or not len(ids) for ids in (new, old)]
    empty = not len(new) or not len(old)
    if ours.special != theirs.special or (numbers[0] != numbers[1] and not empty):
        kinds = " and ".join(
            f"{'numbers' if number else 'text'} after the rows {', '.join(ids.special)}"
            for number, ids in zip(numbers, (ours, theirs), strict=True)
        )
        raise UserError(
            f"init_from: values of {feature!r} are of another kind here than in {where}: {kinds}. "
            "Write the dataset as the one that the model was trained on was written."
        )
    special = np.arange(len(ours.special), dtype=np.int64)
    if empty:
        places = np.full(len(new), -1, np.int64)
    else:
        kind = pa.int64() if numbers[0] else pa.large_string()
        found = pc.index_in(new.cast(kind), value_set=old.cast(kind))
        places = found.fill_null(-1).to_numpy().astype(np.int64)
    rows = np.where(places < 0, -1, places + len(special))
    nobody = len(new) and not (rows >= 0).any()
    return np.concatenate([special, rows]), "; warning: no value is known there" if nobody else ""


def _numbering(fitted: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How values become ids without a vocabulary; None where there is one, or nothing is said."""
    if fitted is None or fitted.get(TYPE) not in (Hashed.kind, Buckets.kind):
        return None
    return {key: value for key, value in fitted.items() if key not in (BAG, OF)}


def _how(fitted: Mapping[str, Any] | None) -> str:
    return "by a vocabulary, or nothing is said" if fitted is None else str(dict(fitted))


def _changed_numbers(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Says which numbers are scaled otherwise than they were."""
    changed = [
        name
        for name, fitted in ours.items()
        if fitted.get(TYPE) == Number.kind and name in theirs and theirs[name] != fitted
    ]
    if not changed:
        return []
    return [
        f"warning: {', '.join(changed)}: transformed otherwise than where the model was trained, "
        "so that equal values are other numbers"
    ]


def _fresh_dense(
    origin: Origin, here: Here, states: Mapping[str, State]
) -> tuple[set[str], list[str]]:
    """The tensors beside the tables that the trained model has not so, and what to say of them.

    Raises:
      UserError: if it is a model of other dimensions, or would read other features.
    """
    ours = {n: s.spec for n, s in states.items() if n.startswith(_MODEL)}
    fresh = {n for n, spec in ours.items() if origin.specs.get(n) != spec}
    surplus = [n for n in origin.specs if n.startswith(_MODEL) and n not in ours]
    described = [f"{n} {ours[n]} (was {origin.specs.get(n, 'not there')})" for n in sorted(fresh)]
    described += [f"{n} (not here)" for n in surplus]
    was, now = origin.columns, list(here.columns)
    same = was is None or list(was) == now
    if described and same:
        options = _options_that_differ(origin, here)
        raise UserError(
            f"init_from: {origin.where} is a model of other dimensions: {listed(described)}. "
            f"{'Options that differ: ' + ', '.join(options) + '. ' if options else ''}"
            "Give those that it was trained with, or start without --init_from."
        )
    if not same and not described and was is not None and len(was) == len(now):
        raise UserError(
            f"init_from: the model reads {', '.join(now)} here, and {', '.join(was)} in "
            f"{origin.where}: its weights would be taken for other features. Choose features that "
            "both have (--features), or write the dataset with them in that order."
        )
    slots = {n for n in states if n.startswith(_DENSE)}
    fresh |= {n for n in slots if origin.specs.get(n) != states[n].spec}
    if not described:
        return fresh, []
    return fresh, [f"the features differ, so that these weights start anew: {listed(described)}"]


def _take_rows(name: str, part: TensorShard, rows: Int64, origin: Origin) -> None:
    """Copies the rows of a part that the trained model has; the others stay as they are."""
    was = rows[part.rows.start : part.rows.stop : part.rows.step]
    for begin in range(0, len(was), _ROWS_A_BLOCK):
        block = was[begin : begin + _ROWS_A_BLOCK]
        known = np.flatnonzero(block >= 0)
        values = origin.take(name, block[known], part.columns)
        into = tf.constant(part.start + begin + known, tf.int64)
        part.variable.scatter_update(tf.IndexedSlices(values, into))

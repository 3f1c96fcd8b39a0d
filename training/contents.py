"""What a run's checkpoints hold, taken from its parts and given back to them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from lookback.checkpoints.raw_ids import RAW_IDS
from lookback.checkpoints.store import Checkpoint, Tensor
from lookback.core.world import SOLO, World
from lookback.embeddings.collection import collections_of
from lookback.training.ids import COLUMNS, Ids
from lookback.training.optimizers import Optimizer
from lookback.training.precision import LossScale
from lookback.training.start import Here, Origin, start_from
from lookback.training.state import MODEL_PREFIXES, State, model_states, whole


class RunContents:
    """A model with what trains it: its tensors by name, and what a checkpoint must agree on."""

    def __init__(
        self,
        model: tf.keras.Model,
        optimizer: Optimizer | None,
        loss_scale: LossScale | None,
        *,
        model_identity: Mapping[str, Any],
        run_identity: Mapping[str, Any],
        ids: Ids,
        world: World = SOLO,
    ) -> None:
        """Takes the parts.

        Args:
          model: built.
          optimizer: None where the model is used, not trained.
          loss_scale: None where losses are not scaled.
          model_identity: what a checkpoint must agree on to be used, for JSON.
          run_identity: what it must agree on besides to be continued.
          ids: what the dataset's ids stand for.
          world: the processes that train together.
        """
        self._model, self._optimizer, self._loss_scale = model, optimizer, loss_scale
        self._identity = {"model": dict(model_identity), "run": dict(run_identity)}
        self._ids, self._world = ids, world

    @property
    def identity(self) -> str:
        """The same for the processes of one run, however often it is resumed, on however many."""
        run = {name: value for name, value in self._identity["run"].items() if name != "ranks"}
        text = json.dumps([self._identity["model"], run], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def meta(self) -> dict[str, Any]:
        """Facts that a checkpoint carries, beside those of a moment."""
        return {**self._identity, **self._ids.meta, COLUMNS: self._model.schema.column_names}

    @property
    def states(self) -> dict[str, State]:
        """Everything that training changes, by name."""
        states = model_states(self._model)
        if self._optimizer is not None:
            states |= self._optimizer.states()
        if self._optimizer is not None and self._loss_scale is not None:
            states["loss_scale/scale"] = whole(self._loss_scale.scale)
            states["loss_scale/good_steps"] = whole(self._loss_scale.good_steps)
        return states

    @property
    def pieces(self) -> dict[str, Tensor]:
        """What this rank would write of a checkpoint of now, by tensor."""
        first = self._world.rank == 0
        pieces: dict[str, Tensor] = {
            name: state.pieces()
            for name, state in self.states.items()
            if first or not state.replicated
        }
        return {**pieces, **self._raw_ids} if first else pieces

    @property
    def model_pieces(self) -> dict[str, Tensor]:
        """Those of the model alone."""
        return {n: piece for n, piece in self.pieces.items() if n.startswith(MODEL_PREFIXES)}

    @functools.cached_property
    def _raw_ids(self) -> Mapping[str, Tensor]:
        """What the rows of tables stand for, as far as it is known."""
        tables = [table.name for c in collections_of(self._model) for table in c.tables]
        return self._ids.tensors(tables)

    def start(self, origin: Origin) -> list[str]:
        """Takes what a trained model has learnt, see `start_from`; gives what to say of it."""
        assert self._optimizer is not None
        columns = self._model.schema.column_names
        here = Here(self._identity["model"], columns, self._ids, self._optimizer.name_given)
        return start_from(origin, here, self.states)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restores everything to continue a run; only the model to use it.

        Raises:
          UserError: if the checkpoint is of another model, dataset or configuration.
        """
        states = self.states
        expected: dict[str, Any] = {name: state.spec for name, state in states.items()}
        identity = dict(self._identity)
        unused = (n for n in checkpoint if n.startswith(RAW_IDS))
        if self._optimizer is None:
            identity.pop("run")
            unused = (n for n in checkpoint if not n.startswith(MODEL_PREFIXES))
        expected |= {name: checkpoint.specs[name] for name in unused}
        run = identity.get("run", {})
        if "ranks" in run and checkpoint.meta["position"]["step"] == 0:
            # Between two epochs, whoever has which users starts anew.
            run = {**run, "ranks": checkpoint.meta.get("run", {}).get("ranks")}
            identity = {**identity, "run": run}
        checkpoint.require_meta(identity, no_options=("dataset", "ranks", "tables"))
        checkpoint.require_tensors(expected)
        for name, state in states.items():
            state.restore(name, checkpoint)

    def take_model(self, checkpoint: Checkpoint) -> None:
        """Restores the model alone, of a checkpoint of this run."""
        for name, state in model_states(self._model).items():
            state.restore(name, checkpoint)

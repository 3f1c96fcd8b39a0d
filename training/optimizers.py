"""One step of all of a model's variables: dense ones by Keras, tables row by row.

The two sets are disjoint and together complete, which is checked. State and names are laid out for
checkpoints: tables and their slots by table name, dense variables by layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import tensorflow as tf

from embeddings.collection import EmbeddingCollection
from embeddings.optimizers import TABLE_OPTIMIZERS

# Keras' optimizers of 2.11 and later; Merlin's `compile` would swap in the legacy ones.
DENSE_OPTIMIZERS = {
    "adam": tf.keras.optimizers.Adam,
    "lazy_adam": tf.keras.optimizers.Adam,
    "adagrad": tf.keras.optimizers.Adagrad,
    "sgd": tf.keras.optimizers.SGD,
}

MODEL_PREFIXES = ("table/", "model/")
"""First parts of the names that `model_state` gives."""


class Optimizer(tf.Module):
    """Applies a named optimizer to a built model.

    `adam` and `lazy_adam` are one here: dense variables get Adam, tables its lazy form (seed 000's
    `adam` decays the moments of every row in every step, which costs a pass over the whole table).
    """

    def __init__(
        self,
        name: str,
        learning_rate: float,
        weight_decay: float,
        model: tf.keras.Model,
    ) -> None:
        """Creates the optimizer and its state.

        Args:
          name: a key of DENSE_OPTIMIZERS.
          learning_rate: of dense variables and tables alike.
          weight_decay: decoupled; of tables, only in the rows of the step.
          model: whose variables exist already.

        Raises:
          ValueError: if a variable would be updated twice, or not at all.
        """
        super().__init__()
        self._learning_rate = tf.Variable(learning_rate, trainable=False, dtype=tf.float32)
        self.tables = _tables(model)
        held = {id(variable) for variable in self.tables.values()}
        self.dense = [v for v in model.trainable_variables if id(v) not in held]
        self.check_covers(model)
        self._dense_optimizer = DENSE_OPTIMIZERS[name](
            learning_rate=learning_rate, weight_decay=weight_decay or None
        )
        self._dense_optimizer.build(self.dense)
        self._table_optimizer = TABLE_OPTIMIZERS[name](self._learning_rate, weight_decay)
        self._table_optimizer.build(self.tables)

    def check_covers(self, model: tf.keras.Model) -> None:
        """Checks that every trainable variable is updated, and only once.

        Raises:
          ValueError: if it is not so, for example because a layer made weights only in training.
        """
        ours = [id(variable) for variable in self.variables_to_differentiate]
        missing = [v.name for v in model.trainable_variables if id(v) not in ours]
        if missing or len(set(ours)) != len(ours) or len(ours) != len(model.trainable_variables):
            raise ValueError(
                f"The optimizer must cover each of {len(model.trainable_variables)} trainable "
                f"variables once; it has {len(ours)} and misses {missing}. A model must create all "
                "its weights in the first call, with training or without."
            )

    @property
    def iterations(self) -> tf.Variable:
        """Updates applied so far."""
        return self._dense_optimizer.iterations

    @property
    def variables_to_differentiate(self) -> Sequence[tf.Variable]:
        """Dense variables, then tables; `apply` takes gradients in this order."""
        return [*self.dense, *self.tables.values()]

    def apply(self, gradients: Sequence[tf.Tensor | tf.IndexedSlices | None]) -> None:
        """Updates all variables.

        Args:
          gradients: one for each of `variables_to_differentiate`. None (the loss does not depend
            on the variable) leaves it alone.
        """
        dense = gradients[: len(self.dense)]
        tables = dict(zip(self.tables, gradients[len(self.dense) :]))
        step = tf.cast(self.iterations + 1, tf.float32)
        self._table_optimizer.apply(
            {name: g for name, g in tables.items() if g is not None}, self.tables, step
        )
        self._dense_optimizer.apply_gradients(
            [(g, v) for g, v in zip(dense, self.dense) if g is not None]
        )

    def state(self) -> dict[str, tf.Variable]:
        """The optimizer's variables by name, for checkpoints."""
        named = {
            f"optimizer/{table}/{slot}": variable
            for table, slots in self._table_optimizer.slots.items()
            for slot, variable in slots.items()
        }
        # Keras numbers its slots by variable; the learning rate is configuration, not state.
        slots = [v for v in self._dense_optimizer.variables if "learning_rate" not in v.name]
        return named | unique_names("optimizer/dense", slots)


def model_state(model: tf.keras.Model) -> dict[str, tf.Variable]:
    """A model's variables by name, for checkpoints: ``table/NAME`` and ``model/LAYER/...``."""
    tables = _tables(model)
    held = {id(variable) for variable in tables.values()}
    others = [v for v in model.weights if id(v) not in held]
    return {f"table/{n}": v for n, v in tables.items()} | unique_names("model", others)


def unique_names(prefix: str, variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
    """Names variables independently of what else the process has built.

    Keras numbers layers over the process ("dense_7"), so a resumed run would look for other names
    than were saved. The numbers are dropped, and equal names numbered in the model's own order.
    """
    named: dict[str, tf.Variable] = {}
    for variable in variables:
        plain = re.sub(r"_\d+(?=/|$)", "", variable.name.partition(":")[0])
        name, copies = f"{prefix}/{plain}", 1
        while name in named:
            copies += 1
            name = f"{prefix}/{plain}.{copies}"
        named[name] = variable
    return named


def _tables(model: tf.keras.Model) -> Mapping[str, tf.Variable]:
    tables: dict[str, tf.Variable] = {}
    for module in model.submodules:
        if isinstance(module, EmbeddingCollection):
            for name, variable in module.table_variables.items():
                if name in tables:
                    raise ValueError(f"Two embedding collections hold a table named {name!r}.")
                tables[name] = variable
    return tables

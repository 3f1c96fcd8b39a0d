"""One step of all of a model's variables: dense ones in Keras' way, tables row by row.

The two sets are disjoint and together complete, which is checked. State is named for checkpoints:
that of tables by table name, that of dense variables by layer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from lookback.core.errors import UserError
from lookback.core.world import SOLO, World
from lookback.embeddings.collection import EmbeddingCollection, collections_of
from lookback.embeddings.optimizers import (
    TABLE_OPTIMIZERS,
    TableOptimizer,
    bias_corrected,
    fused_adam,
    without_rows,
)
from lookback.training.schedule import Schedule
from lookback.training.state import State, dense_states, slot_states


class PlainSGD(tf.keras.optimizers.Optimizer):
    """``w -= lr * g``; Keras' SGD (2.12, optimizers/sgd.py) also keeps and adds momenta of 0."""

    def __init__(self, learning_rate: float, weight_decay: float | None = None) -> None:
        """Creates the optimizer.

        Args:
          learning_rate: step size.
          weight_decay: decoupled decay; None is none.
        """
        super().__init__(name="SGD", weight_decay=weight_decay, jit_compile=False)
        self._learning_rate = self._build_learning_rate(learning_rate)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable."""
        tf.raw_ops.ResourceApplyGradientDescent(
            var=variable.handle,
            alpha=tf.cast(self.learning_rate, variable.dtype),
            delta=tf.convert_to_tensor(gradient, variable.dtype),
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        rate = self._serialize_hyperparameter(self._learning_rate)
        return {"learning_rate": rate, "weight_decay": self.weight_decay}


class FusedAdam(tf.keras.optimizers.Adam):
    """Keras' Adam, its state and their names included, with one pass over each variable.

    Keras' own (2.12, optimizers/adam.py) goes over variable and moments some ten times.
    """

    def __init__(
        self,
        learning_rate: float,
        weight_decay: float | None = None,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        paper_epsilon: bool = False,
    ) -> None:
        """Creates the optimizer.

        Args:
          learning_rate: step size.
          weight_decay: decoupled decay; None is none.
          beta_1: decay of the first moment; the paper's default.
          beta_2: decay of the second moment; the paper's default.
          epsilon: Keras' default.
          paper_epsilon: whether `epsilon` is that of the paper's algorithm 1, as in PyTorch and
            Apex, not "epsilon hat", as in Keras (`embeddings.optimizers.bias_corrected`).
        """
        super().__init__(
            learning_rate,
            beta_1,
            beta_2,
            epsilon,
            weight_decay=weight_decay,
            jit_compile=False,
            name="Adam",
        )
        self._paper_epsilon = paper_epsilon

    def apply_gradients(self, grads_and_vars: Any, *args: Any, **more: Any) -> tf.Tensor:
        """As Keras; what depends on the step alone is computed once, and not for each variable."""
        step = tf.cast(self.iterations + 1, tf.float32)
        self._powers = (tf.pow(self.beta_1, step), tf.pow(self.beta_2, step))
        self._epsilon_now = self.epsilon
        if self._paper_epsilon:
            self._epsilon_now = bias_corrected(self.epsilon, self.beta_2, step)
        return super().apply_gradients(grads_and_vars, *args, **more)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable."""
        place = self._index_dict[self._var_key(variable)]
        fused_adam(
            variable,
            self._momentums[place],
            self._velocities[place],
            tf.convert_to_tensor(gradient, variable.dtype),
            learning_rate=tf.cast(self.learning_rate, variable.dtype),
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self._epsilon_now,
            powers=self._powers,
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "weight_decay": self.weight_decay,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "paper_epsilon": self._paper_epsilon,
        }


# Keras' optimizers of 2.11 and later; Merlin's `compile` would swap in the legacy ones.
DENSE_OPTIMIZERS = {
    "adam": FusedAdam,
    "lazy_adam": FusedAdam,
    "full_adam": functools.partial(FusedAdam, paper_epsilon=True),
    "adagrad": tf.keras.optimizers.Adagrad,
    "rowwise_adagrad": tf.keras.optimizers.Adagrad,
    "sgd": PlainSGD,
    "momentum": functools.partial(tf.keras.optimizers.SGD, momentum=0.9),
    "ftrl": tf.keras.optimizers.Ftrl,
}

Gradients = Sequence["tf.Tensor | tf.IndexedSlices | None"]


class Optimizer(tf.Module):
    """Applies a named optimizer to a built model.

    `adam` and `lazy_adam` are one here: dense variables get Adam, tables its lazy form (in NVIDIA's
    SIM `adam` decays the moments of every row in every step, a pass over the whole table).
    `full_adam` takes that pass, and is the Adam of NVIDIA's NCF to the letter. Its epsilon is the
    paper's, that of the others Keras', with which NVIDIA's SIM trains. A table whose spec names an
    optimizer gets that one, with its defaults.

    Attributes:
      name_given: the named optimizer, of all but such tables.
    """

    def __init__(
        self,
        name: str,
        learning_rate: float | Schedule,
        weight_decay: float,
        model: tf.keras.Model,
        *,
        world: World = SOLO,
        wire_dtype: str = "float32",
        beta1: float | None = None,
        beta2: float | None = None,
        eps: float | None = None,
    ) -> None:
        """Creates the optimizer and its state.

        Args:
          name: a key of DENSE_OPTIMIZERS.
          learning_rate: of dense variables and tables alike; a number is the same in every update.
          weight_decay: decoupled; of tables, only in the rows of the step, but of all rows with
            `full_adam`.
          model: whose variables exist already.
          world: the processes that train together.
          wire_dtype: type in which dense gradients travel between them.
          beta1: of the named optimizer: decay of Adam's first moment. None is its default.
          beta2: decay of Adam's second moment, likewise.
          eps: what Adam and Adagrad add to the root that they divide by, likewise.

        Raises:
          UserError: if the plan splits what an optimizer needs whole, or holds too much at once.
          ValueError: if a variable would be updated twice, or not at all.
        """
        super().__init__()
        self._world, self._wire_dtype = world, wire_dtype
        self._before = 0
        self.schedule = (
            learning_rate if isinstance(learning_rate, Schedule) else Schedule(learning_rate)
        )
        self._learning_rate = tf.Variable(self.schedule.base, trainable=False, dtype=tf.float32)
        self._collections = collections_of(model)
        # By place, since collections may use the same names.
        self._tables = [
            (number, name_of_variable, variable)
            for number, collection in enumerate(self._collections)
            for name_of_variable, variable in collection.backend.variables.items()
        ]
        held = {id(variable) for _, _, variable in self._tables}
        self.dense = [v for v in model.trainable_variables if id(v) not in held]
        self.check_covers(model)
        given = {"beta_1": beta1, "beta_2": beta2, "epsilon": eps}
        options = {option: value for option, value in given.items() if value is not None}
        self._dense_optimizer = DENSE_OPTIMIZERS[name](
            learning_rate=self.schedule.base, weight_decay=weight_decay or None, **options
        )
        self._dense_optimizer.build(self.dense)
        self._table_optimizers: list[dict[str, TableOptimizer]] = []
        for collection in self._collections:
            wanted = sorted({table.optimizer or name for table in collection.tables})
            by_name = {
                w: TABLE_OPTIMIZERS[w](
                    self._learning_rate, weight_decay, **(options if w == name else {})
                )
                for w in wanted
            }
            _refuse_split_rows(collection, by_name, name)
            _refuse_growing(collection, by_name, name, weight_decay)
            for kept_in, variable in collection.backend.variables.items():
                of_table = by_name[collection.backend.optimizer_of(kept_in) or name]
                of_table.build({kept_in: variable}, collection.backend.new_slot(kept_in))
            self._table_optimizers.append(by_name)
        self.name_given = name

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
    def learning_rate(self) -> tf.Variable:
        """The rate of the latest update."""
        return self._learning_rate

    @property
    def iterations(self) -> tf.Variable:
        """Updates applied so far."""
        return self._dense_optimizer.iterations

    def begin_schedule(self, after: int | None = None) -> int:
        """Counts the schedule's updates from one that was applied before the run.

        Called before the first step.

        Args:
          after: number of that update; None: the latest of the state.

        Returns:
          That number.
        """
        self._before = int(self.iterations) if after is None else after
        return self._before

    @property
    def variables_to_differentiate(self) -> Sequence[tf.Variable]:
        """Dense variables, then tables; `reduced` and `apply` take gradients in this order."""
        return [*self.dense, *(variable for _, _, variable in self._tables)]

    def reduced(
        self, gradients: Gradients, beside: Sequence[tf.Tensor] = ()
    ) -> tuple[Gradients, Sequence[tf.Tensor]]:
        """Sums gradients over all processes: dense ones, and those of tables that all hold.

        The only place where dense gradients meet; those of sharded tables have travelled to their
        owners when the lookup was differentiated.

        Args:
          gradients: one for each of `variables_to_differentiate`, of this process's share of the
            loss. None (the loss does not depend on the variable) stays None.
          beside: float32 tensors to be summed in the same message.

        Returns:
          The gradients, and what was `beside` them, summed.
        """
        dense = gradients[: len(self.dense)]
        given = [
            tf.ensure_shape(tf.convert_to_tensor(gradient), variable.shape)
            for gradient, variable in zip(dense, self.dense)
            if gradient is not None
        ]
        if self._wire_dtype == "float32":
            both = self._world.sum([*beside, *given])
            told, summed = both[: len(beside)], iter(both[len(beside) :])
        else:  # what travels beside gradients must not be rounded as they are
            told = self._world.sum(beside) if beside else ()
            summed = iter(self._world.sum(given, self._wire_dtype))
        # A gradient of a sharded table is rows of this process's own part, from everybody: nothing
        # is left to add up but rows that occur twice, which the table's optimizer does. Of a table
        # that all hold, everybody's rows are put one after another in the order of the ranks, so
        # that all add up the same, in the same order.
        tables = list(gradients[len(self.dense) :])
        for number, collection in enumerate(self._collections):
            places = {
                name: place
                for place, (of, name, _) in enumerate(self._tables)
                if of == number and tables[place] is not None
            }
            reduced = collection.backend.reduce_gradients(
                {name: tables[place] for name, place in places.items()}
            )
            for name, gradient in reduced.items():
                tables[places[name]] = gradient
        return [*(None if g is None else next(summed) for g in dense), *tables], told

    def split(self, gradients: Gradients) -> tuple[list[tf.Tensor], dict[str, tf.IndexedSlices]]:
        """Dense gradients, zeros where there are none, and those of one collection's tables.

        Zeros, so that those of all parts, one after another, are as long and can be stacked.
        """
        dense = [
            tf.zeros_like(variable) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, variable in zip(gradients[: len(self.dense)], self.dense)
        ]
        tables = zip(self._tables, gradients[len(self.dense) :])
        return dense, {name: g for (_, name, _), g in tables if g is not None}

    def joined(self, flat: tf.Tensor, tables: Mapping[str, tf.IndexedSlices]) -> Gradients:
        """Gradients as `apply` takes them, from what `split` gave, the dense ones joined."""
        sizes = [variable.shape.num_elements() for variable in self.dense]
        dense = [
            tf.reshape(part, variable.shape)
            for part, variable in zip(tf.split(flat, sizes), self.dense)
        ]
        return [*dense, *(tables.get(name) for _, name, _ in self._tables)]

    def apply(self, gradients: Gradients) -> None:
        """Updates all variables.

        Args:
          gradients: of `reduced`. A variable without gradient (None) stays as it is, as in Keras
            and PyTorch; but a table that `full_adam` updates has gradient 0 then: in which
            variable its rows lie, and so whether others of them were looked up, depends on the
            plan, and must not show.
        """
        dense, tables = gradients[: len(self.dense)], gradients[len(self.dense) :]
        step = tf.cast(self.iterations + 1, tf.float32)
        if not self.schedule.constant:
            self._learning_rate.assign(self.schedule.at(step - self._before))
            self._dense_optimizer.learning_rate.assign(self._learning_rate)
        # Tables first: the dense optimizer counts the step up, which theirs need as it was.
        for (number, name, variable), gradient in zip(self._tables, tables):
            wanted = self._collections[number].backend.optimizer_of(name) or self.name_given
            optimizer = self._table_optimizers[number][wanted]
            if gradient is None and optimizer.every_row:
                gradient = without_rows(variable)
            if gradient is not None:
                optimizer.apply({name: gradient}, {name: variable}, step)
        self._dense_optimizer.apply_gradients(
            [(g, v) for g, v in zip(dense, self.dense) if g is not None]
        )

    def states(self) -> dict[str, State]:
        """The optimizer's state by name, for checkpoints."""
        states: dict[str, State] = {}
        for collection, by_name in zip(self._collections, self._table_optimizers):
            of_table = {t.name: by_name[t.optimizer or self.name_given] for t in collection.tables}
            states |= slot_states(collection, of_table)
        # Keras numbers its slots by variable; the learning rate is configuration, not state.
        slots = [v for v in self._dense_optimizer.variables if "learning_rate" not in v.name]
        return states | dense_states("optimizer/dense", slots)


def _refuse_growing(
    collection: EmbeddingCollection,
    optimizers: Mapping[str, TableOptimizer],
    default: str,
    weight_decay: float,
) -> None:
    """Refuses what needs a row's weights, or all rows, for tables that hold differences of some."""
    for table in collection.tables:
        optimizer = optimizers[table.optimizer or default]
        if table.capacity is None or (
            optimizer.additive and not optimizer.every_row and not weight_decay
        ):
            continue
        what = f"weight_decay {weight_decay}" if weight_decay else table.optimizer or default
        raise UserError(
            f"embedding_type: dynamic keeps of table {table.name!r} what was added to rows that "
            f"were used, and {what} needs {'all rows' if optimizer.every_row else 'their weights'}."
            " Use sgd, momentum, adagrad, rowwise_adagrad or lazy_adam, without weight decay, or "
            "another embedding_type."
        )


def _refuse_split_rows(
    collection: EmbeddingCollection, optimizers: Mapping[str, TableOptimizer], default: str
) -> None:
    """Refuses optimizers that need whole rows for tables of which no rank holds any."""
    dims = {table.name: table.dim for table in collection.tables}
    names = {table.name: table.optimizer or default for table in collection.tables}
    for part in collection.backend.held:
        table = part.shard.table
        by_row = "row" in optimizers[names[table]].slot_kinds.values()
        if by_row and len(part.shard.columns) != dims[table]:
            raise UserError(
                f"optimizer: {names[table]} keeps one value a row and needs whole rows, but table "
                f"{table!r} is sharded column-wise. Use another strategy for it, or an optimizer "
                "such as adagrad."
            )

"""Optimizers of embedding tables: all but one touch only the rows of the step.

Each is a pure update of the step's unique rows, and an operation of ours that does the same in one
pass over them, where there is one (`kernels/sparse_update.cc`); `FullAdam` alone updates all rows,
as dense optimizers do. State is one value a weight or one a row, and travels with the rows when a
table is sharded. Sources: Adam (Kingma & Ba 2015, algorithm 1), updated lazily as TensorFlow
Addons' LazyAdam: a row's moments decay only in steps that use it; Adagrad (Duchi et al. 2011); its
row-wise form (Gupta, Bengio & Weston 2014, "Training highly multiclass classifiers"; FBGEMM's
`EXACT_ROWWISE_ADAGRAD`, with which DLRM trains); heavy-ball momentum (Polyak 1964), lazy as Adam's;
FTRL-Proximal (McMahan et al. 2013, algorithm 1). Defaults are Keras', whose dense optimizers these
equal when every row is used in every step.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import tensorflow as tf

from lookback.core.errors import UserError
from lookback.embeddings.duplicates import sum_duplicates
from lookback.kernels.loader import cpu_kernels

_LARGEST_FUSED = (1 << 31) - 1  # weights: TensorFlow's kernels number them with int32


NewSlot = Callable[[str, str, int, float], tf.Variable]
"""Makes state of a table: from the table's name, the slot's, its columns and its first value."""


def without_rows(table: tf.Variable) -> tf.IndexedSlices:
    """The gradient ``[rows, D]`` of a step that looks nothing up."""
    return tf.IndexedSlices(
        tf.zeros([0, table.shape[1]], table.dtype), tf.zeros([0], tf.int32), tf.shape(table)
    )


def bias_corrected(epsilon: float, beta_2: float, step: tf.Tensor) -> tf.Tensor:
    """The "epsilon hat" with which section 2's form of Adam equals algorithm 1 with `epsilon`.

    ``m / (1-b1**t) / (sqrt(v / (1-b2**t)) + epsilon)``, its numerator and denominator multiplied
    by ``sqrt(1-b2**t)``. The two differ where gradients are small, as those of a mean over a large
    batch are: with b2 = 0.999 the first step divides by ``|g| + epsilon`` here, and by
    ``|g| + 32 epsilon`` in Keras.

    Args:
      epsilon: of algorithm 1.
      beta_2: decay of the second moment.
      step: float scalar t, from 1.
    """
    return epsilon * tf.sqrt(1 - tf.pow(beta_2, step))


def fused_adam(
    variable: tf.Variable,
    m: tf.Variable,
    v: tf.Variable,
    gradient: tf.Tensor,
    *,
    learning_rate: tf.Tensor,
    beta_1: float,
    beta_2: float,
    epsilon: float | tf.Tensor,
    powers: tuple[tf.Tensor, tf.Tensor],
) -> None:
    """One step of Adam of every weight, in one pass: the form of section 2, as `LazyAdam`.

    Args:
      variable: any shape.
      m: first moments, of the variable's shape.
      v: second moments, likewise.
      gradient: likewise.
      learning_rate: step size.
      beta_1: decay of the first moment.
      beta_2: decay of the second moment.
      epsilon: "epsilon hat".
      powers: float scalars ``beta_1 ** n`` and ``beta_2 ** n`` of the n-th update, n from 1.
    """
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=m.handle,
        v=v.handle,
        beta1_power=powers[0],
        beta2_power=powers[1],
        lr=learning_rate,
        beta1=beta_1,
        beta2=beta_2,
        epsilon=epsilon,
        grad=gradient,
    )


class TableOptimizer(tf.Module, abc.ABC):
    """Updates the rows of tables from sparse gradients.

    Args:
      learning_rate: step size, a variable or tensor read anew in each step.
      weight_decay: decoupled decay (Loshchilov & Hutter 2019) of the rows of the step:
        ``row -= learning_rate * weight_decay * row`` before the update. 0 is none.

    Attributes:
      operation: ours that does `apply` for one table: it takes table and slots by handle, the
        gradient, what an update is multiplied by, and the share by which weights decay. "": none.
      slot_kinds: the state by name, one value for each "weight" or for each "row".
      every_row: whether rows that no gradient names change as well, so that a step without
        gradient is a step, too.
      additive: whether what an update adds to a weight does not depend on the weight, but for
        weight decay.
      slots: variables ``[rows, D]`` or ``[rows, 1]`` by table name, then by slot.
    """

    operation: ClassVar[str] = ""
    slot_kinds: ClassVar[Mapping[str, Literal["weight", "row"]]] = {}
    every_row: ClassVar[bool] = False
    additive: ClassVar[bool] = True

    def __init__(self, learning_rate: tf.Variable, weight_decay: float = 0.0) -> None:
        super().__init__()
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self.slots: dict[str, dict[str, tf.Variable]] = {}

    def build(self, tables: Mapping[str, tf.Variable], new_slot: NewSlot | None = None) -> None:
        """Creates the state of the given tables.

        Args:
          tables: variables ``[rows, D]`` by table name.
          new_slot: makes a variable of state; None: one with a row for each of the table's.
        """

        def plain(name: str, slot: str, columns: int, value: float) -> tf.Variable:
            initial = tf.fill([tables[name].shape[0], columns], value)
            return tf.Variable(initial, trainable=False, name=f"{name}/{slot}")

        for name, table in tables.items():
            self.slots[name] = {
                slot: (new_slot or plain)(
                    name,
                    slot,
                    table.shape[1] if kind == "weight" else 1,
                    self.initial_value(slot),
                )
                for slot, kind in self.slot_kinds.items()
            }

    def apply(
        self,
        gradients: Mapping[str, tf.IndexedSlices],
        tables: Mapping[str, tf.Variable],
        step: tf.Tensor,
    ) -> None:
        """Updates the rows that the gradients name; of an `every_row` optimizer, all of them.

        Args:
          gradients: by table name; indices may repeat, and there may be none.
          tables: variables ``[rows, D]`` by table name.
          step: float scalar, the number of this update, from 1.
        """
        kernels = cpu_kernels() if self.operation else None
        for name, gradient in gradients.items():
            table, slots = tables[name], self.slots[name]
            if kernels is not None and isinstance(table, tf.Variable):  # not a table that grows
                self._in_place(kernels, table, slots, gradient, step)
                continue
            rows, values = sum_duplicates(gradient, table.shape[0])
            weights = tf.gather(table, rows)
            if self._weight_decay:
                weights -= self._learning_rate * self._weight_decay * weights
            state = {slot: tf.gather(variable, rows) for slot, variable in slots.items()}
            weights, state = self._update(weights, values, state, step)
            table.scatter_update(tf.IndexedSlices(weights, rows))
            for slot, value in state.items():
                slots[slot].scatter_update(tf.IndexedSlices(value, rows))

    def _in_place(
        self,
        kernels: Any,
        table: tf.Variable,
        slots: Mapping[str, tf.Variable],
        gradient: tf.IndexedSlices,
        step: tf.Tensor,
        **inputs: tf.Tensor,
    ) -> None:
        """`apply` for one table, by our operation; `inputs` are those that it alone has."""
        getattr(kernels, self.operation)(
            table=table.handle,
            **{slot: variable.handle for slot, variable in slots.items()},
            indices=gradient.indices,
            values=gradient.values,
            rate=self._rate(step),
            decay=self._learning_rate * self._weight_decay,
            **self._constants(),
            **inputs,
        )

    def initial_value(self, slot: str) -> float:
        """What the state of a row begins with."""
        del slot
        return 0.0

    def _rate(self, step: tf.Tensor) -> tf.Tensor:
        """What an update is multiplied by."""
        del step
        return self._learning_rate

    def _constants(self) -> dict[str, float]:
        """The operation's, by name."""
        return {}

    @abc.abstractmethod
    def _update(
        self,
        weights: tf.Tensor,
        gradient: tf.Tensor,
        state: dict[str, tf.Tensor],
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The update of unique rows: all tensors ``[U, D]``, slots of rows ``[U, 1]``."""


class SGD(TableOptimizer):
    """``w -= lr * g``."""

    operation: ClassVar = "lookback_sparse_sgd"

    def _update(
        self,
        weights: tf.Tensor,
        gradient: tf.Tensor,
        state: dict[str, tf.Tensor],
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        del step
        return weights - self._learning_rate * gradient, state


class Momentum(TableOptimizer):
    """``v = momentum * v - lr * g; w += v``: the velocity decays only in steps that use the row.

    Args:
      momentum: Keras has no default but 0, which is SGD; 0.9 is the usual one (Sutskever et al.
        2013).
    """

    operation: ClassVar = "lookback_sparse_momentum"
    slot_kinds: ClassVar = {"velocity": "weight"}

    def __init__(
        self, learning_rate: tf.Variable, weight_decay: float = 0.0, momentum: float = 0.9
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self._momentum = momentum

    def _constants(self) -> dict[str, float]:
        return {"momentum": self._momentum}

    def _update(
        self,
        weights: tf.Tensor,
        gradient: tf.Tensor,
        state: dict[str, tf.Tensor],
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        del step
        velocity = self._momentum * state["velocity"] - self._learning_rate * gradient
        return weights + velocity, {"velocity": velocity}


class Adagrad(TableOptimizer):
    """``a += g**2; w -= lr * g / (sqrt(a) + epsilon)``, element-wise.

    Args:
      initial_accumulator: starting value of ``a``; TensorFlow's default.
      epsilon: TensorFlow's default.
    """

    operation: ClassVar = "lookback_sparse_adagrad"
    slot_kinds: ClassVar = {"accumulator": "weight"}

    def __init__(
        self,
        learning_rate: tf.Variable,
        weight_decay: float = 0.0,
        initial_accumulator: float = 0.1,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self._initial_accumulator = initial_accumulator
        self._epsilon = epsilon

    def initial_value(self, slot: str) -> float:
        """See `TableOptimizer`."""
        del slot
        return self._initial_accumulator

    def _constants(self) -> dict[str, float]:
        return {"epsilon": self._epsilon}

    def _update(
        self,
        weights: tf.Tensor,
        gradient: tf.Tensor,
        state: dict[str, tf.Tensor],
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        del step
        accumulator = state["accumulator"] + self._squared(gradient)
        weights -= self._learning_rate * gradient / (tf.sqrt(accumulator) + self._epsilon)
        return weights, {"accumulator": accumulator}

    def _squared(self, gradient: tf.Tensor) -> tf.Tensor:
        """What the accumulator gains, in its shape."""
        return tf.square(gradient)


class RowwiseAdagrad(Adagrad):
    """``a += mean(g**2); w -= lr * g / (sqrt(a) + epsilon)``, with one ``a`` for each row.

    The state takes a D-th of Adagrad's memory. The mean is over the columns that are held here: of
    a table cut by columns, each piece has an accumulator of its own, so its rows do not step as
    those of the whole table.
    """

    operation: ClassVar = "lookback_sparse_rowwise_adagrad"
    slot_kinds: ClassVar = {"accumulator": "row"}

    def _squared(self, gradient: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.square(gradient), axis=1, keepdims=True)  # [U, 1]


class LazyAdam(TableOptimizer):
    """Adam on the rows of the step; other rows keep weights and moments.

    ``m = b1 m + (1-b1) g; v = b2 v + (1-b2) g**2;
    w -= lr * sqrt(1-b2**t) / (1-b1**t) * m / (sqrt(v) + epsilon)`` with t the global step, the
    form of section 2 of the paper (and of Keras).

    Args:
      beta_1: decay of the first moment; the paper's default.
      beta_2: decay of the second moment; the paper's default.
      epsilon: the paper's "epsilon hat", as Keras' and with its default.
    """

    operation: ClassVar = "lookback_sparse_adam"
    slot_kinds: ClassVar = {"m": "weight", "v": "weight"}

    def __init__(
        self,
        learning_rate: tf.Variable,
        weight_decay: float = 0.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self._beta_1, self._beta_2, self._epsilon = beta_1, beta_2, epsilon

    def _constants(self) -> dict[str, float]:
        return {"beta_1": self._beta_1, "beta_2": self._beta_2, "epsilon": self._epsilon}

    def _update(
        self,
        weights: tf.Tensor,
        gradient: tf.Tensor,
        state: dict[str, tf.Tensor],
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        # Subtracted in float32, where 1 - 0.999 is 1e-5 too small: so is the correction, which
        # divides by it in the first steps.
        beta_1, beta_2 = tf.constant(self._beta_1), tf.constant(self._beta_2)
        m = beta_1 * state["m"] + (1 - beta_1) * gradient
        v = beta_2 * state["v"] + (1 - beta_2) * tf.square(gradient)
        weights -= self._rate(step) * m / (tf.sqrt(v) + self._epsilon)
        return weights, {"m": m, "v": v}

    def _rate(self, step: tf.Tensor) -> tf.Tensor:
        correction = tf.sqrt(1 - tf.pow(self._beta_2, step)) / (1 - tf.pow(self._beta_1, step))
        return self._learning_rate * correction


class FullAdam(LazyAdam):
    """Adam on every row in every step: algorithm 1 of the paper, to the letter.

    ``m = b1 m + (1-b1) g; v = b2 v + (1-b2) g**2;
    w -= lr * m / (1-b1**t) / (sqrt(v / (1-b2**t)) + epsilon)``. A row that no gradient names has
    g = 0: its moments decay, and still move it, and weight decay shrinks it. So do
    `torch.optim.Adam` with dense gradients and Apex's FusedAdam, with which NVIDIA's NCF trains.

    A step takes one pass over the table and its state, and by TensorFlow's operations the memory of
    one more table, for the gradient; state and checkpoints are `LazyAdam`'s.

    Args:
      beta_1: decay of the first moment; the paper's default.
      beta_2: decay of the second moment; the paper's default.
      epsilon: the paper's, which `bias_corrected` makes of LazyAdam's.
    """

    every_row = True
    operation: ClassVar = "lookback_sparse_full_adam"

    def build(self, tables: Mapping[str, tf.Variable], new_slot: NewSlot | None = None) -> None:
        """Creates the state of the given tables; see `TableOptimizer`.

        Raises:
          UserError: if one has more weights than one pass can number.
        """
        for name, table in tables.items():
            weights = table.shape.num_elements()
            if weights > _LARGEST_FUSED:
                raise UserError(
                    f"optimizer: full_adam updates at most {_LARGEST_FUSED:,} weights in one "
                    f"variable, and {name!r} has {weights:,} on this process. Spread tables over "
                    "more processes, or use lazy_adam."
                )
        super().build(tables, new_slot)

    def _constants(self) -> dict[str, float]:
        return {"beta_1": self._beta_1, "beta_2": self._beta_2}

    def apply(
        self,
        gradients: Mapping[str, tf.IndexedSlices],
        tables: Mapping[str, tf.Variable],
        step: tf.Tensor,
    ) -> None:
        """Updates all rows of the tables that have a gradient; see `TableOptimizer`."""
        kernels = cpu_kernels()
        epsilon = bias_corrected(self._epsilon, self._beta_2, step)
        powers = (tf.pow(self._beta_1, step), tf.pow(self._beta_2, step))
        for name, gradient in gradients.items():
            table, slots = tables[name], self.slots[name]
            if not table.shape[0]:
                continue  # all rows lie elsewhere; CUDA kernels refuse to start for no weight
            if kernels is not None:
                self._in_place(kernels, table, slots, gradient, step, epsilon=epsilon)
                continue
            dense = tf.math.unsorted_segment_sum(gradient.values, gradient.indices, table.shape[0])
            for variable in (table, slots["m"], slots["v"]):
                # Whoever gathers or scatters rows makes each dense update of the variable copy it
                # first (TensorFlow's resource_variable_ops.cc, `copy_on_read_mode`).
                tf.raw_ops.DisableCopyOnRead(resource=variable.handle)
            if self._weight_decay:
                table.assign_sub(self._learning_rate * self._weight_decay * table)
            fused_adam(
                table,
                slots["m"],
                slots["v"],
                dense,
                learning_rate=self._learning_rate,
                beta_1=self._beta_1,
                beta_2=self._beta_2,
                epsilon=epsilon,
                powers=powers,
            )


class FTRL(TableOptimizer):
    """FTRL-Proximal, in the paper's notation with ``p = -learning_rate_power``.

    ``n' = n + g**2; sigma = (n'**p - n**p) / lr; z += g - sigma * w;
    w = (clip(z, -l1, l1) - z) / ((beta + n'**p) / lr + 2 * l2)``. As in Keras, l2 counts twice
    what it does in the paper. A row's first step replaces its initial value rather than moving it,
    except for the part that sigma keeps: the algorithm's w is a function of z and n.

    Args:
      learning_rate_power: not above 0; Keras' default.
      initial_accumulator: starting value of n; Keras' default.
      l1: strength of the L1 regularisation; Keras' default.
      l2: strength of the L2 regularisation; Keras' default.
      beta: of the learning rate's denominator; Keras' default (the paper suggests 1).
    """

    operation: ClassVar = "lookback_sparse_ftrl"
    slot_kinds: ClassVar = {"accumulator": "weight", "linear": "weight"}
    additive = False

    def __init__(
        self,
        learning_rate: tf.Variable,
        weight_decay: float = 0.0,
        learning_rate_power: float = -0.5,
        initial_accumulator: float = 0.1,
        l1: float = 0.0,
        l2: float = 0.0,
        beta: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        if learning_rate_power > 0:
            raise ValueError(
                f"learning_rate_power must not be above 0, received {learning_rate_power}."
            )
        if min(initial_accumulator, l1, l2, beta) < 0:
            raise ValueError(
                "initial_accumulator, l1, l2 and beta must be at least 0, received "
                f"{initial_accumulator}, {l1}, {l2} and {beta}."
            )
        self._power = -learning_rate_power
        self._initial_accumulator = initial_accumulator
        self._l1, self._l2, self._beta = l1, l2, beta

    def initial_value(self, slot: str) -> float:
        """See `TableOptimizer`."""
        return self._initial_accumulator if slot == "accumulator" else 0.0

    def _constants(self) -> dict[str, float]:
        return {"power": self._power, "l1": self._l1, "l2": self._l2, "beta": self._beta}

    def _update(
        self,
        weights: tf.Tensor,
        gradient: tf.Tensor,
        state: dict[str, tf.Tensor],
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        del step
        rate = self._learning_rate
        accumulator = state["accumulator"] + tf.square(gradient)
        scale = tf.pow(accumulator, self._power)
        sigma = (scale - tf.pow(state["accumulator"], self._power)) / rate
        linear = state["linear"] + gradient - sigma * weights
        clipped = tf.clip_by_value(linear, -self._l1, self._l1)
        weights = (clipped - linear) / ((self._beta + scale) / rate + 2 * self._l2)
        return weights, {"accumulator": accumulator, "linear": linear}


TABLE_OPTIMIZERS = {
    "sgd": SGD,
    "momentum": Momentum,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowwiseAdagrad,
    "adam": LazyAdam,
    "lazy_adam": LazyAdam,
    "full_adam": FullAdam,
    "ftrl": FTRL,
}

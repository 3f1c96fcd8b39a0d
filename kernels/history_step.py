"""SIM's, DIEN's and DIN's whole step, or their scores, as one operation each.

The operations are declared in `history_ops.cc`. Here is what joins them to TensorFlow: parts become
the lists that an operation takes, and the gradient of a Step hands on what the Step has found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

PLACES = ("target", "long", "short", "negative", "user")
"""Where parts may be, in the order in which operations take their ids and vectors."""


class HistoryPart(NamedTuple):
    """A part of items, events or users, D wide.

    Attributes:
      values: int32 ids of `table`'s rows; without a table float32 vectors, of the ids' shape and D.
      table: float32 variable ``[rows, D]``, or None.
    """

    values: tf.Tensor
    table: tf.Variable | None = None


def step(
    operation: Callable[..., Any], parts: Mapping[str, Sequence[HistoryPart]], **arguments: Any
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Runs a Step, a forward and a backward pass at once.

    Args:
      operation: a Step of `cpu_kernels`.
      parts: by place, those of `PLACES` that the operation takes: of targets ``[B, C]``, of the
        long sequence ``[B, L]``, of the short one and of negatives ``[S, B]``, of users ``[B]``.
      **arguments: the operation's other inputs and attributes.

    Returns:
      `total` [], which a tape differentiates for free, and what it does not differentiate: `sums`
      [3] and logits ``[B, C]``.
    """
    found = operation(**_lists(parts), **arguments)
    return found.total, _told(found.sums), _told(found.logits)


def score(
    operation: Callable[..., tf.Tensor],
    parts: Mapping[str, Sequence[HistoryPart]],
    **arguments: Any,
) -> tf.Tensor:
    """Runs a Score: float32 logits ``[B, C]``; arguments as of `step`."""
    return operation(**_lists(parts), **arguments)


def _lists(parts: Mapping[str, Sequence[HistoryPart]]) -> dict[str, Any]:
    """Parts as an operation's inputs and attributes."""
    flat = [part for place in PLACES for part in parts.get(place, ())]
    tables = {id(part.table): part.table for part in flat if part.table is not None}
    numbers = {table: number for number, table in enumerate(tables)}
    return {
        "tables": [table.handle for table in tables.values()],
        "ids": [part.values for part in flat if part.table is not None],
        "vectors": [part.values for part in flat if part.table is None],
        **{
            f"{place}_parts": [numbers.get(id(part.table), -1) for part in found]
            for place, found in parts.items()
        },
    }


@tf.custom_gradient
def _told(values: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        raise ValueError(
            f"{values.name if hasattr(values, 'name') else 'A result'} of a fused step has no "
            "gradient: expected `total` alone to be differentiated. Weigh the losses by `scales`."
        )

    return tf.identity(values), gradient


_PLACES_OF = {
    "LookbackSimStep": PLACES,
    "LookbackDienStep": ("target", "short", "negative", "user"),
    "LookbackDinStep": ("target", "long", "user"),
}


@tf.RegisterGradient("LookbackSimStep")
@tf.RegisterGradient("LookbackDienStep")
@tf.RegisterGradient("LookbackDinStep")
def _step_gradient(operation: Any, upstream: tf.Tensor, *_: tf.Tensor) -> list[Any]:
    """Gradients of a Step's inputs: its own outputs, times that of its total.

    Args:
      operation: that ran. Inputs: tables, ids, vectors, others, dropout, weights; outputs: total,
        sums, logits, gradients of weights, tables and vectors.
      upstream: of `total` [].
    """
    tables, ids, vectors, weights = (operation.get_attr(name) for name in "TIVW")
    outputs = operation.outputs[3:]
    of_weights, of_tables, of_vectors = _cut(outputs, weights, tables, vectors)
    # Nobody scales a float32 loss, and the rows' gradients are large enough for a copy to be felt.
    factor = tf.get_static_value(upstream)
    if factor is None or factor != 1:
        of_weights, of_tables, of_vectors = [
            [gradient * upstream for gradient in found]
            for found in (of_weights, of_tables, of_vectors)
        ]
    handles, looked_up = operation.inputs[:tables], operation.inputs[tables : tables + ids]
    lists = (operation.get_attr(f"{place}_parts") for place in _PLACES_OF[operation.type])
    numbers = [number for found in lists for number in found if number >= 0]
    slices = [
        _of_table(
            gradient, [x for x, of in zip(looked_up, numbers, strict=True) if of == number], handle
        )
        for number, (gradient, handle) in enumerate(zip(of_tables, handles, strict=True))
    ]
    rest = len(operation.inputs) - tables - ids - vectors - weights  # masks to dropout
    return [*slices, *[None] * ids, *of_vectors, *[None] * rest, *of_weights]


def _of_table(
    gradient: tf.Tensor, looked_up: Sequence[tf.Tensor], handle: tf.Tensor
) -> tf.IndexedSlices:
    """A table's gradient from those of its slots ``[N, D]``.

    Ids that are given twice, as those of what an event and the negative against it share, are one
    lookup: their slots' gradients are added, so that it is the sum that TensorFlow's tape has, to
    the bit, where vectors are given in place of ids.

    Args:
      gradient: of the slots.
      looked_up: ids, in any shapes.
      handle: of the table.
    """
    parts = {x.ref(): x for x in looked_up}
    if len(parts) < len(looked_up):
        sums: dict[Any, tf.Tensor] = {}
        for x, of_slots in zip(looked_up, tf.split(gradient, [tf.size(x) for x in looked_up])):
            key = x.ref()
            sums[key] = sums[key] + of_slots if key in sums else of_slots
        gradient = tf.concat(list(sums.values()), 0)
    flat = [tf.reshape(x, [-1]) for x in parts.values()]
    shape = tf.raw_ops.VariableShape(input=handle)
    return tf.IndexedSlices(gradient, tf.concat(flat, 0), shape)


def _cut(values: Sequence[Any], *sizes: int) -> list[list[Any]]:
    """Values in groups of these sizes."""
    values, found = list(values), []
    for size in sizes:
        found.append(values[:size])
        values = values[size:]
    return found

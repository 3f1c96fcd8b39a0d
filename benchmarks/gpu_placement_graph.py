"""Where TensorFlow would run the nodes of a graph on a GPU, and what would cross to it and back.

From the kernels that are registered, which TensorFlow's build for GPUs does on any machine. A
kernel keeps some of its inputs and outputs in the host's memory: most of those of int32
numbers do, all of them. A tensor that is made in one memory and read in the other is copied.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import kernels, op_def_registry

DEVICE, HOST, NOWHERE = "device", "host", "nowhere"

_MOVES_NOTHING = {
    *("Identity", "IdentityN", "Reshape", "ExpandDims", "Squeeze", "Const", "NoOp", "Shape"),
    *("ReadVariableOp", "VarHandleOp", "Placeholder", "StopGradient", "Size", "Rank", "ShapeN"),
    *("BroadcastGradientArgs", "PreventGradient", "VariableShape", "Bitcast", "ControlTrigger"),
    *("ConcatOffset", "Assert", "CheckNumerics", "EnsureShape"),
}
"""Operations that launch no kernel where their data lies."""

_SHAPES = ("Shape", "ShapeN", "BroadcastGradientArgs")
_MOST_AXES = 8
"""Numbers in a shape of which it is not known how many it has."""

_NESTED = ("PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile", "If")


@dataclasses.dataclass(frozen=True)
class Crossing:
    """A tensor that is copied.

    Attributes:
      name: of the node that makes it.
      operation: its type.
      to_device: whether it goes there, or to the host.
      readers: types of those that read it.
      bytes: of the tensor.
      dtype: of its numbers.
    """

    name: str
    operation: str
    to_device: bool
    readers: tuple[str, ...]
    bytes: int
    dtype: str


@dataclasses.dataclass
class PlacedGraph:
    """What was found of a graph, and of those inside of it.

    Attributes:
      kernels: on the GPU, by type of operation, one for each node; some nodes take several.
      crossings: tensors that are copied.
      without: types of operations, with types of numbers, that have no kernel for GPUs -> how many.
      on_host: types of operations whose kernels keep all their data on the host -> how many.
      nested: bodies of loops, counted once, however often they run.
    """

    kernels: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    crossings: list[Crossing] = dataclasses.field(default_factory=list)
    without: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    on_host: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    nested: list[str] = dataclasses.field(default_factory=list)

    @property
    def launches(self) -> int:
        """All kernels."""
        return self.kernels.total()

    @property
    def waits(self) -> int:
        """Tensors that the host has to wait for."""
        return sum(not crossing.to_device for crossing in self.crossings)

    @property
    def crossed_bytes(self) -> int:
        """Of all copies."""
        return sum(crossing.bytes for crossing in self.crossings)


def place(graph: tf.Graph, batch: int, fed: Collection[str] = ()) -> PlacedGraph:
    """Looks at each node that the graph's results need.

    Args:
      graph: of a concrete function, or an imported one.
      batch: rows; what takes the place of a dimension that is not known.
      fed: names of placeholders that get something from the host in each step.
    """
    found = PlacedGraph()
    memories: dict[str, tuple[str, ...]] = {}
    for operation in graph.get_operations():
        memories[operation.name] = (HOST,) if operation.name in fed else _outputs(operation)
        _count(operation, found)
    for operation in graph.get_operations():
        for index, tensor in enumerate(operation.outputs):
            crossing = _crossing(operation, index, tensor, memories, batch)
            if crossing is not None:
                found.crossings.append(crossing)
    return found


def _crossing(
    operation: tf.Operation,
    index: int,
    tensor: tf.Tensor,
    memories: Mapping[str, tuple[str, ...]],
    batch: int,
) -> Crossing | None:
    made = memories[operation.name][index]
    # A constant is folded, or copied once; a handle names its data, and goes nowhere.
    if operation.type == "Const" or tensor.dtype in (tf.resource, tf.variant, tf.string):
        return None
    readers = []
    for reader in tensor.consumers():
        where = _inputs(reader)
        places = {where[i] for i, read in enumerate(reader.inputs) if read is tensor}
        if places - {made, NOWHERE} and made != NOWHERE:
            readers.append(reader.type)
    if not readers:
        return None
    return Crossing(
        operation.name,
        operation.type,
        made == HOST,
        tuple(sorted(set(readers))),
        size_of(tensor, _MOST_AXES if operation.type in _SHAPES else batch),
        tensor.dtype.name,
    )


def size_of(tensor: tf.Tensor, batch: int) -> int:
    """Bytes of a tensor, as if dimensions that are not known were the batch's rows.

    One of which not even the number of dimensions is known is taken to be a shape.
    """
    shape = tensor.shape
    dims = [1] if shape.rank is None else [batch if d is None else d for d in shape]
    size = tensor.dtype.size
    for dim in dims:
        size *= dim
    return int(size)


def _count(operation: tf.Operation, found: PlacedGraph) -> None:
    kind = operation.type
    if kind in _NESTED:
        found.nested.append(kind)
        return
    kernel = gpu_kernel(operation)
    if kernel is None:
        if kind != "Placeholder" and not operation.device:
            found.without[_described(operation)] += 1
        return
    if kind in _MOVES_NOTHING:
        return
    outputs, inputs = _outputs(operation), _inputs(operation)
    if DEVICE in (*outputs, *inputs):
        found.kernels[kind] += 1
    elif outputs or inputs:
        found.on_host[_described(operation)] += 1


def _described(operation: tf.Operation) -> str:
    types = sorted({t.dtype.name for t in (*operation.inputs, *operation.outputs)} - {"resource"})
    return f"{operation.type}({', '.join(types)})"


def gpu_kernel(operation: tf.Operation) -> Any | None:
    """The kernel that a GPU would run an operation with; None: it runs on the CPU."""
    if "CPU" in operation.device:
        return None
    for kernel in _kernels(operation.type):
        if all(_allows(operation, constraint) for constraint in kernel.constraint):
            return kernel
    return None


@functools.cache
def _kernels(kind: str) -> list[Any]:
    listed = [k for k in kernels.get_registered_kernels_for_op(kind).kernel if not k.label]
    # A device's own come before those of any device, which keep their data on the host.
    return [k for device in ("GPU", "DEFAULT") for k in listed if k.device_type == device]


def _allows(operation: tf.Operation, constraint: Any) -> bool:
    allowed = constraint.allowed_values.list.type
    try:
        value = operation.get_attr(constraint.name)
    except ValueError:
        return False
    values = value if isinstance(value, list) else [value]
    return all(getattr(v, "as_datatype_enum", v) in allowed for v in values)


def _inputs(operation: tf.Operation) -> tuple[str, ...]:
    """The memory of each input."""
    return _memories(operation, [t.dtype for t in operation.inputs], "input_arg")


def _outputs(operation: tf.Operation) -> tuple[str, ...]:
    """The memory of each output."""
    return _memories(operation, [t.dtype for t in operation.outputs], "output_arg")


def _memories(operation: tf.Operation, dtypes: list[tf.DType], which: str) -> tuple[str, ...]:
    kind = operation.type
    if kind in _NESTED and _compiled(operation):  # jit/xla_kernel_creator.cc: all but handles
        return tuple(HOST if d == tf.resource else DEVICE for d in dtypes)
    # Arguments and results of a function: int32 stays on the host (function.cc).
    if kind in _NESTED or kind == "Placeholder":
        return tuple(HOST if d in (tf.int32, tf.resource) else DEVICE for d in dtypes)
    kernel = gpu_kernel(operation)
    if kernel is None:
        return (HOST,) * len(dtypes)
    on_host = set(kernel.host_memory_arg)
    names = list(_argument_names(operation, which))
    if not on_host and kind == "Const":
        return (HOST if dtypes[0] == tf.int32 else DEVICE,)
    return tuple(HOST if name in on_host else DEVICE for name in names)


def _compiled(operation: tf.Operation) -> bool:
    """Whether a call is of a function that XLA compiles."""
    try:
        return bool(operation.get_attr("_XlaMustCompile"))
    except ValueError:
        return False


def _argument_names(operation: tf.Operation, which: str) -> Iterator[str]:
    """The name of each input or output, of a list's once for each of its tensors."""
    definition = op_def_registry.get(operation.type)
    for argument in getattr(definition, which):
        count = 1
        if argument.number_attr:
            count = operation.get_attr(argument.number_attr)
        elif argument.type_list_attr:
            count = len(operation.get_attr(argument.type_list_attr))
        yield from [argument.name] * count


def optimized(function: Any) -> tf.Graph:
    """The graph of a concrete function after grappler: functions inlined, constants folded.

    Optimizers that look for a GPU find none, and so change nothing for one.
    """
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.grappler import tf_optimizer

    graph = function.graph
    meta = tf.compat.v1.train.export_meta_graph(graph_def=graph.as_graph_def(), graph=graph)
    kept = [*(t.name for t in tf.nest.flatten(function.outputs)), *_names(graph.control_outputs)]
    meta.collection_def["train_op"].node_list.value.extend(kept)
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    after = tf.Graph()
    with after.as_default():
        tf.import_graph_def(tf_optimizer.OptimizeGraph(config, meta), name="")
    return after


def _names(operations: Any) -> list[str]:
    return [operation.name for operation in operations]

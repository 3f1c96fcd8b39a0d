"""A bundle's second graph: that of its SavedModel's signature with the operations of `kernels/`.

A SavedModel whose graphs have an operation that a server lacks does not load at all, so this graph
lies beside it, in a file that older versions and other servers do not look at. It has no weights:
those of the SavedModel, and the tables that its signature takes, are this graph's, too.

`kernels.pb` is a MetaGraphDef. Its signature `serving_default` has the inputs and outputs of the
SavedModel's; the signature `captures` says which of its captured tensors, by number, goes where.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookback.serving.manifest import SIGNATURE

if TYPE_CHECKING:
    import tensorflow as tf

KERNEL_GRAPH = "kernels.pb"

Scoring = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From a signature's inputs, tables among them, to its outputs."""

_CAPTURES = "captures"
_OURS = "Lookback"  # begins the names of operations of `kernels/`
_SAME = 1e-5  # of logits: float32 sums in other orders
_SAME_ROUNDED = 3e-2  # the same, of products of bfloat16, whose 8 digits round in other places

_log = logging.getLogger(__name__)


def write_kernel_graph(path: Path, portable: Any, ours: Any) -> None:
    """Writes a graph, if it has operations of ours.

    Args:
      path: the file.
      portable: the concrete function that is the SavedModel's signature.
      ours: one of the same inputs and outputs that reads the same variables.
    """
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

    definition = ours.graph.as_graph_def()
    if not any(node.op.startswith(_OURS) for node in definition.node):
        return
    graph = MetaGraphDef(graph_def=definition)
    numbers = {id(tensor): number for number, tensor in enumerate(portable.captured_inputs)}
    # Both in the order of the names: that is how TensorFlow flattens dicts.
    (features,), _ = ours.structured_input_signature
    said = graph.signature_def[SIGNATURE]
    for name, tensor in zip(sorted(features), ours.inputs, strict=False):
        said.inputs[name].name = tensor.name
    for name, tensor in zip(sorted(ours.structured_outputs), ours.outputs, strict=True):
        said.outputs[name].name = tensor.name
    captures = graph.signature_def[_CAPTURES].inputs
    for outside, inside in zip(ours.captured_inputs, ours.inputs[len(features) :], strict=True):
        captures[str(numbers[id(outside)])].name = inside.name
    path.write_bytes(graph.SerializeToString(deterministic=True))


def scoring_of(path: Path, signature: Any, draw: Callable[[], Mapping[str, tf.Tensor]]) -> Scoring:
    """What to score with: the graph with our operations where they are there, and do the same.

    The choice is logged, with its reason.

    Args:
      path: of the bundle's second graph; it need not be there.
      signature: of the SavedModel that was loaded.
      draw: gives inputs of the signature by which the two are compared.
    """
    import tensorflow as tf

    from lookback.kernels.loader import cpu_kernels

    def portable(inputs: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        found: Mapping[str, tf.Tensor] = signature(**inputs)
        return found

    if not path.exists():
        _log.info("%s: scored by TensorFlow's operations: it has no graph of others.", path.parent)
        return portable
    if cpu_kernels() is None:  # which says why
        return portable
    try:
        ours = _load(path, signature)
        inputs = draw()
        expected, found = portable(inputs)["logit"].numpy(), ours(inputs)["logit"].numpy()
        same = _SAME_ROUNDED if _rounds(ours) else _SAME
    except (ValueError, KeyError, IndexError, TypeError, tf.errors.OpError) as error:
        said = str(error).partition("\n")[0]  # TensorFlow's texts may go on with whole tensors
        what = f"cannot be used by this version of Lookback and TensorFlow ({said})"
    else:
        if np.allclose(found, expected, rtol=same, atol=same):
            _log.info("%s: scored by the graph with our operations.", path.parent)
            return ours
        worst = float(np.abs(found - expected).max())
        what = f"gives logits that differ by up to {worst:.3g} from those of the SavedModel"
    _log.warning(
        "%s: scored by TensorFlow's operations, more slowly: the graph %s %s. Export the model "
        "again with this version.",
        path.parent,
        path.name,
        what,
    )
    return portable


def _rounds(scoring: Any) -> bool:
    """Whether operations of ours in a concrete function multiply in bfloat16."""
    own = (o for o in scoring.graph.get_operations() if o.type.startswith(_OURS))
    return any(
        "precision" in o.node_def.attr and o.get_attr("precision") != b"float32" for o in own
    )


def _load(path: Path, signature: Any) -> Any:
    """The graph as a function, over the variables of the SavedModel."""
    import tensorflow as tf
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

    graph = MetaGraphDef.FromString(path.read_bytes())
    said, captures = graph.signature_def[SIGNATURE], graph.signature_def[_CAPTURES]
    outputs = {name: tensor.name for name, tensor in said.outputs.items()}

    @tf.function(input_signature=[signature.structured_input_signature[1]], autograph=False)
    def score(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        given = {tensor.name: inputs[name] for name, tensor in said.inputs.items()}
        for number, tensor in captures.inputs.items():
            outside = signature.captured_inputs[int(number)]
            given[tensor.name] = tf.compat.v1.get_default_graph().capture(outside)
        found = tf.graph_util.import_graph_def(
            graph.graph_def, given, list(outputs.values()), name="kernels"
        )
        return dict(zip(outputs, found, strict=True))

    return score.get_concrete_function()

"""A bundle's model as training has it: loaded, or built anew over the bundle's files of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.embeddings.collection import RowSource
from lookback.models import MODELS
from lookback.serving.bundle import Bundle
from lookback.serving.export import load_model
from lookback.serving.layouts.registry import LAYOUTS

if TYPE_CHECKING:
    from lookback.models.click_model import ClickModel
    from lookback.serving.skew.comparison import OfflineModel

_PRODUCTS = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum"}
_FULL = "float32"
_POLICIES = {tf.bfloat16: "mixed_bfloat16", tf.float16: "mixed_float16"}


class ModelOfBundle(NamedTuple):
    """A model, and what is known of its numbers.

    Attributes:
      model: from features to logits.
      compute_dtype: in which its layers compute.
      table_dtypes: of tables in files, as they were written; none: they are in the model.
    """

    model: OfflineModel
    compute_dtype: str
    table_dtypes: frozenset[str] = frozenset()


def model_of(bundle: Bundle) -> ModelOfBundle:
    """The model of a bundle, by the code of training.

    Of a bundle whose tables lie in files no table is read: rows come from the files by NumPy, so
    what a server's graph makes of them is compared with what they are. Rounded rows stay rounded.

    Args:
      bundle: that was loaded.

    Raises:
      UserError: if it was exported by a version that built the model otherwise.
    """
    policy, tables = _policy_of(bundle.graph), bundle.manifest.table_files
    # Layers within layers take the global one, when they are loaded, too.
    with _global_policy(policy):
        logits = _over_files(bundle) if tables else _loaded(bundle)
    if policy != _FULL:
        # As training evaluates: single operations round to 16 bits in more places than a graph.
        logits = tf.function(logits, autograph=False)
    dtypes = frozenset(table.dtype for table in tables.values())
    return ModelOfBundle(logits, policy.removeprefix("mixed_"), dtypes)


def _loaded(bundle: Bundle) -> OfflineModel:
    """The model of a bundle that holds its tables."""
    model = load_model(bundle.directory, bundle.manifest)
    return lambda features: model(dict(features), training=False)


def _over_files(bundle: Bundle) -> OfflineModel:
    """A model of a bundle's options and weights, over the rows of its files."""
    manifest, model = bundle.manifest, _built(bundle)

    def logits(features: Mapping[str, Any]) -> Any:
        with model.body.embeddings.rows_from(_rows_of(bundle)):
            return model(dict(features), training=False)

    # Lookups have no variables: they would take the memory of all tables.
    model.body.embeddings.built = True
    layout = LAYOUTS[manifest.layout]
    logits(layout.draw(manifest, 1, np.random.default_rng(0)))  # makes the others
    _assign(model, bundle)
    return logits


def _rows_of(bundle: Bundle) -> RowSource:
    """Rows of the files, by NumPy."""
    tables = bundle.manifest.table_files

    def fetch(name: str, ids: tf.Tensor) -> tf.Tensor:
        rows = tf.numpy_function(
            lambda places: tables[name].take(bundle.directory, places), [ids], tf.float32
        )
        rows.set_shape([None, tables[name].shape[1]])
        return rows

    return fetch


def _built(bundle: Bundle) -> ClickModel:
    """The model of a bundle's options."""
    from lookback.formats.schema import read_schema

    manifest = bundle.manifest
    entry = MODELS[manifest.model_type]
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest.options.items()}
    try:
        config = entry.config_class(**options)
    except TypeError as error:
        raise _of_another_version(bundle, str(error)) from error
    return entry(read_schema(bundle.directory), config)


def _assign(model: ClickModel, bundle: Bundle) -> None:
    """Gives the model its weights but for the tables, by the names that checkpoints have."""
    from lookback.training.state import unique_names

    weights, variables = bundle.weights, unique_names("model", model.weights)
    if set(variables) != set(weights):
        differing = ", ".join(sorted(set(variables) ^ set(weights))[:3])
        raise _of_another_version(bundle, f"{differing} are not in both")
    for name, variable in variables.items():
        variable.assign(weights[name])


def _policy_of(graph: tf.Graph) -> str:
    """Keras' policy by which a graph was made: the type of its products."""
    found = {t for t in _product_types(graph.as_graph_def()) if t in _POLICIES}
    return _POLICIES[found.pop()] if found else _FULL


@contextlib.contextmanager
def _global_policy(policy: str) -> Iterator[None]:
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def _product_types(definition: Any) -> Iterator[tf.DType]:
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    for node in nodes:
        if node.op in _PRODUCTS:
            yield tf.as_dtype(node.attr["T"].type)


def _of_another_version(bundle: Bundle, what: str) -> UserError:
    return UserError(
        f"The model in {bundle.directory} cannot be built as a {bundle.manifest.model_type} of "
        f"this version ({what}). Export it again, or verify it with the version that exported it."
    )

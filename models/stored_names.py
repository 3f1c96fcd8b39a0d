"""The names under which saved models hold our classes, so that a class can be renamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

PACKAGE = "lookback"
Class = TypeVar("Class", bound=type)


def stored_as(name: str, *older: str) -> Callable[[Class], Class]:
    """Registers a class with Keras.

    Args:
      name: under which it is saved.
      *older: under which saved models of earlier versions hold it; they load as the class.
    """

    def register(cls: Class) -> Class:
        # Keras registers a class once; what it has registered is this mapping.
        objects = tf.keras.utils.get_custom_objects()
        objects.update({f"{PACKAGE}>{old}": cls for old in older})
        registered: Class = tf.keras.utils.register_keras_serializable(PACKAGE, name)(cls)
        return registered

    return register

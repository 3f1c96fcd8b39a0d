"""Batches for Keras' `fit` and `evaluate`, for whoever trains with them and not with `Trainer`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from lookback.dataloading.layout import LayoutOptions
from lookback.dataloading.sources import Batch
from lookback.training.batch_size import choose_batch_size
from lookback.training.config import RunConfig
from lookback.training.data import open_source


def keras_data(
    run: RunConfig, data: LayoutOptions, options: Any, split: str = "train"
) -> tf.data.Dataset:
    """A split as features by name and labels ``[B, C]``, batch by batch.

    Of "train", each time it is gone over is the next epoch, with its own order and negatives; they
    are those of a run with the same options. Of others it is always the same.

    Args:
      run: the run's own options.
      data: options of the layout.
      options: of the model that is to read it.
      split: of the dataset.

    Raises:
      UserError: if the directory is no dataset, has no such split, or does not suit the options.
    """
    rows, _ = choose_batch_size(run, data, options, None)
    run = dataclasses.replace(run, seed=run.seed or 0, global_batch_size=rows)
    source = open_source(run, data, options)
    if split == "train":
        steps, epochs = source.train_steps(), itertools.count()
        first = source.train_batch(next(iter(source.train_feeds(0, 0))))
    else:
        steps = source.eval_steps(split)
        first = source.eval_batch(split, next(iter(source.eval_feeds(split))))[:2]

    def batches() -> Iterator[Batch]:
        if split == "train":
            yield from map(source.train_batch, source.train_feeds(next(epochs), 0))
        else:
            for feed in source.eval_feeds(split):
                yield source.eval_batch(split, feed)[:2]

    def spec(tensor: Any) -> tf.TensorSpec:
        tensor = tf.convert_to_tensor(tensor)
        return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)

    made = tf.data.Dataset.from_generator(
        batches, output_signature=tf.nest.map_structure(spec, first)
    )
    return made.apply(tf.data.experimental.assert_cardinality(steps))

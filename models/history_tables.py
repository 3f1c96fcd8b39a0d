"""The embedding tables of models over histories, known before a model is built."""

from __future__ import annotations

import dataclasses

from merlin.schema import Schema

from lookback.embeddings.tables import tables_from_schema
from lookback.embeddings.types import TableSpec
from lookback.formats.features import HistoryFeatures, chosen, history_name, sample_schema
from lookback.formats.history_columns import TIME_GAP
from lookback.models.config import HistoryModelConfig


def history_tables(schema: Schema, config: HistoryModelConfig) -> list[TableSpec]:
    """The embedding tables of a history model.

    Args:
      schema: of the dataset.
      config: of the model.

    Returns:
      One spec a domain, with what a row of a training batch looks up.
    """
    return tables_by_feature(schema, config)[0]


def tables_by_feature(
    schema: Schema, config: HistoryModelConfig
) -> tuple[list[TableSpec], dict[str, str]]:
    """The specs, and the table of each of the dataset's columns (and of the time gap)."""
    features = HistoryFeatures.from_schema(chosen_schema(schema, config))
    tables, by_column = tables_from_schema(serving_schema(schema, config), config.embedding_dim)
    feature_tables = {n: by_column[n] for n in (*features.user, *features.item, *features.context)}
    feature_tables |= {name: by_column[history_name(name)] for name in features.event}
    if config.time_features:
        feature_tables[TIME_GAP] = by_column[history_name(TIME_GAP)]
    # A positive and its negative, two rows of the batch, share a history and its negatives.
    slots = config.max_seq_length + config.auxiliary_negatives * config.short_seq_length
    values_a_row = {
        **dict.fromkeys(features.user, 0.5),
        **dict.fromkeys(features.item, 1 + slots / 2),
        **dict.fromkeys(features.context, 0.5 + config.max_seq_length / 2),
        **dict.fromkeys((*features.event, TIME_GAP), config.max_seq_length / 2),
    }
    ids_a_row = {name: values * features.bags.get(name, 1) for name, values in values_a_row.items()}
    hotness = {
        table.name: tuple(ids_a_row[n] for n, used in feature_tables.items() if used == table.name)
        for table in tables
    }
    specs = [dataclasses.replace(table, hotness=hotness[table.name]) for table in tables]
    return specs, feature_tables


def chosen_schema(schema: Schema, config: HistoryModelConfig) -> Schema:
    """The columns that a model reads; arguments and errors as of `formats.features.chosen`."""
    return schema if config.features is None else chosen(schema, config.features)


def serving_schema(schema: Schema, config: HistoryModelConfig) -> Schema:
    """The schema of what a model takes when it serves; arguments as of `history_tables`."""
    return sample_schema(
        chosen_schema(schema, config),
        max_seq_length=config.max_seq_length,
        short_seq_length=config.short_seq_length,
        negatives=False,
        time_features=config.time_features,
    )

"""The layout "histories": candidates with a user's history before them, one label a candidate.

Histories are resident, or stream in blocks, and samples are drawn from them, or impressions with
labels stand beside them; or somebody else materialised the samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lookback.core.errors import UserError
from lookback.core.limits import MOST_BYTES, MOST_WIDTH
from lookback.core.options import SET, UNSET, option, refuse_unserved
from lookback.core.world import World
from lookback.dataloading.layout import BatchOptions, ClickOptions, Layout, file_sizes
from lookback.dataloading.modes import TRAINS
from lookback.dataloading.sampling import SamplingOptions, new_events, topk_option
from lookback.formats.dataset_info import (
    content_of,
    is_explicit,
    is_histories,
    read_histories_info,
    training_events,
)
from lookback.formats.description import (
    IMPRESSIONS,
    MATERIALISED,
    RESIDENT,
    WITHOUT_AUXILIARY_LOSS,
    is_materialised,
)
from lookback.formats.history_columns import NEW

if TYPE_CHECKING:
    from lookback.dataloading.histories.materialised import MaterialisedDataset
    from lookback.dataloading.histories.resident import Histories, ItemCounts
    from lookback.dataloading.histories.windows import WindowConfig
    from lookback.dataloading.sources import BatchSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistoriesOptions(SamplingOptions, ClickOptions):
    """Options that only models over histories have."""

    negatives: Literal["popularity", "uniform"] = option(
        "popularity",
        help="Distribution from which negative items are drawn",
        continued=True,
        unserved={
            MATERIALISED: "bring their negatives along",
            WITHOUT_AUXILIARY_LOSS: "need none",
        },
    )
    topk: int = topk_option({"metrics": UNSET, "full_catalogue": SET})
    number_of_user_features: int = option(
        1,
        help="Columns after the label that are user features (materialised samples only)",
        at_least=0,
        unserved={RESIDENT: "say in their schema which columns are of users"},
        limit=MOST_WIDTH,
    )
    shard_histories: bool = option(
        False,
        scope="several processes",
        help="Each process loads the histories of its users only, and trains on them (flag)",
        continued=True,
        unserved={MATERIALISED: "hold no histories"},
        suits=TRAINS,
    )
    history_memory: int | None = option(
        None,
        help="What histories may take in memory, all processes together, such as 4GB: blocks of "
        "users are read in a random order and shuffled among those that are held; none: all are "
        "loaded, by each process",
        above=0,
        unit="bytes",
        unserved={MATERIALISED: "are read from disk as they are needed"},
        needs={"shard_histories": UNSET, "full_catalogue": UNSET},
        limit=MOST_BYTES,
    )

    @property
    def bound_to_ranks(self) -> tuple[str, ...]:
        """See `LayoutOptions.bound_to_ranks`."""
        return ("shard_histories",) if self.shard_histories else ()


class HistoryModelOptions(Protocol):
    """What the options of a model over histories say about its samples."""

    @property
    def max_seq_length(self) -> int:
        """History slots (T)."""

    @property
    def long_seq_length(self) -> int:
        """Slots of the long history."""

    @property
    def time_features(self) -> bool:
        """Whether the model reads time gaps."""

    @property
    def features(self) -> Sequence[str] | None:
        """What the model reads of the dataset's features beside the ids; None: all."""

    @property
    def auxiliary_negatives(self) -> bool:
        """Whether training needs a negative for each short slot."""


class HistoriesLayout(Layout):
    """See the module; a dataset says by its files which of the two it is."""

    options_class = HistoriesOptions
    reads = RESIDENT

    def found_in(self, directory: Path) -> str | None:
        """Materialised samples by their metadata.json, histories by their dataset.json."""
        if is_materialised(directory):
            return MATERIALISED
        return self.reads if is_histories(directory) else None

    def open(
        self,
        directory: Path,
        batches: BatchOptions,
        options: HistoriesOptions,
        model: HistoryModelOptions,
        world: World,
    ) -> BatchSource:
        """Opens materialised samples, or histories: everybody's, or those of this process's users.

        Raises:
          UserError: as the contract says.
        """
        if self.found_in(directory) == MATERIALISED:
            return _open_materialised(directory, batches, options, model)
        return _open_resident(directory, batches, options, model, world)

    def training_rows(
        self, directory: Path, options: HistoriesOptions, model: HistoryModelOptions
    ) -> int:
        """Rows of materialised samples, and impressions.

        Of other histories each event with one before it, and a negative.

        Raises:
          UserError: as the contract says.
        """
        if self.found_in(directory) == MATERIALISED:
            from lookback.formats.materialised import read_footers

            return sum(group.rows for group in read_footers(directory, "train")[0])
        events = training_events(directory, before=1)
        if options.train_on == NEW:
            events = min(events, new_events(directory))
        return (1 if is_explicit(directory) else 2) * events

    def identity(self, directory: Path, options: HistoriesOptions, ranks: int) -> dict[str, Any]:
        """The content; and how many processes divide the users, or what memory does."""
        if self.found_in(directory) == MATERIALISED:
            return {"dataset": file_sizes(directory, "*/*.parquet")}
        shared: dict[str, Any] = {"ranks": ranks} if options.shard_histories else {}
        if options.history_memory is not None:
            # Checkpoints of another order (windows of half the memory) do not go on.
            shared |= {"history_memory": options.history_memory, "history_order": "ring"}
        return {"dataset": content_of(directory, read_histories_info(directory)), **shared}

    def unread(self, directory: Path, model: HistoryModelOptions) -> tuple[str, ...]:
        """Those that `model.features` does not name.

        Raises:
          UserError: if one that it does name is not there.
        """
        if model.features is None or self.found_in(directory) == MATERIALISED:
            return ()
        from lookback.formats.features import HistoryFeatures, chosen
        from lookback.formats.history_columns import ROLES
        from lookback.formats.schema import read_schema

        schema = read_schema(directory)
        read = chosen(schema, model.features).column_names
        return tuple(n for n in HistoryFeatures.from_schema(schema).of(*ROLES) if n not in read)


def _open_materialised(
    directory: Path, batches: BatchOptions, options: HistoriesOptions, model: HistoryModelOptions
) -> BatchSource:
    from lookback.dataloading.histories.sources import MaterialisedSource

    refuse_unserved(MATERIALISED, options, model)
    return MaterialisedSource(
        _materialised(directory, options, model),
        **batches.arguments(),
        auxiliary_negatives=model.auxiliary_negatives,
        prefetch_train=options.prefetch_train_size,
        prefetch_test=options.prefetch_test_size,
    )


def _materialised(
    directory: Path, options: HistoriesOptions, model: HistoryModelOptions
) -> MaterialisedDataset:
    from lookback.dataloading.histories.materialised import MaterialisedDataset

    return MaterialisedDataset(
        directory,
        user_features=options.number_of_user_features,
        max_seq_length=model.max_seq_length,
        long_seq_length=model.long_seq_length,
    )


def _open_resident(
    directory: Path,
    batches: BatchOptions,
    options: HistoriesOptions,
    model: HistoryModelOptions,
    world: World,
) -> BatchSource:
    from lookback.dataloading.histories.resident import Histories
    from lookback.dataloading.histories.sources import ResidentSource
    from lookback.dataloading.histories.windows import WindowConfig
    from lookback.dataloading.parts import WHOLE

    explicit = is_explicit(directory)
    refuse_unserved(RESIDENT, options, model)
    if explicit:
        refuse_unserved(IMPRESSIONS, options, model)
        if not model.auxiliary_negatives:
            refuse_unserved(WITHOUT_AUXILIARY_LOSS, options, model)
    cuts = (batches.micro_batches or 0) * world.size > 1
    streams = options.history_memory is not None and world.size > 1
    if cuts and (options.shard_histories or streams):
        raise UserError(
            f"{'history_memory' if streams else 'shard_histories'}: expected without "
            "--micro_batches and --grads_accumulated, which cut batches that all processes share. "
            "Remove one of them."
        )
    if batches.batch_size % 2 and not explicit:
        raise UserError(
            "global_batch_size: expected an even number of at least 2 (each training sample is a "
            f"positive row and a negative one), received {batches.batch_size}."
        )
    windows = WindowConfig(
        max_seq_length=model.max_seq_length,
        long_seq_length=model.long_seq_length,
        negatives=options.negatives,
        auxiliary_negatives=model.auxiliary_negatives,
        time_features=model.time_features,
        repeatable=options.repeatable,
        oov_rate=options.oov_rate,
    )
    if options.history_memory is not None:
        return _open_streamed(directory, batches, options, windows, model.features, world)
    own_users = options.shard_histories and world.size > 1
    part, only_new = batches.part if own_users else WHOLE, options.train_on == NEW
    histories = Histories.load(
        directory, part, batches.verification, model.features, only_new=only_new
    )
    return ResidentSource(
        histories,
        windows,
        **batches.arguments(),
        test_negatives=options.test_negatives,
        full_catalogue=options.full_catalogue,
        topk=options.topk,
        counts=_counts_of_all(histories, world) if own_users else None,
        gather=world.gather,
    )


def _open_streamed(
    directory: Path,
    batches: BatchOptions,
    options: HistoriesOptions,
    windows: WindowConfig,
    features: Sequence[str] | None,
    world: World,
) -> BatchSource:
    from lookback.dataloading.histories.blocks import Blocks
    from lookback.dataloading.histories.resident import HistoriesReader
    from lookback.dataloading.histories.streamed import StreamedSource

    reader = HistoriesReader.open(
        directory, batches.verification, features, only_new=options.train_on == NEW
    )
    blocks = Blocks(reader, windows)
    return StreamedSource(
        blocks,
        blocks.survey(world),
        windows,
        options.history_memory or 0,
        **batches.arguments(),
        test_negatives=options.test_negatives,
        topk=options.topk,
    )


def _counts_of_all(histories: Histories, world: World) -> ItemCounts:
    """How often items occur among all processes' events."""
    import tensorflow as tf

    from lookback.dataloading.histories.resident import ItemCounts

    own = histories.item_counts()
    training, every = world.sum([tf.constant(own.training), tf.constant(own.all)])
    return ItemCounts(training.numpy(), every.numpy())

"""Tiny datasets and batches that the tests of several packages share, as factories.

TensorFlow and Merlin take seconds to import, so they are imported where a fixture needs them: the
tests of command lines and configuration stay fast.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lookback.core.imports import collect_rarely

if TYPE_CHECKING:
    from merlin.schema import Schema

    from lookback.dataloading.histories.resident import Histories

LONGEST = (
    "distributed/test_elastic.py",
    "distributed/test_training_runs.py",
    "scripts/test_gpu_check.py",
    "distributed/test_equality.py",
    "scripts/test_airgap.py",
    "distributed/test_failures.py",
    "serving/server/test_triton.py",
    "kernels/test_tiles.py",
    "distributed/test_dask_hosts.py",
    "distributed/test_cluster_scripts.py",
    "test_notebooks.py",
    "conformance/test_models.py",
    "workflows/test_criteo.py",
    "test_package.py",
    "test_train.py",
    "test_tutorials.py",
    "training/test_trainer.py",
    "training/test_steps.py",
    "serving/test_round_trip.py",
    "conformance/test_tabular_models.py",
    "models/test_models_formulas.py",
    "workflows/test_run_dataset.py",
    "embeddings/test_merlin_block.py",
    "workflows/test_interactions.py",
    "dataloading/test_sources.py",
)
"""Files to start with, so that the processes of pytest-xdist end together."""

USERS = {"user_id": 7, "country": 4}
ITEMS = {"item_id": 40, "category_id": 6}

Batch = tuple[dict[str, np.ndarray], np.ndarray]


def pytest_configure() -> None:
    """Hears Ctrl-C, as do the processes that tests start, even if a shell started this aside.

    Shells have what `&` starts ignore it, and who ignores it hands that on.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the others keep their order."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Has Python look for cycles as our commands do, and never among what imports made."""
    collect_rarely()
    gc.collect()
    gc.freeze()


_BLANK = b"\x89PNG, not drawn"


@pytest.fixture(scope="session", autouse=True)
def _plots_are_blank() -> Iterator[pytest.MonkeyPatch]:
    """Leaves the drawing out of reports: it takes longer than to train on tiny data."""
    from lookback.training.output import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "rendered", lambda figure: _BLANK)
        yield patch


@pytest.fixture(scope="module")
def drawing(_plots_are_blank: pytest.MonkeyPatch) -> Iterator[None]:
    """Draws, in one file."""
    from lookback.training.output import report

    blank = report.rendered
    _plots_are_blank.undo()
    yield
    _plots_are_blank.setattr(report, "rendered", blank)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """Fills a directory once for all processes of pytest-xdist; tests leave it as it is."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of the processes' own

    def get(name: str, fill: Callable[[Path], Any]) -> Path:
        directory = root / f"once-{name}"
        with (root / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = root / f"once-{name}.done"
            if not done.exists():
                directory.mkdir()
                fill(directory)
                done.touch()
        return directory

    return get


@pytest.fixture(scope="session")
def preloaded() -> Iterator[tuple[str, str]]:
    """What stands after `python` to have what follows run in a fork that has TensorFlow.

    Of a program that is started as a user would start it, to import TensorFlow takes most of the
    time; see tests/distributed/preloaded.py.
    """
    program = str(Path(__file__).parent / "distributed" / "preloaded.py")
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listening:
        path = f"{directory}/socket"
        listening.bind(path)
        listening.listen()
        words = (sys.executable, program, "serve", str(listening.fileno()))
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[listening.fileno()]
        ) as server:
            yield program, path
            try:
                server.communicate(timeout=120)  # the end of its stdin is its own
            finally:
                server.kill()


@pytest.fixture(scope="session")
def make_schema() -> Callable[..., Schema]:
    """Makes the schema of a dataset of histories from table rows by feature name."""
    from merlin.schema import ColumnSchema, Schema, Tags

    def make(
        users: Mapping[str, int] = USERS,
        items: Mapping[str, int] = ITEMS,
        *,
        time: bool = True,
        domains: Mapping[str, str] | None = None,
    ) -> Schema:
        def column(name: str, rows: int, tags: list[Tags], **options: Any) -> ColumnSchema:
            domain = {"min": 0, "max": rows - 1, "name": (domains or {}).get(name, name)}
            return ColumnSchema(
                name,
                tags=[*tags, Tags.CATEGORICAL],
                dtype="int32",
                properties={"domain": domain},
                **options,
            )

        columns = []
        for name, rows in users.items():
            ids = [Tags.USER_ID, Tags.ID] if name == "user_id" else []
            columns.append(column(name, rows, [Tags.USER, *ids]))
        for number, (name, rows) in enumerate(items.items()):
            ids = [] if number else [Tags.ITEM_ID, Tags.ID]
            tags = [Tags.ITEM, Tags.SEQUENCE, Tags.LIST, *ids]
            columns.append(column(name, rows, tags, dims=(None, (0, None))))
        if time:
            tags = [Tags.TIME, Tags.SEQUENCE, Tags.LIST]
            columns.append(
                ColumnSchema("timestamp", tags=tags, dtype="int64", dims=(None, (0, None)))
            )
        return Schema(columns)

    return make


@pytest.fixture(scope="session")
def make_histories(make_schema: Callable[..., Schema]) -> Callable[..., Histories]:
    """Makes resident histories in memory: skewed popularity, one category an item."""
    from lookback.dataloading.histories.resident import Histories
    from lookback.dataloading.histories.splits import LeaveLastOut
    from lookback.formats.vocabulary import FIRST_KNOWN

    def make(
        lengths: Sequence[int] = (20, 7, 3, 3, 12),
        *,
        items: int = 40,
        categories: int = 6,
        validation: int = 0,
        times: bool = True,
        repeats: bool = True,
        seed: int = 0,
    ) -> Histories:
        rng = np.random.default_rng(seed)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        events = int(offsets[-1])
        item = (FIRST_KNOWN + rng.random(events) ** 2 * (items - FIRST_KNOWN)).astype(np.int32)
        if not repeats:  # nobody meets an item twice
            ids = np.arange(FIRST_KNOWN, items, dtype=np.int32)
            item = np.concatenate([rng.permutation(ids)[:length] for length in lengths])
        category_of = rng.integers(1, categories, items).astype(np.int32)
        distinct = np.unique(item)
        stamps = [np.sort(rng.integers(0, 10**9, length)) for length in lengths]
        users = {"user_id": len(lengths) + 1, "country": 4}
        return Histories(
            schema=make_schema(users, {"item_id": items, "category_id": categories}, time=times),
            user_features={
                "user_id": np.arange(1, len(lengths) + 1, dtype=np.int32),
                "country": rng.integers(1, 4, len(lengths)).astype(np.int32),
            },
            offsets=offsets,
            item_features={"item_id": item, "category_id": category_of[item]},
            timestamps=np.concatenate(stamps).astype(np.int64) if times else None,
            catalogue={"item_id": distinct, "category_id": category_of[distinct]},
            split=LeaveLastOut(validation=validation),
        )

    return make


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Path]:
    """Writes histories as a dataset directory, in the format that `python -m workflows` writes."""
    from lookback.formats.bags import write_bags
    from lookback.formats.dataset_info import (
        DATASET_FILE,
        EXPLICIT,
        HISTORIES,
        LABELS,
        VOCABULARIES,
        write_info,
    )
    from lookback.formats.histories import write_catalogue, write_histories
    from lookback.formats.schema import write_schema
    from tests.typed_data import write_impressions

    def write(
        histories: Histories,
        directory: Path,
        *,
        files: int = 2,
        row_group_users: int | None = None,
        info: dict[str, Any] | None = None,
    ) -> Path:
        events = {**histories.item_features, **histories.event_features}
        if histories.timestamps is not None:
            events["timestamp"] = histories.timestamps
        split, users = _split_of(histories)
        users |= histories.user_features
        write_histories(directory, users, histories.offsets, events, files, row_group_users)
        write_catalogue(directory, histories.catalogue)
        for name, bags in histories.bags.items():
            write_bags(directory, name, (bags > 0).sum(1), bags[bags > 0])
        for name, shown in (histories.impressions or {}).items():
            write_impressions(directory, name, shown)
        write_schema(histories.schema, directory)
        if info is None:
            # As a workflow would say what its ids stand for.
            vocabularies = dict.fromkeys(histories.catalogue, "0" * 64)
            content = {"content_hash": "sha256:0", "split": split, VOCABULARIES: vocabularies}
            if histories.impressions is not None:
                content[LABELS] = EXPLICIT
            write_info(directory, HISTORIES, content)
        else:
            (directory / DATASET_FILE).write_text(json.dumps(info))
        return directory

    return write


def _split_of(histories: Histories) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What dataset.json says of a split, and the columns of users that it needs."""
    from lookback.dataloading.histories.splits import ByTime, LeaveLastOut

    if isinstance(histories.split, LeaveLastOut):
        return {"rule": "leave_last_out", **dataclasses.asdict(histories.split)}, {}
    targets = histories.targets.items()
    counts = {name: int((ends - begins).sum()) for name, (begins, ends) in targets}
    del counts["train"]
    if isinstance(histories.split, ByTime):
        return {"rule": "time", **dataclasses.asdict(histories.split), **counts}, {}
    return {"rule": "users", **counts, "column": "split"}, {"split": histories.split.parts}


@pytest.fixture(scope="session")
def without_digests() -> Callable[[Path], Path]:
    """Makes a dataset one of an earlier version, whose damage its digests do not tell."""
    from lookback.core.manifests import DIGEST, FILES
    from lookback.formats.dataset_info import DATASET_FILE

    def strip(directory: Path) -> Path:
        info = json.loads((directory / DATASET_FILE).read_text())
        rest = {key: value for key, value in info.items() if key not in (FILES, DIGEST)}
        (directory / DATASET_FILE).write_text(json.dumps(rest))
        return directory

    return strip


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """Makes a random batch of the default schema for a model, with labels."""

    def make(
        lengths: Sequence[int],
        *,
        candidates: int = 2,
        slots: int = 9,
        long: int = 5,
        negatives: bool = True,
        time: bool = False,
        distinct: int | None = None,
        seed: int = 0,
    ) -> Batch:
        """Makes it.

        Args:
          lengths: events of each history.
          candidates: C.
          slots: T.
          long: slots of the long sequence.
          negatives: whether auxiliary negatives come along.
          time: whether time gaps come along.
          distinct: how many different items histories hold; few make ties.
          seed: of the numbers.
        """
        rng = np.random.default_rng(seed)
        batch = len(lengths)
        valid = np.arange(slots) >= slots - np.asarray(lengths)[:, np.newaxis]  # [B, T]
        features = {name: rng.integers(1, rows, batch) for name, rows in USERS.items()}
        category_of = rng.integers(1, ITEMS["category_id"], ITEMS["item_id"])
        item = rng.integers(1, ITEMS["item_id"], (batch, candidates))
        events = rng.integers(1, 1 + (distinct or ITEMS["item_id"] - 1), (batch, slots))
        drawn = rng.integers(1, ITEMS["item_id"], (batch, slots - long))
        for name, values in (
            ("item_id", (item, events, drawn)),
            ("category_id", [category_of[v] for v in (item, events, drawn)]),
        ):
            features[name] = values[0]
            features[f"{name}_history"] = values[1] * valid
            if negatives:
                features[f"{name}_negatives"] = values[2] * valid[:, long:]
        if time:
            features["time_gap_history"] = rng.integers(1, 34, (batch, slots)) * valid
        labels = np.zeros((batch, candidates), np.float32)
        labels[:, 0] = 1
        return {n: v.astype(np.int32) for n, v in features.items()}, labels

    return make


@pytest.fixture(scope="session")
def typed_schema() -> Schema:
    """The schema of a dataset with a category, a bag and a number of every role."""
    from tests import typed_data

    return typed_data.typed_schema()


@pytest.fixture(scope="session")
def make_typed_batch(typed_schema: Schema) -> Callable[..., Batch]:
    """Makes a random batch of `typed_schema`, as `make_batch` does."""
    from lookback.formats.features import HistoryFeatures, history_name, negatives_name
    from tests.typed_data import ROWS

    features = HistoryFeatures.from_schema(typed_schema)

    def make(
        lengths: Sequence[int],
        *,
        candidates: int = 2,
        slots: int = 9,
        long: int = 5,
        negatives: bool = True,
        time: bool = False,
        seed: int = 0,
    ) -> Batch:
        """Makes it; arguments as of `make_batch`."""
        rng = np.random.default_rng(seed)
        size = len(lengths)
        valid = np.arange(slots) >= slots - np.asarray(lengths, int)[:, np.newaxis]  # [B, T]
        batch: dict[str, np.ndarray] = {}

        def drawn(name: str, *shape: int) -> np.ndarray:
            if name in features.numbers:
                return rng.normal(size=shape).astype(np.float32)
            if name not in features.bags:
                return rng.integers(1, ROWS[name], shape).astype(np.int32)
            most = features.bags[name]
            ids = rng.random((*shape, ROWS[name] - 1)).argsort(-1)[..., :most] + 1
            kept = np.arange(most) < rng.integers(0, most + 1, (*shape, 1))
            return (np.sort(ids, -1) * kept).astype(np.int32)

        def in_slots(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
            return values * valid.reshape(*valid.shape, *[1] * (values.ndim - 2)).astype(
                values.dtype
            )

        for name in features.of("user", "context"):
            batch[name] = drawn(name, size)
        for name in features.of("item"):
            batch[name] = drawn(name, size, candidates)
            if negatives:
                values = drawn(name, size, slots - long)
                batch[negatives_name(name)] = in_slots(values, valid[:, long:])
        for name in features.of("item", "context", "event"):
            batch[history_name(name)] = in_slots(drawn(name, size, slots), valid)
        if time:
            gaps = rng.integers(1, 34, (size, slots)).astype(np.int32)
            batch[history_name("time_gap")] = in_slots(gaps, valid)
        labels = np.zeros((size, candidates), np.float32)
        labels[:, 0] = 1
        return batch, labels

    return make


@pytest.fixture
def precision() -> Iterator[Callable[[str], None]]:
    """Sets Keras' global precision policy for one test."""
    import tensorflow as tf

    before = tf.keras.mixed_precision.global_policy()
    yield tf.keras.mixed_precision.set_global_policy
    tf.keras.mixed_precision.set_global_policy(before)


class ThreadWorld:
    """A rank among several that are threads of this process: a `core.world.World`.

    What ranks say must be what the interface allows (JSON, arrays of one type), and all must call
    the same collective.
    """

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, slots: list[Any]) -> None:
        self.rank = self.local_rank = rank
        self.size = self.local_size = size
        self._barrier, self._slots = barrier, slots

    def gather(self, value: Any) -> list[Any]:
        return [json.loads(text) for text in self._told("gather", json.dumps(value))]

    def concatenate(self, rows: np.ndarray) -> np.ndarray:
        arrays = self._told("concatenate", rows)
        assert len({(array.dtype, array.shape[1:]) for array in arrays}) == 1
        return np.concatenate(arrays)

    def sum(self, tensors: Sequence[Any], wire_dtype: str = "float32") -> Sequence[Any]:
        import tensorflow as tf

        told = self._told(f"sum in {wire_dtype}", [tensor.numpy() for tensor in tensors])
        assert len({tuple((a.dtype, a.shape) for a in arrays) for arrays in told}) == 1
        return [tf.constant(np.sum(terms, 0, terms[0].dtype)) for terms in zip(*told, strict=True)]

    def sum_in_order(self, rows: Any) -> Any:
        import tensorflow as tf

        told = self._told("sum in order", rows.numpy())
        assert len({(array.dtype, array.shape) for array in told}) == 1
        total = np.zeros(told[0].shape[1], np.float32)
        for row in np.concatenate(told):
            total = total + row
        return tf.constant(total)

    def broadcast(self, variables: Sequence[Any]) -> None:
        told = self._told("broadcast", [variable.numpy() for variable in variables])
        for variable, value in zip(variables, told[0], strict=True):
            variable.assign(value)

    def together(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _told(self, what: str, value: Any) -> list[Any]:
        self._slots[self.rank] = (what, value)
        self._barrier.wait()
        told = list(self._slots)
        self._barrier.wait()
        assert {name for name, _ in told} == {what}, "ranks call different collectives"
        return [value for _, value in told]


@pytest.fixture(scope="session")
def in_ranks() -> Callable[[int, Callable[[Any], Any]], list[Any]]:
    """Runs `work(world)` on each of several ranks at once; gives what it returned, by rank.

    TensorFlow's graphs would not see the other threads: `eagerly` runs `tf.function`s without.
    """

    def run(ranks: int, work: Callable[[Any], Any]) -> list[Any]:
        barrier, slots = threading.Barrier(ranks, timeout=120), [None] * ranks

        def guarded(rank: int) -> Any:
            try:
                return work(ThreadWorld(rank, ranks, barrier, slots))
            except BaseException:
                barrier.abort()  # nobody waits for a rank that has failed
                raise

        with ThreadPoolExecutor(ranks) as pool:
            futures = [pool.submit(guarded, rank) for rank in range(ranks)]
        errors = [future.exception() for future in futures]
        causes = [e for e in errors if e and not isinstance(e, threading.BrokenBarrierError)]
        if causes:
            raise causes[0]
        return [future.result() for future in futures]

    return run


@pytest.fixture(scope="session")
def without_autograph() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """In its context, Keras traces without AutoGraph, as our own steps do.

    To convert what a model calls takes longer than all else of `fit` and `save`;
    models/blocks/test_layer_contract.py has every layer converted.
    """
    import tensorflow as tf
    import tensorflow.compat.v2 as as_keras_imports_it

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            plain = functools.partial(tf.function, autograph=False)
            patch.setattr(as_keras_imports_it, "function", plain)
            yield

    return context


@pytest.fixture(scope="session")
def running_eagerly() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """In its context, `tf.function`s run as plain Python: a few steps are no reason for a graph."""
    import tensorflow as tf

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(False)

    return context


@pytest.fixture
def eagerly(
    running_eagerly: Callable[[], contextlib.AbstractContextManager[None]],
) -> Iterator[None]:
    """`running_eagerly`, for one test."""
    with running_eagerly():
        yield

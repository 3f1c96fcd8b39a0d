"""What a job of offline scoring does: read rows, score them, part by part."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pyarrow as pa

from lookback.core.errors import UserError
from lookback.core.manifests import WHOLLY, Verification
from lookback.formats.histories import history_files
from lookback.formats.verification import dataset_digest, verify_dataset
from lookback.serving.bundle import Bundle
from lookback.serving.columns import CANDIDATES, RequestTable
from lookback.serving.layouts.candidates import CandidateRequestEncoder, StoredUsers
from lookback.serving.layouts.candidates_layout import CandidateRequestLayout
from lookback.serving.layouts.registry import LAYOUTS
from lookback.serving.offline.items import RankedItems, catalogue_of, items_of
from lookback.serving.offline.ranking import Asked, Counts, OfflineRanking
from lookback.serving.offline.rows import OfflineRows
from lookback.serving.offline.sources import ParquetRows, RowSource, open_rows
from lookback.serving.requests import RequestError

PAIRS_A_PART = 1 << 22
"""Pairs of user and item, about: what a kill costs, some minutes at most."""
ROWS_A_PART = 1 << 14
"""Rows at most, which are in memory at once: 100 events of 4 features each take 50 MB."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be scored, in words that another process understands.

    Attributes:
      bundle: directory of it.
      bundle_digest: that its bundle.json must have.
      input: requests, or rows; None: users of a dataset.
      dataset_dir: that dataset.
      candidates: items for all users; None: the whole catalogue, or each request's own.
      top_k: how many of them are kept; None: all.
      exclude_seen: whether what users have seen is left out.
      timestamp: the moment of requests of a dataset.
      verification: of the dataset.
    """

    bundle: Path
    bundle_digest: str
    input: Path | None = None
    dataset_dir: Path | None = None
    candidates: Path | None = None
    top_k: int | None = None
    exclude_seen: bool = False
    timestamp: int | None = None
    verification: Verification = WHOLLY

    def options(self) -> dict[str, Any]:
        """What the scores depend on beside the files."""
        return {name: getattr(self, name) for name in ("top_k", "exclude_seen", "timestamp")}


class Work:
    """A task, ready to be done: the bundle is loaded, its inputs are open.

    Args:
      task: to do.

    Raises:
      UserError: if the parts do not fit together; the text says what was expected.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._bundle = Bundle.load(task.bundle, task.bundle_digest)
        self._layout = LAYOUTS[self._bundle.manifest.layout]
        self._stored: StoredUsers | None = None
        self.items: RankedItems | None = None
        self._scorer: OfflineRanking | OfflineRows
        if isinstance(self._layout, CandidateRequestLayout):
            self._scorer = self._ranking(self._layout)
        else:
            self._scorer = self._rows()

    def notes(self) -> list[str]:
        """What one should know of the task before it is done, in lines."""
        lines = [f"score: the probability {self._layout.probability_of(self._bundle.manifest)}"]
        if self.items is not None and self.items.repeated:
            lines.append(
                f"--candidates: {self.items.repeated:,} items are there before; each counts once"
            )
        if self.items is not None and self.items.unknown:
            lines.append(
                f"--candidates: {self.items.unknown:,} of {len(self.items):,} items are unknown to "
                "the bundle; nothing but their other features tells them apart"
            )
        return lines

    @functools.cached_property
    def source(self) -> RowSource:
        """The rows."""
        if self._stored is None:
            assert self.task.input is not None
            return open_rows(self.task.input, "--input")
        assert self.task.dataset_dir is not None
        columns = list(dict.fromkeys(self._stored.columns.values()))
        return ParquetRows(history_files(self.task.dataset_dir), columns)

    def digests(self) -> dict[str, Any]:
        """Of all that is read; that of a dataset's description stands for its files."""
        found: dict[str, Any] = {"bundle": self.task.bundle_digest}
        if self.task.dataset_dir is not None:
            found["dataset"] = dataset_digest(self.task.dataset_dir)[1]
        else:
            found["input"] = self.source.digests()
        if self.task.candidates is not None:
            found["candidates"] = open_rows(self.task.candidates, "--candidates").digests()
        return found

    def parts(self) -> list[tuple[int, int]]:
        """Ranges of rows that are done one after another."""
        most = ROWS_A_PART
        if self.items is not None:
            most = max(1, min(most, PAIRS_A_PART // len(self.items)))
        return self.source.parts(most)

    def score(self, start: int, stop: int) -> tuple[pa.Table, Counts]:
        """Scores a range of rows; see `OfflineRanking.score`.

        Raises:
          UserError: naming the row that is wrong.
        """
        rows = self.source.read(start, stop)
        if isinstance(rows, pa.Table) and self._stored is None:
            encoder = self._bundle.encoder
            optional: tuple[str, ...] = ()
            if isinstance(encoder, CandidateRequestEncoder):
                optional = encoder.optional
            rows = RequestTable(rows, optional)
        try:
            return self._scorer.score(rows, start)
        except RequestError as error:
            where = self.source.where(start + error.index)
            raise UserError(f"{where}: {error.detail}") from error

    def _rows(self) -> OfflineRows:
        task = self.task
        given = {**task.options(), "dataset_dir": task.dataset_dir, "candidates": task.candidates}
        foreign = [f"--{name}" for name, value in given.items() if value not in (None, False)]
        if foreign:
            raise UserError(
                f"{', '.join(foreign)}: the model scores rows, each of which gets one score. Leave "
                "that out, and give rows (--input)."
            )
        return OfflineRows(self._bundle)

    def _ranking(self, layout: CandidateRequestLayout) -> OfflineRanking:
        task, encoder = self.task, self._bundle.encoder
        assert isinstance(encoder, CandidateRequestEncoder)
        if task.dataset_dir is not None:
            verify_dataset(task.dataset_dir, task.verification)
            self._stored = layout.stored_users(
                self._bundle.manifest, encoder, task.bundle, task.dataset_dir, task.timestamp
            )
            if task.timestamp is not None and self._stored.moment is None:
                raise UserError("--timestamp: the model reads no times. Leave it out.")
        elif task.timestamp is not None:
            raise UserError("--timestamp: requests (--input) have their own. Leave it out.")
        own = self._stored is None and CANDIDATES in self.source.fields()
        if own and task.candidates is not None:
            raise UserError(
                f"--candidates: the rows of {task.input} name candidates of their own. Leave one "
                "of them out."
            )
        if task.candidates is not None:
            self.items = _listed(encoder, task.candidates)
        elif not own:
            if task.top_k is None:
                raise UserError(
                    "--top_k: expected how many of all items to keep for each user, received none, "
                    "and neither does the input name candidates nor --candidates. Give one of them."
                )
            self.items = catalogue_of(encoder)
        asked = Asked(self.items, task.top_k, task.exclude_seen)
        return OfflineRanking(self._bundle, asked, self._stored)


def _listed(encoder: CandidateRequestEncoder, path: Path) -> RankedItems:
    rows = open_rows(path, "--candidates")
    try:
        return items_of(encoder, rows.read(0, rows.total))
    except RequestError as error:
        raise UserError(f"{rows.where(error.index)}: {error.detail}") from error

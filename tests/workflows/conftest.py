from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        directory = SHARED_DATA / name
        if not directory.is_dir():
            pytest.skip(f"{name} is not beside this checkout (scripts/download_*.sh fetch it)")
        return directory

    return find


@pytest.fixture
def make_events() -> Callable[..., pd.DataFrame]:
    """Random events, with ties in time and users of all lengths."""

    def make(users: int = 60, items: int = 40, events: int = 1500, seed: int = 0) -> pd.DataFrame:
        random = np.random.default_rng(seed)
        user = (random.random(events) ** 2 * users).astype(int)
        item = (random.random(events) ** 2 * items).astype(int)
        return pd.DataFrame(
            {
                "user": [f"U{number:03d}" for number in user],
                "item": [f"B{number * 7919 % 1000:03d}" for number in item],
                "time": 1_399_939_200 + random.integers(0, 50, events) * 86_400,
            }
        )

    return make


@pytest.fixture
def write_reviews(tmp_path: Path) -> Callable[..., Path]:
    """Writes events (and categories of items) as Amazon files; gives their directory."""

    def write(
        events: pd.DataFrame,
        categories: dict[str, str] | None = None,
        directory: Path | None = None,
    ) -> Path:
        directory = tmp_path / "raw" if directory is None else directory
        directory.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps(
                {"reviewerID": user, "asin": item, "reviewText": "Grüße", "unixReviewTime": time},
                ensure_ascii=False,
            )
            for user, item, time in events[["user", "item", "time"]].itertuples(index=False)
        ]
        (directory / "reviews_Test.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if categories is not None:
            lines = [
                json.dumps({"asin": item, "categories": [["Test", category], ["Other"]]})
                for item, category in categories.items()
            ]
            (directory / "meta_Test.json").write_text("\n".join(lines) + "\n")
        return directory

    return write

"""A log of rows with labels, and its description of layout tabular."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

START = 1_500_000_000
ROWS = 400
YAML = """\
version: 1
layout: tabular
events:
  files: ["rows-*.{ending}"]
  user: who
  item: what
  time: ts
  label: {{column: clicked, positive: ["yes"]}}
  where: [{{column: device, not_in: [bot]}}]
  features:
    device: {{type: category, min_count: 30}}
    dwell: {{type: number, log: true}}
    level: {{type: buckets, column: dwell, boundaries: [0, 1]}}
    ad: {{type: hash, buckets: 16}}
items:
  files: items.csv
  key: what
  features:
    kind: {{type: category}}
    price: {{type: number, fill: 5, clip: [0, 30], standardise: false}}
split: {split}
workers: 0
"""
BY_TIME = f"{{by: time, validation_from: {START + 300}, test_from: {START + 350}}}"


def write_rows(directory: Path) -> pd.DataFrame:
    """Rows in two files each of CSV, JSON lines and parquet, and items; gives all rows joined."""
    random = np.random.default_rng(0)
    directory.mkdir()
    devices = random.choice(["phone", "pc", "tv", "bot", None], ROWS, p=[0.4, 0.3, 0.05, 0.1, 0.15])
    frame = pd.DataFrame(
        {
            "who": [f"u{n}" for n in random.integers(0, 20, ROWS)],
            "what": random.integers(1, 40, ROWS),
            "ts": START + np.arange(ROWS),
            "clicked": random.choice(["yes", "no"], ROWS),
            "device": devices,
            "dwell": np.where(random.random(ROWS) < 0.2, np.nan, random.normal(size=ROWS).round(3)),
            "ad": [f"ad{n}" for n in random.integers(0, 100, ROWS)],
        }
    )
    items = pd.DataFrame({"what": range(1, 38), "kind": [f"k{n % 4}" for n in range(37)]})
    items["price"] = items["what"] * 1.5
    items.to_csv(directory / "items.csv", index=False)
    for number, part in enumerate((frame[:150], frame[150:])):
        part.to_csv(directory / f"rows-{number}.csv", index=False)
        part.to_parquet(directory / f"rows-{number}.parquet")
        part.to_json(directory / f"rows-{number}.jsonl", orient="records", lines=True)
    return frame[frame["device"] != "bot"].merge(items, on="what", how="left")

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from lookback.core.errors import UserError
from lookback.workflows.commands import PROGRAM
from lookback.workflows.generators import synthetic_criteo
from lookback.workflows.generators.criteo_tables import ROWS
from lookback.workflows.generators.synthetic_criteo import (
    SyntheticCriteoConfig,
    drawn_auc,
    expected_auc,
    generate_criteo,
    scaled,
)
from lookback.workflows.generators.synthetic_criteo_law import (
    CriteoLaw,
    CriteoLawConfig,
    PowerLaw,
    sigmoid,
)
from lookback.workflows.generators.synthetic_criteo_text import hexadecimal, lines

LAW = CriteoLawConfig((500, 40, 4, 2, 90_000), numerical=3, signal_ids=20, interacting_fields=3)
SMALL = SyntheticCriteoConfig(LAW, rows=3_001, days=3)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of SMALL is then of three blocks."""
    monkeypatch.setattr(synthetic_criteo, "BLOCK_ROWS", 400)


def digests(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def read_text(directory: Path, config: SyntheticCriteoConfig) -> pd.DataFrame:
    names = ["label", *(f"num_{n}" for n in range(config.law.numerical))]
    names += [f"cat_{n}" for n in range(len(config.law.cardinalities))]
    return pd.concat(
        pd.read_csv(
            directory / f"day_{day}", sep="\t", header=None, names=names, dtype=str, na_values=[""]
        )
        for day in range(config.days)
    )


def read_parquet(directory: Path) -> pd.DataFrame:
    splits = ("train", "validation", "test")
    return pd.concat(pq.ParquetDataset(directory / split).read().to_pandas() for split in splits)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1.05, 3.0])
def test_power_law_draws_by_the_inverse_of_its_cumulative_probability(exponent: float) -> None:
    law = PowerLaw(1000, exponent)
    probability = np.diff(law.cumulative(np.arange(1001)))
    assert law.cumulative([0, 1000]) == pytest.approx([0, 1])
    # The integral of t^-a over each value's interval, by the trapezoidal rule.
    t = np.linspace(1, 1001, 1_000_001)
    density = t**-exponent
    area = (0.5 * (density[1:] + density[:-1])).reshape(1000, -1).sum(1)
    assert probability == pytest.approx(area / area.sum(), rel=1e-4)
    uniform = np.linspace(0, 1, 5001, endpoint=False) + 1e-7
    drawn = law.draw(uniform)
    assert (law.cumulative(drawn) <= uniform + 1e-12).all()
    assert (uniform <= law.cumulative(drawn + 1) + 1e-12).all()


def test_ids_and_numbers_are_distributed_as_the_law_says() -> None:
    law = CriteoLaw(LAW)
    n = 200_000
    rows = law.draw(0, 0, n)
    for field, cardinality in enumerate(LAW.cardinalities):
        missing = law.missing[LAW.numerical + field]
        known = np.diff(law.powers[field].cumulative(np.arange(cardinality)))
        probability = np.concatenate([[missing], (1 - missing) * known])
        counts = np.bincount(rows.ids[field], minlength=cardinality)
        assert len(counts) == cardinality
        frequent = np.flatnonzero(probability * n > 20)[:200]
        expected = probability[frequent] * n
        z = (counts[frequent] - expected) / np.sqrt(expected * (1 - probability[frequent]))
        assert np.abs(z).max() < 5, field
    assert law.missing.max() < 2 * LAW.missing
    for number in range(LAW.numerical):
        share = rows.absent[number].mean()
        assert share == pytest.approx(law.missing[number], abs=5 * (0.1 / n) ** 0.5)
        present = rows.numbers[number][~rows.absent[number]]
        assert present.min() >= -1
        assert (rows.numbers[number][rows.absent[number]] == 0).all()
        # floor(exp(mu + sigma z)) - 1 is at most its median where z <= 0.
        median = np.floor(np.exp(law.mu[number])) - 1
        assert (present <= median).mean() >= 0.5
        assert (present < median).mean() <= 0.5


def test_clicks_follow_their_probability() -> None:
    for rate in (0.03, 0.25):
        law = CriteoLaw(dataclasses.replace(LAW, click_rate=rate))
        rows = law.draw(1, 7, 200_000)
        p = sigmoid(rows.logit)
        assert p.mean() == pytest.approx(rate, abs=5e-3)
        error = np.sqrt((p * (1 - p)).sum())
        assert abs(rows.label.sum() - p.sum()) < 5 * error
        # Calibrated in each tenth, too.
        order = np.argsort(p).reshape(10, -1)
        for part in order:
            error = np.sqrt((p[part] * (1 - p[part])).sum())
            assert abs(rows.label[part].sum() - p[part].sum()) < 5 * error


def test_the_logit_is_the_sum_of_its_parts() -> None:
    law = CriteoLaw(LAW)
    rows = law.draw(0, 3, 2_000)
    assert law.interacting == [0, 1, 4]  # the fields with the largest heads
    head = [min(LAW.signal_ids, cardinality - 1) for cardinality in LAW.cardinalities]
    numerical = np.zeros(2_000)
    for number in range(LAW.numerical):
        z = (np.log(rows.numbers[number] + 2.0) - law.mu[number]) / law.sigma[number]
        g = np.tanh(z) if number % 2 == 0 else np.exp(-z * z / 2)
        numerical += law.weights[number] * g
    effects, products = np.zeros(2_000), np.zeros(2_000)
    for row in range(2_000):
        vectors = []
        for field, identity in enumerate(rows.ids[:, row]):
            carries = 1 <= identity <= head[field]
            effects[row] += law.effects[field][identity] if carries else 0.0
            if carries and field in law.interacting:
                vectors.append(law.vectors[field][:, identity])
        products[row] = sum(a @ b for i, a in enumerate(vectors) for b in vectors[:i])
    scales = law.scales
    logit = law.bias + scales @ np.stack([numerical, effects, products])
    np.testing.assert_allclose(rows.logit, logit, atol=1e-9)
    np.testing.assert_allclose(rows.interaction, scales[2] * products, atol=1e-9)


def test_each_part_has_its_strength() -> None:
    config = dataclasses.replace(
        LAW, numerical_strength=0.3, categorical_strength=0.0, interaction_strength=0.8
    )
    rows = CriteoLaw(config).draw(0, 0, 100_000)
    assert rows.interaction.std() == pytest.approx(0.8, rel=0.05)
    assert (rows.logit - rows.interaction).std() == pytest.approx(0.3, rel=0.05)


def test_aucs_are_those_of_scikit_learn_and_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=400), 1)  # with ties
    p = sigmoid(scores - 1)
    label = rng.random(400) < p
    value, error = drawn_auc(scores, label)
    assert value == pytest.approx(roc_auc_score(label, scores))
    wins = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
    pairs = wins[np.ix_(label, ~label)]
    by_positive, by_negative = pairs.mean(1), pairs.mean(0)
    variance = by_positive.var(ddof=1) / label.sum() + by_negative.var(ddof=1) / (~label).sum()
    assert error == pytest.approx(variance**0.5)
    weight = np.outer(p, 1 - p) * ~np.eye(400, dtype=bool)
    assert expected_auc(scores, p) == pytest.approx((weight * wins).sum() / weight.sum())
    draws = [drawn_auc(scores, rng.random(400) < p)[0] for _ in range(300)]
    assert np.mean(draws) == pytest.approx(expected_auc(scores, p), abs=5 * 0.03 / 300**0.5)
    assert drawn_auc(scores, np.zeros(400, bool)) == (None, None)


def test_the_oracle_is_the_auc_of_the_true_probabilities(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, rows=30_000)
    report = generate_criteo(config, tmp_path / "raw")
    assert json.loads((tmp_path / "raw/oracle.json").read_text()) == json.loads(json.dumps(report))
    rows = CriteoLaw(LAW).draw(2, 0, 10_000)
    p, half = sigmoid(rows.logit), 5_000
    assert report["counts"] == {"train": 20_000, "validation": half, "test": half}
    written = read_text(tmp_path / "raw", config)
    assert report["click_rate"] == pytest.approx((written["label"] == "1").mean())
    for split, part in (("validation", slice(half)), ("test", slice(half, None))):
        auc = report["bayes_auc"][split]
        label = written["label"][20_000:][part] == "1"
        assert auc["drawn"] == pytest.approx(roc_auc_score(label, p[part]))
        assert abs(auc["drawn"] - auc["expected"]) < 4 * auc["standard_error"]
        # Each row as a click of weight p and as none of weight 1 - p.
        twice = np.concatenate([p[part], p[part]])
        weighted = roc_auc_score(
            np.repeat([1, 0], half), twice, sample_weight=np.concatenate([p[part], 1 - p[part]])
        )
        assert auc["expected"] == pytest.approx(weighted, abs=1e-4)
        assert auc["expected"] - auc["without_interactions"] > 0.005


def test_raw_files_have_criteos_format(tmp_path: Path, small_blocks: None) -> None:
    generate_criteo(SMALL, tmp_path / "raw")
    names = {path.name for path in (tmp_path / "raw").iterdir()}
    assert names == {".lookback.json", "day_0", "day_1", "day_2", "oracle.json"}
    fields = r"[01](\t(-1|0|[1-9]\d{0,6})?){3}(\t([0-9a-f]{8})?){5}\n"
    total = 0
    for day in range(3):
        text = (tmp_path / "raw" / f"day_{day}").read_text()
        assert re.fullmatch(f"({fields})+", text)
        total += text.count("\n")
    assert total == 3_001


def test_lines_are_those_that_formatting_gives() -> None:
    law = CriteoLaw(dataclasses.replace(LAW, missing=0.4))
    rows = law.draw(0, 0, 9_000)  # more than are formatted at a time
    rows.numbers[0, :8] = [-1, 0, 1, 9, 10, 99_999, 9_999_999, 1_000_000]
    rows.absent[0, :8] = False
    expected = []
    for row in range(9_000):
        numbers = [
            "" if absent else str(number)
            for number, absent in zip(rows.numbers[:, row], rows.absent[:, row], strict=True)
        ]
        ids = [
            "" if identity == 0 else f"{hexadecimal(field, np.array([identity - 1]))[0]:08x}"
            for field, identity in enumerate(rows.ids[:, row])
        ]
        expected.append("\t".join([str(int(rows.label[row])), *numbers, *ids]) + "\n")
    assert lines(rows).decode().splitlines(True) == expected


def test_values_have_hexadecimal_names_of_their_own() -> None:
    values = np.arange(1_000_000)
    first, second = (hexadecimal(field, values) for field in (0, 1))
    assert len(np.unique(first)) == len(np.unique(second)) == len(values)
    assert len(np.intersect1d(first, second)) < 500  # of 2^32: 233 are expected to meet


def test_raw_files_and_dataset_have_the_same_rows(tmp_path: Path, small_blocks: None) -> None:
    text_report = generate_criteo(SMALL, tmp_path / "raw")
    report = generate_criteo(SMALL, tmp_path / "dataset", format="parquet")
    assert report == text_report
    text, table = read_text(tmp_path / "raw", SMALL), read_parquet(tmp_path / "dataset")
    assert list(text.columns) == list(table.columns)
    np.testing.assert_array_equal(text["label"].astype(np.float32), table["label"])
    for number in range(3):
        values = text[f"num_{number}"].fillna("0").astype(float)
        expected = np.log(np.maximum(values + 2, 1)).astype(np.float32)
        np.testing.assert_array_equal(expected, table[f"num_{number}"])
    for field, cardinality in enumerate(LAW.cardinalities):
        codes = hexadecimal(field, np.arange(cardinality - 1))
        ids = pd.Series(np.arange(1, cardinality), [f"{code:08x}" for code in codes])
        found = text[f"cat_{field}"].map(ids).fillna(0).astype(np.int32)
        np.testing.assert_array_equal(found, table[f"cat_{field}"])


def test_the_dataset_describes_itself(tmp_path: Path) -> None:
    report = generate_criteo(SMALL, tmp_path / "dataset", format="parquet")
    found = json.loads((tmp_path / "dataset/dataset.json").read_text())
    assert found["format"] == "lookback-tabular"
    assert found["cardinalities"] == {f"cat_{n}": rows for n, rows in enumerate(LAW.cardinalities)}
    assert found["counts"] == {**SMALL.counts, "bayes_auc": report["bayes_auc"]}
    for split, rows in SMALL.counts.items():
        assert pq.ParquetDataset(tmp_path / "dataset" / split).read().num_rows == rows
    # A day of 1,001 rows: the first half, rounded down, is for validation.
    assert SMALL.counts == {"train": 2_000, "validation": 500, "test": 501}
    assert (tmp_path / "dataset/schema.pbtxt").exists()
    assert (tmp_path / "dataset/oracle.json").exists()


@pytest.mark.parametrize("format", ["tsv", "parquet"])
def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(
    tmp_path: Path, format: str, small_blocks: None
) -> None:
    for threads in (1, 3):
        generate_criteo(SMALL, tmp_path / str(threads), format=format, threads=threads)
    assert digests(tmp_path / "1") == digests(tmp_path / "3")
    law = dataclasses.replace(LAW, seed=1)
    generate_criteo(dataclasses.replace(SMALL, law=law), tmp_path / "other", format=format)
    one, other = digests(tmp_path / "1"), digests(tmp_path / "other")
    same = {name for name in one if other.get(name) == one[name]}
    assert same <= {".lookback.json", "schema.pbtxt"}


def test_a_block_does_not_depend_on_the_blocks_before_it() -> None:
    law = CriteoLaw(LAW)
    first = law.draw(1, 2, 100)
    law.draw(0, 0, 50)
    again = CriteoLaw(LAW).draw(1, 2, 100)
    for name, values in vars(first).items():
        np.testing.assert_array_equal(values, getattr(again, name))
    assert (law.draw(1, 3, 100).ids != first.ids).any()
    assert (law.draw(2, 2, 100).ids != first.ids).any()


def test_compressed_files_hold_the_same_lines(tmp_path: Path, small_blocks: None) -> None:
    generate_criteo(SMALL, tmp_path / "plain")
    generate_criteo(SMALL, tmp_path / "packed", compress=True)
    for day in range(3):
        packed = gzip.decompress((tmp_path / f"packed/day_{day}.gz").read_bytes())
        assert packed == (tmp_path / f"plain/day_{day}").read_bytes()


def test_a_model_of_effects_reaches_what_effects_can_reach(tmp_path: Path) -> None:
    law = CriteoLawConfig(
        (30, 20, 4, 12), numerical=1, numerical_strength=0, interaction_strength=0.8,
        categorical_strength=1.0, interacting_fields=2,
    )  # fmt: skip
    config = SyntheticCriteoConfig(law, rows=60_000, days=2)
    auc = generate_criteo(config, tmp_path / "dataset", format="parquet")["bayes_auc"]["test"]
    parts = {
        split: pq.ParquetDataset(tmp_path / "dataset" / split).read().to_pandas()
        for split in ("train", "test")
    }
    fields = [f"cat_{n}" for n in range(4)]
    encoder = OneHotEncoder(handle_unknown="ignore").fit(parts["train"][fields])
    model = LogisticRegression(max_iter=300)
    model.fit(encoder.transform(parts["train"][fields]), parts["train"]["label"])
    scores = model.decision_function(encoder.transform(parts["test"][fields]))
    reached = roc_auc_score(parts["test"]["label"], scores)
    # Learned main effects take some of the interaction in, so a little more is possible.
    assert auc["without_interactions"] - 0.02 < reached < auc["drawn"] - 0.01


def test_table_sizes_scale() -> None:
    assert len(ROWS["t15"]) == len(ROWS["t3"]) == len(ROWS["t0"]) == 26
    small = scaled(ROWS["t15"], 0.01)
    assert (small[0], small[1], small[5], small[8]) == (79129, 338, 4, 4)
    assert scaled((2, 100), 0.001) == (2, 4)
    assert scaled((2, 100), 2) == (4, 200)
    with pytest.raises(UserError, match="scale must be above 0, received 0"):
        scaled((3,), 0)


def _generate(output: Path, *arguments: str) -> int:
    return PROGRAM.main(["generate", "--dataset", "criteo", "--output", str(output), *arguments])


def test_the_command_line_writes_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--variant", "custom", "--cardinalities", "400,30", "--scale", "0.5", "--rows", "900")
    more = ("--numerical", "2", "--exponents", "1.2,0.5", "--days", "2", "--click_rate", "0.1")
    assert _generate(tmp_path / "raw", *sizes, *more) == 0
    report = json.loads((tmp_path / "raw/oracle.json").read_text())
    assert report["config"]["law"]["cardinalities"] == [200, 15]
    assert report["config"]["law"]["exponents"] == [1.2, 0.5]
    assert "450 train, 225 validation, 225 test" in capsys.readouterr().out
    line = (tmp_path / "raw/day_1").read_text().splitlines()[0]
    assert line.count("\t") == 4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--variant", "custom"), "--cardinalities and --variant custom go together"),
        (("--cardinalities", "5,6"), "--cardinalities and --variant custom go together"),
        (("--scale", "-1"), "--scale: expected a number, above 0, received -1"),
        (("--days", "1"), "--days: expected an integer, 2 or more, received 1"),
        (("--days", "10001"), "days must be from 2 to 10,000, received 10001"),
        (("--rows", "7"), "rows must be at least two a day, 48, received 7"),
        (("--click_rate", "1"), "--click_rate: expected a number, above 0 and below 1, received 1"),
        (("--exponents", "1,2"), "exponents must be one number, or one for each of 26 fields"),
        (("--exponents", "many"), "--exponents: expected a number, or several"),
        (("--missing", "0.5"), "--missing: expected a number, 0 or more and below 0.5"),
        (("--threads", "0"), "--threads: expected an integer, 1 or more, or none, received 0"),
        (
            ("--format", "parquet", "--gzip"),
            "gzip: expected with --format tsv, received it with --format parquet",
        ),
        (("--variant", "custom", "--cardinalities", "5,1"), "2 or more and 2147483647 or less"),
    ],
)
def test_what_cannot_be_met_is_said(
    arguments: tuple[str, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _generate(tmp_path / "raw", *arguments) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()

"""Encoding of raw rows against the workflow that was saved, and against arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow as pa
import pytest

from lookback.core.errors import UserError
from lookback.formats.vocabulary import key_of
from lookback.serving.layouts.tabular.encoding import (
    EncodedNumbers,
    KeyVocabulary,
    ShiftedLogEncoder,
)
from lookback.workflows.tabular.ops import keys_of_column
from tests.serving.tabular_data import raw_rows, write_dataset

WORDS = ["", "0", "68fd1e64", "68FD1E64", "68fd1e6g", "68fd1e6", "größe 7", "a\tb", "x" * 1000]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("text"), text=True)


def write_vocabulary(path: Path, keys: pa.Array, ids: pa.Array) -> Path:
    table = pa.table({"key": keys, "id": ids, "count": np.ones(len(ids), np.int64)})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return path


def test_keys_are_the_workflows() -> None:
    expected = keys_of_column(pd.Series(WORDS))
    assert [key_of(word) for word in WORDS] == expected.tolist()
    assert key_of(None) == -1
    assert key_of("00000010") == 16
    assert all(key_of(word) >= 1 << 62 for word in WORDS[3:])


def test_rows_are_encoded_as_the_saved_workflow_encodes_them(dataset: Path) -> None:
    rows = [*raw_rows(text=True), *raw_rows(text=True, seed=1)]  # the latter with unknown values
    numbers = pd.DataFrame([row[1] for row in rows], columns=["num_0", "num_1", "num_2"])
    values = pd.DataFrame([row[2] for row in rows], columns=["cat_0", "cat_1", "cat_2"])
    workflow = nvt.Workflow.load(str(dataset / "workflow")).remove_inputs(["label"])
    frame = pd.concat([numbers.astype(float), values.astype(object)], axis=1)
    expected = workflow.transform(nvt.Dataset(frame)).compute()
    for number, name in enumerate(numbers):
        found = ShiftedLogEncoder().encode([row[1][number] for row in rows])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[name].to_numpy())
    for number, name in enumerate(values):
        vocabulary = KeyVocabulary.read(dataset / "workflow" / "vocabulary" / f"{name}.arrow")
        found = vocabulary.encode([row[2][number] for row in rows])
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected[name].to_numpy())
        assert 0 < (found == 0).mean() < 0.9


def test_numbers_are_shifted_logarithms() -> None:
    found = ShiftedLogEncoder().encode([None, 0, -1, -2, -100, 1.5, 10**15])
    expected = np.log([2, 2, 1, 1, 1, 3.5, 1e15 + 2]).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


def test_numbers_are_recovered() -> None:
    random = np.random.default_rng(0)
    raw = [-1, 0, 1, 2, 999_999, *random.integers(0, 10**8, 200).tolist()]
    logs = ShiftedLogEncoder().encode(raw)
    decoded = ShiftedLogEncoder().decode(logs)
    assert decoded[:5] == raw[:5] and all(isinstance(value, int) for value in decoded)
    np.testing.assert_array_equal(ShiftedLogEncoder().encode(decoded), logs)
    (fraction,) = ShiftedLogEncoder().decode(ShiftedLogEncoder().encode([0.25]))
    assert fraction == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("wrong", ["3", True, [1], float("nan"), float("inf"), 10**400])
def test_what_is_no_number_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="expected a finite number or null, received"):
        ShiftedLogEncoder().encode([1, wrong])
    with pytest.raises(ValueError, match=r"expected a finite float32 \(the bundle was exported"):
        EncodedNumbers().encode([1, wrong])


def test_encoded_numbers_are_float32_and_never_null() -> None:
    np.testing.assert_array_equal(EncodedNumbers().encode([1, 2.5]), np.float32([1, 2.5]))
    for wrong in (None, 1e39):
        with pytest.raises(ValueError, match="expected a finite float32"):
            EncodedNumbers().encode([wrong])


def test_known_values_are_decoded_and_hashes_are_not(tmp_path: Path) -> None:
    keys = sorted(["0000000a", "ffffffff", "größe 1"], key=key_of)
    path = write_vocabulary(
        tmp_path / "a.arrow", pa.array(map(key_of, keys)), pa.array([3, 1, 2], pa.int32())
    )
    vocabulary = KeyVocabulary.read(path)
    assert len(vocabulary) == 3
    asked = ["ffffffff", "größe 1", "0000000a", "größe 2", None, ""]
    assert vocabulary.encode(asked).tolist() == [1, 2, 3, 0, 0, 0]
    assert vocabulary.decode([3, 0, 1]) == ["0000000a", None, "ffffffff"]
    with pytest.raises(ValueError, match="holds a hash for id 2"):
        vocabulary.decode([2])
    for wrong in (7, 1.5, True, ["a"]):
        with pytest.raises(ValueError, match="expected a string or null, received"):
            vocabulary.encode(["0000000a", wrong])
    with pytest.raises(ValueError, match="surrogates not allowed"):
        vocabulary.encode(["\ud800"])


def test_an_empty_vocabulary_knows_nothing(tmp_path: Path) -> None:
    empty = write_vocabulary(
        tmp_path / "a.arrow", pa.array([], pa.uint32()), pa.array([], pa.int32())
    )
    assert KeyVocabulary.read(empty).encode(["0000000a", None]).tolist() == [0, 0]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cat_0.arrow"
    with pytest.raises(UserError, match="does not hold the known values"):
        KeyVocabulary.read(path)
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="does not hold the known values"):
        KeyVocabulary.read(path)
    write_vocabulary(path, pa.array([1.0, 2.0]), pa.array([1, 2], pa.int32()))
    with pytest.raises(UserError, match="expected keys uint32 or int64"):
        KeyVocabulary.read(path)

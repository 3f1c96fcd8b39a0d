"""Raw numbers and categorical values to a model's inputs, as the tabular workflow encodes them.

The workflow itself needs NVTabular and compiled loops; what is here reads the files it saves
(``workflow/vocabulary/NAME.arrow``) and gives the same rows (a test holds them equal).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookback.formats.numbers import shifted_log, unshifted
from lookback.formats.vocabulary import HASHED, HEX_DIGITS, UNKNOWN, key_of, read_keys
from lookback.serving.encoding import Int32, excerpt, finite_numbers

Float32 = npt.NDArray[np.float32]


class ShiftedLogEncoder:
    """Raw numbers: x -> ln(max(x + 2, 1)), a missing x counting as 0."""

    def encode(self, values: Sequence[Any]) -> Float32:
        """Encodes numbers, None for missing ``[n]``.

        Raises:
          ValueError: if they are not finite numbers.
        """
        return shifted_log(finite_numbers(values, "a finite number or null", missing=0.0))

    def decode(self, values: npt.ArrayLike) -> list[int | float]:
        """Numbers ``[n]`` that encode to `values`; whole ones where there are such."""
        logs = np.asarray(values, np.float32)
        exact = unshifted(logs)
        whole = np.round(exact)
        same = self.encode(whole.tolist()) == logs
        return [int(n) if s else x for n, s, x in zip(whole, same, exact.tolist(), strict=True)]


class EncodedNumbers:
    """Numbers that come as the model reads them: only checked."""

    def encode(self, values: Sequence[Any]) -> Float32:
        """The numbers ``[n]`` themselves.

        Raises:
          ValueError: if they are not numbers that float32 holds. None is refused, too: what stands
            for a missing number is the workflow's to say, and the bundle has none.
        """
        expected = "a finite float32 (the bundle was exported without a workflow)"
        numbers = finite_numbers(values, expected)
        with np.errstate(over="ignore"):
            encoded = numbers.astype(np.float32)
        if not np.isfinite(encoded).all():
            raise ValueError(f"expected {expected}, received {excerpt(values)}")
        return encoded


class KeyVocabulary:
    """The values that a tabular workflow knows of one feature.

    Args:
      keys: ``[K]``, ascending.
      ids: int32 ``[K]``, a permutation of 1 to K.
    """

    def __init__(self, keys: npt.NDArray[Any], ids: Int32) -> None:
        self._keys = keys
        self._ids = ids

    def __len__(self) -> int:
        return len(self._keys)

    @classmethod
    def read(cls, path: Path) -> KeyVocabulary:
        """Maps a file that the workflow saved; it is read as far as it is asked for.

        Raises:
          UserError: if the file is not as expected.
        """
        known = read_keys(path)
        return cls(known.keys, known.ids)

    def encode(self, ids: Sequence[Any]) -> Int32:
        """Encodes raw values, None or "" for missing ``[n]``; unknown ones are `UNKNOWN`.

        Raises:
          ValueError: if they are not strings.
        """
        if isinstance(ids, pa.Array):
            distinct = ids.dictionary_encode("encode")
            encoded = self.encode(distinct.dictionary.to_pylist())
            return encoded[distinct.indices.to_numpy(zero_copy_only=False)]
        if not all(value is None or isinstance(value, str) for value in ids):
            raise ValueError(f"expected a string or null, received {excerpt(ids)}")
        encoded = np.full(len(ids), UNKNOWN, np.int32)
        if not len(self):
            return encoded
        keys = np.fromiter(map(key_of, ids), np.int64, len(ids))
        inside = (keys >= int(self._keys[0])) & (keys <= int(self._keys[-1]))
        # In the vocabulary's own type: otherwise NumPy would convert all of it.
        wanted = keys[inside].astype(self._keys.dtype)
        places = np.searchsorted(self._keys, wanted)
        encoded[inside] = np.where(self._keys[places] == wanted, self._ids[places], UNKNOWN)
        return encoded

    def decode(self, ids: npt.ArrayLike) -> list[str | None]:
        """Raw values of ids ``[n]``; None for `UNKNOWN`.

        Raises:
          ValueError: if the file holds only the hash of one.
        """
        values: list[str | None] = []
        for i in np.asarray(ids).tolist():
            if i == UNKNOWN:
                values.append(None)
                continue
            key = int(self._keys[self._places[i - 1]])
            if key >= HASHED:
                raise ValueError(
                    f"the vocabulary holds a hash for id {i}: its value is not {HEX_DIGITS} "
                    "hexadecimal digits"
                )
            values.append(f"{key:0{HEX_DIGITS}x}")
        return values

    @functools.cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        """Where the key of each id stands, from id 1 on."""
        return np.argsort(self._ids)

"""Raw values of typed features to what a model reads, and back.

Transformations are those of `formats.transforms`, which prepared the data; what is here checks what
requests bring, and finds raw values for samples of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookback.formats.bags import padded, read_bags
from lookback.formats.transforms import (
    Bag,
    Buckets,
    Hashed,
    Number,
    Transform,
    Vocabulary,
    transform_of,
)
from lookback.formats.vocabulary import FIRST_KNOWN, NULL, PADDING
from lookback.serving.encoding import Int32, VocabularyEncoder, excerpt, finite_numbers
from lookback.serving.manifest import HistoriesManifest, TabularManifest

_TRIES = 1 << 22
"""Numbers of which one is looked for that falls into a bucket of a hash: each is hit by this many
but for one bucket in 10^18 where there are 100,000 of them."""


class FeatureEncoder(Protocol):
    """Turns values of one feature, as requests give them, into what the model reads, and back."""

    def encode(self, values: Sequence[Any]) -> npt.NDArray[Any]:
        """Encodes values ``[N]``: ids ``[N]`` (int32), bags ``[N, M]``, or numbers (float32).

        Raises:
          ValueError: saying what is wrong with them.
        """

    def decode(self, encoded: npt.NDArray[Any]) -> list[Any]:
        """Values ``[N]`` that are encoded to these.

        Raises:
          ValueError: if there is none.
        """


@dataclasses.dataclass(frozen=True)
class NumberEncoder:
    """Numbers that the model reads as such.

    Attributes:
      transform: as it was fitted.
    """

    transform: Number

    def encode(self, values: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Transforms numbers, None for missing ``[N]``."""
        numbers = finite_numbers(values, missing=np.nan)
        with np.errstate(over="ignore"):
            encoded = self.transform.apply(numbers)
        if not np.isfinite(encoded).all():
            raise ValueError(f"expected numbers that float32 holds, received {excerpt(values)}")
        return encoded

    def decode(self, encoded: npt.NDArray[Any]) -> list[Any]:
        """Numbers that become these, but for rounding; never None, as `fill` is a number, too."""
        found: list[Any] = self.transform.invert(encoded).tolist()
        return found


@dataclasses.dataclass(frozen=True)
class BucketEncoder:
    """Numbers of which the model knows the bucket.

    Attributes:
      transform: as it was fitted.
    """

    transform: Buckets

    def encode(self, values: Sequence[Any]) -> Int32:
        """Buckets of numbers, None for missing ``[N]``."""
        return self.transform.encode(finite_numbers(values, missing=np.nan))

    def decode(self, encoded: npt.NDArray[Any]) -> list[Any]:
        """The smallest number of each bucket, of the first one below its boundary."""
        bounds = self.transform.boundaries or (0.0,)
        smallest = [float(np.nextafter(bounds[0], -np.inf)), *self.transform.boundaries]
        return [None if i == NULL else smallest[i - FIRST_KNOWN] for i in encoded.tolist()]


@dataclasses.dataclass(frozen=True)
class HashEncoder:
    """Categories of which the model knows a hash.

    Attributes:
      transform: as it was chosen.
    """

    transform: Hashed

    def encode(self, values: Sequence[Any]) -> Int32:
        """Buckets of strings or integers, None for missing ``[N]``."""
        return self.transform.encode(_texts(values))

    def decode(self, encoded: npt.NDArray[Any]) -> list[Any]:
        """Numbers, written out, that fall into the same buckets: what was hashed nobody knows."""
        wanted = set(encoded.tolist()) - {NULL}
        found: dict[int, Any] = {NULL: None}
        step = min(max(1024, 8 * self.transform.buckets), _TRIES)
        for start in range(0, _TRIES, step):
            if wanted <= set(found):
                break
            names = [str(number) for number in range(start, start + step)]
            buckets = self.encode(names).tolist()
            found |= {i: n for i, n in zip(buckets, names, strict=True) if i in wanted}
        if not wanted <= set(found):
            raise ValueError(f"no value was found with the hash of {sorted(wanted - set(found))}")
        return [found[i] for i in encoded.tolist()]


@dataclasses.dataclass(frozen=True)
class BagEncoder:
    """Lists of categories.

    Attributes:
      bag: how many are kept, and which.
      elements: encodes one.
    """

    bag: Bag
    elements: VocabularyEncoder | HashEncoder

    def encode(self, values: Sequence[Any]) -> Int32:
        """Ids of the elements of lists, None for missing: ``[N, M]``, padded with 0."""
        if isinstance(values, pa.Array):
            ids, lengths = self._of_array(values)
        else:
            lists = [self.bag.cut(self._list(value)) or [] for value in values]
            ids = self.elements.encode([element for value in lists for element in value])
            lengths = np.array([*map(len, lists)], np.int64)
        kept, ends = self.bag.keep(ids, np.r_[0, np.cumsum(lengths)])
        return padded(np.diff(ends), kept, self.bag.most)

    def decode(self, encoded: npt.NDArray[Any]) -> list[Any]:
        """The known elements of bags ``[N, M]``, as lists."""
        lengths = np.count_nonzero(encoded, 1)
        elements = self.elements.decode(encoded[encoded > 0])
        ends = np.cumsum(lengths).tolist()
        return [elements[end - n : end] for end, n in zip(ends, lengths.tolist(), strict=True)]

    def _of_array(self, lists: pa.Array) -> tuple[Int32, npt.NDArray[np.int64]]:
        """Ids of all elements, 0 of empty ones, which do not count; and how many each list has."""
        if not pa.types.is_list(lists.type) or lists.flatten().null_count:
            raise ValueError(f"expected lists of categories or null, received {excerpt(lists)}")
        texts = _texts(lists.flatten())
        empty = pc.equal(texts, "").to_numpy(zero_copy_only=False)
        ids = np.where(empty, PADDING, self.elements.encode(texts))
        lengths = pc.list_value_length(lists).fill_null(0)
        return ids.astype(np.int32), lengths.to_numpy(zero_copy_only=False).astype(np.int64)

    def _list(self, value: Any) -> list[str] | None:
        if value is None:
            return None
        if isinstance(value, np.ndarray) and value.ndim == 1:
            value = value.tolist()
        if not isinstance(value, list | tuple) or None in value:
            raise ValueError(f"expected a list of categories or null, received {value!r:.60}")
        texts: list[str] = _texts(value).to_pylist()
        return texts


def encoder_of(
    directory: Path, manifest: HistoriesManifest | TabularManifest, name: str
) -> FeatureEncoder:
    """The encoder of a feature.

    Args:
      directory: of a bundle.
      manifest: of the bundle.
      name: of the feature.

    Raises:
      UserError: if its transformation is none, or a vocabulary is not there.
    """
    said = manifest.transforms.get(name, Vocabulary().to_json())
    return encoder_by(transform_of(said), name, directory / manifest.vocabularies.get(name, ""))


def encoder_by(transform: Transform, name: str, vocabulary: Path) -> FeatureEncoder:
    """The encoder of a feature by its transformation.

    Args:
      transform: of the feature.
      name: of the feature.
      vocabulary: file of the known values, where there is one.

    Raises:
      UserError: if it is needed and not there.
    """
    if isinstance(transform, Number):
        return NumberEncoder(transform)
    if isinstance(transform, Buckets):
        return BucketEncoder(transform)
    if isinstance(transform, Bag):
        return BagEncoder(transform, _categories(transform.elements, name, vocabulary))
    return _categories(transform, name, vocabulary)


def bags_of(directory: Path, manifest: HistoriesManifest, name: str) -> Int32:
    """What the numbers of a feature's bags stand for: ids ``[R, M]``.

    Args:
      directory: a bundle, or the dataset that it comes from.
      manifest: of the bundle.
      name: of the feature.

    Raises:
      UserError: if they are not there, or not such bags.
    """
    return read_bags(directory, name, manifest.bags[name], manifest.cardinalities[name])


def _categories(
    transform: Vocabulary | Hashed, name: str, vocabulary: Path
) -> VocabularyEncoder | HashEncoder:
    if isinstance(transform, Hashed):
        return HashEncoder(transform)
    return VocabularyEncoder.read(vocabulary, name)


def _texts(values: Sequence[Any]) -> pa.Array:
    """Strings, integers as they are written, and None ``[N]``, as text."""
    if isinstance(values, pa.Array):
        kind = values.type
        if pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
            return values.cast(pa.string())
        raise ValueError(f"expected strings or integers (or null), received {excerpt(values)}")
    # By exact type: True is no number. NumPy's integers write themselves alike.
    good = all(
        value is None
        or isinstance(value, str | np.integer)
        or (isinstance(value, int) and not isinstance(value, bool))
        for value in values
    )
    if good:
        try:
            texts = [None if value is None else str(value) for value in values]
            return pa.array(texts, pa.string())
        except (pa.ArrowException, UnicodeError):
            pass
    raise ValueError(f"expected strings or integers (or null), received {excerpt(values)}")

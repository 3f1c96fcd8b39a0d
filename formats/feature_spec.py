"""``feature_spec.yaml``: which files hold which features of a dataset, and what is done with them.

NVIDIA's recipes describe their data so ("BYO dataset" in its READMEs)::

    DIR/
      feature_spec.yaml   feature_spec:  dtype of each feature; cardinality of ids; dimensions of
                                         lists, ``[T]``: what they are padded to
                          source_spec:   for each mapping (train, test) a list of chunks: their
                                         type, the features in them, and files in the order of
                                         their rows
                          channel_spec:  names of the features that a model uses, by what it uses
                                         them as (`formats.feature_channels`)
                          metadata:      anything

A chunk holds some features of all rows of its mapping; which bytes that are, its type says
(`formats.feature_chunks`). What is wrong with a specification is found in one pass. Nothing here
needs Merlin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import yaml

from lookback.core.errors import UserError, shown
from lookback.core.limits import MOST_ROWS, MOST_WIDTH
from lookback.core.manifests import FILES, entries_of, visible_files
from lookback.core.options.nested import Problems
from lookback.core.paths import refuse_address
from lookback.core.yaml_files import Place, read_text, yaml_lines
from lookback.formats.dataset_info import VOCABULARIES
from lookback.formats.description import (
    FEATURE_SPEC_FILE,
    SPECIFICATION_METADATA,
    described,
    read_specification,
)

CSV, PARQUET, SPLIT_BINARY, TFRECORD = "csv", "parquet", "split_binary", "tfrecord"
CHUNK_TYPES = (CSV, PARQUET, SPLIT_BINARY, TFRECORD)

LABEL_FILE = "label.bin"
NUMERICAL_FILE = "numerical.bin"
NAMED_SPLITS = ("train", "test")
"""The mappings that NVIDIA's tools know."""

_FEATURES, _SOURCES, _CHANNELS = _SECTIONS = ("feature_spec", "source_spec", "channel_spec")
_DTYPE, _CARDINALITY, _DIMENSIONS = "dtype", "cardinality", "dimensions"
_CHUNK_KEYS = ("type", "features", "files")
_DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")
_TORCH = "torch."
"""What NVIDIA's PyTorch recipes have before a dtype."""
_SHOWN = 60  # characters of a name that leads to a value


class SpecFeature(NamedTuple):
    """What a specification says of a feature.

    Attributes:
      dtype: of its values.
      cardinality: of ids; None of other features.
      dimensions: T, slots of a list; None of a single value.
    """

    dtype: np.dtype[Any]
    cardinality: int | None = None
    dimensions: int | None = None


class Chunk(NamedTuple):
    """Files that together hold some features of all rows of a mapping.

    Attributes:
      type: of `CHUNK_TYPES`.
      features: names, in the order in which the files hold them.
      files: in the order of their rows.
    """

    type: str
    features: tuple[str, ...]
    files: tuple[Path, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSpecification:
    """A specification, right in itself; what of it a model can use, its channels say.

    Attributes:
      file: it was read from, and errors name.
      features: by name.
      mappings: the chunks of each.
      channels: names of features, in their order, by channel.
      facts: of the files and vocabularies, if we wrote it.
      unread: places in it that nothing here reads.
      lines: of the places in the file.
    """

    file: Path
    features: Mapping[str, SpecFeature]
    mappings: Mapping[str, tuple[Chunk, ...]]
    channels: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unread: tuple[str, ...] = ()
    lines: Mapping[Place, int] = dataclasses.field(default_factory=dict)

    def problems(self) -> Problems:
        """Collects what a reader finds wrong with it."""
        return Problems(str(self.file), self.lines)

    def feature_place(self, name: str, key: str = _DTYPE) -> Place:
        """Where it says something of a feature, for `problems`."""
        return (_FEATURES, name[:_SHOWN], key)

    def channel_place(self, channel: str | None = None) -> Place:
        """Where it says what a channel has, or which there are."""
        return (_CHANNELS,) if channel is None else (_CHANNELS, channel[:_SHOWN])

    def chunk_place(self, mapping: str, number: int, key: str | None = None) -> Place:
        """Where it says something of a chunk."""
        place: Place = (_SOURCES, mapping[:_SHOWN], number)
        return place if key is None else (*place, key)

    def mapping_place(self, mapping: str) -> Place:
        """Where it says what a mapping's chunks are."""
        return (_SOURCES, mapping[:_SHOWN])


def read_feature_spec(path: str | Path) -> FeatureSpecification:
    """Reads a specification; the data are not looked at.

    Args:
      path: of the file, or of the directory with `FEATURE_SPEC_FILE`.

    Raises:
      UserError: naming all that is wrong with it, by place and line.
    """
    refuse_address(path)
    file = Path(path) / FEATURE_SPEC_FILE if Path(path).is_dir() else Path(path)
    content, facts = read_specification(file)
    lines = yaml_lines(read_text(file, str(file)), shared_lists=True)
    return _Parser(file, lines).specification(content, facts)


class _Parser:
    """Reads sections, and takes down what is wrong with them."""

    def __init__(self, file: Path, lines: Mapping[Place, int]) -> None:
        self._file, self._lines = file, lines
        self._problems = Problems(str(file), lines)
        self._unread: list[str] = []
        self._features: dict[str, SpecFeature] = {}

    def specification(self, content: Any, facts: Mapping[str, Any]) -> FeatureSpecification:
        known = content if isinstance(content, Mapping) else {}
        features, sources, channels = (self._section(known, name) for name in _SECTIONS)
        metadata = known.get(SPECIFICATION_METADATA)
        if metadata and not facts:
            self._unread.append(SPECIFICATION_METADATA)
        for name in known:
            if name not in (*_SECTIONS, SPECIFICATION_METADATA):
                self._add((name,), f"unknown. Expected the sections {', '.join(_SECTIONS)}.")
        self._features = {name: self._feature(name, given) for name, given in features.items()}
        used = {name: self._channel(name, given) for name, given in channels.items()}
        mappings = {name: self._mapping(name, given, used) for name, given in sources.items()}
        if sources == {} == known.get(_SOURCES):
            self._add((_SOURCES,), "names no mapping. Expected 'train' and 'test'.")
        in_channels = {name for names in used.values() for name in names}
        self._unread += [f"{_FEATURES}.{n}" for n in self._features if n not in in_channels]
        self._problems.raise_any()
        return FeatureSpecification(
            file=self._file,
            features=self._features,
            mappings=mappings,
            channels=used,
            facts=facts,
            unread=tuple(self._unread),
            lines=self._lines,
        )

    def _add(self, place: Place, sentence: str) -> None:
        cut: Place = tuple(step[:_SHOWN] if isinstance(step, str) else step for step in place)
        self._problems.add(cut, sentence)

    def _section(self, content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        section = content.get(name)
        if isinstance(section, Mapping):
            named = {key: value for key, value in section.items() if isinstance(key, str)}
            if len(named) == len(section):
                return named
        self._add(
            (name,),
            f"{shown(section)} is no mapping of names. Expected the sections "
            f"{', '.join(_SECTIONS)}, as NVIDIA's preprocessing writes them.",
        )
        return {}

    def _feature(self, name: str, given: Any) -> SpecFeature:
        place = (_FEATURES, name)
        if not isinstance(given, Mapping):
            self._add(place, f"expected its {_DTYPE}, received {shown(given)}.")
            return SpecFeature(np.dtype(np.int64))
        dtype = given.get(_DTYPE)
        kind = dtype.removeprefix(_TORCH) if isinstance(dtype, str) else ""
        if kind not in _DTYPES:
            self._add(
                (*place, _DTYPE), f"expected one of {', '.join(_DTYPES)}, received {shown(dtype)}."
            )
        rows = given.get(_CARDINALITY)
        if rows is not None and (type(rows) is not int or not 0 < rows <= MOST_ROWS):
            self._add(
                (*place, _CARDINALITY), f"expected an integer, 1 or more, received {shown(rows)}."
            )
        slots = given.get(_DIMENSIONS)
        length = slots[0] if isinstance(slots, list) and len(slots) == 1 else None
        if slots is not None and (type(length) is not int or not 0 < length <= MOST_WIDTH):
            self._add(
                (*place, _DIMENSIONS),
                f"expected the length of a list in brackets, such as [100], received "
                f"{shown(slots)}.",
            )
        known = (_DTYPE, _CARDINALITY, _DIMENSIONS)
        self._unread += [f"{_FEATURES}.{name}.{key}" for key in given if key not in known]
        return SpecFeature(np.dtype(kind if kind in _DTYPES else "int64"), rows, length)

    def _names(self, place: Place, given: Any) -> tuple[str, ...]:
        """Known features, each once; what is left of the others."""
        names = given if isinstance(given, list) else [given]
        if given != names or not all(isinstance(name, str) for name in names):
            self._add(place, f"expected a list of names, received {shown(given)}.")
            return ()
        unknown = [name for name in names if name not in self._features]
        if unknown:
            self._add(place, f"{shown(unknown)} is unknown to {_FEATURES}.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            self._add(place, f"names {shown(twice)} twice.")
        return tuple(name for name in dict.fromkeys(names) if name in self._features)

    def _channel(self, name: str, given: Any) -> tuple[str, ...]:
        return self._names((_CHANNELS, name), given)

    def _mapping(
        self, mapping: str, given: Any, channels: Mapping[str, Sequence[str]]
    ) -> tuple[Chunk, ...]:
        place = (_SOURCES, mapping)
        if not isinstance(given, list) or not given:
            self._add(place, f"expected a list of chunks, received {shown(given)}.")
            return ()
        chunks = tuple(self._chunk((*place, number), chunk) for number, chunk in enumerate(given))
        first: dict[str, int] = {}
        for number, chunk in enumerate(chunks):
            twice = [name for name in chunk.features if name in first]
            if twice:
                sentence = f"has {shown(twice)}, as chunk {first[twice[0]]} has."
                self._add((*place, number, "features"), sentence)
            first |= dict.fromkeys(chunk.features, number)
        lacking = [name for names in channels.values() for name in names if name not in first]
        if lacking and all(chunk.features for chunk in chunks):
            self._add(place, f"no chunk has {shown(lacking)}, which {_CHANNELS} names.")
        return chunks

    def _chunk(self, place: Place, given: Any) -> Chunk:
        known = given if isinstance(given, Mapping) else {}
        if set(known) != set(_CHUNK_KEYS):
            self._add(place, f"expected {', '.join(_CHUNK_KEYS)}, received {shown(given)}.")
        kind, files = known.get("type"), known.get("files")
        if "type" in known and kind not in CHUNK_TYPES:
            self._add(
                (*place, "type"),
                f"expected one of {', '.join(CHUNK_TYPES)}, received {shown(kind)}.",
            )
        names: tuple[str, ...] = ()
        if "features" in known:
            names = self._names((*place, "features"), known["features"])
        paths: list[Path] = []
        if "files" in known:
            paths = list(self._files((*place, "files"), files))
        return Chunk(str(kind), names, tuple(paths))

    def _files(self, place: Place, given: Any) -> Iterator[Path]:
        if not isinstance(given, list) or not given:
            self._add(place, f"expected a list of files, received {shown(given)}.")
            return
        wrong = [name for name in given if not _is_below(name)]
        if wrong:
            self._add(
                place,
                f"expected files in the directory of {self._file.name}, or below it, received "
                f"{shown(wrong)}.",
            )
        yield from (self._file.parent / name for name in given if name not in wrong)


def _is_below(name: Any) -> bool:
    """Whether it names a file below a directory."""
    if not isinstance(name, str) or "\0" in name:
        return False
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts


def id_type(cardinality: int) -> str:
    """NumPy dtype of a categorical file, by NVIDIA's rule.

    Raises:
      UserError: if the ids do not fit int32.
    """
    for bits in (8, 16, 32):
        if cardinality < 2 ** (bits - 1) - 1:
            return f"int{bits}"
    raise UserError(
        f"split_binary has no type for {cardinality:,} ids. Use a larger --frequency_threshold."
    )


def write_feature_spec(
    directory: Path,
    features: Mapping[str, SpecFeature],
    mappings: Mapping[str, Sequence[Chunk]],
    channels: Mapping[str, Sequence[str]],
    vocabularies: Mapping[str, str],
) -> None:
    """Writes a specification, with sizes and digests of the files.

    Args:
      directory: where they are, all of them; it is ours to write in.
      features: by name.
      mappings: the chunks of each, their files relative to the directory.
      channels: names of features by channel.
      vocabularies: what ids stand for, by feature, where that is known.
    """
    sections = {
        _FEATURES: {name: _content_of(feature) for name, feature in features.items()},
        _SOURCES: {
            mapping: [
                {
                    "type": chunk.type,
                    "features": list(chunk.features),
                    "files": [file.as_posix() for file in chunk.files],
                }
                for chunk in chunks
            ]
            for mapping, chunks in mappings.items()
        },
        _CHANNELS: {channel: list(names) for channel, names in channels.items()},
    }
    files = entries_of(directory, visible_files(directory))
    content = described(sections, {FILES: files, VOCABULARIES: dict(vocabularies)})
    (directory / FEATURE_SPEC_FILE).write_text(yaml.safe_dump(content))


def _content_of(feature: SpecFeature) -> dict[str, Any]:
    content: dict[str, Any] = {_DTYPE: feature.dtype.name}
    if feature.cardinality is not None:
        content[_CARDINALITY] = feature.cardinality
    if feature.dimensions is not None:
        content[_DIMENSIONS] = [feature.dimensions]
    return content

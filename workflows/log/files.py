"""Which files a description means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lookback.core.errors import UserError

SHOWN = 8  # names of files that are there, in an error


def matching(directory: Path, patterns: Sequence[str], key: str) -> list[Path]:
    """The files that names and patterns mean, each once, in the order of the patterns.

    Args:
      directory: that they begin at.
      patterns: names, or patterns of shells (``logs/*.csv.gz``, ``**/*.parquet``); hidden files
        are of those alone that begin with a dot themselves.
      key: where the description has them, for errors.

    Raises:
      UserError: if one means no file, or a file is there packed and unpacked.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        files = _files(directory, pattern, key)
        if not files:
            there = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
            raise UserError(
                f"{key}: expected files of {pattern!r} in {directory}, found none. There is "
                f"{', '.join(there[:SHOWN]) or 'nothing'}{', ...' if len(there) > SHOWN else ''}. "
                "Correct the pattern, or say with --input where the files are."
            )
        found |= dict.fromkeys(files)
    for path in found:
        packed = path.with_name(f"{path.name}.gz")
        if packed in found:
            raise UserError(
                f"{key}: both {path} and {packed} exist. Delete one (the first may be a partly "
                "unpacked copy of the second), or name one."
            )
    return list(found)


def came(directory: Path, patterns: Sequence[str], key: str) -> bool:
    """Whether names and patterns mean any file; see `matching`."""
    return any(_files(directory, pattern, key) for pattern in patterns)


def meant_by(pattern: str) -> list[Path]:
    """The files that a name or pattern of the command line means; itself, where there is none."""
    path = Path(pattern)
    return _files(Path(path.anchor), str(path.relative_to(path.anchor)), "files") or [path]


def _files(directory: Path, pattern: str, key: str) -> list[Path]:
    exact = directory / pattern
    if exact.is_file():  # its name may have brackets
        return [exact]
    hidden = pattern.rsplit("/", 1)[-1].startswith(".")
    try:
        paths = sorted(directory.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"{key}: {pattern!r} is no pattern of files: {error}.") from error
    return [path for path in paths if path.is_file() and (hidden or path.name[0] != ".")]

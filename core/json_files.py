"""JSON from outside: read strictly, so that what was meant is what is understood.

Python's reader takes the last of two equal keys, NaN and Infinity, numbers that overflow to
infinity, and halves of surrogate pairs that nothing can print. None of that is JSON that says one
thing (RFC 8259, sections 4, 6 and 8.2), and here all of it is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lookback.core.errors import UserError, shown
from lookback.core.paths import refuse_address
from lookback.core.utf8 import decode

MOST_BYTES = 256 << 20
"""Of a file. The largest that we write are manifests of checkpoints: some hundred bytes a piece."""

MOST_LEVELS = 100
"""Of lists and objects in each other. Python's reader gives up near 1,000, and so does whatever
walks through the value later, from deeper in its own calls."""

_SHOWN = 200  # characters of the reader's message
_ESCAPED_SURROGATE = "\\ud"


def load_json(content: bytes | str, source: str, remedy: str = "") -> Any:
    """What a JSON text holds.

    Args:
      content: of a file or line; a mark of UTF-8 at its beginning, as some editors write, is no
        part of it.
      source: names it in errors.
      remedy: ends their text: a sentence on how to fix it.

    Raises:
      UserError: naming `source` and what is wrong with it.
    """
    try:
        text = decode(content) if isinstance(content, bytes) else content
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if text.count("[") + text.count("{") > MOST_LEVELS and _levels(value) > MOST_LEVELS:
            raise RecursionError
        if _ESCAPED_SURROGATE in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        reason = "it is nested too deeply"
    except UnicodeEncodeError:
        reason = "it has half of a surrogate pair, which is no character"
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, line {error.lineno}, column {error.colno}"
    except ValueError as error:  # ours, and a whole number of thousands of digits
        reason = str(error)
    else:
        return value
    raise UserError(f"{source} is not valid JSON for us: {reason[:_SHOWN]}. {remedy}".rstrip())


def read_json(path: Path, remedy: str = "", missing: str | None = None) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
      path: of the file.
      remedy: see `load_json`.
      missing: what to say if there is no such file; None: what of others that cannot be read.

    Raises:
      UserError: naming it, if it cannot be read, is larger than `MOST_BYTES`, or holds no object.
    """
    return load_object(read_bytes(path, remedy, missing), str(path), remedy)


def read_bytes(path: Path, remedy: str = "", missing: str | None = None) -> bytes:
    """The bytes of a JSON file, as `read_json` takes and refuses them; they are not parsed."""
    refuse_address(path)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        if missing is not None and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise UserError(missing) from error
        raise UserError(
            f"{path} cannot be read ({error.strerror}). {remedy or 'Mend the path or permissions.'}"
        ) from error
    if len(content) > MOST_BYTES:
        raise UserError(
            f"{path}: expected a JSON file of at most {MOST_BYTES:,} bytes, received a larger one."
        )
    return content


def load_object(content: bytes | str, source: str, remedy: str = "") -> dict[str, Any]:
    """What a JSON text holds, which must be an object; else as `load_json`."""
    value = load_json(content, source, remedy)
    if not isinstance(value, dict):
        raise UserError(
            f"{source}: expected a JSON object, found a {type(value).__name__}. {remedy}".rstrip()
        )
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in value if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} is there twice")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {shown(text)} is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _levels(value: Any) -> int:
    """How many lists and objects lie in each other."""
    count, level = 0, [value]
    while level := [held for held in level if isinstance(held, dict | list)]:
        count += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return count

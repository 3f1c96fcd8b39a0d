"""Text from outside is UTF-8, or its file and line are named."""

from __future__ import annotations

import codecs

_OTHERS = {
    b"\x1f\x8b": "it is packed by gzip: unpack it first",
    codecs.BOM_UTF16_LE: "it is UTF-16: convert it to UTF-8",
    codecs.BOM_UTF16_BE: "it is UTF-16: convert it to UTF-8",
}
"""What files begin with that are often given in place of UTF-8."""


def decode(content: bytes) -> str:
    """The text of a file, without the mark of UTF-8 with which some editors begin one.

    Args:
      content: of the file.

    Raises:
      ValueError: saying what it is, or in which line what is no UTF-8 is.
    """
    for mark, what in _OTHERS.items():
        if content.startswith(mark):
            raise ValueError(what)
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"it is not UTF-8 (byte {error.start + 1}, in line {line})") from None

"""JSON is read strictly: what can be meant in two ways, or not be held, is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lookback.core import json_files
from lookback.core.errors import UserError
from lookback.core.json_files import MOST_LEVELS, load_json, load_object, read_json


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' is there twice"),
        (b'{"x": {"a": 1, "a": 2}}', "the key 'a' is there twice"),
        (b"[NaN]", "NaN is no number of JSON"),
        (b"-Infinity", "-Infinity is no number of JSON"),
        (b"[1e999]", "the number '1e999' is too large"),
        (b"[" + b"9" * 5000 + b"]", "4300 digits"),
        (nested(MOST_LEVELS + 1).encode(), "nested too deeply"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'["\\ud83d"]', "half of a surrogate pair"),
        (b'{"\\uDE00": 1}', "half of a surrogate pair"),
        (b'{"a": 1,\n"b": "\xe9"}', "it is not UTF-8 (byte 16, in line 2)"),
        (b"\x1f\x8b\x08\x00rest", "it is packed by gzip: unpack it first"),
        ('{"a": 1}'.encode("utf-16"), "it is UTF-16: convert it to UTF-8"),
        (b'{"a": 1,\n}', "line 2, column 1"),
        (b"", "Expecting value, line 1, column 1"),
        (b"\x00\x00", "Expecting value"),
    ],
)
def test_what_says_no_one_thing_is_refused(text: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(text)
    for read in (
        lambda: load_json(text, str(file), "Mend it."),
        lambda: read_json(file, "Mend it."),
    ):
        with pytest.raises(UserError) as error:
            read()
        assert str(error.value).startswith(f"{file} is not valid JSON for us: ")
        assert said in str(error.value) and str(error.value).endswith(". Mend it.")
        assert len(str(error.value)) < 1000


def test_what_says_one_thing_is_read_as_python_reads_it(tmp_path: Path) -> None:
    value = {"a": [1, -2.5, 1e300, None, True, "\U0001f600 é"], "b": {"a": {}, "": [[]]}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert load_json(text, "here") == load_json(text.encode(), "here") == value
        file = tmp_path / "file.json"
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as some editors begin a file
        assert read_json(file) == value
    assert load_json(nested(MOST_LEVELS), "here") == json.loads(nested(MOST_LEVELS))
    wide = [[] for _ in range(10 * MOST_LEVELS)]
    assert load_json(json.dumps(wide), "here") == wide


def test_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "file.json"
    with pytest.raises(UserError, match=r"file\.json cannot be read \(No such file or directory\)"):
        read_json(file)
    for missing in (file, tmp_path / "other" / "file.json"):
        with pytest.raises(UserError, match=r"^nothing there$"):
            read_json(missing, missing="nothing there")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\). Again\.$"):
        read_json(tmp_path, "Again.", missing="nothing there")
    file.symlink_to(file)
    with pytest.raises(UserError, match="Too many levels of symbolic links"):
        read_json(file)
    file.unlink()
    file.write_text("[1]")
    with pytest.raises(
        UserError, match=r"file\.json: expected a JSON object, found a list\. Again\."
    ):
        read_json(file, "Again.")
    with pytest.raises(UserError, match="line 3: expected a JSON object, found a int"):
        load_object("1", "line 3")
    monkeypatch.setattr(json_files, "MOST_BYTES", 2)
    with pytest.raises(UserError, match="of at most 2 bytes, received a larger one"):
        read_json(file)

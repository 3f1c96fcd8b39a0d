from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from lookback.core.errors import UserError
from lookback.workflows.text import (
    BadLineCounter,
    BadLineError,
    Parsed,
    blocks,
    estimate_lines,
    is_utf8,
    parse_lines,
)

NUMBERS = pa.schema([("number", pa.int64())])


def _number(line: bytes) -> tuple[int]:
    if not line.isdigit():
        raise BadLineError("not a number")
    return (int(line),)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", [b"", b"\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 10_000])
def test_blocks_hold_each_line_once(tmp_path: Path, size: int, ending: bytes, packed: bool) -> None:
    lines = [b"x" * (number % 9) for number in range(60)] + [b"y" * 40, b"last"]
    data = b"\n".join(lines) + ending
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(data) if packed else data)
    found = list(blocks(path, size))
    assert b"".join(block.read() for block in found) == data
    assert [block.first for block in found] == [True] + [False] * (len(found) - 1)
    texts = [text for block in found if (text := block.read())]
    assert all(text.endswith(b"\n") for text in texts[:-1])


def test_gzip_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"1\n") + gzip.compress(b"2\n"))
    assert b"".join(block.read() for block in blocks(path)) == b"1\n2\n"


def test_a_cut_off_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b"line\n" * 100_000)[:-20])
    with pytest.raises(UserError, match=r"a\.json\.gz is not a whole gzip file.*fetch it again"):
        list(blocks(path, 1000))


def test_what_is_no_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match="not a whole gzip file"):
        estimate_lines([path])
    with pytest.raises(UserError, match="not a whole gzip file"):
        list(blocks(path))


def test_unpacking_stops_with_its_reader(tmp_path: Path) -> None:
    import threading

    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"line\n" * 100_000))
    before = threading.active_count()
    reader = blocks(path, 100)
    next(reader)
    reader.close()
    assert threading.active_count() == before


def test_lines_are_numbered_over_blocks() -> None:
    counter = BadLineCounter(allowed=2)
    path = Path("a.txt")
    counter.add(path, parse_lines(b"1\n\n3\n", _number, NUMBERS))
    counter.add(path, parse_lines(b"4\nfive\n6\n", _number, NUMBERS))
    assert counter.examples == ["a.txt:5: not a number: five"]
    counter.add(Path("b.txt"), parse_lines(b"one\n", _number, NUMBERS))
    assert counter.examples[1] == "b.txt:1: not a number: one"
    assert counter.reasons == {"not a number": 2}
    with pytest.raises(UserError, match=r"3 bad line\(s\) so far, more than --max_bad_lines 2"):
        counter.add(path, parse_lines(b"x\n", _number, NUMBERS))


def test_parse_lines_passes_over_blank_lines_and_a_header() -> None:
    parsed = parse_lines(b"header\r\n1\r\n \r\n2", _number, NUMBERS, skip=1)
    assert parsed.table["number"].to_pylist() == [1, 2]
    assert parsed.lines == 4
    assert not parsed.reasons


def test_excerpts_show_what_is_no_text() -> None:
    parsed = parse_lines(b"\xff\xfe" + b"a" * 500, _number, NUMBERS)
    (bad,) = parsed.bad
    assert bad.excerpt.startswith("\\xff\\xfeaaa")
    assert len(bad.excerpt) < 150


def test_estimate_of_lines(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_bytes(b"0123456789\n" * 500_000)
    packed = tmp_path / "b.gz"
    packed.write_bytes(gzip.compress(b"".join(b"%09d\n" % (i * 7919) for i in range(400_000))))
    assert estimate_lines([plain]) == pytest.approx(500_000, rel=0.01)
    assert estimate_lines([packed]) == pytest.approx(400_000, rel=0.25)


def test_is_utf8() -> None:
    assert is_utf8(b"abc") and is_utf8("ü".encode()) and not is_utf8(b"\xfc")


def test_parsed_lines_may_be_empty() -> None:
    parsed = parse_lines(b"", _number, NUMBERS)
    assert isinstance(parsed, Parsed)
    assert (len(parsed.table), parsed.lines) == (0, 0)

"""scripts/download_criteo.sh against a web server on this machine."""

from __future__ import annotations

import functools
import gzip
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "download_criteo.sh"
LINE = b"\t".join([b"1", *[b"5"] * 13, *[b"68fd1e64"] * 26]) + b"\n"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory, and the address it is served under."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    served = tmp_path / "served"
    served.mkdir()
    handler = functools.partial(Handler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield served, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def download(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "no_proxy": "127.0.0.1", **environment},
    )


def test_a_range_of_days_is_downloaded_and_verified(site: tuple[Path, str], tmp_path: Path) -> None:
    served, url = site
    for day in range(5):
        (served / f"day_{day}.gz").write_bytes(gzip.compress(LINE * (day + 1)))
    output = tmp_path / "out"
    arguments = ("--days", "1-3", "--output", str(output))
    result = download(*arguments, LOOKBACK_CRITEO_URL=url)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in output.iterdir()) == ["day_1.gz", "day_2.gz", "day_3.gz"]
    for day in (1, 2, 3):
        assert (output / f"day_{day}.gz").read_bytes() == (served / f"day_{day}.gz").read_bytes()
    assert "day_2.gz is here already" in download(*arguments, "--base_url", url).stdout
    # Verifying asks no server.
    result = download(*arguments, "--verify", LOOKBACK_CRITEO_URL="http://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(": whole (") == 3


def test_verify_names_what_is_not_whole(tmp_path: Path) -> None:
    whole = gzip.compress(LINE * 3)
    (tmp_path / "day_0.gz").write_bytes(whole)
    (tmp_path / "day_1.gz").write_bytes(whole[:-5])
    (tmp_path / "day_2.gz").write_bytes(gzip.compress(LINE + LINE.replace(b"\t5", b"", 1)))
    (tmp_path / "day_3.gz.part").write_bytes(whole[:9])
    (tmp_path / "day_5.gz").write_bytes(gzip.compress(b""))
    result = download("--days", "0-5", "--output", str(tmp_path), "--verify")
    assert result.returncode == 2
    states = [
        line.split(": ")[2].split(",")[0].split(" (")[0] for line in result.stdout.split("\n")[:-1]
    ]
    assert states == ["whole", "damaged", "damaged", "not whole yet", "missing", "damaged"]
    assert "not all days are whole" in result.stderr


def test_a_part_is_continued(site: tuple[Path, str], tmp_path: Path) -> None:
    """The rest comes by a Range request; this server has none, so all comes anew."""
    served, url = site
    (served / "day_0.gz").write_bytes(gzip.compress(LINE * 100))
    (tmp_path / "day_0.gz.part").write_bytes(b"something else")
    (tmp_path / "day_0.gz.part.source").write_text("of another server")
    result = download("--days", "0", "--output", str(tmp_path), "--base_url", url)
    assert result.returncode == 0, result.stderr
    assert "belongs to another file or version; starting over" in result.stdout
    assert (tmp_path / "day_0.gz").read_bytes() == (served / "day_0.gz").read_bytes()


def test_what_is_no_day_is_refused(site: tuple[Path, str], tmp_path: Path) -> None:
    served, url = site
    (served / "day_0.gz").write_bytes(gzip.compress(b"<html>terms of use</html>\n"))
    result = download("--days", "0", "--output", str(tmp_path / "out"), "--base_url", url)
    assert result.returncode == 2
    assert "is damaged (test_day does not accept it)" in result.stderr
    result = download("--days", "1", "--output", str(tmp_path / "out"), "--base_url", url)
    assert f"the server has no {url}/day_1.gz (404)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "which days? --days FIRST[-LAST], from 0 to 23"),
        (["--days", "x"], "expected a day or a range such as 0-3, received x"),
        (["--days", "3-1"], "expected FIRST-LAST within 0-23, received 3-1"),
        (["--days", "0-24"], "expected FIRST-LAST within 0-23, received 0-24"),
        (["--days"], "--days needs a value"),
        (["5"], "unknown argument 5; allowed: --days FIRST[-LAST]"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments: list[str], expected: str) -> None:
    result = download(*arguments)
    assert result.returncode == 2
    assert expected in result.stderr and len(result.stderr.splitlines()) == 1

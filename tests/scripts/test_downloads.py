"""The download scripts against a web server on this machine."""

from __future__ import annotations

import dataclasses
import fcntl
import gzip
import hashlib
import http.server
import io
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@dataclasses.dataclass
class Site:
    """What the server answers, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    cut_after: int | None = None  # drop the next download after so many bytes
    ranges: bool = True
    claimed_size: int | None = None
    has_head: bool = True
    asked: list[tuple[str, str, str | None]] = dataclasses.field(default_factory=list)

    def ranges_of(self, name: str) -> list[str | None]:
        """The Range headers of the downloads of a file."""
        return [value for method, path, value in self.asked if (method, path) == ("GET", name)]


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            name = self.path.lstrip("/")
            wanted = self.headers.get("Range")
            site.asked.append((self.command, name, wanted))
            if not body and not site.has_head:
                self.send_error(501)
                return
            content = site.files.get(name)
            if content is None:
                self.send_error(404)
                return
            start = 0
            if wanted and site.ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
                self.send_response(206)
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            else:
                self.send_response(200)
            self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
            size = len(content) - start if site.claimed_size is None else site.claimed_size
            self.send_header("Content-Length", str(size))
            self.end_headers()
            if not body:
                return
            part = content[start:]
            if site.cut_after is not None and not name.endswith(".md5"):
                part, site.cut_after = part[: site.cut_after], None
                self.close_connection = True
            self.wfile.write(part)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def download(
    script: str, *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPTS / script), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        env={**os.environ, "no_proxy": "127.0.0.1", **environment},
    )


def compressed(size: int = 200_000) -> bytes:
    # Random bytes keep their size under gzip.
    return gzip.compress(hashlib.shake_256(b"reviews").digest(size), mtime=0)


def archive(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(f"{name}/u.data", "1\t2\t3\t4\n")
        file.writestr(f"{name}/README", "about\n")
    return out.getvalue()


def amazon(site: Site, output: Path, category: str = "Baby") -> subprocess.CompletedProcess[str]:
    return download("download_amazon.sh", category, "--output", str(output), "--base_url", site.url)


def test_amazon_downloads_reviews_and_metadata_of_a_category(site: Site, tmp_path: Path) -> None:
    site.files = {
        "reviews_Baby.json.gz": compressed(),
        "meta_Baby.json.gz": gzip.compress(b"{}\n", mtime=0),
    }
    result = download(
        "download_amazon.sh", "Baby", "--output", "new/dir", cwd=tmp_path,
        LOOKBACK_AMAZON_URL=site.url + "/",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "new/dir").iterdir()} == site.files


def test_amazon_takes_books_when_no_category_is_named(site: Site, tmp_path: Path) -> None:
    site.files = {
        name: gzip.compress(b"x") for name in ("reviews_Books.json.gz", "meta_Books.json.gz")
    }
    result = download("download_amazon.sh", "--output", str(tmp_path), "--base_url", site.url)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(site.files)


def test_a_second_run_downloads_nothing(site: Site, tmp_path: Path) -> None:
    site.files = {
        name: gzip.compress(b"x") for name in ("reviews_Baby.json.gz", "meta_Baby.json.gz")
    }
    assert amazon(site, tmp_path).returncode == 0
    site.asked.clear()
    result = amazon(site, tmp_path)
    assert result.returncode == 0
    assert "reviews_Baby.json.gz is here already" in result.stdout
    assert site.asked == []


def test_an_interrupted_download_continues_where_it_stopped(site: Site, tmp_path: Path) -> None:
    name = "reviews_Baby.json.gz"
    site.files = {name: compressed(), "meta_Baby.json.gz": gzip.compress(b"{}\n")}
    assert amazon(site, tmp_path).returncode == 0
    (tmp_path / name).unlink()
    site.asked.clear()

    site.cut_after = 50_000
    result = amazon(site, tmp_path)
    assert result.returncode == 2
    assert "interrupted after 50000 bytes" in result.stderr
    assert "continues where it stopped" in result.stderr
    assert not (tmp_path / name).exists()
    assert (tmp_path / f"{name}.part").stat().st_size == 50_000

    result = amazon(site, tmp_path)
    assert result.returncode == 0, result.stderr
    assert site.ranges_of(name)[-1] == "bytes=50000-"
    assert (tmp_path / name).read_bytes() == site.files[name]
    assert not list(tmp_path.glob("*.part*"))


def test_a_part_of_another_version_is_not_continued(site: Site, tmp_path: Path) -> None:
    name = "meta_Baby.json.gz"
    site.files = {name: compressed(), "reviews_Baby.json.gz": gzip.compress(b"{}\n")}
    site.cut_after = 50_000
    assert amazon(site, tmp_path).returncode == 2
    site.files[name] = gzip.compress(b"{}\n" * 9)
    result = amazon(site, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "starting over" in result.stdout
    assert (tmp_path / name).read_bytes() == site.files[name]


def test_a_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    name = "meta_Baby.json.gz"
    site.files = {name: compressed(), "reviews_Baby.json.gz": gzip.compress(b"{}\n")}
    site.cut_after = 50_000
    site.ranges = False
    assert amazon(site, tmp_path).returncode == 2
    result = amazon(site, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "cannot continue a download; starting over" in result.stdout
    assert (tmp_path / name).read_bytes() == site.files[name]


def test_a_whole_part_is_checked_and_kept(site: Site, tmp_path: Path) -> None:
    """As after a kill between the last byte and the renaming."""
    name = "meta_Baby.json.gz"
    site.files = {name: compressed(), "reviews_Baby.json.gz": gzip.compress(b"{}\n")}
    site.cut_after = 50_000
    assert amazon(site, tmp_path).returncode == 2
    (tmp_path / f"{name}.part").write_bytes(site.files[name])
    site.asked.clear()
    result = amazon(site, tmp_path)
    assert result.returncode == 0, result.stderr
    assert site.ranges_of(name) == []
    assert (tmp_path / name).read_bytes() == site.files[name]


def test_a_server_that_does_not_tell_sizes_is_downloaded_from(site: Site, tmp_path: Path) -> None:
    site.files = {
        name: gzip.compress(b"x") for name in ("reviews_Baby.json.gz", "meta_Baby.json.gz")
    }
    site.has_head = False
    result = amazon(site, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "does not tell its size" in result.stdout
    assert (tmp_path / "reviews_Baby.json.gz").exists()


def test_a_damaged_file_is_refused(site: Site, tmp_path: Path) -> None:
    damaged = bytearray(compressed())
    damaged[1000] ^= 1
    site.files = {"meta_Baby.json.gz": bytes(damaged)}
    result = amazon(site, tmp_path)
    assert result.returncode == 2
    assert "meta_Baby.json.gz" in result.stderr
    assert "is damaged (gzip does not accept it)" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_fit_the_disk_is_refused_with_the_numbers(
    site: Site, tmp_path: Path
) -> None:
    site.files = {"meta_Baby.json.gz": compressed()}
    site.claimed_size = 10**17
    result = amazon(site, tmp_path)
    assert result.returncode == 2
    assert "meta_Baby.json.gz needs 100000000000.0 MB" in result.stderr
    assert re.search(r"has [\d.]+ MB free", result.stderr)
    assert site.ranges_of("meta_Baby.json.gz") == []


def test_a_missing_file_names_the_address(site: Site, tmp_path: Path) -> None:
    result = amazon(site, tmp_path)
    assert result.returncode == 2
    assert f"the server has no {site.url}/meta_Baby.json.gz (404)" in result.stderr


def test_an_unreachable_server_names_the_address(tmp_path: Path) -> None:
    result = amazon(Site(url="http://127.0.0.1:9"), tmp_path)
    assert result.returncode == 2
    assert "cannot reach http://127.0.0.1:9/meta_Baby.json.gz" in result.stderr
    assert "proxy" in result.stderr


def test_two_downloads_do_not_share_a_directory(site: Site, tmp_path: Path) -> None:
    if shutil.which("flock") is None:
        pytest.skip("flock is not installed")
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        result = amazon(site, tmp_path)
    finally:
        os.close(handle)
    assert result.returncode == 2
    assert "another download is writing into" in result.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("download_amazon.sh", ["Bookz"], "unknown category Bookz; allowed: Amazon_Instant_Video"),
        ("download_amazon.sh", ["Books", "Baby"], "one category at a time; got Books and Baby"),
        ("download_amazon.sh", ["--out", "x"], "unknown option --out; allowed: --output DIR"),
        ("download_amazon.sh", ["--output"], "--output needs a value"),
        ("download_movielens.sh", ["10m"], "unknown size 10m; allowed: 100k 1m 20m 25m"),
        ("download_movielens.sh", [], "which size? One of: 100k 1m 20m 25m"),
    ],
)
def test_bad_arguments_say_what_is_allowed(
    script: str, arguments: list[str], expected: str
) -> None:
    result = download(script, *arguments)
    assert result.returncode == 2
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["download_amazon.sh", "download_movielens.sh"])
def test_a_missing_curl_is_told_in_one_line(script: str, tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    size = "Baby" if "amazon" in script else "100k"
    result = download(script, size, "--output", str(tmp_path / "out"), PATH=str(tmp_path))
    assert result.returncode == 2
    assert "curl is missing. Debian and Ubuntu: apt-get install curl" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["{sum}  ml-100k.zip\n", "MD5 (ml-100k.zip) = {sum}\n"])
@pytest.mark.parametrize("size", ["100k", "25m"])
def test_movielens_is_checked_and_unpacked(
    site: Site, tmp_path: Path, form: str, size: str
) -> None:
    content = archive(f"ml-{size}")
    checksum = form.format(sum=hashlib.md5(content).hexdigest().upper())
    site.files = {f"ml-{size}.zip": content, f"ml-{size}.zip.md5": checksum.encode()}
    for expected in (f"done: {tmp_path}/ml-{size}", "is here already"):
        result = download("download_movielens.sh", size, "--output", ".", cwd=tmp_path,
                          LOOKBACK_MOVIELENS_URL=site.url)  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert expected in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == [f"ml-{size}"]
    assert (tmp_path / f"ml-{size}" / "u.data").read_text() == "1\t2\t3\t4\n"


def test_movielens_with_the_wrong_checksum_is_refused(site: Site, tmp_path: Path) -> None:
    content = archive("ml-1m")
    site.files = {"ml-1m.zip": content, "ml-1m.zip.md5": b"0" * 32 + b"  ml-1m.zip\n"}
    result = download("download_movielens.sh", "1m", "--output", str(tmp_path),
                      "--base_url", site.url)  # fmt: skip
    assert result.returncode == 2
    assert f"has the MD5 sum {hashlib.md5(content).hexdigest()}, but {'0' * 32} is published" in (
        result.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_movielens_with_an_unusable_checksum_file_is_refused(site: Site, tmp_path: Path) -> None:
    site.files = {"ml-1m.zip": archive("ml-1m"), "ml-1m.zip.md5": b"<html>moved</html>"}
    result = download("download_movielens.sh", "1m", "--output", str(tmp_path),
                      "--base_url", site.url)  # fmt: skip
    assert result.returncode == 2
    assert "ml-1m.zip.md5 holds no MD5 sum" in result.stderr


def test_movielens_without_a_checksum_is_checked_as_an_archive(site: Site, tmp_path: Path) -> None:
    site.files = {"ml-1m.zip": archive("ml-1m")}
    arguments = ("1m", "--output", str(tmp_path), "--base_url", site.url)
    result = download("download_movielens.sh", *arguments)
    assert result.returncode == 0, result.stderr
    assert "no checksum is published" in result.stdout
    shutil.rmtree(tmp_path / "ml-1m")

    damaged = bytearray(site.files["ml-1m.zip"])
    damaged[damaged.index(b"1\t2\t3")] ^= 1
    site.files["ml-1m.zip"] = bytes(damaged)
    result = download("download_movielens.sh", *arguments)
    assert result.returncode == 2
    assert "is damaged" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_unpacking_is_repeated(site: Site, tmp_path: Path) -> None:
    content = archive("ml-20m")
    site.files = {
        "ml-20m.zip": content, "ml-20m.zip.md5": hashlib.md5(content).hexdigest().encode()
    }  # fmt: skip
    (tmp_path / ".ml-20m.tmp").mkdir()
    (tmp_path / ".ml-20m.tmp" / "mine").touch()  # a name alone is no reason to delete it
    (tmp_path / "ml-20m.zip").write_bytes(content)
    result = download("download_movielens.sh", "20m", "--output", str(tmp_path),
                      "--base_url", site.url)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "ml-20m").iterdir()) == ["README", "u.data"]
    assert site.ranges_of("ml-20m.zip") == []
    # The archive was there before: it may be somebody's own.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".ml-20m.tmp",
        "ml-20m",
        "ml-20m.zip",
    ]
    assert (tmp_path / ".ml-20m.tmp" / "mine").exists()


def test_what_we_did_not_download_is_not_deleted(site: Site, tmp_path: Path) -> None:
    name = "meta_Baby.json.gz"
    site.files = {name: compressed()}
    (tmp_path / f"{name}.part").write_text("precious")
    result = amazon(site, tmp_path)
    assert result.returncode == 2
    assert f"{name}.part is in the way: no download of ours left it" in result.stderr
    assert (tmp_path / f"{name}.part").read_text() == "precious"
    (tmp_path / "ml-1m").write_text("precious")
    result = download("download_movielens.sh", "1m", "--output", str(tmp_path),
                      "--base_url", site.url)  # fmt: skip
    assert result.returncode == 2
    assert "ml-1m is in the way: it is no directory" in result.stderr
    assert (tmp_path / "ml-1m").read_text() == "precious"


def test_movielens_can_be_unpacked_without_unzip(site: Site, tmp_path: Path) -> None:
    content = archive("ml-100k")
    site.files = {
        "ml-100k.zip": content, "ml-100k.zip.md5": hashlib.md5(content).hexdigest().encode()
    }  # fmt: skip
    tools = tmp_path / "tools"
    tools.mkdir()
    names = "bash dirname env mkdir stat df awk tr cat rm mv mktemp cut head grep md5sum curl"
    for tool in names.split():
        (tools / tool).symlink_to(shutil.which(tool))
    (tools / "python3").write_text(f'#!{shutil.which("bash")}\nexec {sys.executable} "$@"\n')
    (tools / "python3").chmod(0o755)
    result = download("download_movielens.sh", "100k", "--output", str(tmp_path / "data"),
                      "--base_url", site.url, PATH=str(tools))  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "data/ml-100k/u.data").exists()

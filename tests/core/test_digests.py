"""Digests against the published vectors of SHA-256 (FIPS 180-2)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lookback.core.digests import digest_of, is_file, read_trusted
from lookback.core.errors import UserError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
MILLION_A = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"


def test_digests_are_the_published_ones(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, expected in ((b"abc", ABC), (b"a" * 1_000_000, MILLION_A)):
        path.write_bytes(content)
        assert digest_of(path) == expected
        assert read_trusted(path) == (content, expected)
        assert read_trusted(path, f" {expected.upper()}\n") == (content, expected)


@pytest.mark.parametrize("trusted", [MILLION_A, ABC[:-1], "", "sha256"])
def test_another_digest_is_refused(tmp_path: Path, trusted: str) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with pytest.raises(UserError, match=f"file: expected the SHA-256 {trusted}, .*found {ABC}"):
        read_trusted(tmp_path / "file", trusted)


def test_what_cannot_be_read_is_a_user_s_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_file(tmp_path / "file")
    with pytest.raises(UserError, match=r"file cannot be read \(No such file"):
        read_trusted(tmp_path / "file")

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_file", refuse)  # root may read everything
    with pytest.raises(UserError, match=r"file cannot be read \(Permission denied\)"):
        is_file(tmp_path / "file")

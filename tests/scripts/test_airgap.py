"""scripts/airgap.sh: what a pack is made of, and a pack of this environment on a bare machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from lookback.scripts.airgap import contents, pack, unpack
from tests.in_one_process import IN_ONE_PROCESS

ROOT = Path(__file__).resolve().parents[2]
AIRGAP = ROOT / "scripts" / "airgap"
# What every system has, and Lookback's shell scripts use; no Python.
TOOLS = (
    "sh bash env uname tar gzip sha256sum mkdir mv rm dirname basename readlink cat cut sed sort"
)
C_LIBRARY = re.compile(r"/(ld-linux.*|lib(c|m|dl|rt|pthread|util|resolv|nss_\w+))[.-]")


def test_slices_hold_what_was_packed(tmp_path):
    noise = tmp_path / "noise"  # larger than a slice, and not to be compressed
    noise.write_bytes(np.random.default_rng(1).bytes(5 << 20))
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    pieces = [
        contents.Piece("a/noise", noise),
        contents.Piece("a/program", program),
        contents.Piece("text", text="words\n"),
        contents.Piece("link", link="a/noise"),
    ]
    made, target, by_hand = (tmp_path / name for name in ("made", "target", "by_hand"))
    for folder in (made, target, by_hand):
        folder.mkdir()
    size = 1 << 20
    slices = pack._slices(made, pieces, size, level=0)
    assert len(slices) == 6
    files = sorted(made.iterdir())
    assert [file.name for file in files] == [each["name"] for each in slices]
    assert all(file.stat().st_size <= size for file in files)
    facts = {"bytes": noise.stat().st_size, "slices": slices}
    (made / "pack.json").write_text(json.dumps(facts))
    assert unpack.main(made, target) == 0
    joined = subprocess.run(["xz", "-dc", *files], capture_output=True, check=True).stdout
    subprocess.run(["tar", "x", "-C", by_hand], input=joined, check=True)
    for place in (target, by_hand):
        assert (place / "a/noise").read_bytes() == noise.read_bytes()
        assert (place / "a/noise").stat().st_mtime == int(noise.stat().st_mtime)
        assert os.access(place / "a/program", os.X_OK) and not os.access(place / "text", os.X_OK)
        assert (place / "text").read_text() == "words\n"
        assert (place / "link").readlink() == Path("a/noise")


def test_too_small_a_disk_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "pack.json").write_text(json.dumps({"bytes": 5 << 30, "slices": []}))
    monkeypatch.setattr(
        unpack.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9 << 30, 0, 3 << 30)
    )
    assert unpack.main(tmp_path, tmp_path / "target") == 1
    assert f"{tmp_path} has 3072 MiB free, and the tree needs 5120" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--slice", "61MiB"], "--slice: expected 1MiB to 60MiB, received 61MiB"),
        (["--environment", "/nowhere"], "/nowhere has no Python"),
        ([], "exists and is not an empty directory"),
    ],
)
def test_what_cannot_be_packed_is_refused(tmp_path, words, says):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    output = tmp_path / ("new" if words else "full")
    command = [sys.executable, AIRGAP / "pack.py", "--output", output, *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def stored(data, preset):
    """The xz stream of stored data (chunks of LZMA2, by the .xz file format 1.1.0, section 3)."""

    def crc(part):
        return zlib.crc32(part).to_bytes(4, "little")

    def number(value):
        return bytes([value & 0x7F | 0x80]) + number(value >> 7) if value > 0x7F else bytes([value])

    kind, view = b"\0\1", memoryview(data)  # with a CRC32
    header = bytes([2, 0, 0x21, 1, 0, 0, 0, 0])  # LZMA2, a dictionary of 4 KiB
    header += crc(header)
    chunks = []
    for place in range(0, len(data), 1 << 16):
        part = view[place : place + (1 << 16)]
        chunks += [bytes([2 if place else 1]) + (len(part) - 1).to_bytes(2, "big"), part]
    block = b"".join([header, *chunks, b"\0"])
    index = b"\0\1" + number(len(block) + 4) + number(len(data))
    index += bytes(-len(index) % 4)
    index += crc(index)
    footer = (len(index) // 4 - 1).to_bytes(4, "little") + kind
    start, end = b"\xfd7zXZ\0" + kind + crc(kind), crc(footer) + footer + b"YZ"
    return b"".join([start, block, bytes(-len(block) % 4), crc(data), index, end])


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A pack of this environment; to compress it would take more than a minute of a core."""
    output = tmp_path_factory.mktemp("airgap") / "pack"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack.lzma, "compress", stored)
        pack.main(["--output", str(output), "--environment", sys.prefix])
    return output


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The environment of a machine without Python: a PATH of basic tools, and nothing else."""
    bin_ = tmp_path_factory.mktemp("bare") / "bin"
    bin_.mkdir()
    for tool in (*TOOLS.split(), "taskset"):
        (bin_ / tool).symlink_to(shutil.which(tool, path="/usr/bin:/bin"))
    return {"PATH": str(bin_), "HOME": "/nonexistent", "TF_CPP_MIN_LOG_LEVEL": "2"}


def run(command, environment, **options):
    result = subprocess.run(
        list(map(str, command)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def tree(packed, bare, tmp_path_factory):
    """What the pack makes, and then is moved elsewhere; blanks are welcome."""
    place = tmp_path_factory.mktemp("target")
    run(["sh", packed / "unpack.sh", place / "first"], bare)
    assert [path.name for path in place.iterdir()] == ["first"]
    return (place / "first").rename(place / "a tree")


@pytest.mark.slow
def test_a_pack_works_where_there_is_no_python(tree, bare, tmp_path):
    def lookback(*lines):
        command = [tree / ".venv/bin/python", "-c", IN_ONE_PROCESS, json.dumps(lines)]
        return run(command, bare, cwd=tmp_path)

    lookback(
        "workflows generate --dataset synthetic --preset demo --scale 0.1 --output raw",
        "workflows run --dataset synthetic --input raw --output dataset",
    )
    scores = lookback(
        "train --dataset_dir dataset --model_type sim --epochs 1 --global_batch_size 8192 "
        "--results_dir results --export_dir export",
        "serving sample --export_dir export --dataset_dir dataset --users 2 --candidates 3 "
        "> requests.jsonl",
        "serving score --export_dir export --requests requests.jsonl",
    )
    assert all(json.loads(line)["candidates"] for line in scores.splitlines()[-2:])
    found = json.loads(run([tree / ".venv/bin/lookback", "doctor", "--json"], bare, cwd=tmp_path))
    assert found["prefix"] == str(tree / ".venv")
    works = {name: check["works"] for name, check in found["checks"].items()}
    assert works["tensorflow"] and works["kernels"] and works["horovod"], found["checks"]
    # What does not work has its reason.
    assert all(c["says"] if c["works"] else c["why"] for c in found["checks"].values())


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(tree, bare):
    code = "import ssl, sqlite3, horovod.tensorflow, nvtabular; "
    code += "print(open('/proc/self/maps').read())"
    said = run([tree / ".venv/bin/python", "-c", code], bare)
    loaded = set(re.findall(r"/\S[^\n]*\.so[.\d]*$", said, re.MULTILINE))
    assert any("libtensorflow_cc" in path for path in loaded)
    elsewhere = {path for path in loaded if not path.startswith(str(tree))}
    assert not {path for path in elsewhere if not C_LIBRARY.search(path)}
    # scripts/ find a set-up that is done.
    assert run([tree / "scripts/setup.sh"], bare) == ""


@pytest.mark.slow
def test_damage_is_refused_and_leaves_nothing(packed, bare, tmp_path):
    damaged = tmp_path / "pack"
    shutil.copytree(packed, damaged, copy_function=os.link)
    victim = damaged / "slice-02.tar.xz"
    data = bytearray(victim.read_bytes())
    data[1000] ^= 1
    victim.unlink()
    victim.write_bytes(data)
    command = ["sh", damaged / "unpack.sh", tmp_path / "tree"]
    result = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "slice-02.tar.xz: FAILED" in result.stdout + result.stderr
    assert "carry the named files again" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_unpacking_refuses_what_is_there(tmp_path):
    command = ["sh", AIRGAP / "unpack.sh", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"{tmp_path} exists. Name a directory that is not there yet." in result.stderr


def test_the_archives_members_are_nobodys(tmp_path):
    """So that a pack is the same whoever packs."""
    pack._archive_python(tmp_path / "python.tar.gz", [contents.Piece("x", Path(__file__))])
    with tarfile.open(tmp_path / "python.tar.gz") as archive:
        (member,) = archive.getmembers()
    assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")

"""`--trusted_dataset_digest` and `--no_verify` of the commands that open a dataset or workflow."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lookback.core.digests import digest_of
from lookback.core.errors import UserError
from lookback.formats.dataset_info import DATASET_FILE
from lookback.formats.description import FEATURE_SPEC_FILE
from lookback.formats.verification import (
    dataset_digest,
    require_trusted,
    unverified,
    verify_dataset,
    vocabularies_of,
)
from lookback.serving.commands import PROGRAM as SERVING
from lookback.serving.manifest import MANIFEST_FILE, TabularManifest
from lookback.workflows.commands import PROGRAM as WORKFLOWS

SHAPE = ["--numerical", "1", "--categorical", "1", "--workers", "0", "--frequency_threshold", "0"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Days of rows in `raw`."""
    base = tmp_path_factory.mktemp("base")
    (base / "raw").mkdir()
    for day in range(2):
        lines = "".join(f"{n % 2}\t{n}\t{n % 5:08x}\n" for n in range(40))
        (base / "raw" / f"day_{day}").write_text(lines)
    return base


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command of `python -m workflows`: exit status, output, errors."""

    def run(*words: object) -> tuple[int, str, str]:
        status = WORKFLOWS.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def rows(base: Path, run: Run) -> Path:
    """The dataset of the days; `run` says the digest by which it is trusted."""
    if not (base / "rows").exists():
        said = run("run", "--dataset", "criteo", "--input", base / "raw", "--output",
                   base / "rows", *SHAPE)  # fmt: skip
        digest = digest_of(base / "rows" / DATASET_FILE)
        assert said[0] == 0
        assert f"digest: {digest} (of dataset.json, for --trusted_dataset_digest)" in said[1]
    return base / "rows"


def flip_last(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_describe_and_export_open_what_is_trusted(rows: Path, run: Run, tmp_path: Path) -> None:
    digest = digest_of(rows / DATASET_FILE)
    export = ("export-feature-spec", rows)
    for number, command in enumerate((("describe", rows), (*export, "--output", tmp_path / "b"))):
        status, out, err = run(*command, "--trusted_dataset_digest", "0" * 64)
        assert (status, out) == (2, "") and f"trusted_dataset_digest says, found {digest}" in err
        status, _, err = run(*command, "--trusted_dataset_digest", digest, "--no_verify")
        assert status == 2 and "expected without --no_verify" in err
        status, out, err = run(*command, "--trusted_dataset_digest", digest)
        assert (status, err) == (0, "")
        exported = digest_of((rows / DATASET_FILE, tmp_path / "b" / FEATURE_SPEC_FILE)[number])
        assert f"digest: {exported} (of " in out
    binary = tmp_path / "b"
    assert dataset_digest(binary) == (FEATURE_SPEC_FILE, digest_of(binary / FEATURE_SPEC_FILE))
    assert vocabularies_of(binary) == vocabularies_of(rows) and set(vocabularies_of(rows))
    require_trusted(binary, dataset_digest(binary)[1])


def test_no_verify_leaves_digests_out_and_says_so(rows: Path, run: Run, tmp_path: Path) -> None:
    damaged = shutil.copytree(rows, tmp_path / "damaged")
    flip_last(damaged / "workflow/workflow.pkl")  # describe reads nothing of it
    status, _, err = run("describe", damaged)
    assert status == 2 and "the content of workflow/workflow.pkl is not what was written" in err
    status, out, err = run("describe", damaged, "--no_verify")
    assert (status, err.count("\n")) == (0, 1) and "counts" in out
    assert err.startswith(f"--no_verify: the files of {damaged} are not compared")
    (damaged / "workflow/workflow.pkl").unlink()
    status, _, err = run("describe", damaged, "--no_verify")
    assert status == 2 and "workflow/workflow.pkl is missing" in err


def test_a_dataset_of_an_earlier_version_is_read_with_a_warning(
    rows: Path, run: Run, without_digests: Callable[[Path], Path], tmp_path: Path
) -> None:
    old = without_digests(shutil.copytree(rows, tmp_path / "old"))
    verify_dataset(old)
    assert unverified(rows) is None
    status, _, err = run("describe", old)
    assert (status, err.count("\n")) == (0, 1)
    assert err.startswith(f"warning: {old}/dataset.json has no digests of the dataset's files")
    with pytest.raises(UserError, match=r"a dataset with digests .*dataset\.json has none"):
        require_trusted(old, digest_of(old / DATASET_FILE))


def test_transform_opens_the_workflow_that_is_trusted(
    base: Path, rows: Path, run: Run, tmp_path: Path
) -> None:
    fitted = tmp_path / "fitted"
    status, out, _ = run("fit", "--dataset", "criteo", "--input", base / "raw", "--output",
                         fitted, *SHAPE)  # fmt: skip
    digest = digest_of(fitted / "options.json")
    assert status == 0 and f"digest: {digest} (of options.json, for --trusted_dataset_" in out
    trusted = {fitted: digest, rows: digest_of(rows / DATASET_FILE)}
    for number, (workflow, known) in enumerate(trusted.items()):
        command = ("transform", "--workflow", workflow, "--input", base / "raw", "--output",
                   tmp_path / f"out{number}", "--workers", 0)  # fmt: skip
        status, _, err = run(*command, "--trusted_dataset_digest", "0" * 64)
        assert status == 2 and "as trusted_dataset_digest says" in err
        status, out, _ = run(*command, "--trusted_dataset_digest", known)
        assert status == 0
        assert vocabularies_of(tmp_path / f"out{number}") == vocabularies_of(rows)
    # A dataset's digest stands for the workflow in it, whatever that says of itself.
    other = shutil.copytree(rows, tmp_path / "other")
    shutil.rmtree(other / "workflow")
    shutil.copytree(fitted, other / "workflow", ignore=shutil.ignore_patterns(".*"))
    options = (other / "workflow/options.json").read_bytes()
    (other / "workflow/options.json").write_bytes(options + b"\n")
    command = ("transform", "--workflow", other, "--input", base / "raw", "--output",
               tmp_path / "no", "--workers", 0)  # fmt: skip
    for trust in ((), ("--trusted_dataset_digest", trusted[rows])):
        status, _, err = run(*command, *trust)
        assert status == 2 and "workflow/options.json has" in err


def test_a_transform_with_a_damaged_vocabulary_is_refused(
    base: Path, rows: Path, run: Run, tmp_path: Path
) -> None:
    damaged = shutil.copytree(rows, tmp_path / "damaged")
    flip_last(damaged / "workflow/vocabulary/cat_0.arrow")
    status, _, err = run("transform", "--workflow", damaged, "--input", base / "raw", "--output",
                         tmp_path / "out", "--workers", 0)  # fmt: skip
    assert status == 2 and "the content of vocabulary/cat_0.arrow is not what was written" in err
    assert not list(tmp_path.glob("out*"))


def test_sample_compares_the_dataset(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    vocabulary = "workflow/vocabulary/cat_0.arrow"
    (bundle / vocabulary).parent.mkdir(parents=True)
    shutil.copyfile(rows / vocabulary, bundle / vocabulary)
    TabularManifest(
        model_type="dlrm", options={}, ids="raw", inputs={}, cardinalities={"cat_0": 6},
        vocabularies={"cat_0": vocabulary}, dataset={}, versions={}, numerical=("num_0",),
        categorical=("cat_0",),
    ).write(bundle)  # fmt: skip
    assert (bundle / MANIFEST_FILE).is_file()
    damaged = shutil.copytree(rows, tmp_path / "damaged")
    (part,) = sorted((damaged / "test").iterdir())[:1]
    flip_last(part)
    command = ["sample", "--export_dir", str(bundle), "--dataset_dir", str(damaged)]
    assert SERVING.main(command) == 2
    assert f"the content of test/{part.name} is not what was" in capsys.readouterr().err
    trusted = ["--trusted_dataset_digest", "0" * 64]
    assert SERVING.main([*command, *trusted]) == 2
    assert "as trusted_dataset_digest says" in capsys.readouterr().err

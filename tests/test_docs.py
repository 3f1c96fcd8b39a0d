"""Documents do as they say: links lead somewhere, commands are read, tables are the code's."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lookback.benchmarks import BENCHMARKS
from lookback.cli import LOOKBACK
from lookback.core.options import Command, CommandLine, Option, Program, options_of, parse
from lookback.scripts.reference import pages
from lookback.training.parallel.run_model import SWITCHES, LaunchOptions
from lookback.training.tuning.command import command_line as tuned
from lookback.training.tuning.space import SPACE
from lookback.workflows.log.description import LogFile

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md")])
OTHERS = {
    "docker",
    "export",
    "apt-get",
    "curl",
    "import",
    "encoder",
    "python3",
    "sh",
    "source",
    "uv",
}
"""First words of lines in code that are no commands of ours."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The text outside code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def code(page: Path, kind: str = "") -> list[str]:
    """The code blocks of one kind."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [block for info, block in found if (info.split() or [""])[0] == kind]


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)", prose(page), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.lower())) for title in titles}


@each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        if DOCS in page.parents:
            assert DOCS in target.parents, f"{link} leads out of the site"
        assert not anchor or anchor in anchors(target), link


def test_the_site_has_every_page_once() -> None:
    def listed(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            for value in entry.values():
                yield from listed(value)
        elif isinstance(entry, list):
            for value in entry:
                yield from listed(value)

    nav = list(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.glob("**/*.md")}
    decisions = {name for name in written if re.match(r"decisions/\d", name)}  # the index has them
    notebooks = {
        path.relative_to(DOCS).with_suffix(".md").as_posix() for path in DOCS.glob("**/*.ipynb")
    }
    assert sorted(nav) == sorted((written - decisions) | notebooks)


def test_reference_is_as_the_code_has_it() -> None:
    for name, content in pages().items():
        assert (DOCS / name).read_text() == content, f"{name}: run scripts/reference.py"


def commands(page: Path) -> Iterator[list[str]]:
    """The command lines in code of shells, as words."""
    for block in code(page):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words[: words.index(">")] if ">" in words else words


def ours(words: list[str]) -> list[str] | None:
    """A command line as `lookback ...`; None if it is none of ours."""
    words = [word.removeprefix(".venv/bin/") for word in words]
    if words[:2] == ["python", "-m"]:
        words = ["lookback", *words[2:]]
    elif words[:2] == ["python", "train.py"]:
        words = ["lookback", "train", *words[2:]]
    elif words[0] == "scripts/run_model.sh":
        words = ["lookback", "run", *words[1:]]
    return words if words[0] == "lookback" else None


@each_page
def test_commands_have_their_options(page: Path) -> None:
    for words in commands(page):
        line = ours(words)
        if line is None:
            assert words[0] in OTHERS or (ROOT / words[0]).is_file(), words
        elif line[1] == "benchmarks":
            assert line[2] in BENCHMARKS, words
        elif not line[1].startswith("--"):
            _check(line[1], line[2:])


def _check(door: str, words: list[str]) -> None:
    """That a command takes these words' options, and what it needs is among them."""
    found = LOOKBACK.commands[door]
    inside = found if isinstance(found, Command) else found.inside()
    if isinstance(inside, Program):
        inside, words = inside.commands[words[0]], words[1:]
    line = inside.line if isinstance(inside, Command) else inside
    assert isinstance(line, CommandLine)
    given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    known = _options(line, words)
    switches = {*SWITCHES, *options_of(LaunchOptions)} if door == "run" else set()
    flags = {f"no_{name}" for name, option in known.items() if option.kind is bool}
    assert given <= {*known, *switches, *flags, "config", "help"}, words
    needed = {name for name, found in known.items() if found.required and not found.positional}
    if not given & {"config", "help"} and door != "run":
        assert needed <= given, words


def _options(line: CommandLine, words: list[str]) -> dict[str, Option]:
    """The options of what the words choose."""
    chosen = None
    if line.chooser is not None:
        flag = f"--{line.chooser}"
        if flag in words:
            chosen = words[words.index(flag) + 1]
        elif "--config" in words:  # of a log: its file chooses
            chosen = next(name for name in ("log", *line.variants) if name in line.variants)
        else:
            chosen = next(iter(line.variants))
        if "--help" in words and chosen not in line.variants:
            chosen = next(iter(line.variants))
    return line.options(chosen)


def test_options_in_sentences_exist() -> None:
    """Of some command: a page says `--ties item` where it is clear which."""
    known = {"help", "config", "version"}
    for name in ("commands.md", "parameters.md"):
        known |= set(re.findall(r"^\|[^|]*\| `(\w+)`", (DOCS / name).read_text(), re.MULTILINE))
    known.add("build")  # docker's --build-arg
    for page in [ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("how-to/*.md")]:
        if page.name in ("results.md", "commands.md"):  # of benchmarks; what is known
            continue
        said = re.findall(r"(?<![\w-])--(\w+)", " ".join(re.findall(r"`([^`]+)`", prose(page))))
        said = {word.removeprefix("no_") for word in said}
        assert said <= known, page


def test_commands_of_benchmarks_exist() -> None:
    text = (DOCS / "results.md").read_text()
    assert set(re.findall(r"-m benchmarks (\w+)", text)) <= set(BENCHMARKS)


@each_page
def test_python_and_yaml_are_read(page: Path, tmp_path: Path) -> None:
    for block in code(page, "python"):
        ast.parse(block)
    for block in code(page, "yaml"):
        content = yaml.safe_load(block)
        if SPACE in content:
            (tmp_path / "space.yaml").write_text(block)
            parse(["--config", str(tmp_path / "space.yaml"), "--dataset_dir", "d"], tuned())
        else:
            LogFile.read(content, page.name)


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    if page.name != "CHANGELOG.md":  # it speaks of earlier versions, too
        named = re.findall(
            r"\b(?:scripts|requirements|tests)/[\w./-]+\.(?:sh|md|txt|py)", page.read_text()
        )
        assert [path for path in named if not (ROOT / path).is_file()] == []

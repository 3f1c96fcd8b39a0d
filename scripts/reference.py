"""Writes the pages of docs/ that follow from the code; `tests/test_docs.py` holds them equal.

usage: .venv/bin/python scripts/reference.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lookback.cli import LOOKBACK
from lookback.core.options import Command, CommandLine, Program, parameter_table
from lookback.core.options.nested import parts_of
from lookback.training.parallel.run_model import LaunchOptions
from lookback.training.removed import removed_table
from lookback.training.run import command_line
from lookback.training.tuning.search import TuneOptions
from lookback.workflows.log.description import LogFile
from lookback.workflows.log.schema import SCHEMA

DOCS = Path(__file__).resolve().parent.parent / "docs"
MADE = "<!-- Made by scripts/reference.py: change the code, then run it. -->\n"

PARAMETERS = """# Parameters of train.py
Names are those of NVIDIA's SIM and DLRM for TensorFlow 2, and of its DLRM and NCF for PyTorch,
where the meaning survives; so are defaults, those of batch, optimizer and schedule with
`--recipe nvidia`. Every parameter may also stand in a YAML file given by `--config`; the command
line wins over the file.

{parameters}
## Of NVIDIA's parameters, these have no meaning here

{removed}"""

COMMANDS = """# Commands
`lookback` is `.venv/bin/lookback` in a checkout, or the program of an installed wheel.
`lookback COMMAND --help` prints what stands here. Options are written `--name value`, flags
`--name` and `--no_name`; words in capitals are given without a name before them. All but `run` read
options from `--config FILE.yaml` as well, as lines of `name: value`; the command line wins over the
file. The exit status is 2 for what you can put right, 70 for a fault of Lookback's.

| command | | in a checkout also |
|---|---|---|
"""
DOORS = {"train": "train.py", "run": "scripts/run_model.sh", "tune": "lookback tune"}
"""Commands that are doors of a checkout -> their names there; others: `python -m NAME`."""
BESIDE_TRAIN = {
    "run": (
        LaunchOptions,
        "Starts `lookback train` in one process or in several. What is not listed here, and all "
        "that follows `--`, are [parameters of train.py](parameters.md).\n",
    ),
    "tune": (
        TuneOptions,
        "Searches options of training with Optuna, an extra. What is not listed here are "
        "[parameters of train.py](parameters.md), of every trial; `space` stands in the file of "
        "`--config` alone.\n",
    ),
}
"""Commands that take the parameters of train, too -> their own, and what to say of them."""

LOG_YAML = """# The YAML of a log
What `lookback workflows run --config FILE.yaml` reads;
[Impressions with clicks](how-to/impressions.md) goes through one. `lookback workflows schema`
prints the JSON Schema that these tables are made of: with
`# yaml-language-server: $schema=FILE` as a first line, editors complete keys and mark mistakes. A
mistake is refused with its path, its line and what was expected.
"""

DECISIONS = """# Decisions
Choices that would be costly to change, each with its context and with what was turned down.

"""


def pages() -> dict[str, str]:
    """The generated pages: path below docs/ -> content."""
    parameters = PARAMETERS.format(
        parameters=parameter_table(command_line()), removed=removed_table()
    )
    return {
        "parameters.md": MADE + parameters,
        "commands.md": MADE + "\n".join(_commands()),
        "log-yaml.md": MADE + "\n".join(_log_yaml(json.loads(SCHEMA.read_text()))),
        "decisions/index.md": MADE + DECISIONS + "".join(_decisions()),
    }


def _commands() -> Iterator[str]:
    inside = {
        name: None if isinstance(found, Command) else found.inside()
        for name, found in LOOKBACK.commands.items()
    }
    rows = []
    for name, found in LOOKBACK.commands.items():
        door = "" if isinstance(found, Command) else f"`{DOORS.get(name, f'python -m {name}')}`"
        link = f"[`lookback {name}`](#lookback-{name})"
        if name == "train":
            link = f"[`lookback {name}`](parameters.md)"
        rows.append(f"| {link} | {found.help} | {door} |\n")
    yield COMMANDS + "".join(rows)
    for name, found in LOOKBACK.commands.items():
        program = inside[name]
        if name == "train":
            continue
        yield f"## lookback {name}"
        if name in BESIDE_TRAIN:
            options, remark = BESIDE_TRAIN[name]
            yield remark
            yield parameter_table(CommandLine((options,)))
        elif isinstance(found, Command):
            yield from _command(found)
        elif isinstance(program, Program):
            yield f"{program.description}\n"
            tables: dict[str, str] = {}
            for inner, command in program.commands.items():
                yield f"### lookback {name} {inner}"
                assert isinstance(command, Command), inner
                yield from _command(command, tables, inner)


def _command(
    command: Command, tables: dict[str, str] | None = None, name: str = ""
) -> Iterator[str]:
    """A command's paragraph and table; `tables`: the command before that had a table, by table."""
    yield f"{command.paragraph}\n"
    table = parameter_table(command.line)
    first = name if tables is None else tables.setdefault(table, name)
    if table.count("\n") > 2:
        yield table if first == name else f"Its parameters are those of `{first}`.\n"


def _log_yaml(schema: Mapping[str, Any]) -> Iterator[str]:
    keys = {part.key for part in parts_of(LogFile)}
    own = {name: part for name, part in schema["properties"].items() if name in keys}
    beside = [f"`{name}`" for name in schema["properties"] if name not in own]
    yield LOG_YAML
    yield f"## Top level\n{schema['description']}\n"
    yield _keys({"properties": own, "required": schema["required"]})
    yield (
        "Beside these, options of [`lookback workflows run`](commands.md#lookback-workflows-run) "
        f"may stand there: {', '.join(beside)}.\n"
    )
    for name in _as_they_come(own, schema["$defs"]):
        part = schema["$defs"][name]
        yield f"## {name}\n{part.get('description', '')}".rstrip() + "\n"
        if "properties" in part:
            yield _keys(part)
        else:
            yield f"{_type(part)}\n"
            for choice in part["anyOf"]:
                if "properties" in choice:
                    yield _keys(choice)


def _as_they_come(part: Any, definitions: Mapping[str, Any]) -> list[str]:
    """Names of the definitions that a part refers to, and of those that these refer to."""
    names: list[str] = []
    for name in re.findall(r"#/\$defs/(\w+)", json.dumps(part)):
        names += [name, *_as_they_come(definitions[name], definitions)]
    return list(dict.fromkeys(names))


def _keys(part: Mapping[str, Any]) -> str:
    lines = ["| Key | Value | What it says | Default |", "|---|---|---|---|"]
    for name, found in part["properties"].items():
        default = json.dumps(found["default"]) if "default" in found else "none"
        default = "required" if name in part.get("required", ()) else f"`{default}`"
        text = found.get("description", "").replace("|", "\\|")
        lines.append(f"| `{name}` | {_type(found)} | {text} | {default} |")
    return "\n".join(lines) + "\n"


def _type(part: Mapping[str, Any]) -> str:
    """What a value is, in words."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "anyOf" in part:
        kinds = [_type(kind) for kind in part["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if part["type"] == "array":
        return f"list of {_type(part['items'])}"
    if part["type"] == "object":
        inner = part.get("additionalProperties")
        return f"name: {_type(inner)}" if isinstance(inner, dict) else "mapping"
    if "minimum" in part and part["minimum"] == part.get("maximum"):
        return f"`{part['minimum']}`"
    kinds = [part["type"]] if isinstance(part["type"], str) else part["type"]
    # Names of columns may be written without quotes, where YAML makes a number of them.
    kinds = ["text"] if kinds == ["string", "integer"] else kinds
    bounds = {
        "minimum": "from",
        "exclusiveMinimum": "above",
        "maximum": "to",
        "exclusiveMaximum": "below",
    }
    words = [f"{word} {part[key]:g}" for key, word in bounds.items() if key in part]
    return " ".join([" or ".join(kind for kind in kinds if kind != "null"), *words])


def _decisions() -> Iterator[str]:
    for path in sorted(DOCS.glob("decisions/[0-9]*.md")):
        number, title = re.fullmatch(
            r"# (\d{4})[.:]? (.*)", path.read_text().splitlines()[0]
        ).groups()
        yield f"- [{number}]({path.name}) {title}\n"


if __name__ == "__main__":
    for path, content in pages().items():
        (DOCS / path).write_text(content)
        print(f"wrote docs/{path}")

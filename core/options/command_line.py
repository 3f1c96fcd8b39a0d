"""Reads a command line, from arguments and a YAML file, and writes what it read as YAML."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import numbers
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lookback.core.errors import UserError
from lookback.core.files import atomic_file, inside_ours
from lookback.core.options.help import help_text
from lookback.core.options.line import CommandLine, ConfigFile
from lookback.core.options.option import Option, options_of
from lookback.core.yaml_files import StrictDumper, load_yaml, read_text


def parse(
    argv: Sequence[str],
    line: CommandLine,
    *,
    prog: str | None = None,
    description: str | None = None,
) -> tuple[Any, ...]:
    """Reads a command line into one instance of each dataclass.

    Defaults give way to `--config FILE.yaml`, which gives way to the arguments.

    Args:
      argv: the arguments, without the program's name.
      line: what can be given.
      prog: the program's name in `--help`.
      description: one paragraph above the options in `--help`.

    Returns:
      Instances of `line.configs`, then of the dataclasses that the choice brings in.

    Raises:
      UserError: unknown, mistyped, missing or invalid options.
      SystemExit: with status 0, after printing what `--help` or `--help-all` asks for.
    """
    asked = next((word for word in argv if word in ("-h", "--help", "--help-all")), None)
    if asked is not None:
        chosen, recipe = None, None
        if asked != "--help-all":
            chosen, recipe = (_for_help(argv, n, line) for n in (line.chooser, line.recipe))
        print(help_text(line, chosen, prog, description, recipe), end="")
        raise SystemExit(0)
    chosen, recipe = (_choice(argv, name, line) for name in (line.chooser, line.recipe))
    options = line.options(chosen, recipe)
    foreign = {} if chosen is None else _foreign(line, chosen, options)
    return line.instances(chosen, _values(argv, options, line, foreign), recipe)


def from_values(line: CommandLine, **values: Any) -> tuple[Any, ...]:
    """What `parse` gives for a command line with these values.

    Args:
      line: what can be given.
      **values: as `words_of` takes them.

    Raises:
      UserError: for what `parse` refuses, and values of other types than the options have.
    """
    return parse(words_by_keyword(line, values), line)


def words_by_keyword(line: CommandLine, values: Mapping[str, Any]) -> list[str]:
    """As `words_of`, of values that have the types of the options: as text, [0.1] is 0.1.

    Args:
      line: what can be given; what it does not know is left to `parse`.
      values: as `words_of` takes them.

    Raises:
      UserError: naming the first that is of another type.
    """
    known = [line.shared(), *(line.own(variant) for variant in line.variants)]
    for name, value in values.items():
        options = [of[name] for of in known if name in of]
        faults = [fault for option in options if (fault := _fault_of(option, value)) is not None]
        if faults and len(faults) == len(options):
            raise faults[0]
    return words_of(values)


def _fault_of(option: Option, value: Any) -> UserError | None:
    """What is wrong with a value given in code."""
    several = isinstance(value, list | tuple)
    if several and any(isinstance(element, str) and "," in element for element in value):
        return UserError(
            f"{option.written}: expected {option.expected}, received {value!r}, of which one has a "
            "comma. Give each by itself."
        )
    plain = [_plain(element) for element in value] if several else _plain(value)
    try:
        option.read(plain, option.written)
    except UserError as error:
        return error
    return None


def _plain(value: Any) -> Any:
    """A value of Python's own type: NumPy's numbers and paths are as good."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return (
        float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value
    )


def words_of(values: Mapping[str, Any]) -> list[str]:
    """Options given by keyword as the words of a command line, for `parse`.

    Args:
      values: by option; True and False for flags, sequences for several values.
    """
    words = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
            continue
        several = isinstance(value, list | tuple)
        text = ",".join(map(str, value)) if several else "none" if value is None else str(value)
        words.append(f"--{name}={text}")
    return words


def parse_known(argv: Sequence[str], config: type) -> tuple[Any, list[str]]:
    """Reads the options of one dataclass out of words that are for another command line, too.

    Args:
      argv: the arguments, without the program's name.
      config: the dataclass.

    Returns:
      Its instance, and the words that are none of its options, in their order.

    Raises:
      UserError: mistyped, missing or invalid options.
    """
    options = options_of(config)
    written, rest = _read_argv(argv, options, config=False)
    values = {name: options[name].read(raw, options[name].written) for name, raw in written.items()}
    return config(**_filled(values, options, config=False)), rest


def to_yaml(*configs: Any, comments: Sequence[str] = ()) -> str:
    """The configs as one flat YAML mapping that `--config` reads back to equal objects.

    Args:
      *configs: instances of config dataclasses; a field that several share is written once.
      comments: a heading for each config.
    """
    lines: list[str] = []
    seen: set[str] = set()
    for index, config in enumerate(configs):
        if index < len(comments):
            lines.append(f"# {comments[index]}")
        for name, option in options_of(type(config)).items():
            if name in seen:
                continue
            seen.add(name)
            value = yaml.dump(
                option.write(getattr(config, name)),
                Dumper=StrictDumper,
                default_flow_style=True,
                width=10**6,
            )
            scalar = value.removesuffix("...\n")  # the end of a scalar's document
            lines.append(f"{name}: {scalar.strip()}")
    return "\n".join(lines) + "\n"


def save_yaml(path: str | os.PathLike[str], *configs: Any, comments: Sequence[str] = ()) -> None:
    """Writes `to_yaml` of the configs to `path`, whole or not at all."""
    with atomic_file(path, replaces=inside_ours) as temporary:
        temporary.write_text(to_yaml(*configs, comments=comments), encoding="utf-8")


def _for_help(argv: Sequence[str], name: str | None, line: CommandLine) -> str | None:
    """What an option chooses for `--help`; None if it is not given, or other words are wrong."""
    if name is None:
        return None
    words = [word for word in argv if word not in ("-h", "--help", "--help-all")]
    try:
        return _choice(words, name, line)
    except UserError:
        default = line.shared()[name].default
        return None if default is dataclasses.MISSING or default is None else str(default)


def _choice(argv: Sequence[str], name: str | None, line: CommandLine) -> str | None:
    """The value of an option that brings in others, or their defaults; None without one."""
    if name is None:
        return None
    chooser = line.shared()[name]
    written, _ = _read_argv(argv, {name: chooser})
    chosen = chooser.default
    if "config" in written:
        in_file = _read_config(written["config"], line)
        if name in in_file:
            chosen = chooser.read(in_file[name], f"{name} in {written['config']}")
    if name in written:
        chosen = chooser.read(written[name], f"--{name}")
    if chosen is dataclasses.MISSING:
        raise chooser.missing()
    return None if chosen is None else str(chosen)


@dataclasses.dataclass(frozen=True)
class _Foreign:
    """An option that other choices alone have.

    Attributes:
      text: what to say of it.
      options: what it is to each of them.
    """

    text: str
    options: Sequence[Option]

    def is_default(self, raw: object) -> bool:
        """Whether `raw` spells a default of it, so that it asks for nothing."""
        for found in self.options:
            try:
                if found.read(raw, found.name) == found.default:
                    return True
            except UserError:
                continue
        return False


def _foreign(line: CommandLine, chosen: str, known: Mapping[str, Option]) -> dict[str, _Foreign]:
    """Options that other choices alone have, by name."""
    owners: dict[str, dict[str, Option]] = {}
    for variant in line.variants:
        for name, found in line.own(variant).items():
            if name not in known:
                owners.setdefault(name, {})[variant] = found
    return {
        name: _Foreign(
            f"is an option of {', '.join(found)}, not of {chosen}. Remove it, or choose "
            f"--{line.chooser} {next(iter(found))}.",
            list(found.values()),
        )
        for name, found in owners.items()
    }


def _values(
    argv: Sequence[str],
    options: Mapping[str, Option],
    line: CommandLine,
    foreign: Mapping[str, _Foreign],
) -> dict[str, Any]:
    """The value of every option: as written, as in the file, or its default."""
    removed = line.removed
    written, unknown = _read_argv(argv, options)
    if unknown:
        word = unknown[0].split("=")[0]
        if not word.startswith("-"):
            before = argv[list(argv).index(unknown[0]) - 1].removeprefix("--")
            if before in options and options[before].kind is bool:
                raise _valued_flag(f"--{before}", repr(unknown[0]))
            positional = any(option.positional for option in options.values())
            why = "" if positional else ": every value follows a --name"
            raise UserError(f"unexpected argument {unknown[0]!r}{why}.")
        raise _unknown(word, "--", word.lstrip("-"), options, removed, foreign)

    values = {}
    if "config" in written:
        path, left_out = written.pop("config"), []
        for key, raw in _read_config(path, line).items():
            if key not in options:
                # A run's config.yaml of before layouts had options of their own holds those of all.
                if key in foreign and foreign[key].is_default(raw):
                    left_out.append(str(key))
                    continue
                raise _unknown(f"key {key!r} in {path}", "", str(key), options, removed, foreign)
            values[key] = options[key].read(raw, f"{key} in {path}")
        if left_out:
            print(f"{path}: not used, and at its default: {', '.join(left_out)}", file=sys.stderr)
    for name, raw in written.items():
        values[name] = options[name].read(raw, options[name].written)
    return _filled(values, options)


def _filled(
    values: dict[str, Any], options: Mapping[str, Option], *, config: bool = True
) -> dict[str, Any]:
    """The values with the defaults of those that were not given; `config` as of `missing`."""
    for name, option in options.items():
        if name not in values:
            if option.required:
                raise option.missing(config=config)
            values[name] = option.default
    return values


def _unknown(
    what: str,
    dashes: str,
    name: str,
    known: Mapping[str, Option],
    removed: Mapping[str, str],
    foreign: Mapping[str, _Foreign],
) -> UserError:
    plain = name.replace("-", "_").lower()
    positive = plain.removeprefix("no_")
    if plain in foreign or positive in foreign:
        return UserError(f"{what} {(foreign.get(plain) or foreign[positive]).text}")
    if plain in removed:
        return UserError(f"{what} is not needed here: {removed[plain]}")
    if dashes and positive.startswith("no") and positive[2:] in known:
        return UserError(f"unknown option: {what}. Did you mean --no_{positive[2:]}?")
    # A file names no other.
    close = difflib.get_close_matches(positive, [*known, "config"] if dashes else known, n=1)
    if close and dashes and close[0] in known and known[close[0]].positional:
        written = known[close[0]].written
        return UserError(f"unknown option: {what}. Give {written} without --{close[0]} before it.")
    if close:
        return UserError(f"unknown option: {what}. Did you mean {dashes}{close[0]}?")
    close = difflib.get_close_matches(plain, list(foreign), n=1)
    if close:
        return UserError(
            f"unknown option: {what}. Did you mean {dashes}{close[0]}? It {foreign[close[0]].text}"
        )
    return UserError(f"unknown option: {what}. --help lists the options.")


def _valued_flag(flag: str, value: str) -> UserError:
    name = flag.removeprefix("--").removeprefix("no_")
    return UserError(
        f"{flag}: expected no value, as it is a flag, received {value}. Write --{name} for true, "
        f"--no_{name} for false."
    )


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises where the original prints and exits."""

    def error(self, message: str) -> typing.NoReturn:
        text = message.removeprefix("argument ")
        flag, _, value = text.partition(": ignored explicit argument ")
        if value:
            raise _valued_flag(flag.split("/")[0], value)
        text = text.replace("expected one argument", "expected a value, received none")
        raise UserError(f"{text}. --help lists the options.")


def _read_argv(
    argv: Sequence[str], options: Mapping[str, Option], *, config: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """`(name -> raw value, arguments that no option claims)`.

    `config`: whether `--config` is one of the options.
    """
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    if config:
        parser.add_argument("--config", action="append")
    for option in options.values():
        if option.positional:
            continue
        if option.kind is bool:
            parser.add_argument(f"--{option.name}", action="store_true")
            parser.add_argument(
                *(f"--no_{option.name}", f"--no-{option.name}"),
                action="store_false",
                dest=option.name,
            )
        else:
            action = "append" if option.repeatable else "store"
            parser.add_argument(f"--{option.name}", action=action)
    # What follows "--" is no option, whatever it begins with.
    end = list(argv).index("--") if config and "--" in argv else len(argv)
    words = list(argv[end + 1 :])
    found, rest = parser.parse_known_args(list(argv[:end]))
    written = vars(found)
    if "config" in written:
        if len(written["config"]) > 1:
            raise UserError(
                f"--config: expected one file, received {len(written['config'])}: "
                f"{', '.join(written['config'])}. Join them in one."
            )
        (written["config"],) = written["config"]
    for option in options.values():
        if option.positional and option.is_tuple:
            given = [word for word in rest if not word.startswith("-")]
            rest = [word for word in rest if word not in given]
            if given or words:
                written[option.name], words = [*given, *words], []
        elif option.positional:
            word = next((word for word in rest if not word.startswith("-")), None)
            if word is not None:
                rest.remove(word)
                written[option.name] = word
            elif words:
                written[option.name] = words.pop(0)
    return written, [*rest, *words]


def _read_config(path: str, line: CommandLine) -> Mapping[str, Any]:
    source = f"--config {path}"
    text = read_text(path, source)
    content = load_yaml(text, source)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(
            f"{source}: expected lines of the form 'name: value', received a "
            f"{type(content).__name__}."
        )
    if line.document is None:
        return content
    known = {*line.shared(), *(name for variant in line.variants for name in line.own(variant))}
    return line.document(ConfigFile(Path(path), text, content, known))

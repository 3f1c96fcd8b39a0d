"""Options as people read them: the text of `--help`, and the table of the documents."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lookback.core.options.line import CommandLine
from lookback.core.options.option import Option


def help_text(
    line: CommandLine,
    chosen: str | None,
    prog: str | None,
    description: str | None,
    recipe: str | None = None,
) -> str:
    """What `--help` prints.

    Args:
      line: the command line.
      chosen: the variant whose options to list; None: those of all.
      prog: the program's name.
      description: one paragraph above the options.
      recipe: whose defaults to show; None: ours, with those of recipes beside them.
    """
    if chosen is None:
        rows = _rows(line)
        notes = {
            option.name: f"only {', '.join(owners)}"
            for option, owners in rows
            if owners and len(owners) < len(line.variants)
        }
        return _text(line, [option for option, _ in rows], notes, prog, description)
    options = line.options(chosen, recipe)
    notes = {}
    for other in line.recipes(chosen) if recipe is None else ():
        for name, value in line.defaults(chosen, other).items():
            if value != options[name].default:
                notes[name] = f"--{line.recipe} {other}: {options[name].show(value)}"
    text = _text(line, _by_scope(options.values()), notes, prog, description)
    return f"{text}\nThese are the options with --{line.chooser} {chosen}; --help-all lists all.\n"


def parameter_table(line: CommandLine) -> str:
    """The options of a command line as a Markdown table, with the variants that have them."""
    lines = ["| Scope | Parameter | Description | Default |", "|---|---|---|---|"]
    for option, owners in _rows(line):
        text = option.help.replace("|", "\\|")
        if option.choices and option.name != line.chooser:
            text += f" ({', '.join(option.choices)})"
        if owners and len(owners) < len(line.variants):
            text += f" (only {', '.join(owners)})"
        default = option.show(option.default).replace("|", "\\|")
        name = option.written if option.positional else option.name
        lines.append(f"| {option.scope} | `{name}` | {text} | {default} |")
    return "\n".join(lines) + "\n"


def _rows(line: CommandLine) -> list[tuple[Option, list[str]]]:
    """Every option once, by scope, with the variants that bring it in (none: all have it)."""
    shared = line.shared()
    variants = {name: line.own(name) for name in line.variants}
    changed = {name: line.defaults(name) for name in line.variants}
    recipes = [
        (recipe, name, line.options(name), line.defaults(name, recipe))
        for name in line.variants
        for recipe in line.recipes(name)
    ]
    rows: list[tuple[Option, list[str]]] = []
    for name in dict.fromkeys([*shared, *(n for own in variants.values() for n in own)]):
        owners = [variant for variant, own in variants.items() if name in own]
        option = shared[name] if name in shared else variants[owners[0]][name]
        plain = option.show(option.default)
        defaults: dict[str, list[str]] = {}
        for variant in line.variants if name in shared else owners:
            own = shared[name] if name in shared else variants[variant][name]
            value = own.show(changed[variant].get(name, own.default))
            defaults.setdefault(value, []).append(variant)
        others = {value: named for value, named in defaults.items() if value != plain}
        if others and name in shared:
            texts = [f"{value} for {', '.join(named)}" for value, named in others.items()]
            option = dataclasses.replace(option, default="; ".join([plain, *texts]), unit=None)
        elif others:
            texts = [f"{value} for {', '.join(named)}" for value, named in defaults.items()]
            option = dataclasses.replace(option, default=", ".join(texts), unit=None)
        said = _of_recipes(recipes, line.recipe, name)
        if said:
            text = f"{option.show(option.default)}; {said}"
            option = dataclasses.replace(option, default=text, unit=None)
        rows.append((option, [] if name in shared else owners))
    order = [option.name for option in _by_scope(option for option, _ in rows)]
    return sorted(rows, key=lambda row: order.index(row[0].name))


def _of_recipes(
    recipes: Iterable[tuple[str, str, Mapping[str, Option], Mapping[str, Any]]],
    chooser: str | None,
    name: str,
) -> str:
    """What recipes make of the default of an option, by variant; "" if nothing.

    Args:
      recipes: each with a variant, its options, and the defaults that the recipe gives it.
      chooser: the option that chooses one.
      name: of the option.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for recipe, variant, options, own in recipes:
        if name in own and own[name] != options[name].default:
            value = options[name].show(own[name])
            found.setdefault(recipe, {}).setdefault(value, []).append(variant)
    return "; ".join(
        f"--{chooser} {recipe}: "
        + ", ".join(f"{value} for {', '.join(named)}" for value, named in values.items())
        for recipe, values in found.items()
    )


def _by_scope(options: Iterable[Option]) -> list[Option]:
    options = list(options)
    scopes = list(dict.fromkeys(option.scope for option in options))
    return sorted(options, key=lambda option: scopes.index(option.scope))


def _text(
    line: CommandLine,
    options: Iterable[Option],
    notes: Mapping[str, str],
    prog: str | None,
    description: str | None,
) -> str:
    options = list(options)
    words = "".join(
        f" {option.written}" if option.positional else f" --{option.name} {option.metavar}"
        for option in options
        if option.required
    )
    parser = argparse.ArgumentParser(
        prog=prog or Path(sys.argv[0]).name,
        usage=f"%(prog)s{words} [--config FILE.yaml] [options]",
        description=description,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
    )
    general = parser.add_argument_group("general")
    general.add_argument("-h", "--help", action="help", help="show this text")
    if line.chooser is not None:
        text = f"show the options of every --{line.chooser}"
        general.add_argument("--help-all", action="store_true", help=text)
    general.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="options as 'name: value' lines; the command line wins over them",
    )
    groups: dict[str, Any] = {}
    for option in options:
        if option.scope not in groups:
            groups[option.scope] = parser.add_argument_group(option.scope)
        _add(groups[option.scope].add_argument, option, notes)
    return parser.format_help()


def _add(add: Callable[..., Any], option: Option, notes: Mapping[str, str]) -> None:
    remarks = [] if option.name not in notes else [notes[option.name]]
    if option.required:
        remarks.insert(0, "required")
    elif option.default is not False:
        remarks.insert(0, f"default: {option.show(option.default)}")
    if option.unit not in (None, "bytes"):
        remarks.append(f"in {option.unit}")
    text = option.help + (f" ({'; '.join(remarks)})" if remarks else "")
    text = text.strip().replace("%", "%%")
    if option.positional:
        add(option.name, metavar=option.written, help=text)
    elif option.kind is bool:
        add(f"--{option.name}", action="store_true", help=text)
    else:
        add(f"--{option.name}", metavar=option.metavar, help=text)

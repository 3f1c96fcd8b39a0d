"""Command lines and YAML files from frozen dataclasses: a field is an option, and nothing else is.

A field `lr: float = 0.01` becomes `--lr FLOAT` on the command line and the key `lr` in a YAML file.
What a field may say about itself stands in its metadata, all of it optional:

  help      one line for `--help` and the README.
  scope     the group under which it is listed; without it, the group of its class.
  none      values that mean "absent" (None) when they are *written*, for the sentinels of older
            command lines: `metadata={"none": (-1,)}` reads `--seed -1` as None. The field must be
            Optional. The word `none` (YAML: null) does so for every Optional field.
  choices   the allowed values, if the annotation is not a Literal.

Annotations may be bool, int, float, str, Path, Literal of strings, tuple[int|float|str, ...], and
any of them `| None`. Two classes may have a field of the same name and type: it is one option, and
both get its value (the first class's default counts).

This module is plain Python: nothing here imports TensorFlow, so `--help` and typing errors answer
at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lookback.core.errors import UserError
from lookback.core.files import atomic_file

_SCALARS: dict[type, tuple[str, str]] = {  # type -> (name in --help, words in an error)
    int: ("INT", "an integer"),
    float: ("FLOAT", "a number"),
    str: ("TEXT", "text"),
    Path: ("PATH", "a path"),
}


@dataclasses.dataclass(frozen=True)
class Option:
    """One field of a config dataclass, as an option.

    Attributes:
      name: the field's name; the flag is `--name`, the YAML key is `name`.
      kind: bool, int, float, str or Path; of a tuple, the type of its elements.
      is_tuple: the value is a tuple of `kind`, written "200,80" or as a YAML list.
      is_optional: None is allowed.
      choices: the allowed values, or None if any value of the type will do.
      default: the default value; `dataclasses.MISSING` if the option is required.
      help: one line.
      scope: the group under which the option is listed.
      none: written values that mean None.
    """

    name: str
    kind: type
    is_tuple: bool
    is_optional: bool
    choices: tuple[str, ...] | None
    default: Any
    help: str
    scope: str
    none: tuple[Any, ...]

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is dataclasses.MISSING

    @property
    def metavar(self) -> str:
        """The value's place holder in `--help`."""
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        word = _SCALARS[self.kind][0]
        return f"{word},{word},..." if self.is_tuple else word

    @property
    def expected(self) -> str:
        """What a value must be, in words, for error messages."""
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        elif self.kind is bool:
            text = "true or false"
        elif self.is_tuple:
            text = f"{_SCALARS[self.kind][1]}, or several separated by commas"
        else:
            text = _SCALARS[self.kind][1]
        return f"{text}, or none" if self.is_optional else text

    def read(self, raw: object, source: str) -> Any:
        """The value that `raw` spells.

        Args:
          raw: text from the command line, or what YAML made of the file.
          source: where it came from, for the error message.

        Raises:
          UserError: if it spells no value of this option.
        """
        if self.is_optional and (
            raw is None or (isinstance(raw, str) and raw.strip().lower() == "none")
        ):
            return None
        if any(str(raw) == str(sentinel) for sentinel in self.none):
            return None
        try:
            value = self._convert(raw)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{source}: expected {self.expected}, received {raw!r}.{self._suggestion(raw)}"
            ) from None
        return None if value in self.none else value

    def write(self, value: Any) -> Any:
        """The value as YAML can hold it: tuples become lists, paths text."""
        if isinstance(value, tuple):
            return [self.write(element) for element in value]
        return str(value) if isinstance(value, Path) else value

    def show(self, value: Any) -> str:
        """The value as one would write it on the command line, for tables and `--help`."""
        if value is dataclasses.MISSING:
            return "required"
        if isinstance(value, tuple):
            return ",".join(str(element) for element in value)
        return "none" if value is None else str(value)

    def _convert(self, raw: object) -> Any:
        if self.is_tuple:
            if isinstance(raw, str):
                elements: Iterable[object] = [part for part in raw.split(",") if part.strip()]
            elif isinstance(raw, list | tuple):
                elements = raw
            else:
                elements = [raw]
            return tuple(_convert_scalar(self.kind, element) for element in elements)
        value = _convert_scalar(self.kind, raw)
        if self.choices and value not in self.choices:
            raise ValueError(value)
        return value

    def _suggestion(self, raw: object) -> str:
        close = difflib.get_close_matches(str(raw), self.choices or (), n=1)
        return f" Did you mean {close[0]!r}?" if close else ""


def options_of(
    config_class: type,
    *,
    scope: str | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Option]:
    """The options that a config dataclass defines, in the order of its fields.

    Args:
      config_class: a dataclass whose fields have the annotations listed at the top.
      scope: the group of fields that name none; the class's name if None.
      choices: field name -> allowed values, for choices that only the caller knows (a registry).

    Raises:
      TypeError: if a field cannot be an option: a mistake in the class, not of the user.
    """
    hints = typing.get_type_hints(config_class)
    options = {}
    for field in dataclasses.fields(config_class):
        if not field.init:
            continue
        kind, is_tuple, is_optional, literal = _annotation(config_class, field.name, hints)
        allowed = (choices or {}).get(field.name, field.metadata.get("choices", literal))
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        options[field.name] = Option(
            name=field.name,
            kind=kind,
            is_tuple=is_tuple,
            is_optional=is_optional,
            choices=tuple(allowed) if allowed is not None else None,
            default=default,
            help=field.metadata.get("help", ""),
            scope=field.metadata.get("scope", scope or config_class.__name__),
            none=tuple(field.metadata.get("none", ())),
        )
    return options


def parse(
    argv: Sequence[str],
    *config_classes: type,
    choices: Mapping[str, Sequence[str]] | None = None,
    removed: Mapping[str, str] | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> tuple[Any, ...]:
    """Reads a command line into one instance of each dataclass.

    Defaults give way to `--config FILE.yaml`, which gives way to the command line.

    Args:
      argv: the arguments, without the program's name.
      *config_classes: dataclasses; see the top of this module.
      choices: field name -> allowed values, for choices that only the caller knows.
      removed: names that users of older versions may still write -> the sentence that says what
        replaces them.
      prog: the program's name in `--help`.
      description: one paragraph above the options in `--help`.

    Raises:
      UserError: unknown, mistyped, missing or invalid options.
      SystemExit: with status 0, after printing what `--help` asks for.
    """
    options = [options_of(config_class, choices=choices) for config_class in config_classes]
    merged = _merge(options)
    if _wants_help(argv):
        print(_help(merged.values(), {}, prog, description), end="")
        raise SystemExit(0)
    return _build(argv, config_classes, options, removed or {}, {})


def parse_run(
    argv: Sequence[str],
    run_class: type,
    model_configs: Mapping[str, type],
    *,
    removed: Mapping[str, str] | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> tuple[Any, Any]:
    """Reads a command line into the run's config and the config of the model it names.

    `run_class` must have a field `model_type`; its choices are the keys of `model_configs` and
    the first of them is the default. Once it is known, that model's dataclass adds its options, and
    its `run_defaults` (option -> value), if it has any, take the place of the run's defaults. An
    option that only other models have is refused with their names.

    Args:
      argv: the arguments, without the program's name.
      run_class: the dataclass of everything that does not depend on the model.
      model_configs: model name -> its config dataclass.
      removed: as for `parse`.
      prog: as for `parse`.
      description: as for `parse`.

    Returns:
      `(run, model)`, instances of `run_class` and of `model_configs[run.model_type]`.

    Raises:
      UserError: unknown, mistyped, missing or invalid options.
      SystemExit: with status 0, after printing what `--help` asks for.
    """
    run_options = _run_options(run_class, model_configs)
    models = {name: options_of(cls, scope="model") for name, cls in model_configs.items()}
    if _wants_help(argv):
        shown = _with_defaults_of_models(run_options, model_configs)
        print(_run_help(shown, models, prog, description), end="")
        raise SystemExit(0)

    written, _ = _read_argv(argv, {"model_type": run_options["model_type"]})
    in_file = _read_yaml(written["config"]) if "config" in written else {}
    chosen = run_options["model_type"].default
    if "model_type" in in_file:
        source = f"model_type in {written['config']}"
        chosen = run_options["model_type"].read(in_file["model_type"], source)
    if "model_type" in written:
        chosen = run_options["model_type"].read(written["model_type"], "--model_type")

    for name, value in _defaults_of(model_configs[chosen], run_options).items():
        run_options[name] = dataclasses.replace(run_options[name], default=value)
    known = {*run_options, *models[chosen]}
    foreign: dict[str, str] = {}
    for name in dict.fromkeys(name for options in models.values() for name in options):
        if name not in known:
            owners = [model for model, options in models.items() if name in options]
            foreign[name] = (
                f"is an option of {', '.join(owners)}, not of {chosen}. Remove it, or choose "
                f"--model_type {owners[0]}."
            )
    run, model = _build(
        argv,
        (run_class, model_configs[chosen]),
        [run_options, models[chosen]],
        removed or {},
        foreign,
    )
    return run, model


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
            value = yaml.safe_dump(
                option.write(getattr(config, name)), default_flow_style=True, width=10**6
            )
            # A scalar's document ends in a line of dots.
            lines.append(f"{name}: {value.removesuffix('...' + chr(10)).strip()}")
    return "\n".join(lines) + "\n"


def save_yaml(path: str | os.PathLike[str], *configs: Any, comments: Sequence[str] = ()) -> None:
    """Writes `to_yaml` of the configs to `path`, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(to_yaml(*configs, comments=comments), encoding="utf-8")


def parameter_table(run_class: type, model_configs: Mapping[str, type]) -> str:
    """The options of `parse_run` as a Markdown table, for the README."""
    run_options = _run_options(run_class, model_configs)
    models = {name: options_of(cls, scope="model") for name, cls in model_configs.items()}
    lines = ["| Scope | Parameter | Description | Default |", "|---|---|---|---|"]
    shown = _with_defaults_of_models(run_options, model_configs)
    for option, owners in _with_owners(shown, models):
        text = option.help.replace("|", "\\|")
        if option.choices and option.name != "model_type":
            text += f" ({', '.join(option.choices)})"
        if owners and len(owners) < len(models):
            text += f" (only {', '.join(owners)})"
        default = option.show(option.default).replace("|", "\\|")
        lines.append(f"| {option.scope} | `{option.name}` | {text} | {default} |")
    return "\n".join(lines) + "\n"


def _run_options(run_class: type, model_configs: Mapping[str, type]) -> dict[str, Option]:
    options = options_of(run_class, choices={"model_type": tuple(model_configs)})
    model_type = options["model_type"]
    if model_type.required:
        first = next(iter(model_configs))
        options["model_type"] = dataclasses.replace(model_type, default=first)
    return options


def _defaults_of(model_config: type, run_options: Mapping[str, Option]) -> Mapping[str, Any]:
    """The defaults of the run's options that a model brings: its config class's `run_defaults`.

    Raises:
      TypeError: if the run has no such option: a mistake in the class, not of the user.
    """
    defaults: Mapping[str, Any] = getattr(model_config, "run_defaults", {})
    unknown = sorted(set(defaults) - set(run_options))
    if unknown:
        raise TypeError(f"{model_config.__name__}.run_defaults: the run has no {unknown[0]!r}")
    return defaults


def _with_defaults_of_models(
    run_options: Mapping[str, Option], model_configs: Mapping[str, type]
) -> dict[str, Option]:
    """The run's options as they are shown: with the defaults that models bring."""
    shown = dict(run_options)
    for name, option in run_options.items():
        models: dict[str, list[str]] = {}
        for model, config in model_configs.items():
            own = _defaults_of(config, run_options)
            if name in own and own[name] != option.default:
                models.setdefault(option.show(own[name]), []).append(model)
        if models:
            others = [f"{value} for {', '.join(named)}" for value, named in models.items()]
            text = "; ".join([option.show(option.default), *others])
            shown[name] = dataclasses.replace(option, default=text)
    return shown


def _build(
    argv: Sequence[str],
    config_classes: Sequence[type],
    options: Sequence[Mapping[str, Option]],
    removed: Mapping[str, str],
    foreign: Mapping[str, str],
) -> tuple[Any, ...]:
    merged = _merge(options)
    written, unknown = _read_argv(argv, merged)
    if unknown:
        word = unknown[0].split("=")[0]
        if not word.startswith("-"):
            raise UserError(f"unexpected argument {unknown[0]!r}: every value follows a --name.")
        raise _unknown(word, "--", word.lstrip("-"), merged, removed, foreign)

    values = {}
    if "config" in written:
        path = written.pop("config")
        for key, raw in _read_yaml(path).items():
            if key not in merged:
                raise _unknown(f"key {key!r} in {path}", "", str(key), merged, removed, foreign)
            values[key] = merged[key].read(raw, f"{key} in {path}")
    for name, raw in written.items():
        values[name] = merged[name].read(raw, f"--{name}")

    for name, option in merged.items():
        if name not in values:
            if option.required:
                raise UserError(
                    f"--{name} is required: {option.help or option.expected}. "
                    f"Give it on the command line or in --config."
                )
            values[name] = option.default
    return tuple(
        config_class(**{name: values[name] for name in own})
        for config_class, own in zip(config_classes, options, strict=True)
    )


def _unknown(
    what: str,
    dashes: str,
    name: str,
    known: Mapping[str, Option],
    removed: Mapping[str, str],
    foreign: Mapping[str, str],
) -> UserError:
    plain = name.replace("-", "_").lower()
    if plain in foreign:
        return UserError(f"{what} {foreign[plain]}")
    if plain in removed:
        return UserError(f"{what} is not needed here: {removed[plain]}")
    positive = plain.removeprefix("no_")
    close = difflib.get_close_matches(positive, [*known, "config"], n=1)
    if close:
        return UserError(f"unknown option: {what}. Did you mean {dashes}{close[0]}?")
    close = difflib.get_close_matches(plain, list(foreign), n=1)
    if close:
        return UserError(
            f"unknown option: {what}. Did you mean {dashes}{close[0]}? It {foreign[close[0]]}"
        )
    return UserError(f"unknown option: {what}. --help lists the options.")


def _merge(groups: Sequence[Mapping[str, Option]]) -> dict[str, Option]:
    merged: dict[str, Option] = {}
    for options in groups:
        for name, option in options.items():
            first = merged.setdefault(name, option)
            if (first.kind, first.is_tuple) != (option.kind, option.is_tuple):
                raise TypeError(
                    f"two config classes define {name!r} with different types: "
                    f"{first.metavar} and {option.metavar}"
                )
    return merged


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises where the original prints and exits."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}. --help lists the options.")


def _read_argv(
    argv: Sequence[str], options: Mapping[str, Option]
) -> tuple[dict[str, Any], list[str]]:
    """`(name -> raw value, arguments that no option claims)`."""
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config")
    for option in options.values():
        if option.kind is bool:
            parser.add_argument(f"--{option.name}", action="store_true")
            parser.add_argument(f"--no_{option.name}", action="store_false", dest=option.name)
        else:
            parser.add_argument(f"--{option.name}")
    written, unknown = parser.parse_known_args(list(argv))
    return vars(written), unknown


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which takes the last of two equal keys, made to refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: expected a YAML file, but {error}.") from None
    try:
        # Not the unsafe load: _UniqueKeyLoader is a SafeLoader.
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise UserError(f"--config {path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(
            f"--config {path}: expected lines of the form 'name: value', received a "
            f"{type(content).__name__}."
        )
    return content


def _wants_help(argv: Sequence[str]) -> bool:
    return "--help" in argv or "-h" in argv


def _with_owners(
    run_options: Mapping[str, Option], models: Mapping[str, Mapping[str, Option]]
) -> list[tuple[Option, list[str]]]:
    """Every option once, grouped by scope, with the models that own it (none: the run does)."""
    rows: list[tuple[Option, list[str]]] = [(option, []) for option in run_options.values()]
    for name in dict.fromkeys(name for options in models.values() for name in options):
        if name in run_options:
            continue
        owners = [model for model, options in models.items() if name in options]
        option = models[owners[0]][name]
        shown = {model: option.show(models[model][name].default) for model in owners}
        if len(set(shown.values())) > 1:
            text = ", ".join(f"{value} for {model}" for model, value in shown.items())
            option = dataclasses.replace(option, default=text, help=option.help)
        rows.append((option, owners))
    scopes = list(dict.fromkeys(option.scope for option, _ in rows))
    return sorted(rows, key=lambda row: scopes.index(row[0].scope))


def _run_help(
    run_options: Mapping[str, Option],
    models: Mapping[str, Mapping[str, Option]],
    prog: str | None,
    description: str | None,
) -> str:
    rows = _with_owners(run_options, models)
    owners = {
        option.name: f"only {', '.join(names)}"
        for option, names in rows
        if names and len(names) < len(models)
    }
    return _help([option for option, _ in rows], owners, prog, description)


def _help(
    options: Iterable[Option],
    notes: Mapping[str, str],
    prog: str | None,
    description: str | None,
) -> str:
    options = list(options)
    required = "".join(f" --{o.name} {o.metavar}" for o in options if o.required)
    parser = argparse.ArgumentParser(
        prog=prog or Path(sys.argv[0]).name,
        usage=f"%(prog)s{required} [--config FILE.yaml] [options]",
        description=description,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
    )
    general = parser.add_argument_group("general")
    general.add_argument("-h", "--help", action="help", help="show this text")
    general.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="options as 'name: value' lines; the command line wins over them",
    )
    groups: dict[str, Any] = {}
    for option in options:
        if option.scope not in groups:
            groups[option.scope] = parser.add_argument_group(option.scope)
        remarks = [] if option.name not in notes else [notes[option.name]]
        if option.required:
            remarks.insert(0, "required")
        elif option.default is not False:
            remarks.insert(0, f"default: {option.show(option.default)}")
        text = option.help + (f" ({'; '.join(remarks)})" if remarks else "")
        text = text.strip().replace("%", "%%")
        add: Callable[..., Any] = groups[option.scope].add_argument
        if option.kind is bool:
            add(f"--{option.name}", action="store_true", help=text)
        else:
            add(f"--{option.name}", metavar=option.metavar, help=text)
    return parser.format_help()


def _annotation(
    config_class: type, name: str, hints: Mapping[str, Any]
) -> tuple[type, bool, bool, tuple[str, ...] | None]:
    """`(kind, is_tuple, is_optional, choices)` of a field's annotation."""
    hint = hints[name]
    is_optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        is_optional = len(arms) < len(typing.get_args(hint))
        hint = arms[0] if len(arms) == 1 else hint
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if all(isinstance(choice, str) for choice in choices):
            return str, False, is_optional, choices
    if typing.get_origin(hint) is tuple:
        elements = typing.get_args(hint)
        if len(elements) == 2 and elements[1] is Ellipsis and elements[0] in (int, float, str):
            return elements[0], True, is_optional, None
    if hint is bool and not is_optional:
        return bool, False, False, None
    if hint in _SCALARS:
        return hint, False, is_optional, None
    raise TypeError(
        f"{config_class.__name__}.{name}: an option cannot have the type {hints[name]}; see the "
        f"list at the top of core/options.py"
    )


def _convert_scalar(kind: type, raw: object) -> Any:
    if kind is bool:
        if isinstance(raw, bool):
            return raw
        return {"true": True, "false": False}[str(raw).lower()] if isinstance(raw, str) else _bad()
    if isinstance(raw, bool) or raw is None:
        return _bad()
    if kind is int:
        return int(raw) if isinstance(raw, int | str) else _bad()
    if kind is float:
        # YAML 1.1 reads 1e-3 (no dot) as text, hence also from text here.
        value = float(raw) if isinstance(raw, int | float | str) else _bad()
        return value if math.isfinite(value) else _bad()
    if kind is Path:
        return Path(raw) if isinstance(raw, str) and raw else _bad()
    # A YAML number where text is expected is what the user wrote without quotes: `name: 3`.
    return str(raw) if isinstance(raw, str | int | float) else _bad()


def _bad() -> typing.NoReturn:
    raise ValueError

"""Completion of a program's commands, options and their values in bash."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from lookback.core.options.line import CommandLine, merge
from lookback.core.options.option import Option
from lookback.core.options.program import Door, Program

_SCRIPT = """\
_{prog}_values() {{  # what may follow COMMAND --option; status 1 if it takes no value
  case $1 in
{values}
    *) return 1 ;;
  esac
}}
_{prog}() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" path='' place='' value='' word words=''
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    if [[ ! $place ]]; then
      case $path in
        {leaves}) place=0 ;;
        *) path+="${{path:+ }}$word"; continue ;;
      esac
    fi
    if [[ $value && $word != = ]]; then
      value=''
    elif [[ $word == -* ]]; then
      ! _{prog}_values "$path $word" > /dev/null || value=$word
    elif [[ ! $value ]]; then
      place=$((place + 1))
    fi
  done
  case $path in
    {leaves}) place=${{place:-0}} ;;
  esac
  if [[ $value ]]; then
    [[ $current != = ]] || current=''
    words=$(_{prog}_values "$path $value")
  else
    [[ $current != -* ]] || place=${{place:+options}}
    case "$path:$place" in
{places}
      *) case $path in
{words}
      esac ;;
    esac
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}
complete -o default -F _{prog} {prog}
"""


@dataclasses.dataclass(frozen=True)
class _Found:
    """What completion knows of a program.

    Attributes:
      leaves: commands that read options, or nobody knows what, by their path.
      values: what may follow an option that takes a value, by "path --option"; "": a file.
      places: what may stand where an option is written without a flag, by "path:place".
      words: commands, or flags, by path.
    """

    leaves: list[str]
    values: dict[str, str]
    places: dict[str, str]
    words: dict[str, str]


def bash_completion(program: Program) -> str:
    """A script for bash; where it knows no word, bash completes files.

    Args:
      program: what it is for.
    """
    found = _Found([], {}, {}, {})
    _collect(program, "", found)
    return _SCRIPT.format(
        prog=program.prog,
        leaves="|".join(f'"{path}"' for path in found.leaves) or "'?'",
        values="\n".join(_by_words(found.values, "    {}) echo '{}' ;;")),
        places="\n".join(_by_words(found.places, "      {}) words='{}' ;;")),
        words="\n".join(_by_words(found.words, "        {}) words='{}' ;;")),
    )


def _by_words(words: Mapping[str, str], case: str) -> Iterator[str]:
    """Cases of bash, one for all keys that have the same words."""
    keys: dict[str, list[str]] = {}
    for key, of_key in words.items():
        keys.setdefault(of_key, []).append(f'"{key}"')
    for of_keys, same in keys.items():
        yield case.format("|".join(same), of_keys)


def _collect(program: Program, path: str, found: _Found) -> None:
    """Adds what may follow each path of commands."""
    version = ["--version"] if program.version else []
    found.words[path] = " ".join([*program.commands, "--help", *version])
    for name, command in program.commands.items():
        inside = command.inside() if isinstance(command, Door) else command.line
        longer = f"{path} {name}".lstrip()
        if isinstance(inside, Program):
            _collect(inside, longer, found)
            continue
        found.leaves.append(longer)
        if inside is not None:
            _collect_options(inside, longer, found)


def _collect_options(line: CommandLine, path: str, found: _Found) -> None:
    """Adds the options of one command."""
    groups = [line.shared(), *map(line.own, line.variants)]
    options = merge(groups)
    places = [option for option in options.values() if option.positional]
    flags = [flag for option in options.values() for flag in _flags(option)]
    every = " ".join(["--help", *(["--help-all"] if line.variants else []), "--config", *flags])
    found.values[f"{path} --config"] = ""
    for name, option in options.items():
        choices = list(dict.fromkeys(c for g in groups if name in g for c in g[name].choices or ()))
        if name == line.recipe:
            choices = list(dict.fromkeys(r for v in line.variants for r in line.recipes(v)))
        if option.positional:
            found.places[f"{path}:{places.index(option)}"] = " ".join(choices)
        elif option.kind is not bool:
            found.values[f"{path} --{name}"] = " ".join(choices)
    found.words[path] = every


def _flags(option: Option) -> Sequence[str]:
    """How an option is written; one that is true by itself can only be made false."""
    if option.positional:
        return []
    return [f"--no_{option.name}" if option.default is True else f"--{option.name}"]

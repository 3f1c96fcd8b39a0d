"""Completion of a program's commands and options in bash."""

from __future__ import annotations

from collections.abc import Iterator

from lookback.core.options.line import CommandLine, merge
from lookback.core.options.program import Door, Program

_SCRIPT = """\
_{prog}() {{
  local path='' word words=''
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    [[ $word != -* ]] || break
    path+="${{path:+ }}$word"
  done
  case $path in
{cases}
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}")
}}
complete -o default -F _{prog} {prog}
"""


def bash_completion(program: Program) -> str:
    """A script for bash; where it knows no word, bash completes files.

    Args:
      program: what it is for.
    """
    cases = (f'    "{path}") words="{" ".join(words)}" ;;' for path, words in _words(program))
    return _SCRIPT.format(prog=program.prog, cases="\n".join(cases))


def _words(program: Program, path: str = "") -> Iterator[tuple[str, list[str]]]:
    """What may follow each path of commands."""
    yield path, [*program.commands, "--help", *(["--version"] if program.version else [])]
    for name, command in program.commands.items():
        inside = command.inside() if isinstance(command, Door) else command.line
        longer = f"{path} {name}".lstrip()
        if isinstance(inside, Program):
            yield from _words(inside, longer)
        elif inside is not None:
            yield longer, _flags(inside)


def _flags(line: CommandLine) -> list[str]:
    options = merge([line.shared(), *map(line.own, line.variants)])
    flags = [f"--{name}" for name, option in options.items() if not option.positional]
    return ["--help", "--config", *flags]

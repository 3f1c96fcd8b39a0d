"""A program of several commands, each with options from dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence

from lookback.core.errors import UserError
from lookback.core.faults import guarded
from lookback.core.options.command_line import parse
from lookback.core.options.line import CommandLine


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a program.

    Attributes:
      help: one line.
      line: its options.
      run: does the work; called with the instances that `parse` gives. May give an exit status.
      description: the paragraph above its options; None: `help` as a sentence.
    """

    help: str
    line: CommandLine
    run: Callable[..., int | None]
    description: str | None = None

    @property
    def paragraph(self) -> str:
        """What `--help` says first."""
        return self.description or f"{self.help[0].upper()}{self.help[1:]}."


@dataclasses.dataclass(frozen=True)
class Door:
    """A command that reads its words itself: another program, or one that passes words on.

    Attributes:
      help: one line.
      main: called with the words after its name and with how it was called; may give an exit
        status.
      inside: gives what it reads, for completion; None: unknown.
    """

    help: str
    main: Callable[[Sequence[str], str], int | None]
    inside: Callable[[], Program | CommandLine | None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Program:
    """Commands under names.

    Attributes:
      prog: how one calls it, such as "python -m workflows".
      description: one paragraph.
      commands: by name.
      version: what `--version` prints after `prog`; None: there is no such option.
    """

    prog: str
    description: str
    commands: Mapping[str, Command | Door]
    version: str | None = None

    def main(self, arguments: Sequence[str], prog: str | None = None) -> int:
        """Runs a command line; gives the exit status: 2 for what the user can put right.

        Args:
          arguments: without the program's name.
          prog: how it was called, if not as `prog`.
        """
        return guarded(lambda: self._run(list(arguments), prog or self.prog))

    def _run(self, arguments: list[str], prog: str) -> int | None:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(self._help(prog), end="")
            if not arguments:
                raise UserError(f"expected a command, one of {', '.join(self.commands)}.")
            return None
        name, *rest = arguments
        if name == "--version" and self.version is not None:
            print(f"{self.prog} {self.version}")
            return None
        if name not in self.commands:
            close = difflib.get_close_matches(name, self.commands, n=1)
            hint = f" Did you mean {close[0]}?" if close else f" `{prog} --help` lists them."
            raise UserError(f"{prog} has no command {name!r}.{hint}")
        command = self.commands[name]
        if isinstance(command, Door):
            return command.main(rest, f"{prog} {name}")
        try:
            configs = parse(
                rest, command.line, prog=f"{prog} {name}", description=command.paragraph
            )
        except SystemExit:  # --help is answered
            return None
        return command.run(*configs)

    def _help(self, prog: str) -> str:
        width = max(map(len, self.commands))
        lines = [f"usage: {prog} COMMAND [options]", "", self.description, "", "commands:"]
        lines += [f"  {name:<{width}}  {c.help}" for name, c in self.commands.items()]
        return "\n".join([*lines, "", f"{prog} COMMAND --help lists a command's options.", ""])

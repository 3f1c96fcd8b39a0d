"""Command lines and YAML files from frozen dataclasses: a field is an option, and nothing else is.

A field ``lr: float = option(0.01, help="...", above=0)`` becomes ``--lr FLOAT`` on the command line
and the key ``lr`` in a YAML file. `option` says what a field may declare about itself: its help,
its bounds, its unit, its group. `CommandLine` joins dataclasses, among them those that one option's
value brings in (as ``--model_type`` does with a model's own options), `parse` reads one, and
`Program` has several under names.

Plain Python: nothing here imports TensorFlow, so `--help` and typing errors answer at once.
"""

from __future__ import annotations

from lookback.core.options.changes import changed, changes, without
from lookback.core.options.command_line import (
    from_values,
    parse,
    parse_known,
    save_yaml,
    to_yaml,
    words_by_keyword,
    words_of,
)
from lookback.core.options.completion import bash_completion
from lookback.core.options.help import help_text, parameter_table
from lookback.core.options.line import ChangesDefaults, CommandLine, ConfigFile
from lookback.core.options.needs import SET, UNSET
from lookback.core.options.option import (
    Option,
    check_options,
    continued,
    idle,
    option,
    options_of,
    refuse_unserved,
    require_one,
)
from lookback.core.options.program import Command, Door, Program

__all__ = [
    "SET",
    "UNSET",
    "ChangesDefaults",
    "Command",
    "CommandLine",
    "ConfigFile",
    "Door",
    "Option",
    "Program",
    "bash_completion",
    "changed",
    "changes",
    "check_options",
    "continued",
    "from_values",
    "help_text",
    "idle",
    "option",
    "options_of",
    "parameter_table",
    "parse",
    "parse_known",
    "refuse_unserved",
    "require_one",
    "save_yaml",
    "to_yaml",
    "without",
    "words_by_keyword",
    "words_of",
]

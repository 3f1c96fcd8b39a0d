"""Facts that are other ones here than in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

ABSENT = "nothing"
"""The value of what is not there."""


class OtherFact(NamedTuple):
    """A fact that is another one here than in a checkpoint.

    Attributes:
      name: of its key, with those of the mappings that it is in.
      key: its own.
      ours: the value here.
      theirs: the checkpoint's.
    """

    name: str
    key: str
    ours: Any
    theirs: Any

    @property
    def flag(self) -> str:
        """The option as the checkpoint has it; "" if it can be none."""
        options = self.name.count(".") == 1  # of the model, or of the run; deeper are its tables
        if self.theirs == ABSENT or isinstance(self.theirs, Mapping) or not options:
            return ""
        if isinstance(self.theirs, bool):
            return f"--{self.key}" if self.theirs else f"--no_{self.key}"
        if isinstance(self.theirs, list):
            return f"--{self.key} {','.join(map(str, self.theirs))}"
        return f"--{self.key} {'none' if self.theirs is None else self.theirs}"


def differences(
    expected: Mapping[str, Any], received: Any, prefix: str = ""
) -> Iterator[OtherFact]:
    """What differs between facts.

    Args:
      expected: here.
      received: of a checkpoint; what it has besides counts within mappings alone.
      prefix: of the names.
    """
    for key in dict.fromkeys([*expected, *(received if prefix else ())]):
        theirs, name = received.get(key, ABSENT), f"{prefix}{key}"
        ours = expected.get(key, ABSENT)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            yield from differences(ours, theirs, f"{name}.")
        elif ours != theirs:
            yield OtherFact(name, key, ours, theirs)

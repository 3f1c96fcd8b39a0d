"""What a pipeline is asked to do, and what it says of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from lookback.core.options import options_of
from lookback.workflows.cluster import ResourcePlan
from lookback.workflows.options import DatasetOptions
from lookback.workflows.output import Output

Log = Callable[[str], None]
"""Takes a line of text for each thing worth knowing."""

ReaderT = TypeVar("ReaderT")
OptionsT = TypeVar("OptionsT", bound=DatasetOptions)


@dataclasses.dataclass(frozen=True)
class WorkflowOrder(Generic[ReaderT, OptionsT]):
    """What is to be made of which input.

    Attributes:
      dataset: its name in the registry.
      reader: of its raw data.
      options: those of all datasets of its kind.
      input: the raw data.
      output: the directory to write.
      log: is told what is worth knowing.
      progress: whether to show progress bars, where the error stream is a terminal.
    """

    dataset: str
    reader: ReaderT
    options: OptionsT
    input: Path
    output: Output
    log: Log
    progress: bool

    @property
    def chosen(self) -> dict[str, Any]:
        """The reader's options that are not at their defaults, as JSON has them."""
        return {
            name: option.write(value)
            for name, option in options_of(type(self.reader)).items()
            if (value := getattr(self.reader, name)) != option.default
        }


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is known of a run before there is work to do.

    Attributes:
      paths: files of events or rows.
      lines: about how many they hold.
      plan: how the run is cut to the machine.
      remarks: what to say of the input, a line each.
    """

    paths: Sequence[Path]
    lines: int
    plan: ResourcePlan
    remarks: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
      directory: what it wrote.
      plan: how it was cut to the machine.
      metadata: content of ``dataset.json`` (of `fit`: what is known so far).
    """

    directory: Path
    plan: ResourcePlan
    metadata: Mapping[str, Any]

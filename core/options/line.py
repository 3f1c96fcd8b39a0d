"""What a command reads: dataclasses joined, some of them brought in by an option's value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lookback.core.options.needs import unmet
from lookback.core.options.option import Option, options_of, refuse_idle


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """A file of --config.

    Attributes:
      path: of it.
      text: of it.
      content: what it maps to what.
      known: the options that it may have.
    """

    path: Path
    text: str
    content: Mapping[str, Any]
    known: Collection[str]


class ChangesDefaults:
    """Base of a variant's dataclass that gives options of other classes other defaults.

    Attributes:
      run_defaults: option -> its default where the variant is chosen.
      recipes: name -> the same, where the option `CommandLine.recipe` has this value besides.
    """

    run_defaults: ClassVar[Mapping[str, Any]] = {}
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What a command reads.

    Two classes may have a field of the same name and type: it is one option, and both get its value
    (the first class's default counts). A variant's class may be a `ChangesDefaults`.

    Attributes:
      configs: dataclasses that every use of the command has.
      chooser: option of theirs whose value brings in more; None if none does.
      variants: that option's values -> the dataclasses it brings in; the first is the default.
      recipe: option of theirs whose value names the recipe whose defaults count; None if none does.
      must_choose: whether the choice must be given: then there is no default.
      choices: option -> allowed values, for choices that only the caller knows (a registry).
      removed: names that users of older versions may still write -> the sentence that says what
        replaces them.
      document: makes options of a file of --config that describes something, and gives others'
        content as it is; None: all files are lines of options.
    """

    configs: tuple[type, ...]
    chooser: str | None = None
    variants: Mapping[str, Sequence[type]] = dataclasses.field(default_factory=dict)
    recipe: str | None = None
    must_choose: bool = False
    choices: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    removed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    document: Callable[[ConfigFile], Mapping[str, Any]] | None = None

    def shared(self) -> dict[str, Option]:
        """The options that every use has, by name."""
        choices = dict(self.choices)
        if self.chooser is not None:
            choices[self.chooser] = tuple(self.variants)
        options = merge([options_of(config, choices=choices) for config in self.configs])
        if self.chooser is not None and options[self.chooser].required and not self.must_choose:
            first = next(iter(self.variants))
            options[self.chooser] = dataclasses.replace(options[self.chooser], default=first)
        return options

    def own(self, variant: str) -> dict[str, Option]:
        """The options that a variant brings in, by name."""
        classes = self.variants[variant]
        return merge([options_of(config, choices=self.choices) for config in classes])

    def defaults(self, variant: str, recipe: str | None = None) -> dict[str, Any]:
        """The defaults that a variant changes, and one of its recipes.

        Raises:
          TypeError: if there is no such option: a mistake in the class, not of the user.
        """
        changed: dict[str, Any] = {}
        for config in self._changing(variant):
            changed |= config.run_defaults
        for config in self._changing(variant):
            changed |= config.recipes.get(recipe or "", {})
        unknown = sorted(set(changed) - {*self.shared(), *self.own(variant)})
        if unknown:
            raise TypeError(f"run_defaults of {variant}: the run has no {unknown[0]!r}")
        return changed

    def recipes(self, variant: str) -> list[str]:
        """Names of the recipes of a variant."""
        names = (name for config in self._changing(variant) for name in config.recipes)
        return list(dict.fromkeys(names))

    def _changing(self, variant: str) -> list[type[ChangesDefaults]]:
        return [c for c in self.variants[variant] if issubclass(c, ChangesDefaults)]

    def options(self, variant: str | None, recipe: str | None = None) -> dict[str, Option]:
        """All options of a use, by name: those that every use has, and those of a variant."""
        if variant is None:
            return self.shared()
        options = merge([self.shared(), self.own(variant)])
        for name, value in self.defaults(variant, recipe).items():
            options[name] = dataclasses.replace(options[name], default=value)
        return options

    def instances(
        self, variant: str | None, values: Mapping[str, Any], recipe: str | None = None
    ) -> tuple[Any, ...]:
        """One instance of each dataclass of a use, from the values of all its options.

        A default of a variant or recipe that has no effect beside what was given gives way to the
        option's own.

        Raises:
          UserError: for values out of bounds, or without effect.
        """
        own = () if variant is None else self.variants[variant]
        plain = merge([self.shared(), *([] if variant is None else [self.own(variant)])])
        values = dict(values)
        for name, found in self.options(variant, recipe).items():
            if values[name] == found.default and unmet(found.needs, values) is not None:
                values[name] = plain[name].default
        refuse_idle(plain, values)
        return tuple(
            config(**{field.name: values[field.name] for field in dataclasses.fields(config)})
            for config in (*self.configs, *own)
        )


def merge(groups: Sequence[Mapping[str, Option]]) -> dict[str, Option]:
    """Options of several classes as one mapping; of equal names the first counts.

    Raises:
      TypeError: if two of a name have different types: a mistake in the classes.
    """
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

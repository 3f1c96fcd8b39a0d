"""Which splits a run evaluates, and when: one to choose by, and one that is evaluated once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from lookback.core.errors import UserError
from lookback.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Splits:
    """The splits of a run.

    Whoever chooses by a split (when to stop, which options) has fitted it: what a model is worth,
    only one says that was not looked at. So training watches validation, and test comes last.

    Attributes:
      watched: evaluated on the way; None: nothing is.
      last: evaluated once, when training is done, or by a run that does not train.
    """

    watched: str | None
    last: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Each once."""
        return self.last if self.watched is None else (self.watched, *self.last)

    @property
    def scored(self) -> str:
        """The one that inference scores."""
        return self.all[0]


def choose_splits(run: RunConfig, held_out: Sequence[str], goals: Mapping[str, float]) -> Splits:
    """Gives a run its splits.

    Args:
      run: its options.
      held_out: the splits that the data has, beside that to train on.
      goals: figures of an evaluation, by name, at any of which training is to end.

    Raises:
      UserError: if it is to evaluate on the way, and there is nothing but the test split.
    """
    if run.mode != "train":
        return Splits(None, (run.eval_split or "test",))
    watched = run.eval_split or ("validation" if "validation" in held_out else None)
    if watched is None and not run.benchmark:
        on_the_way = [*goals, *_given(run, "test_freq", "early_stopping", "export_best")]
        if on_the_way:
            raise UserError(
                f"eval_split: expected a dataset with a validation split, or --eval_split test, "
                f"received neither: {on_the_way[0]} would look at the test split, which is then no "
                "measure of the model. Run the workflow again (it makes a validation split, unless "
                "--no_validation is given), or accept that with --eval_split test."
            )
    last_is_test = watched != "test" and ("test" in held_out or watched is None)
    return Splits(watched, ("test",) if last_is_test else ())


def reads(run: RunConfig) -> set[str]:
    """The splits that a run reads, of a dataset that has all.

    Args:
      run: its options.
    """
    trains = {"train"} if run.mode == "train" or run.eval_train else set()
    if run.mode == "train" and run.benchmark:
        return trains
    return trains.union(choose_splits(run, ("validation", "test"), {}).all)


def note_on_splits(run: RunConfig, splits: Splits, goals: Mapping[str, float]) -> str | None:
    """A line on a choice of splits that costs something; None of one that does not.

    Args:
      run: that trains.
      splits: of the run.
      goals: see `choose_splits`.
    """
    if splits.watched is None:
        return (
            "the dataset has no validation split: nothing is evaluated before the end of training "
            "(--eval_split test evaluates the test split on the way)"
        )
    choosing = [*goals, *_given(run, "early_stopping", "export_best")]
    if splits.watched == "test" and choosing:
        return (
            f"warning: {choosing[0]} chooses by the test split, which then is no measure of the "
            "model"
        )
    return None


def _given(run: RunConfig, *options: str) -> list[str]:
    return [name for name in options if getattr(run, name)]

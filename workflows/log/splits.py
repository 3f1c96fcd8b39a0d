"""What a description says is held out, of histories or of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lookback.core.options import option
from lookback.core.options.nested import Nested
from lookback.core.yaml_files import Place
from lookback.workflows.histories.rules import TimeSplit, UserSplit
from lookback.workflows.log.values import Moment, Share
from lookback.workflows.tabular.row_splits import LastRows, RandomRows, RowSplit

Layout = Literal["histories", "tabular"]


@dataclass(frozen=True, kw_only=True)
class SplitRule(Nested):
    """What is held out for validation and test."""

    by: Literal["last", "time", "users", "rows"] = option(
        "last",
        help="last: the last events of each user, of layout tabular the last rows; time: what is "
        "later; users: some of them; rows: some of them, of layout tabular alone",
    )
    validation: Share | None = option(
        None,
        help="of last, of histories: whether there is one, which none means; else the fraction of "
        "users or rows",
        needs={"by": ("last", "users", "rows")},
    )
    test: Share | None = option(
        None, help="the fraction of users or rows", needs={"by": ("last", "users", "rows")}
    )
    validation_from: Moment | None = option(
        None, help="first moment of the validation; none: there is none", needs={"by": ("time",)}
    )
    test_from: Moment | None = option(
        None, help="first moment of the test", needs={"by": ("time",)}
    )
    seed: int = option(
        0, help="draws the users or rows", at_least=0, needs={"by": ("users", "rows")}
    )

    @property
    def rule(self) -> TimeSplit | UserSplit | None:
        """What is asked of histories; None: the last events, as the options say."""
        if self.by == "time" and self.test_from is not None:
            first = self.validation_from
            return TimeSplit(self.test_from.seconds, None if first is None else first.seconds)
        if self.by == "users":
            return UserSplit(_fraction(self.test), _fraction(self.validation), self.seed)
        return None

    @property
    def row_rule(self) -> RowSplit:
        """What is asked of rows."""
        test, validation = _fraction(self.test), _fraction(self.validation)
        if self.by == "rows":
            return RandomRows(test, validation, self.seed)
        return self.rule or LastRows(test, validation)

    def contradictions(self) -> Iterator[tuple[Place, str]]:
        """See `Nested.contradictions`."""
        if self.by == "time" and self.test_from is None:
            yield ("test_from",), "expected this key: the first moment of the test."
        first, second = self.validation_from, self.test_from
        if first is not None and second is not None and first.seconds >= second.seconds:
            yield ("validation_from",), "expected a moment before test_from."

    def wrong_with(self, layout: Layout) -> Iterator[tuple[Place, str]]:
        """What is wrong with it where histories, or rows, are split."""
        if layout == "histories" and self.by == "rows":
            yield ("by",), "histories are split by last, time or users. Say layout: tabular, too."
            return
        if self.by == "time":
            return
        of_each = layout == "histories" and self.by == "last"
        shares = {"validation": self.validation, "test": self.test}
        for name, share in shares.items():
            if share is not None and isinstance(share.value, bool) != of_each:
                words = "true or false" if of_each else "a fraction between 0 and 1"
                yield (name,), f"beside by: {self.by}, expected {words}, received {share.value}."
        of = "users" if self.by == "users" else "rows"
        if of_each and self.test is not None:
            yield ("test",), "the last event of each user is for the test. Remove it."
        if not of_each and self.test is None:
            yield ("test",), f"expected this key: the fraction of the {of} to test with."
        if not of_each and sum(_fraction(share) for share in shares.values()) >= 1:
            yield ("test",), f"with validation, it leaves no {of} to train on. Give smaller ones."


def _fraction(share: Share | None) -> float:
    return 0.0 if share is None else float(share.value)

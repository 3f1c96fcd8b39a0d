"""Exact ranking metrics: AUC, AUC by group (GAUC), log loss from logits, and ROC curves.

Everything is NumPy, O(n log n) in the number of rows, and independent of their order: areas are
counted in integers, so the same scores give the same AUC to the last digit whatever the batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lookback.core.errors import UserError
from lookback.core.world import World
from lookback.training.evaluation.calibration import (
    Calibration,
    ReliabilityCurve,
    calibration,
    reliability_curve,
)


@dataclasses.dataclass(frozen=True)
class GroupAUC:
    """AUC averaged over groups (users), weighted by their number of rows (impressions).

    Attributes:
      value: the average; None if no group has both classes.
      groups: how many groups it averages over.
      skipped: how many groups have one class only, for which AUC is undefined.
    """

    value: float | None
    groups: int
    skipped: int


@dataclasses.dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve, from (0, 0) to (1, 1).

    Attributes:
      false_positive_rate: [N] float64, increasing.
      true_positive_rate: [N] float64, increasing.
      auc: the exact area, of all rows even if the points have been thinned out.
    """

    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]
    auc: float

    def thinned(self, max_points: int = 2000) -> RocCurve:
        """About so many of the points, evenly spaced along the curve, for plotting."""
        fpr, tpr = self.false_positive_rate, self.true_positive_rate
        if len(tpr) <= max_points:
            return self
        keep = evenly_spaced(fpr + tpr, max_points)  # grows from 0 to 2 along the curve
        return RocCurve(fpr[keep], tpr[keep], self.auc)


@dataclasses.dataclass(frozen=True)
class PrecisionRecallCurve:
    """Points of a precision-recall curve, one for each threshold that is reached.

    Attributes:
      recall: [N] float64, increasing, up to 1.
      precision: [N] float64.
      average_precision: sum of the precisions, each times the recall that it adds; of all
        thresholds even if the points have been thinned out.
      share: of positives among the rows: the precision of chance.
    """

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    average_precision: float
    share: float


@dataclasses.dataclass(frozen=True)
class Curves:
    """What there is to draw of labels and scores."""

    roc: RocCurve
    precision_recall: PrecisionRecallCurve
    reliability: ReliabilityCurve


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `ScoreAccumulator.result` computes from a pass over a dataset.

    Attributes:
      metrics: what was asked for.
      auc: area under the ROC curve; None if it was not asked for, or all rows are of one class.
      gauc: AUC by group; None if it was not asked for, or no groups were given.
      log_loss: mean binary cross-entropy, in nats; None if it was not asked for.
      rows: number of rows with a weight above 0.
      positives: how many of them are labelled 1.
      calibration: of the probabilities; None if it was not asked for.
    """

    metrics: Collection[str]
    auc: float | None
    gauc: GroupAUC | None
    log_loss: float | None
    rows: int
    positives: int
    calibration: Calibration | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """Flat figures for a log line: `auc`, `gauc`, `log_loss`, ..."""
        figures: dict[str, float | int | None] = {}
        if "auc" in self.metrics:
            figures["auc"] = self.auc
        if self.log_loss is not None:
            figures["log_loss"] = self.log_loss
        figures["rows"] = self.rows
        if self.gauc is not None:
            figures["gauc"] = self.gauc.value
            figures["gauc_groups"] = self.gauc.groups
            figures["gauc_skipped"] = self.gauc.skipped
        if self.calibration is not None:
            figures["calibration"] = self.calibration.ratio
            figures["calibration_error"] = self.calibration.error
        return figures


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties count half.

    Equals scikit-learn's `roc_auc_score(labels, scores, sample_weight=weights)`.

    Args:
      labels: [N], 0 or 1.
      scores: [N], any increasing function of the probability; logits will do.
      weights: [N], not negative; None means 1 each. Rows of weight 0 (padding) do not count.

    Raises:
      UserError: if only one class is there (the area is undefined), or if a score is not finite, a
        label is neither 0 nor 1, or a weight is negative.
    """
    label, score, _, weight = _checked(labels, scores, None, weights)
    _require_both_classes(label)
    order = np.argsort(score, kind="stable")
    areas, positive, negative = _doubled_areas(
        label[order], score[order], np.zeros(len(score), np.int8), weight[order]
    )
    return float(areas[0] / (2 * float(positive[0]) * float(negative[0])))


def group_auc(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike,
    weights: ArrayLike | None = None,
) -> GroupAUC:
    """GAUC: the AUC of each group, averaged with the number of its rows as weight.

    Introduced by Zhu et al., "Optimized Cost per Click in Taobao Display Advertising" (2017), and
    used with impressions as the weight in the DIN paper (Zhou et al., 2018, its metrics section).
    Groups with one class only have no AUC; they are skipped and counted.

    Args:
      labels: [N], 0 or 1.
      scores: [N].
      groups: [N] integers, e.g. user ids; rows of a group may lie anywhere.
      weights: [N] as for `auc`; a group's weight is the sum of its rows' weights.

    Raises:
      UserError: as for `auc`, except that groups with one class are no error.
    """
    label, score, group, weight = _checked(labels, scores, groups, weights)
    if not len(label):
        return GroupAUC(value=None, groups=0, skipped=0)
    order = np.lexsort((score, group))
    areas, positive, negative = _doubled_areas(
        label[order], score[order], group[order], weight[order]
    )
    defined = (positive > 0) & (negative > 0)
    count = int(defined.sum())
    value = None
    if count:
        positive = positive[defined].astype(np.float64)
        negative = negative[defined].astype(np.float64)
        impressions = positive + negative
        by_group = areas[defined] / (2 * positive * negative)
        value = float((by_group * impressions).sum() / impressions.sum())
    return GroupAUC(value=value, groups=count, skipped=len(defined) - count)


def log_loss(labels: ArrayLike, logits: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean binary cross-entropy of logits, in nats: `max(x, 0) - x z + log(1 + exp(-|x|))`.

    The form neither overflows nor takes the logarithm of a rounded probability, however large the
    logit.

    Args:
      labels: [N], 0 or 1.
      logits: [N].
      weights: [N] as for `auc`.

    Raises:
      UserError: as for `auc` (one class is fine), or if there are no rows.
    """
    label, logit, _, weight = _checked(labels, logits, None, weights)
    if not len(label):
        raise UserError("log loss needs at least one row of weight above 0, received none.")
    x = logit.astype(np.float64)
    losses = np.maximum(x, 0) - x * label + np.log1p(np.exp(-np.abs(x)))
    # Sorted: a sum that does not depend on the rows' order.
    return float(np.sort(losses * weight).sum() / weight.sum())


def roc_curve(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    max_points: int | None = 2000,
) -> RocCurve:
    """The ROC curve, one point for each distinct score, thinned out for plotting.

    Args:
      labels: [N], 0 or 1.
      scores: [N].
      weights: [N] as for `auc`.
      max_points: keep about this many points, evenly spaced along the curve's length; None keeps
        all of them.

    Raises:
      UserError: as for `auc`.
    """
    label, score, _, weight = _checked(labels, scores, None, weights)
    _require_both_classes(label)
    order = np.argsort(-score, kind="stable")
    label, score, weight = label[order], score[order], weight[order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # of each run of ties
    true_positive = np.append(0, np.cumsum(np.where(label, weight, 0))[last])
    false_positive = np.append(0, np.cumsum(np.where(label, 0, weight))[last])
    tpr = true_positive / true_positive[-1]
    fpr = false_positive / false_positive[-1]
    curve = RocCurve(fpr, tpr, auc(label, score, weight))
    return curve if max_points is None else curve.thinned(max_points)


def precision_recall_curve(
    roc: RocCurve, share: float, *, max_points: int = 2000
) -> PrecisionRecallCurve:
    """The precision-recall curve of what a whole ROC curve is of.

    With p the share of positives, precision = p tpr / (p tpr + (1 - p) fpr). The average precision
    is scikit-learn's `average_precision_score`.

    Args:
      roc: with a point for each distinct score.
      share: of positives among the rows.
      max_points: keep about this many points, evenly spaced along the recall.
    """
    recall = roc.true_positive_rate[1:]  # the first point is of no row
    found = share * recall
    precision = found / (found + (1 - share) * roc.false_positive_rate[1:])
    average = float((np.diff(recall, prepend=0.0) * precision).sum())
    if len(recall) > max_points:
        keep = evenly_spaced(recall, max_points)
        recall, precision = recall[keep], precision[keep]
    return PrecisionRecallCurve(recall, precision, average, share)


def evenly_spaced(places: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Which of increasing numbers to keep so that about `count` are evenly spaced; both ends."""
    wanted = np.linspace(places[0], places[-1], count)
    keep = np.clip(np.searchsorted(places, wanted), 0, len(places) - 1)
    return np.unique(np.concatenate([[0], keep, [len(places) - 1]]))


class ScoreAccumulator:
    """Collects labels, logits and groups batch by batch, for metrics that need them all.

    A row takes 5 bytes (9 with 32-bit groups): 12 M rows are about 110 MB.

    Example:
      scores = ScoreAccumulator()
      for batch in batches:
          scores.update(batch["labels"], model(batch), groups=batch["user_id"])
      evaluation = scores.result()
    """

    def __init__(self) -> None:
        self._labels: list[NDArray[np.bool_]] = []
        self._logits: list[NDArray[np.float32]] = []
        self._groups: list[NDArray[np.integer]] = []
        self._weights: list[NDArray[np.float32] | None] = []

    def __len__(self) -> int:
        return sum(len(labels) for labels in self._labels)

    def update(
        self,
        labels: ArrayLike,
        logits: ArrayLike,
        groups: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> None:
        """Adds a batch; the arrays are copied.

        Args:
          labels: [B] or [B, C], 0 or 1.
          logits: the same shape.
          groups: the same shape, or [B] for labels of [B, C]: integers. In all batches or in none.
          weights: the same shape, or [B] for labels of [B, C]; None means 1. Rows of weight 0
            (padding of the last batch) are dropped.

        Raises:
          UserError: if a logit is not finite, or a label neither 0 nor 1.
          ValueError: if the shapes do not fit, or some batches have groups and others do not.
        """
        label_array = np.asarray(labels)
        shape = label_array.shape
        logit_array = _spread("logits", logits, shape)
        group_array = None if groups is None else _spread("groups", groups, shape)
        weight_array = None if weights is None else _spread("weights", weights, shape)
        if self._labels and (group_array is None) != (not self._groups):
            raise ValueError("groups must be given with every batch, or with none")
        label, logit, group, weight = _checked(
            label_array.reshape(-1), logit_array, group_array, weight_array
        )
        self._labels.append(np.array(label, dtype=np.bool_))
        self._logits.append(np.array(logit, dtype=np.float32))
        if group_array is not None:
            self._groups.append(np.array(group))
        uniform = weight.dtype == np.int64  # _checked's sign that every weight is 1
        self._weights.append(None if uniform else np.array(weight, dtype=np.float32))

    def labels(self) -> NDArray[np.bool_]:
        """[N] labels of all batches."""
        return np.concatenate([np.zeros(0, np.bool_), *self._labels])

    def logits(self) -> NDArray[np.float32]:
        """[N] logits of all batches."""
        return np.concatenate([np.zeros(0, np.float32), *self._logits])

    def groups(self) -> NDArray[np.integer] | None:
        """[N] groups of all batches, or None."""
        return np.concatenate(self._groups) if self._groups else None

    def weights(self) -> NDArray[np.float32] | None:
        """[N] weights of all batches; None if all are 1."""
        if all(weights is None for weights in self._weights):
            return None
        pairs = zip(self._weights, self._labels, strict=True)
        return np.concatenate([np.ones(len(n), np.float32) if w is None else w for w, n in pairs])

    def of_all(self, world: World) -> ScoreAccumulator:
        """The rows of all ranks together, batch by batch and rank by rank. A collective.

        Every rank gets them all, and needs their memory.

        Args:
          world: the ranks, each with the scores of its own rows, maybe none.

        Raises:
          ValueError: if some ranks have groups and others do not.
        """
        if world.size == 1:
            return self
        told = world.gather([len(self), bool(self._groups), self.weights() is not None])
        sizes = world.gather([len(labels) for labels in self._labels])
        order = order_of_batches(sizes)
        grouped = {has_groups for rows, has_groups, _ in told if rows}
        if len(grouped) > 1:
            raise ValueError("groups must be given on every rank, or on none")
        everybody = ScoreAccumulator()
        everybody._labels = [world.concatenate(self.labels())[order]]
        everybody._logits = [world.concatenate(self.logits())[order]]
        if True in grouped:
            own = np.zeros(0, np.int64) if not self._groups else self.groups()
            everybody._groups = [world.concatenate(np.asarray(own, np.int64))[order]]
        weights = self.weights()
        if any(has_weights for _, _, has_weights in told):
            own_weights = np.ones(len(self), np.float32) if weights is None else weights
            everybody._weights = [world.concatenate(own_weights)[order]]
        else:
            everybody._weights = [None]
        return everybody

    def result(self, metrics: Collection[str] = ("auc", "gauc", "log_loss")) -> Evaluation:
        """Metrics of everything collected.

        Args:
          metrics: which, of `names.BINARY`; GAUC only if there are groups.

        Raises:
          UserError: if nothing was collected.
        """
        labels, logits, weights = self.labels(), self.logits(), self.weights()
        if not len(labels):
            raise UserError("An evaluation needs at least one row, received 0 rows.")
        groups = self.groups() if "gauc" in metrics else None
        defined = "auc" in metrics and labels.any() and not labels.all()
        return Evaluation(
            metrics=metrics,
            auc=auc(labels, logits, weights) if defined else None,
            gauc=None if groups is None else group_auc(labels, logits, groups, weights),
            log_loss=log_loss(labels, logits, weights) if "log_loss" in metrics else None,
            rows=len(labels),
            positives=int(labels.sum()),
            calibration=calibration(labels, logits, weights) if "calibration" in metrics else None,
        )

    def curves(self) -> Curves | None:
        """The curves of everything collected; None if that is of one class, which has none."""
        labels, logits, weights = self.labels(), self.logits(), self.weights()
        if labels.all() or not labels.any():
            return None
        roc = roc_curve(labels, logits, weights, max_points=None)
        weight = np.ones(len(labels), np.float32) if weights is None else weights
        share = float(weight[labels].sum() / weight.sum())
        return Curves(
            roc=roc.thinned(),
            precision_recall=precision_recall_curve(roc, share),
            reliability=reliability_curve(labels, logits, weights),
        )


def order_of_batches(sizes: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Places of rows in the order of the batches, of rows that lie by rank.

    Args:
      sizes: of each rank's part of each batch.
    """
    begins = np.cumsum([0, *(sum(of_rank) for of_rank in sizes)])
    batches = max(len(of_rank) for of_rank in sizes)
    parts = []
    for batch in range(batches):
        for rank, of_rank in enumerate(sizes):
            if batch < len(of_rank):
                parts.append(np.arange(begins[rank], begins[rank] + of_rank[batch]))
                begins[rank] += of_rank[batch]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _doubled_areas(
    label: NDArray[np.bool_],
    score: NDArray[np.floating],
    group: NDArray[np.integer],
    weight: NDArray[np.int64] | NDArray[np.float64],
) -> tuple[NDArray, NDArray, NDArray]:
    """Twice the Mann-Whitney U of each group, which keeps it an integer where ties count half.

    Args:
      label: [N].
      score: [N], increasing within a group.
      group: [N], increasing.
      weight: [N]; int64 (all ones) or float64.

    Returns:
      `(2 U, weight of positives, weight of negatives)`, each [G], G groups in their order.
    """
    group_starts = np.append(0, np.flatnonzero(np.diff(group)) + 1)
    changes = (np.diff(group) != 0) | (np.diff(score) != 0)
    tie_starts = np.append(0, np.flatnonzero(changes) + 1)
    zero = weight.dtype.type(0)
    positive = np.add.reduceat(np.where(label, weight, zero), tie_starts)  # [ties]
    negative = np.add.reduceat(np.where(label, zero, weight), tie_starts)
    # Negatives that score lower, first counted over all groups, then without the groups before.
    below = np.cumsum(negative) - negative
    first_tie = np.searchsorted(tie_starts, group_starts)  # [G]
    ties_in_group = np.diff(np.append(first_tie, len(tie_starts)))
    below -= np.repeat(below[first_tie], ties_in_group)
    doubled = np.add.reduceat(positive * (2 * below + negative), first_tie)
    return doubled, np.add.reduceat(positive, first_tie), np.add.reduceat(negative, first_tie)


def _checked(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike | None,
    weights: ArrayLike | None,
) -> tuple[NDArray[np.bool_], NDArray[np.floating], NDArray[np.integer], NDArray]:
    """The rows that count, as `(bool, float, integer, weight)`, each [N].

    The weights are int64 ones if all rows count alike, else float64.
    """
    label, score = np.asarray(labels), np.asarray(scores)
    group = np.zeros(label.shape, np.int8) if groups is None else np.asarray(groups)
    if score.dtype not in (np.float32, np.float64):
        score = score.astype(np.float32)  # float16 and bfloat16 exactly; ties stay ties
    weight = None if weights is None else np.asarray(weights, dtype=np.float64)
    shapes = {"labels": label.shape, "scores": score.shape, "groups": group.shape}
    if weight is not None:
        shapes["weights"] = weight.shape
    if label.ndim != 1 or len(set(shapes.values())) > 1:
        raise ValueError(f"expected arrays of one shape [N], received {shapes}")
    if weight is not None:
        if not np.all(weight >= 0) or not np.all(np.isfinite(weight)):
            raise UserError("weights: expected finite values of at least 0.")
        if not np.all(weight > 0):
            keep = weight > 0
            label, score, group, weight = label[keep], score[keep], group[keep], weight[keep]
        if np.all(weight == 1):
            weight = None
    bad = ~np.isfinite(score)
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(
            f"scores: expected finite values, received {int(bad.sum())} that are NaN or infinite, "
            f"the first in row {row} of {len(score)} ({score[row]}). The model has diverged: lower "
            f"--lr, or run without --amp."
        )
    truth = label.astype(np.bool_)
    if not np.array_equal(truth, label):
        wrong = label[truth != label]
        raise UserError(f"labels: expected 0 or 1, received {wrong[0]}.")
    return truth, score, group, np.ones(len(label), np.int64) if weight is None else weight


def _require_both_classes(label: NDArray[np.bool_]) -> None:
    positives = int(label.sum())
    if positives in (0, len(label)):
        received = f"{len(label)} rows, {positives} of them labelled 1"
        raise UserError(
            f"AUC needs rows of both classes, received {received}. Evaluate on more samples, or "
            f"check how the labels were made."
        )


def _spread(name: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray:
    """`values` as [B * C] for labels of `shape` [B, C]; [B] is repeated for each candidate."""
    array = np.asarray(values)
    if array.shape != shape and array.ndim == 1 and len(shape) == 2 and name != "logits":
        array = array[:, None]
    if array.shape != shape and not (array.ndim == len(shape) and array.shape[1:] == (1,)):
        raise ValueError(
            f"{name}: expected the shape of the labels {shape}, received {array.shape}"
        )
    return np.broadcast_to(array, shape).reshape(-1)

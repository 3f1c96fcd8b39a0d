"""The law of synthetic clicks: what a row is, and how likely its click.

The id of field f is drawn from the V known values, numbered by falling popularity from 0, by the
power law ``P(r) = F(r + 1) - F(r)`` with ``F(x) = integral_1^(1+x) t^-a dt / integral_1^(1+V)``:
Zipf's, but its inverse is a formula, so that nothing of the table's size is stored. A numerical
value is ``floor(exp(mu + sigma z)) - 1``, z normal: counts, at least -1. Either may be missing.

A click has the probability ``sigmoid(bias + n + c + x)`` of

- n, numerical: ``sum_i w_i g_i(z_i)``, ``z_i = (ln(x_i + 2) - mu_i) / sigma_i``, g_i in turn tanh
  and a bump; a missing value counts as 0, as the workflow reads it;
- c, categorical: ``sum_f e_f[r_f]``, e normal, zero for a missing value and outside the head;
- x, interaction: ``sum_{f < h} v_f[r_f] . v_h[r_h]`` over the interacting fields, v normal vectors,
  zero where e is: no sum of effects explains this part.

The head is the `signal_ids` most popular values of a field. The tail carries no signal, because no
model could learn it: ids of frequency p have n p training rows, and an effect of standard deviation
s shows above the noise from about ``n p = 1 / (s^2 click_rate)`` rows on. So a model that is good
can come close to the law's own AUC, with a few million rows and tables of some thousand rows. Where
tables are so large and rows so few that values of the head occur only a few times, it cannot.

Each part is scaled to its strength, the standard deviation over the rows of a calibration sample,
and the bias is set to the click rate over the same rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from lookback.core.errors import UserError
from lookback.core.options import check_options, option

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LARGEST_NUMBER = 9_999_999
"""Numerical values are cut off here, at seven digits."""

_RANK = 2  # of the interaction: length of the vectors v
_CALIBRATION_ROWS = 1 << 16
LARGEST_TABLE = 2**31 - 1  # ids are int32
_LAW, _CALIBRATION, _ROWS = range(3)


@dataclasses.dataclass(frozen=True)
class CriteoLawConfig:
    """What decides the law.

    A cardinality is the rows of a field's table: its known values, and one for all others.
    """

    scope = "the law of clicks"

    cardinalities: tuple[int, ...] = option(
        help="rows of each table", at_least=2, at_most=LARGEST_TABLE, nonempty=True
    )
    numerical: int = option(13, help="numerical features", at_least=1)
    exponents: tuple[float, ...] = option(
        (1.05,),
        help="of the power law of ids: one number, or one for each field",
        nonempty=True,
        at_least=0,
        at_most=5,
    )
    missing: float = option(
        0.05,
        help="mean share of missing values; that of a feature is between 0 and twice this",
        at_least=0,
        below=0.5,
    )
    click_rate: float = option(0.25, help="mean share of clicks", above=0, below=1)
    numerical_strength: float = option(
        0.7,
        help="standard deviation of the numerical features' part of the logit",
        at_least=0,
        at_most=10,
    )
    categorical_strength: float = option(
        1.0, help="standard deviation of the ids' own part of the logit", at_least=0, at_most=10
    )
    interaction_strength: float = option(
        0.4,
        help="standard deviation of the part that only pairs of ids explain",
        at_least=0,
        at_most=10,
    )
    interacting_fields: int = option(
        4,
        help="fields that those pairs are of, drawn from those with most ids in the head",
        at_least=0,
    )
    signal_ids: int = option(
        50, help="the most popular ids of a field carry the signal: how many", at_least=1
    )
    seed: int = option(0, help="random seed", at_least=0, below=2**63)

    def __post_init__(self) -> None:
        """Validates what bounds of single options cannot say.

        Raises:
          UserError: naming the option, what it may be and what came.
        """
        check_options(self)
        if len(self.exponents) not in (1, len(self.cardinalities)):
            raise UserError(
                f"exponents must be one number, or one for each of {len(self.cardinalities)} "
                f"fields, received {len(self.exponents)}."
            )


@dataclasses.dataclass(frozen=True)
class DrawnRows:
    """n rows, feature by feature.

    Attributes:
      label: ``[n]`` bool, whether it was clicked.
      numbers: ``[N, n]`` int32, 0 where missing.
      absent: ``[N, n]`` bool, whether a number is missing.
      ids: ``[M, n]`` int32: 0 missing, else 1 + r.
      logit: ``[n]`` of the click.
      interaction: ``[n]`` the logit's part x.
    """

    label: npt.NDArray[np.bool_]
    numbers: npt.NDArray[np.int32]
    absent: npt.NDArray[np.bool_]
    ids: npt.NDArray[np.int32]
    logit: Floats
    interaction: Floats


class PowerLaw:
    """P(r) of the module's text, for one field.

    Args:
      values: V, how many there are.
      exponent: a.
    """

    def __init__(self, values: int, exponent: float) -> None:
        self._values = values
        self._power = 1.0 - exponent
        # t^(1-a) of both ends; near a = 1 the integral is the logarithm.
        self._logarithmic = abs(self._power) < 1e-9
        self._end = np.log1p(values) if self._logarithmic else (1.0 + values) ** self._power

    def draw(self, uniform: Floats) -> Ints:
        """Values r ``[n]``, int64, of numbers in [0, 1)."""
        if self._logarithmic:
            at = np.exp(uniform * self._end)
        else:
            at = (1.0 + uniform * (self._end - 1.0)) ** (1.0 / self._power)
        return np.clip(at.astype(np.int64) - 1, 0, self._values - 1)

    def cumulative(self, value: npt.ArrayLike) -> Floats:
        """F: the probability of all values below `value`, of any shape."""
        at = 1.0 + np.asarray(value, np.float64)
        if self._logarithmic:
            return np.asarray(np.log(at) / self._end)
        return np.asarray((at**self._power - 1.0) / (self._end - 1.0))


class CriteoLaw:
    """Draws rows, any block of them by itself.

    Attributes:
      config: what it was made from.
      missing: ``[N + M]`` shares of missing values, numerical features first.
      mu, sigma: ``[N]``, of the logarithms of the numerical features.
      weights: ``[N]`` of the numerical features.
      effects: ``[1 + ids + 1]`` by field: of the missing value, of those that carry one, of others.
      interacting: fields of the interaction.
      vectors: ``[R, 1 + ids + 1]`` by such a field.
      scales: ``[3]`` of the numerical part, the effects and the interaction.
      bias: of the logit.
    """

    def __init__(self, config: CriteoLawConfig) -> None:
        """Draws the effects, then calibrates strengths and click rate."""
        self.config = config
        fields = len(config.cardinalities)
        random = stream(config.seed, _LAW)
        self.missing = 2 * config.missing * random.random(config.numerical + fields)
        # Medians from 1 to 150, with tails to some 100 and to millions.
        self.mu = random.uniform(0.5, 5.0, config.numerical)
        self.sigma = random.uniform(0.5, 1.8, config.numerical)
        self.weights = random.normal(size=config.numerical)
        exponents = config.exponents * (fields // len(config.exponents))
        self.powers = [
            PowerLaw(rows - 1, exponent)
            for rows, exponent in zip(config.cardinalities, exponents, strict=True)
        ]
        # The row of the missing value first, that of the tail last; both stay zero.
        self._heads = [min(config.signal_ids, rows - 1) for rows in config.cardinalities]
        self.effects = [np.pad(random.normal(size=head), 1) for head in self._heads]
        by_head = np.argsort([-head for head in self._heads], kind="stable")
        count = config.interacting_fields if config.interacting_fields > 1 else 0
        self.interacting: list[int] = sorted(by_head[:count].tolist())
        self.vectors = {
            field: np.pad(random.normal(size=(_RANK, self._heads[field])), ((0, 0), (1, 1)))
            for field in self.interacting
        }
        self.scales = np.ones(3)
        self.bias = 0.0
        self._calibrate()

    def draw(self, day: int, block: int, rows: int) -> DrawnRows:
        """A block of a day's rows, which depends on nothing drawn before.

        Args:
          day: from 0.
          block: of this day, from 0.
          rows: n.
        """
        random = stream(self.config.seed, _ROWS, day, block)
        numbers, absent, ids = self._features(random, rows)
        parts = self._parts(numbers, ids) * self.scales[:, None]
        logit = self.bias + parts.sum(axis=0)
        label = random.random(rows) < sigmoid(logit)
        return DrawnRows(label, numbers, absent, ids, logit, parts[2])

    def _features(
        self, random: np.random.Generator, rows: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.int32]]:
        config = self.config
        numbers = np.empty((config.numerical, rows), np.int32)
        for number, (mu, sigma) in enumerate(zip(self.mu, self.sigma, strict=True)):
            value = np.exp(mu + sigma * random.standard_normal(rows)) - 1.0
            numbers[number] = np.minimum(np.floor(value), LARGEST_NUMBER)
        absent = random.random((config.numerical, rows)) < self.missing[: config.numerical, None]
        numbers[absent] = 0
        ids = np.empty((len(self.powers), rows), np.int32)
        for field, power in enumerate(self.powers):
            share = self.missing[config.numerical + field]
            # One uniform number serves twice: below the share it says "missing", above it which.
            uniform = (random.random(rows) - share) / (1.0 - share)
            ids[field] = np.where(uniform < 0, 0, 1 + power.draw(np.maximum(uniform, 0)))
        return numbers, absent, ids

    def _parts(self, numbers: npt.NDArray[np.int32], ids: npt.NDArray[np.int32]) -> Floats:
        """``[3, n]`` numerical, categorical and interaction part, before scaling."""
        parts = np.zeros((3, numbers.shape[1]))
        for number, values in enumerate(numbers):
            z = (np.log(values + 2.0) - self.mu[number]) / self.sigma[number]
            shape = np.tanh(z) if number % 2 == 0 else np.exp(-0.5 * z * z)
            parts[0] += self.weights[number] * shape
        total = np.zeros((_RANK, numbers.shape[1]))
        for field, values in enumerate(ids):
            at = np.minimum(values, self._heads[field] + 1)
            parts[1] += self.effects[field][at]
            if field in self.vectors:
                vector = self.vectors[field][:, at]
                # Sum over pairs, one field after the other: v_h . (v_f + ...) for all f before h.
                parts[2] += np.einsum("kn,kn->n", vector, total)
                total += vector
        return parts

    def _calibrate(self) -> None:
        config = self.config
        random = stream(config.seed, _CALIBRATION)
        numbers, _, ids = self._features(random, _CALIBRATION_ROWS)
        parts = self._parts(numbers, ids)
        strengths = (
            config.numerical_strength,
            config.categorical_strength,
            config.interaction_strength,
        )
        deviations = parts.std(axis=1)
        self.scales = np.array(strengths) / np.where(deviations > 0, deviations, 1.0)
        logit = (parts * self.scales[:, None]).sum(axis=0)
        low, high = -100.0, 100.0
        for _ in range(60):  # halvings: to the last digit
            self.bias = 0.5 * (low + high)
            if sigmoid(logit + self.bias).mean() < config.click_rate:
                low = self.bias
            else:
                high = self.bias


def sigmoid(logit: Floats) -> Floats:
    """``1 / (1 + e^-x)``, of any shape."""
    return np.asarray(1.0 / (1.0 + np.exp(-logit)))


def stream(seed: int, purpose: int, day: int = 0, block: int = 0) -> np.random.Generator:
    """The random numbers of one block, whatever was drawn before."""
    key = np.array([seed, purpose << 56 | day << 40 | block], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))

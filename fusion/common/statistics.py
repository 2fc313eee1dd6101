"""Two-sided 95% confidence intervals of shares, means, paired differences, clustered shares and any statistic.

- shares of independent items: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
  (1927)
- means on any scale and differences of the same items: the normal interval; of few values, Student's t ("The probable
  error of a mean",
  Biometrika 6, 1908)
- shares of items that come in clusters: Wilson's, at the effective size of the sample (Kish, Survey Sampling, 1965)
- any statistic: percentiles of the bootstrap (Efron, "Bootstrap methods: another look at the jackknife", Annals of
  Statistics 7, 1979)
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = 1.959964  # of the normal distribution
STUDENT = {
    1: 12.71,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
}  # by degrees of freedom
RESAMPLED = 2000
LEAST = 8  # items: of fewer, resampling finds them more alike than they are


@dataclass(frozen=True)
class Score:
    """A named mean with its interval, how many items it is of, and the target it is held against; shares lie in [0,
    1]."""

    name: str
    value: float
    low: float
    high: float
    count: int | None = None
    target: float | None = None


# ---- shares ----


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's interval of a share seen in `count` trials; for a mean of values in [0, 1] it is wider than need be."""
    shrink = 1 + Z**2 / count
    centre = (share + Z**2 / (2 * count)) / shrink
    half = Z / shrink * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_score(name: str, values: Iterable[float]) -> Score:
    """The mean of values in [0, 1], True and False among them, with Wilson's interval; ValueError where there is
    none."""
    values = [float(value) for value in values]
    if not values:
        raise ValueError(f"{name}: nothing to score; ask for more prompts")
    share = sum(values) / len(values)
    return Score(name, share, *wilson(share, len(values)), len(values))


def mean_of(name: str, scores: Iterable[Score]) -> Score:
    """The mean over shares, each counting the same whatever it is of, as GenEval averages its categories; Wilson's
    interval of all items."""
    scores = list(scores)
    share, count = sum(score.value for score in scores) / len(scores), sum(score.count or 0 for score in scores)
    return Score(name, share, *wilson(share, count), count)


def clustered_share(name: str, hits: Sequence[int], totals: Sequence[int]) -> Score | None:
    """Hits of totals over clusters whose items are right or wrong together: Wilson's interval for as many items as
    would vary as much if they were independent; where all are hit, or none, for as many as there are clusters. None
    without any total."""
    count = sum(totals)
    if not count:
        return None
    share, clusters = sum(hits) / count, sum(map(bool, totals))
    spread = sum((hit - share * total) ** 2 for hit, total in zip(hits, totals)) * clusters / max(1, clusters - 1)
    effective = min(count, share * (1 - share) * count**2 / spread) if spread else clusters
    return Score(name, share, *wilson(share, effective), count)


# ---- means on any scale ----


def averaged(name: str, values: Iterable[float]) -> Score:
    """The mean of values on any scale, with the normal interval; that of a single value is the value."""
    values = list(values)
    mean = sum(values) / len(values)
    half = Z * math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1) / len(values))
    return Score(name, mean, mean - half, mean + half, len(values))


def over(name: str, scores: Sequence[Score]) -> Score:
    """The mean of independent means, each counting the same, with the normal interval."""
    mean = sum(score.value for score in scores) / len(scores)
    half = math.sqrt(sum((score.high - score.value) ** 2 for score in scores)) / len(scores)
    return Score(name, mean, mean - half, mean + half, sum(score.count or 0 for score in scores))


def student(values: Sequence[float]) -> float:
    """Half of Student's interval of the mean of two values or more."""
    return STUDENT.get(len(values) - 1, 1.96) * stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True)
class Difference:
    """By how much some values are larger than others of the same items, half of the interval of that mean, and for how
    many items."""

    difference: float
    half: float
    better: int
    worse: int
    count: int


def paired(ones: Sequence[float], others: Sequence[float]) -> Difference:
    """The mean difference of two items or more that were measured twice, in one order, with the normal interval."""
    gains = [one - other for one, other in zip(ones, others, strict=True)]
    half = Z * stdev(gains) / math.sqrt(len(gains))
    return Difference(mean(gains), half, sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), len(gains))


# ---- any statistic ----


class TooFew(ValueError):
    """There are too few items to resample; one line."""


@dataclass(frozen=True)
class Measured:
    """A statistic with its interval; one that has no chance in it has none."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def least(self) -> float:
        """The lower end of the interval, or the value."""
        return self.value if self.low is None else self.low

    @property
    def most(self) -> float:
        """The upper end of the interval, or the value."""
        return self.value if self.high is None else self.high

    def __neg__(self) -> "Measured":
        return Measured(-self.value, -self.most, -self.least)


def bootstrap(rows: NDArray, statistic: Callable[[NDArray], NDArray]) -> Measured:
    """A statistic of items, and its interval over samples of them drawn with replacement, the same at every call.

    rows: (items, values). statistic: (..., items, values) -> (...). Raises TooFew for fewer than LEAST items.
    """
    if len(rows) < LEAST:
        raise TooFew(f"{len(rows)} items can be used, and it takes {LEAST} to be sure of anything")
    drawn = np.random.default_rng(0).integers(len(rows), size=(RESAMPLED, len(rows)))
    low, high = np.quantile(statistic(rows[drawn]), (0.025, 0.975))
    return Measured(float(statistic(rows)), float(low), float(high))


def resampled_mean(values: ArrayLike) -> Measured:
    """The mean of one value an item, by `bootstrap`."""
    return bootstrap(np.asarray(values, float)[:, None], lambda drawn: drawn[..., 0].mean(-1))


def resampled_ratio(over: ArrayLike, under: ArrayLike) -> Measured:
    """The sum of some values over that of others, which belong to the same items, by `bootstrap`."""
    pairs = np.stack([np.asarray(over, float), np.asarray(under, float)], axis=-1)
    return bootstrap(pairs, lambda drawn: drawn[..., 0].sum(-1) / drawn[..., 1].sum(-1))


def resampled_excess(over: ArrayLike, under: ArrayLike) -> Measured:
    """The largest log2 of the ratio of two means, over the columns, by `bootstrap`. over, under: (items, columns), of
    the same items."""
    columns = np.shape(over)[-1]

    def largest(drawn: NDArray) -> NDArray:
        means = drawn.mean(-2)
        return np.log2(means[..., :columns] / means[..., columns:]).max(-1)

    return bootstrap(np.concatenate([over, under], axis=-1), largest)

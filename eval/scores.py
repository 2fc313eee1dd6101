"""Shares of things done right, with 95% Wilson intervals."""

import math
from collections.abc import Iterable, Sequence

from eval.page import Score

Z = 1.959964  # two-sided 95% of the normal distribution


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share seen in `count` trials (Wilson 1927); for a mean of values in [0, 1] it is wider than need be."""
    shrink = 1 + Z**2 / count
    centre = (share + Z**2 / (2 * count)) / shrink
    half = Z / shrink * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_score(name: str, values: Iterable[float]) -> Score:
    """The mean of values in [0, 1], True and False among them; ValueError where there is none."""
    values = [float(value) for value in values]
    if not values:
        raise ValueError(f"{name}: nothing to score; ask for more prompts")
    share = sum(values) / len(values)
    return Score(name, share, *wilson(share, len(values)), len(values))


def mean_of(name: str, scores: Iterable[Score]) -> Score:
    """The mean over scores, each counting the same whatever it is a share of, as GenEval averages its categories."""
    scores = list(scores)
    share, count = sum(score.value for score in scores) / len(scores), sum(score.count for score in scores)
    return Score(name, share, *wilson(share, count), count)


def as_text(scores: Sequence[Score], digits: int = 2) -> str:
    """A line each, for a terminal."""
    width = max(len(score.name) for score in scores)
    return "\n".join(f"{score.name:<{width}}  {score.value:.{digits}f}{_interval(score, digits)}" for score in scores)


def _interval(score: Score, digits: int) -> str:
    return "" if score.count is None else f"   {score.low:.{digits}f}-{score.high:.{digits}f}   of {score.count}"

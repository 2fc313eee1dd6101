"""Means on any scale, with their intervals."""

import math
from collections.abc import Iterable, Sequence

from eval.page import Score
from eval.scores import Z


def averaged(name: str, values: Iterable[float]) -> Score:
    """The mean of values on any scale."""
    values = list(values)
    mean = sum(values) / len(values)
    half = Z * math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1) / len(values))
    return Score(name, mean, mean - half, mean + half, len(values))


def over(name: str, scores: Sequence[Score]) -> Score:
    """The mean of means, each counting the same."""
    mean = sum(score.value for score in scores) / len(scores)
    half = math.sqrt(sum((score.high - score.value) ** 2 for score in scores)) / len(scores)
    return Score(name, mean, mean - half, mean + half, sum(score.count or 0 for score in scores))

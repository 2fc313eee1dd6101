"""Means on any scale with their intervals, and files of judges read with a clear word where they cannot be."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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


def text_in(path: Path, wanted: str) -> str:
    """What a file holds. wanted: what it should be, for the ValueError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give {wanted}") from None


def json_in(path: Path, wanted: str) -> Any:
    """The same of JSON."""
    try:
        return json.loads(text_in(path, wanted))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); give {wanted}") from None

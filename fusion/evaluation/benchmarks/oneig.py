"""Scores of OneIG-Bench from the files of its judges; see fusion.evaluation.benchmarks.official_scores."""

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from fusion.common.statistics import Score, averaged
from fusion.evaluation.benchmarks.common.input_files import text_in

METRICS = ("alignment", "diversity", "reasoning", "style")
FARTHEST = {"EN": 100, "ZH": 50}
"""Edits by which a text is at most wrong, by language."""


def oneig(files: Sequence[Path]) -> list[Score]:
    """Compute scores from the CSV files of OneIG-Bench's scripts.

    METRIC_prompt_score_LANGUAGE_*.csv: a row for each prompt, CLASS_NUMBER or NUMBER, and a column for each model.
    Returns the mean over prompts, and over those of each class where there are several.

    text_score_LANGUAGE_*.csv: a row for each model, with the means of edit distance (ED), completion rate (CR, whole
    texts) and word accuracy (WAC), which make up its score. It has no interval, since words are counted over all
    images.

    Raises ValueError, in one line, for any other file, and for a value that is not a number.
    """
    return [score for file in files for score in _scores(file)]


def _scores(file: Path) -> Iterator[Score]:
    named = re.match(rf"(?:({'|'.join(METRICS)})_prompt|(text))_score_(EN|ZH)_", file.name)
    if not named:
        raise ValueError(
            f"{file}: not a file of scores; give {', '.join(METRICS)} as ..._prompt_score_EN_*.csv, and "
            "text_score_EN_*.csv (or ZH)"
        )
    metric, _, language = named.groups()
    head, *rows = [row for row in csv.reader(io.StringIO(text_in(file, "a CSV of OneIG-Bench's scripts"))) if row] or [
        []
    ]
    if not rows or len(head) < 2 or any(len(row) != len(head) for row in rows):
        raise ValueError(f"{file}: not a table with a column for each model")
    if metric is None:
        yield from (_text(file, dict(zip(head, row, strict=True)), language) for row in rows)
        return
    for place, model in enumerate(head[1:], 1):
        by_class: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            by_class[row[0].rpartition("_")[0]].append(_number(row[place], f"{file}: prompt {row[0]} of {model}"))
        name = f"{metric}, {language}, {model}"
        yield averaged(name, [one for values in by_class.values() for one in values])
        if len(by_class) > 1:
            yield from (averaged(f"{name}: {part}", values) for part, values in sorted(by_class.items()))


def _text(file: Path, row: dict[str, str], language: str) -> Score:
    """Compute a model's text score: 1 minus the product of its errors by ED (capped and scaled), CR and WAC."""
    model = row.get("", "?")
    if missing := {"ED", "CR", "WAC"} - row.keys():
        raise ValueError(f"{file}: has no column {sorted(missing)[0]}")
    distance, whole, words = (_number(row[name], f"{file}: {name} of {model}") for name in ("ED", "CR", "WAC"))
    score = 1 - min(FARTHEST[language], distance) / FARTHEST[language] * (1 - whole) * (1 - words)
    return Score(f"text, {language}, {model}", score, score, score)


def _number(said: str, what: str) -> float:
    try:
        number = float(said)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{what} has no score ({said!r}), where the official mean leaves it out; let it be drawn and judged again"
        )
    return number

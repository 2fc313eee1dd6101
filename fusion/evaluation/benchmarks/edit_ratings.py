"""Scores from judges' ratings of edits: ImgEdit, GEdit-Bench and KRIS-Bench.

See fusion.evaluation.benchmarks.official_scores.
"""

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion.common.statistics import Score, averaged, over
from fusion.evaluation.benchmarks.common.input_files import json_in, text_in

GEDIT = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
KRIS = {
    "attribute perception": (
        "count_change",
        "color_change",
        "size_adjustment",
        "part_completion",
        "anomaly_correction",
    ),
    "spatial perception": ("viewpoint_change", "position_movement"),
    "temporal prediction": ("temporal_prediction",),
    "social science": ("humanities", "practical_knowledge"),
    "natural science": ("biology", "chemistry", "geography", "medicine", "mathematics", "physics"),
    "logical reasoning": ("abstract_reasoning", "rule-based_reasoning"),
    "instruction decomposition": ("multi-element_composition", "multi-instruction_execution"),
}
"""Categories by dimension, as in eval/gen/kris of github.com/ByteDance-Seed/Bagel."""
KINDS, KNOWING = (
    ("consistency", "quality", "instruction", "knowledge"),
    ("social science", "natural science", "logical reasoning"),
)
"""Of marks; the last is of these dimensions alone."""


def imgedit(files: Sequence[Path], data: Path | None) -> list[Score]:
    """Compute ImgEdit's scores from {key: the judge's answer}.

    An answer's ratings from 1 to 5 are the lines that end in `: NUMBER`, and their mean is the edit's score. files: one
    result.json. data: basic_edit.json. Raises ValueError where an edit has no ratings.
    """
    if len(files) != 1 or data is None:
        raise ValueError("ImgEdit is read from one result.json, and --data basic_edit.json")
    asked, said = json_in(data, "basic_edit.json"), json_in(files[0], "result.json")
    try:
        types = {str(key): str(row["edit_type"]) for key, row in asked.items()}
        missing = [key for key in types if key not in said]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{data}: not basic_edit.json ({error!r:.80})") from None
    if missing:
        raise ValueError(f"{files[0]}: {len(missing)} of {len(types)} edits are not judged, {missing[0]} among them")
    return by_type_of_edit(types, said, str(files[0]))


def marks_of(said: Any) -> list[int]:
    """Return the ratings from 1 to 5 in a judge's answer; [] where it has none, or any out of that range."""
    marks = [
        int(mark) for mark in re.findall(r"^[^:\n]*: (\d+)\s*$", said if isinstance(said, str) else "", re.MULTILINE)
    ]
    return marks if all(1 <= mark <= 5 for mark in marks) else []


def by_type_of_edit(types: dict[str, str], said: dict[str, Any], where: str) -> list[Score]:
    """Compute the mean of each type of edit, and the mean of those.

    types: of edits, by key. said: the judge's answers, by key. Raises ValueError, which begins with `where`, for an
    edit without ratings.
    """
    by_type = defaultdict(list)
    for key, kind in types.items():
        if not (marks := marks_of(said[key])):
            raise ValueError(
                f"{where}: edit {key} has no marks from 1 to 5 ({str(said[key])[:60]!r}); let it be judged again"
            )
        by_type[kind].append(sum(marks) / len(marks))
    rows = [averaged(kind, values) for kind, values in sorted(by_type.items())]
    return [*rows, over("overall", rows)]


def gedit(files: Sequence[Path]) -> list[Score]:
    """Compute GEdit-Bench's scores from files named MODEL_GROUP_LANGUAGE_vie_score.csv.

    Columns are sementics_score (the official spelling; semantics_score too) and quality_score, from 0 to 10. Languages
    are scored separately, and so are, where a column marks them, the edits that all models of the paper answered
    (intersection). Raises ValueError for anything else.
    """
    parts: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        group = next((group for group in GEDIT if f"_{group}_" in file.name), None)
        for place, row in enumerate(csv.DictReader(io.StringIO(text_in(file, "a CSV of run_gedit_score.py"))), 1):
            kind, language = row.get("task_type") or group, row.get("instruction_language")
            try:
                marks = float(row.get("sementics_score") or row["semantics_score"]), float(row["quality_score"])
                usable = kind in GEDIT and language in ("en", "cn") and all(0 <= mark <= 10 for mark in marks)
            except (KeyError, TypeError, ValueError):
                usable = False
            if not usable:
                raise ValueError(
                    f"{file}, row {place}: no language, group and marks to 10; files are named "
                    "MODEL_GROUP_LANGUAGE_vie_score.csv"
                )
            parts[language, "all"][kind].append(marks)
            if (row.get("intersection_exist") or row.get("Intersection_exist") or "").lower() == "true":
                parts[language, "intersection"][kind].append(marks)
    return [
        score for (language, part), groups in sorted(parts.items()) for score in _gedit(f"{language}, {part}", groups)
    ]


def kris(files: Sequence[Path]) -> list[Score]:
    """Compute KRIS-Bench's scores, in percent, from CATEGORY/metrics.json.

    Files are {id: {"consistency_score", "instruction_score", "quality_score", "knowledge_score"}}, ratings from 1 to 5,
    here in percent of 5. Means are over ratings, the overall one too, so that categories with four kinds of ratings
    weigh more; the overall score requires all categories. Raises ValueError for anything else.
    """
    by_category = {file.parent.name: _kris_marks(file) for file in files}
    if wrong := [name for name in by_category if not any(name in parts for parts in KRIS.values())]:
        raise ValueError(f"{wrong[0]}: not a category of KRIS-Bench; files are named CATEGORY/metrics.json")
    rows = []
    for dimension, parts in KRIS.items():
        found = [by_category[part] for part in parts if part in by_category]
        rows += [
            averaged(f"{dimension}: {kind}", marks)
            for kind in KINDS
            if (marks := [one for part in found for one in part.get(kind, ())])
        ]
        if found:
            rows.append(averaged(dimension, [one for part in found for marks in part.values() for one in marks]))
    if all(part in by_category for parts in KRIS.values() for part in parts):
        rows.append(
            averaged("overall", [one for part in by_category.values() for marks in part.values() for one in marks])
        )
    return rows


def _kris_marks(file: Path) -> dict[str, list[float]]:
    """Load a category's ratings by kind, in percent.

    Raises ValueError for a rating that the judge failed to give, and for a kind that only some edits have.
    """
    said, marks = json_in(file, "metrics.json"), defaultdict(list)
    kinds = KINDS if any(file.parent.name in KRIS[dimension] for dimension in KNOWING) else KINDS[:3]
    for key, row in said.items() if isinstance(said, dict) else ():
        for kind in kinds:
            mark = row.get(f"{kind}_score") if isinstance(row, dict) else None
            if mark not in (1, 2, 3, 4, 5):
                raise ValueError(f"{file}: edit {key} has {kind}_score {mark}, not 1 to 5; let it be judged again")
            marks[kind].append(20.0 * mark)
    if not marks:
        raise ValueError(f"{file}: not metrics.json, {{id: {{kind_score: mark}}}}")
    return marks


def _gedit(name: str, groups: dict[str, list[tuple[float, float]]]) -> list[Score]:
    ways = {
        "semantics": lambda marks: marks[0],
        "quality": lambda marks: marks[1],
        "overall": lambda marks: math.sqrt(marks[0] * marks[1]),
    }
    table = {
        way: [averaged(f"{name}, {kind}: {way}", map(of, groups[kind])) for kind in sorted(groups)]
        for way, of in ways.items()
    }
    return [*table["overall"], *(over(f"{name}: {way}", rows) for way, rows in table.items())]

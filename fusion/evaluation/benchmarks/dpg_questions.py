"""DPG-Bench's questions and their scores: zero where a question depends on one that was answered with no.

As `dpg_bench/compute_dpg_bench.py` in github.com/TencentQQGYLab/ELLA has it, after Davidsonian scene graphs (Cho et
al., arXiv 2310.18235).
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusion.evaluation.benchmarks.judges.vqa import yes


@dataclass(frozen=True)
class Question:
    """parents: numbers of the questions without which this one has no sense. category: of two levels, as in `attribute
    - color`."""

    text: str
    parents: tuple[int, ...]
    category: str


Questions = dict[str, dict[int, Question]]
"""By prompt and number, both in the file's order, which the rule of dependencies follows."""


def read_questions(path: Path, official: bool = False) -> Questions:
    """`dpg_bench.csv`. official: without its first question. ValueError naming the row that cannot be used."""
    found: Questions = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give the official dpg_bench.csv") from None
    for number, row in enumerate(rows):
        if official and number and row["item_id"] != rows[number - 1]["item_id"]:
            found.pop(row["item_id"], None)  # that code begins a prompt anew whose questions do not follow each other
        try:
            parents = tuple(parent for word in row["dependency"].split(",") if (parent := int(word)))
            question = Question(row["question_natural_language"], parents, row["tuple"].split("(")[0].strip())
            if not (official and number == 0):
                found.setdefault(row["item_id"], {})[int(row["proposition_id"])] = question
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}, question {number + 1}: not one of dpg_bench.csv ({error!r:.80})") from None
    for name, questions in found.items():
        unknown = [one for one in questions.values() if set(one.parents) - set(questions)]
        if unknown and not official:
            raise ValueError(f"{path}: a question about {name} depends on one that is not there: {unknown[0].text}")
    if not found:
        raise ValueError(f"{path}: no questions in it; give the official dpg_bench.csv")
    return found


@dataclass(frozen=True)
class Verdict:
    """images: the share of questions that each has right. said_yes: of each image, whether the answer was yes,
    dependencies left aside."""

    images: list[float]
    said_yes: list[dict[int, bool]]

    @property
    def value(self) -> float:
        """Of the prompt."""
        return sum(self.images) / len(self.images)


def verdict(questions: Mapping[int, Question], answers: Sequence[Mapping[int, str]]) -> Verdict:
    """KeyError where a question depends on one that there is not, or was not answered."""
    said_yes = [{number: yes(one[number]) for number in questions} for one in answers]
    return Verdict([share(questions, one) for one in said_yes], said_yes)


def share(questions: Mapping[int, Question], said_yes: Mapping[int, bool]) -> float:
    """Of questions answered with yes whose parents count. As in the official code, one question after the other: a
    parent that comes later in the file is taken as it was answered."""
    right = {number: said_yes[number] for number in questions}
    for number, question in questions.items():
        right[number] = all(right[parent] for parent in question.parents) and right[number]
    return sum(right.values()) / len(right)


def lacks_a_parent(questions: Mapping[int, Question]) -> bool:
    """Whether one depends on a question that is not there."""
    return any(set(question.parents) - set(questions) for question in questions.values())

"""DPG-Bench's questions and their scores: zero where a question depends on one that was answered with no.

Follows `dpg_bench/compute_dpg_bench.py` in github.com/TencentQQGYLab/ELLA, after Davidsonian scene graphs (Cho et al.,
arXiv 2310.18235).
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusion.evaluation.benchmarks.judges.vqa import yes


@dataclass(frozen=True)
class Question:
    """A question about an image, with the questions that it depends on.

    parents: numbers of the questions without which this one is meaningless. category: of two levels, as in `attribute -
    color`.
    """

    text: str
    parents: tuple[int, ...]
    category: str


Questions = dict[str, dict[int, Question]]
"""By prompt and number, both in the file's order, which the rule of dependencies follows."""


def read_questions(path: Path, official: bool = False) -> Questions:
    """Load the questions of `dpg_bench.csv`, by prompt and number.

    official: leave out what the official code leaves out, the file's first question and, of a prompt whose questions
    are not contiguous, all but the last group. Raises ValueError that names the row that cannot be used.
    """
    found: Questions = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give the official dpg_bench.csv") from None
    for number, row in enumerate(rows):
        if official and number and row["item_id"] != rows[number - 1]["item_id"]:
            found.pop(row["item_id"], None)  # that code restarts a prompt whose questions are not contiguous
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
    """The result of a prompt's images.

    images: the share of questions that each image has right. said_yes: for each image, by the question's number,
    whether the answer was yes, disregarding dependencies.
    """

    images: list[float]
    said_yes: list[dict[int, bool]]

    @property
    def value(self) -> float:
        """The prompt's score: the mean over its images."""
        return sum(self.images) / len(self.images)


def verdict(questions: Mapping[int, Question], answers: Sequence[Mapping[int, str]]) -> Verdict:
    """Score the answers about a prompt's images, each by the question's number.

    Raises KeyError where a question was not answered, or depends on one that does not exist.
    """
    said_yes = [{number: yes(one[number]) for number in questions} for one in answers]
    return Verdict([share(questions, one) for one in said_yes], said_yes)


def share(questions: Mapping[int, Question], said_yes: Mapping[int, bool]) -> float:
    """Compute the share of questions answered with yes whose parents count as right, too.

    Questions are processed one after the other, as in the official code: a parent that comes later in the file counts
    by its answer alone.
    """
    right = {number: said_yes[number] for number in questions}
    for number, question in questions.items():
        right[number] = all(right[parent] for parent in question.parents) and right[number]
    return sum(right.values()) / len(right)


def lacks_a_parent(questions: Mapping[int, Question]) -> bool:
    """Return whether a question depends on one that does not exist."""
    return any(set(question.parents) - set(questions) for question in questions.values())

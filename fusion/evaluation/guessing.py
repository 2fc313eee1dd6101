"""Chance levels: the scores of guessing on the suites of the built-in world."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

from fusion.evaluation.suites import Intents, Questions
from fusion.worlds.shapes import EvaluationQuestion, evaluation_intents, evaluation_questions

RULES = {
    Questions.name: "the commonest answer to each form of question",
    Intents.name: "the commoner of drawing and writing",
}
"""How is guessed, by suite; in the others guessing scores next to nothing."""


def chance_levels(counts: Mapping[str, int], seed: int) -> dict[str, float]:
    """Compute the score of guessing on the first items of suites, by suite, for those of RULES.

    counts: number of items by suite; suites without items are left out. seed: of the items, see
    fusion.evaluation.suite.
    """
    levels = {
        Questions.name: lambda count: commonest_answers(evaluation_questions(count, seed)),
        Intents.name: lambda count: commonest(one.draw for one in evaluation_intents(count, seed)),
    }
    return {name: level(counts[name]) for name, level in levels.items() if counts.get(name)}


def commonest_answers(items: Sequence[EvaluationQuestion]) -> float:
    """Return the share of questions that the most frequent answer to their form gets right.

    A form is a kind of question; those that offer two answers ("left of or right of") are forms of their own.
    """
    forms: dict[tuple, Counter] = defaultdict(Counter)
    for item in items:
        forms[item.kind, " or " in item.question.text][item.question.answer] += 1
    return sum(max(answers.values()) for answers in forms.values()) / len(items)


def commonest(values: Iterable[Hashable]) -> float:
    """Return the share of the most frequent value."""
    found = Counter(values)
    return max(found.values()) / found.total()

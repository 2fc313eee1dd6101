"""A suite of the built-in world: numbered items with a seed each, and the judge's verdict on every answer.

A score depends on the items and on the subject alone. An item's number is its index in the suite's list, its seed is
the split's seed plus that number, and a longer list begins with the shorter one. Batches, order and processes change
no answer, except for the rounding of sums: in fp32 that changes no verdict of 600 of the bundled model, in bf16 one of
200 (bench/results/scored_2026-12-01_cpu.json).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from fusion.common.statistics import Score, mean_score
from fusion.evaluation.subjects import Subject
from fusion.worlds.shapes import SCORED_SEED

SPLITS = {"scored": SCORED_SEED, "development": SCORED_SEED + 1}
"""Seeds of the items. Scored ones are for reported figures; whatever is chosen or tuned is chosen on development items.
"""
BATCH = 32  # most items of a batch


@dataclass(frozen=True)
class Numbered:
    """An item, its index in the list of its suite, and the seed with which its answer is sampled."""

    number: int
    seed: int
    item: Any


@dataclass(frozen=True)
class Row:
    """The result of one item.

    asked: the request in words. said: the answer, if it is text. groups: subsets of the suite in which the item counts.
    values: scores in [0, 1], by name. reasons: what the judge finds wrong, where it says so. images: names of files.
    """

    suite: str
    number: int
    asked: str
    groups: list[str]
    values: dict[str, float]
    said: str | None = None
    images: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


Answer = tuple[Row, list[Image.Image]]
"""A row without the names of its images, and the images: what was shown, then what was made."""


class Suite(ABC):
    """A suite of evaluation items, with the judge's values for each answer.

    name: of the suite. needs: tasks that a subject has to support. words: the label of each value's mean, by value.
    main: the value by which two subjects are compared. finer: a value with partial credit
    (fusion.evaluation.partial_credit), which separates subjects that get few items entirely right; None where the main
    value does.
    """

    name: str
    needs: frozenset[str]
    main: str = "right"
    finer: str | None = None
    words: dict[str, str]

    @abstractmethod
    def items(self, count: int, seed: int) -> Sequence:
        """Return the first `count` items of a list that depends on the seed alone."""

    @abstractmethod
    def ask(self, subject: Subject, batch: Sequence[Numbered]) -> list[Answer]:
        """Query the subject for items that agree in `alike`, each with its own seed, and judge its answers."""

    @abstractmethod
    def text(self, item) -> str:
        """Return the request of an item as text, for the fingerprint of all requests."""

    def alike(self, item) -> object:
        """Return a hashable key, in which the items of a batch have to agree."""
        return None

    def numbered(self, count: int, seed: int) -> list[Numbered]:
        """Return the first `count` items with their numbers and seeds."""
        return [Numbered(number, seed + number, item) for number, item in enumerate(self.items(count, seed))]

    def batches(self, items: Sequence[Numbered]) -> Iterator[list[Numbered]]:
        """Yield batches of items that agree in `alike`, at most BATCH each."""
        groups: dict[object, list[Numbered]] = {}
        for one in items:
            groups.setdefault(self.alike(one.item), []).append(one)
        for together in groups.values():
            for start in range(0, len(together), BATCH):
                yield together[start : start + BATCH]

    def answers(self, subject: Subject, items: Sequence[Numbered]) -> Iterator[list[Answer]]:
        """Query the subject for all items, and yield the judged answers of each batch."""
        for batch in self.batches(items):
            yield self.ask(subject, batch)

    def scores(self, rows: Sequence[Row]) -> list[Score]:
        """Compute the mean of each value that occurs, then the main value's mean by group."""
        values = {said: [row.values[name] for row in rows if name in row.values] for name, said in self.words.items()}
        return [mean_score(said, found) for said, found in values.items() if found] + self.by_group(rows)

    def by_group(self, rows: Sequence[Row]) -> list[Score]:
        """Compute the main value's mean in each group."""
        groups = dict.fromkeys(group for row in rows for group in row.groups)
        members = {group: [row.values[self.main] for row in rows if group in row.groups] for group in groups}
        return [mean_score(f"{self.name}: {group}", values) for group, values in members.items()]

"""A suite of the built-in world: numbered items with a seed each, and the judge's verdict on every answer.

A figure depends on the items and on the subject alone. An item's number is its place in the suite's list, its seed is
the split's seed plus that number, and a longer list begins with the shorter one. How items are put into batches, in
which order they are asked, and which process asks them changes no answer, but for the rounding of sums: in fp32 that
moves no verdict of 600 of the bundled model, in bf16 one of 200 (bench/results/scored_2026-12-01_cpu.json).
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
BATCH = 32  # items asked at once


@dataclass(frozen=True)
class Numbered:
    """An item, its place in the list of its suite, and the seed that its answer is sampled with."""

    number: int
    seed: int
    item: Any


@dataclass(frozen=True)
class Row:
    """What came of one item. asked: in words; said: the answer, if it was words. groups: what the item counts in.
    values: in [0, 1], by name. reasons: what the judge misses, where it says so. images: names of files."""

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
    """name: of the suite. needs: what a subject has to do for it. words: by value, what its mean is called. main: the
    value that two subjects are compared by. finer: one that tells subjects apart of which few are all right, as
    fusion.evaluation.partial_credit has it; None where the main one does."""

    name: str
    needs: frozenset[str]
    main: str = "right"
    finer: str | None = None
    words: dict[str, str]

    @abstractmethod
    def items(self, count: int, seed: int) -> Sequence:
        """The first `count` items of a list that depends on the seed alone."""

    @abstractmethod
    def ask(self, subject: Subject, batch: Sequence[Numbered]) -> list[Answer]:
        """Ask for items that agree in `alike`, each with its own seed."""

    @abstractmethod
    def text(self, item) -> str:
        """What is asked, for the fingerprint of all that is."""

    def alike(self, item) -> object:
        """What items have to agree in to be asked together; hashable."""
        return None

    def numbered(self, count: int, seed: int) -> list[Numbered]:
        """The first `count` items with their numbers and seeds."""
        return [Numbered(number, seed + number, item) for number, item in enumerate(self.items(count, seed))]

    def batches(self, items: Sequence[Numbered]) -> Iterator[list[Numbered]]:
        """Items that can be asked together, at most BATCH."""
        groups: dict[object, list[Numbered]] = {}
        for one in items:
            groups.setdefault(self.alike(one.item), []).append(one)
        for together in groups.values():
            for start in range(0, len(together), BATCH):
                yield together[start : start + BATCH]

    def answers(self, subject: Subject, items: Sequence[Numbered]) -> Iterator[list[Answer]]:
        """What comes of the items, batch by batch."""
        for batch in self.batches(items):
            yield self.ask(subject, batch)

    def scores(self, rows: Sequence[Row]) -> list[Score]:
        """The means of all values that there are, then the main one's by group."""
        values = {said: [row.values[name] for row in rows if name in row.values] for name, said in self.words.items()}
        return [mean_score(said, found) for said, found in values.items() if found] + self.by_group(rows)

    def by_group(self, rows: Sequence[Row]) -> list[Score]:
        """The main value's means."""
        groups = dict.fromkeys(group for row in rows for group in row.groups)
        members = {group: [row.values[self.main] for row in rows if group in row.groups] for group in groups}
        return [mean_score(f"{self.name}: {group}", values) for group, values in members.items()]

"""The search of eval.tune: successive halving in cost classes, on paired items, and a record of all trials.

What is looked for is the best setting at every cost, so settings compete within classes of cost. What they differ by is
small against chance: all are measured on the same items from the same noise, and only the better half of a class goes
on to twice as many items (successive halving, Jamieson and Talwalkar, arXiv 1502.07943). Rounds follow each other until
the budget is spent, as Hyperband's brackets do (Li et al., arXiv 1603.06560); half of a round's settings are drawn at
random, half are neighbours of the default and of the best ones known, as in DEHB (Awad et al., arXiv 2105.09821), for
quality changes smoothly with most sampling parameters. Changing one sampling parameter at a time would need fewer
trials if sampling parameters acted alone; guidance, its interval and the shift do not. The best of many is also the
luckiest, so those that are left are judged anew, on items that chose none of them.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from fusion.common.atomic import save
from fusion.common.renamed import renamed
from fusion.evaluation.subjects import Subject
from fusion.evaluation.suite import Answer, Numbered, Suite
from fusion.evaluation.suites import Drawing, Edits
from fusion.flow.solvers import SOLVERS
from fusion.generation.cost import passes
from fusion.generation.sampling import Sampling
from fusion.tuning.pareto_front import Judged

OPTIONS: dict[str, tuple] = {
    "steps": (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 30, 40),
    "solver": tuple(SOLVERS),
    "shift": (0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
    "guidance": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0),
    "image_guidance": (1.0, 1.25, 1.5, 2.0, 2.5),
    "guidance_interval": ((0.0, 1.0), (0.0, 0.9), (0.0, 0.75), (0.2, 1.0), (0.4, 1.0), (0.2, 0.8)),
}
AROUND = ("solver", "guidance_interval")  # whose options have no order: beside the last is the first
CLASSES = (1 / 8, 1 / 4, 1 / 2, 1, 2)  # the most that a setting of each class costs, over the default's cost
ROUND, DEPTHS = 4, (1, 2, 4)  # new settings of a class in a round, and over how many chunks of items they are halved
FINALISTS, LEAST, FRESH = 2, 2, 8  # of a class; and the chunks that they are judged on, at least and at most
SEARCHING = 0.6  # share of the budget, the rest is for judging
ATTEMPTS = 200  # at finding ROUND new settings in a class


@dataclass(frozen=True)
class Part:
    """A suite whose items come in chunks of `size`, each with every category or kind, seen and held out, equally
    often."""

    name: str
    suite: Suite
    size: int


PARTS = {"draw": Part("drawing", Drawing(), 24), "edits": Part("edits", Edits(), 28)}


@cache
def chunk(part: Part, number: int, seed: int) -> list[Numbered]:
    """The items of a chunk."""
    return part.suite.numbered((number + 1) * part.size, seed)[number * part.size :]


def answered(part: Part, subject: Subject, items: Sequence[Numbered]) -> list[Answer]:
    """What comes of items of a part, in their order."""
    answers = [one for batch in part.suite.answers(subject, items) for one in batch]
    return sorted(answers, key=lambda answer: answer[0].number)


@cache
def cost(setting: Sampling, parts: tuple[Part, ...]) -> float:
    """Forward passes an image, the mean over the parts; where there is no image to be guided by, there is no branch
    for it."""
    return mean(
        passes(setting if "edit" in part.suite.needs else replace(setting, image_guidance=1.0)) for part in parts
    )


def plain(setting: Sampling) -> Sampling:
    """The same with the default of each sampling parameter that makes no difference, so that nothing is tried under two
    names."""
    if setting.guidance == setting.image_guidance == 1:
        setting = replace(setting, guidance_interval=Sampling.guidance_interval)
    return replace(setting, solver=Sampling.solver, shift=Sampling.shift) if setting.steps == 1 else setting


# ---- what was tried ----


@dataclass(frozen=True)
class Tried:
    """What came of a chunk of a part with some sampling parameters: quality and right by item, and the seconds it
    took."""

    params: dict[str, Any]
    part: str
    chunk: int
    seconds: float
    quality: list[float]
    right: list[float]

    @property
    def key(self) -> str:
        """What it was."""
        return json.dumps([self.params, self.part, self.chunk], sort_keys=True)


class Ledger:
    """Everything that was tried, a line of JSON each. A line that was not finished when the program was ended is taken
    away."""

    def __init__(self, file: Path):
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            save(whole.encode(), file)
        try:
            lines = [Tried(**renamed(json.loads(line))) for line in whole.splitlines()]
        except (ValueError, TypeError):
            raise ValueError(
                f"{file} is not what this program writes there: move it away, and all is tried again"
            ) from None
        self.file, self.known = file, {one.key: one for one in lines}

    def add(self, one: Tried) -> None:
        """Keep it."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(one)) + "\n")
        self.known[one.key] = one


@dataclass
class Budget:
    """How much may be spent, in images or in seconds. What is known already counts as when it was tried, so that
    going on ends as not stopping."""

    amount: float
    unit: str = "images"
    spent: float = 0.0

    def take(self, one: Tried) -> float:
        """Spend what it took."""
        took = len(one.quality) if self.unit == "images" else one.seconds
        self.spent += took
        return took


# ---- the search ----


class Search:
    """See the head of this file. subject_of: sampling parameters -> what draws with them. `results`: by setting, what
    came of chunk 0, 1, ... of all parts."""

    def __init__(
        self,
        subject_of: Callable[[dict], Subject],
        parts: Sequence[Part],
        ledger: Ledger,
        budget: Budget,
        seed: int,
        progress: Callable[[float], Any] = lambda took: None,
    ):
        self.subject_of, self.parts, self.ledger = subject_of, tuple(parts), ledger
        self.budget, self.seed, self.progress = budget, seed, progress
        edits = any("edit" in part.suite.needs for part in parts)
        self.options = {param: values for param, values in OPTIONS.items() if edits or param != "image_guidance"}
        self.default = Sampling()
        self.results: dict[Sampling, list[list[Tried]]] = {}

    def run(self) -> list[Judged]:
        """Search, then judge the best of each class, and the default."""
        number = 0
        while not self._out(SEARCHING) and self._round(self._proposals(number)):
            number += 1
        finalists = dict.fromkeys([self.default, *(one for place in range(len(CLASSES)) for one in self.best(place))])
        return self._judge(list(finalists))

    def params(self, setting: Sampling) -> dict[str, Any]:
        """Those that are searched."""
        return {param: getattr(setting, param) for param in self.options}

    def cost(self, setting: Sampling) -> float:
        """Forward passes an image."""
        return cost(setting, self.parts)

    def quality(self, setting: Sampling) -> float:
        """Over the chunks that it was searched with."""
        return mean(
            mean(q for chunk in self.results[setting] for q in chunk[place].quality) for place in range(len(self.parts))
        )

    def best(self, place: int) -> list[Sampling]:
        """Of a class those that came farthest, and of these the best."""
        members = [one for one in self.results if self._class(one) == place]
        return sorted(members, key=lambda one: (-len(self.results[one]), -self.quality(one)))[:FINALISTS]

    def _out(self, share: float = 1.0) -> bool:
        return self.budget.spent >= share * self.budget.amount

    def _class(self, setting: Sampling) -> int | None:
        share = self.cost(setting) / self.cost(self.default)
        return next((place for place, most in enumerate(CLASSES) if share <= most), None)

    def _proposals(self, number: int) -> list[list[Sampling]]:
        """New settings by class."""
        rng, taken, found = np.random.default_rng([self.seed, number]), set(self.results), []
        for place in range(len(CLASSES)):
            parents = [self.default, *(one for near in (place - 1, place, place + 1) for one in self.best(near))]
            members: list[Sampling] = []
            for attempt in range(ATTEMPTS):
                one = self._near(rng, parents[rng.integers(len(parents))]) if attempt % 2 else self._any(rng)
                if one not in taken and self._class(one) == place:
                    members.append(one)
                    taken.add(one)
                if len(members) == ROUND:
                    break
            found.append(members)
        return found

    def _any(self, rng: np.random.Generator) -> Sampling:
        return plain(Sampling(**{param: values[rng.integers(len(values))] for param, values in self.options.items()}))

    def _near(self, rng: np.random.Generator, setting: Sampling) -> Sampling:
        """One or two sampling parameters moved to an option beside theirs; any number of steps, so that what is good at
        one cost is tried at another."""
        changed = {"steps": int(rng.choice(self.options["steps"]))}
        for param in rng.choice(
            [param for param in self.options if param != "steps"], size=rng.integers(1, 3), replace=False
        ).tolist():
            values = self.options[param]
            place = values.index(getattr(setting, param)) + (1 if rng.random() < 0.5 else -1)
            changed[param] = (
                values[place % len(values)] if param in AROUND else values[min(max(place, 0), len(values) - 1)]
            )
        return plain(replace(setting, **changed))

    def _round(self, classes: list[list[Sampling]]) -> bool:
        """Halve each class's new settings; one of every class in turn, so that all are seen however small the budget.
        False where nothing is new."""
        if not any(classes):
            return False
        for depth in DEPTHS:
            for one in (one for row in zip_longest(*classes) for one in row if one is not None):
                for number in range(len(self.results.get(one, [])), depth):
                    if self._out(SEARCHING):
                        return True
                    self.results.setdefault(one, []).append(self._try(one, number))
            classes = [
                sorted(members, key=self.quality, reverse=True)[: (len(members) + 1) // 2] for members in classes
            ]
        return True

    def _judge(self, finalists: list[Sampling]) -> list[Judged]:
        """On chunks that no setting was searched with, as many as the budget allows."""
        seen: dict[Sampling, list[list[Tried]]] = {one: [] for one in finalists}
        for number in range(FRESH):
            if number >= LEAST and self._out():
                break
            for one in finalists:
                seen[one].append(self._try(one, DEPTHS[-1] + number))
        return [self._judged(one, chunks) for one, chunks in seen.items()]

    def _judged(self, setting: Sampling, chunks: list[list[Tried]]) -> Judged:
        by_part = {part.name: [chunk[place] for chunk in chunks] for place, part in enumerate(self.parts)}
        quality = {name: [value for one in found for value in one.quality] for name, found in by_part.items()}
        right = {name: [value for one in found for value in one.right] for name, found in by_part.items()}
        return Judged(setting, self.cost(setting), quality, right)

    def _try(self, setting: Sampling, number: int) -> list[Tried]:
        """One chunk of each part, from the ledger where it is known."""
        found = []
        for part in self.parts:
            params = json.loads(json.dumps(self.params(setting)))  # as they are read again
            key = Tried(params, part.name, number, 0, [], []).key
            if key not in self.ledger.known:
                self.ledger.add(self._ask(part, setting, params, number))
            found.append(self.ledger.known[key])
            self.progress(self.budget.take(found[-1]))
        return found

    def _ask(self, part: Part, setting: Sampling, params: dict, number: int) -> Tried:
        began = time.monotonic()
        answers = answered(part, self.subject_of(self.params(setting)), chunk(part, number, self.seed))
        values = [row.values for row, _ in answers]
        seconds = round(time.monotonic() - began, 3)
        return Tried(
            params, part.name, number, seconds, [one["quality"] for one in values], [one["right"] for one in values]
        )

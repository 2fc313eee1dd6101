"""Scores a loaded subject on the built-in world, for the demo, a text-to-image run and a comparison.

`eval.run` does it for a model's folder. Both evaluate through fusion.evaluation.suite, so that the same subject has the
same scores on the same items.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from fusion.common.atomic import save
from fusion.common.contact_sheet import Cell, contact_sheet
from fusion.common.html import png
from fusion.common.statistics import Score, mean_score
from fusion.evaluation.guessing import chance_levels
from fusion.evaluation.subjects import Subject
from fusion.evaluation.suite import Answer
from fusion.evaluation.suites import OVERALL, SUITES, Drawing, Edits, Intents, Questions
from fusion.worlds.shapes import WORLD_VERSION

SEEN, UNSEEN = (f"drawings of prompts {when} in training" for when in ("seen", "never seen"))
FIGURES = {
    "overall": (Drawing.name, OVERALL),
    "unseen_prompts": (Drawing.name, UNSEEN),
    "seen": (Drawing.name, f"{OVERALL}, seen pairs"),
    "held_out": (Drawing.name, f"{OVERALL}, held-out pairs"),
    "colours_present": (Drawing.name, Drawing.words["colours"]),
    "edits_done": (Edits.name, Edits.words["right"]),
    "edits_kept": (Edits.name, Edits.words["kept"]),
    "questions": (Questions.name, Questions.words["right"]),
    "when_to_draw": (Intents.name, Intents.words["right"]),
}
"""The main figures: a suite's name and a score's by the name that configs, targets and scores.json have for it."""


@dataclass(frozen=True)
class Scorecard:
    """All items that a subject was evaluated on with its answers, by suite and in the order of the items.

    seed: of the items. seconds: duration of the evaluation. seen: the prompts that occur verbatim in the training
    documents, None where that is not known (fusion.evaluation.overlap).
    """

    seed: int
    seconds: float
    answers: dict[str, list[Answer]]
    seen: frozenset[str] | None = None

    @cached_property
    def scores(self) -> dict[str, list[Score]]:
        """All scores, by suite."""
        suites = {suite.name: suite for suite in SUITES}
        found = {name: suites[name].scores([row for row, _ in answers]) for name, answers in self.answers.items()}
        if Drawing.name in found:
            found[Drawing.name] += self._by_memory()
        return found

    def _by_memory(self) -> list[Score]:
        """Compute the share of right drawings separately for prompts that training documents have and for others.

        Returns no scores where that is not known.
        """
        if self.seen is None:
            return []
        shares: dict[str, list[float]] = {SEEN: [], UNSEEN: []}
        for row, _ in self.answers[Drawing.name]:
            shares[SEEN if row.asked in self.seen else UNSEEN].append(row.values["right"])
        return [mean_score(name, values) for name, values in shares.items() if values]

    @property
    def figures(self) -> dict[str, Score]:
        """The main figures of the evaluated suites, by their names in FIGURES."""
        by_name = {(suite, score.name): score for suite, found in self.scores.items() for score in found}
        return {name: by_name[place] for name, place in FIGURES.items() if place in by_name}

    @cached_property
    def chance(self) -> dict[str, float]:
        """The scores of guessing on the same items, by the name of a main figure."""
        levels = chance_levels({name: len(answers) for name, answers in self.answers.items()}, self.seed)
        return {name: levels[suite] for name, (suite, _) in FIGURES.items() if suite in levels}

    @property
    def details(self) -> list[Score]:
        """All scores but the main figures."""
        main = list(self.figures.values())
        return [score for found in self.scores.values() for score in found if score not in main]

    def with_targets(self, targets: Mapping[str, float]) -> list[Score]:
        """Return the main figures, each with its target where there is one."""
        return [replace(score, target=targets.get(name)) for name, score in self.figures.items()]

    def as_json(self) -> dict:
        """Return the contents of scores.json: the scores, and what they depend on."""
        figures = {name: asdict(score) for name, score in self.figures.items()}
        about = {"seed": self.seed, "world": WORLD_VERSION, "seconds": round(self.seconds, 1), "chance": self.chance}
        return about | figures | {"details": [asdict(score) for score in self.details]}

    def sheets(self) -> dict[str, Image.Image]:
        """Build contact sheets of drawings and of edits, with wrong ones framed in red."""
        shown = {"drawings": self.answers.get(Drawing.name, []), "edits": self.answers.get(Edits.name, [])}
        cells = {
            name: [Cell(images, [row.asked], row.values["right"] == 1) for row, images in answers]
            for name, answers in shown.items()
        }
        return {name: contact_sheet(found) for name, found in cells.items() if found}

    def save(self, folder: str | Path) -> list[Path]:
        """Write scores.json and a PNG of each contact sheet into a folder, each atomically, and return their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {folder / "scores.json": (json.dumps(self.as_json(), indent=1) + "\n").encode()}
        files |= {folder / f"{name}.png": png(sheet) for name, sheet in self.sheets().items()}
        for path, data in files.items():
            save(data, path)
        return list(files)


def score(subject: Subject, counts: Mapping[str, int], seed: int, progress: bool = False) -> Scorecard:
    """Evaluate a subject on the first items of suites.

    counts: number of items, by suite. seed: of the items, one of fusion.evaluation.suite.SPLITS. progress: show a bar.
    """
    began, answers = time.monotonic(), {}
    with tqdm(total=sum(counts.values()), desc="scoring", unit="items", disable=not progress) as bar:
        for suite in (suite for suite in SUITES if suite.name in counts):
            found: list[Answer] = []
            for batch in suite.answers(subject, suite.numbered(counts[suite.name], seed)):
                found += batch
                bar.update(len(batch))
            answers[suite.name] = sorted(found, key=lambda answer: answer[0].number)
    return Scorecard(seed, time.monotonic() - began, answers)

"""Scores a model on the built-in world while it is at hand: pictures, edits, questions, when to draw (`eval.run` does it for a folder).

The scored prompts (`split=scored`) are for reported figures alone; whatever is chosen or tuned is chosen on `split=development`.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from eval.page import Score
from eval.scores import mean_of, mean_score
from eval.sheet import Cell, contact_sheet
from eval.subjects import Unified
from eval.suites import SIZE, with_pil
from fusion.api import Fusion
from fusion.data.shapes import (
    SCORED_SEED,
    WORLD_VERSION,
    EditVerdict,
    EvaluationEdit,
    EvaluationIntent,
    EvaluationPrompt,
    EvaluationQuestion,
    Verdict,
    evaluation_edits,
    evaluation_intents,
    evaluation_prompts,
    evaluation_questions,
    judge,
)

SPLITS = {"scored": SCORED_SEED, "development": SCORED_SEED + 1}
BATCH = 64  # rows generated together
LEAST = 12  # prompts with which every category has one that is held out
Draw = Callable[[list[str], int], list[Image.Image]]


@dataclass(frozen=True)
class Drawn:
    """A picture drawn for a prompt, and what the judge says of it."""

    asked: EvaluationPrompt
    image: Image.Image
    verdict: Verdict


@dataclass(frozen=True)
class Edited:
    """An edit of a picture, and what the judge says of it."""

    asked: EvaluationEdit
    before: Image.Image
    image: Image.Image
    verdict: EditVerdict


@dataclass(frozen=True)
class Answered:
    """An answer to a question about a picture."""

    asked: EvaluationQuestion
    image: Image.Image
    reply: str
    right: bool


@dataclass(frozen=True)
class Decided:
    """Whether the model drew when a user began in these words."""

    asked: EvaluationIntent
    drew: bool


@dataclass(frozen=True)
class DrawingScores:
    """The part of ShapesScores that is about pictures drawn for prompts; details: by category."""

    overall: Score
    seen: Score
    held_out: Score
    colours_present: Score
    details: tuple[Score, ...]

    @property
    def main(self) -> list[Score]:
        """All but the details, in order."""
        return [value for value in vars(self).values() if isinstance(value, Score)]


@dataclass(frozen=True)
class ShapesScores:
    """The scores of a model; each is a share with its count and 95% interval.

    overall: GenEval in miniature, the mean over its six categories; seen, held_out: the same over prompts whose pairs of kinds occur in
    training, and over those (in position and attribute binding) whose pairs never do. colours_present: pictures with all asked colours,
    of those that ask for any. edits_done: the asked change and nothing else. edits_kept: pixels outside the changed objects that stay
    within 8 of 255. questions: right answers. when_to_draw: draws if asked to, and only then. details: by category, kind of edit, kind
    of question, and intent.
    """

    seed: int
    world: int | str
    seconds: float
    overall: Score
    seen: Score
    held_out: Score
    colours_present: Score
    edits_done: Score
    edits_kept: Score
    questions: Score
    when_to_draw: Score
    details: tuple[Score, ...]

    @property
    def main(self) -> list[Score]:
        """All but the details, in order."""
        return [value for value in vars(self).values() if isinstance(value, Score)]


@dataclass(frozen=True)
class Evaluation:
    """Everything a model was asked and what it made of it."""

    seed: int
    seconds: float
    drawn: list[Drawn]
    edited: list[Edited]
    answered: list[Answered]
    decided: list[Decided]

    @property
    def scores(self) -> ShapesScores:
        """The shares of what came out right."""
        drawing = drawing_scores(self.drawn)
        details = [
            *drawing.details,
            *_shares(_by(self.edited, lambda one: f"edit: {one.asked.kind}"), _edit_right),
            *_shares(_by(self.edited, lambda one: "edits, held out" if one.asked.held_out else "edits, seen"), _edit_right),
            *_shares(_by(self.answered, lambda one: f"question: {one.asked.kind}"), lambda one: one.right),
            *_shares(_by(self.decided, lambda one: "draws when asked" if one.asked.draw else "draws only when asked"), _decided_right),
        ]
        return ShapesScores(
            seed=self.seed,
            world=WORLD_VERSION,
            seconds=round(self.seconds, 1),
            overall=drawing.overall,
            seen=drawing.seen,
            held_out=drawing.held_out,
            colours_present=drawing.colours_present,
            edits_done=mean_score("edits done", map(_edit_right, self.edited)),
            edits_kept=mean_score("pixels kept in edits", [one.verdict.kept for one in self.edited]),
            questions=mean_score("questions", [one.right for one in self.answered]),
            when_to_draw=mean_score("draws when asked and only then", map(_decided_right, self.decided)),
            details=tuple(details),
        )

    def sheets(self) -> dict[str, Image.Image]:
        """Contact sheets by name: drawings, edits."""
        edited = [Cell((one.before, one.image), one.asked.instruction, one.verdict.done) for one in self.edited]
        return {"drawings": drawing_sheet(self.drawn), "edits": contact_sheet(edited)}


def score(model: Fusion, count: int = 200, seed: int = SCORED_SEED, **knobs) -> ShapesScores:
    """The scores of `evaluate` alone."""
    return evaluate(model, count, seed, **knobs).scores


def evaluate(model: Fusion, count: int = 200, seed: int = SCORED_SEED, progress: bool = False, **knobs) -> Evaluation:
    """Ask for `count` pictures, `count` answers, and half as many edits and decisions, all of `seed`.

    knobs: see fusion.sampling.Sampling. Pictures are 32x32, edits as large as what is edited. Raises ValueError for less than 12 prompts.
    """
    if count < LEAST:
        raise ValueError(f"count={count}: give at least {LEAST}, so that every category has a prompt")
    began = time.monotonic()
    subject = Unified(model, knobs)
    with tqdm(total=3 * count, desc="scoring", unit="prompts", disable=not progress) as bar:
        drawn = _draw(lambda prompts, first: subject.draw(prompts, first, SIZE), count, seed, bar)
        edited = _edit(subject, evaluation_edits(count // 2, seed), seed, bar)
        answered = _answer(subject, evaluation_questions(count, seed), seed, bar)
        decided = _decide(subject, evaluation_intents(count // 2, seed), seed, bar)
    return Evaluation(seed, time.monotonic() - began, drawn, edited, answered, decided)


def evaluate_drawing(draw: Draw, count: int = 200, seed: int = SCORED_SEED, progress: bool = False) -> list[Drawn]:
    """Ask anything that draws for `count` pictures of `seed`: draw(prompts, seed of the first) -> 32x32 pictures."""
    if count < LEAST:
        raise ValueError(f"count={count}: give at least {LEAST}, so that every category has a prompt")
    with tqdm(total=count, desc="scoring", unit="prompts", disable=not progress) as bar:
        return _draw(draw, count, seed, bar)


def drawing_scores(drawn: Sequence[Drawn]) -> DrawingScores:
    """The shares of pictures that came out right."""
    coloured = [one for one in drawn if one.asked.expectation.colours]
    categories = _by(drawn, lambda one: one.asked.category)
    seen = _by([one for one in drawn if not one.asked.held_out], lambda one: one.asked.category)
    held_out = _by([one for one in drawn if one.asked.held_out], lambda one: f"{one.asked.category}, held out")
    return DrawingScores(
        overall=mean_of("overall", _shares(categories, _picture_right)),
        seen=mean_of("overall, seen pairs", _shares(seen, _picture_right)),
        held_out=mean_of("overall, held-out pairs", _shares(held_out, _picture_right)),
        colours_present=mean_score("all asked colours present", [one.verdict.colours_present for one in coloured]),
        details=tuple(_shares(seen | held_out, _picture_right)),
    )


def drawing_sheet(drawn: Sequence[Drawn]) -> Image.Image:
    """All pictures with their prompts, those that are not right in red."""
    return contact_sheet([Cell((one.image,), one.asked.prompt, one.verdict.ok) for one in drawn])


def _draw(draw: Draw, count: int, seed: int, bar: tqdm) -> list[Drawn]:
    asked, images = evaluation_prompts(count, seed), []
    for start, part in _batches(asked, bar):
        images += draw([one.prompt for one in part], seed + start)
    return [Drawn(one, image, judge.check(image, one.expectation)) for one, image in zip(asked, images, strict=True)]


def _edit(subject: Unified, asked: Sequence[EvaluationEdit], seed: int, bar: tqdm) -> list[Edited]:
    """In batches of one size, as a batch draws all its pictures in the same size; back in the order asked."""
    done: dict[int, Edited] = {}
    for places in _by(range(len(asked)), lambda place: asked[place].image.shape).values():
        for start, part in _batches(places, bar):
            before = [Image.fromarray(asked[place].image) for place in part]
            images = subject.edit(before, [asked[place].instruction for place in part], seed + start)
            for place, old, new in zip(part, before, images, strict=True):
                done[place] = Edited(asked[place], old, new, judge.edit_done(old, new, asked[place].edit))
    return [done[place] for place in range(len(asked))]


def _answer(subject: Unified, asked: Sequence[EvaluationQuestion], seed: int, bar: tqdm) -> list[Answered]:
    answered = []
    for start, part in _batches(asked, bar):
        images = [Image.fromarray(one.image) for one in part]
        replies = subject.answer(images, [one.question.text for one in part], seed + start)
        right = [judge.answer_right(one.question, reply) for one, reply in zip(part, replies, strict=True)]
        answered += map(Answered, part, images, replies, right)
    return answered


def _decide(subject: Unified, asked: Sequence[EvaluationIntent], seed: int, bar: tqdm) -> list[Decided]:
    decided = []
    for start, part in _batches(asked, bar):
        decided += map(Decided, part, subject.decide([with_pil(one.message) for one in part], seed + start, SIZE))
    return decided


def _batches(items: Sequence, bar: tqdm) -> Iterable[tuple[int, Sequence]]:
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        yield start, part
        bar.update(len(part))


def _by(items: Iterable, name: Callable) -> dict:
    groups = defaultdict(list)
    for item in items:
        groups[name(item)].append(item)
    return dict(groups)


def _shares(groups: dict[str, list], right: Callable) -> list[Score]:
    return [mean_score(name.replace("_", " "), map(right, items)) for name, items in groups.items()]


def _picture_right(one: Drawn) -> bool:
    return one.verdict.ok


def _edit_right(one: Edited) -> bool:
    return one.verdict.done


def _decided_right(one: Decided) -> bool:
    return one.drew == one.asked.draw


def with_targets(scores: ShapesScores, targets: dict[str, float]) -> list[Score]:
    """The main scores, each with the target of its field's name where there is one."""
    return [replace(value, target=targets.get(name)) for name, value in vars(scores).items() if isinstance(value, Score)]


def save(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Write scores.json, drawings.png and edits.png into a folder, each whole or not at all."""
    return save_scores(evaluation.scores, evaluation.sheets(), folder)


def save_scores(scores: ShapesScores | DrawingScores, sheets: dict[str, Image.Image], folder: str | Path) -> list[Path]:
    """Write scores.json and a picture for each sheet into a folder, each whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "scores.json"]
    aside = folder / "scores.json.tmp"
    aside.write_text(json.dumps(asdict(scores), indent=1) + "\n", encoding="utf-8")
    os.replace(aside, paths[0])
    for name, sheet in sheets.items():
        sheet.save(folder / f"{name}.png.tmp", format="PNG")
        os.replace(folder / f"{name}.png.tmp", folder / f"{name}.png")
        paths.append(folder / f"{name}.png")
    return paths

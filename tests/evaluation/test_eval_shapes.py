"""Scores on the built-in world: right answers get 1, wrong ones 0; targets, contact sheets and perplexity."""

import json
import math
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import fusion
from fusion.common.contact_sheet import FRAME, RIGHT, SIDE, WRONG, Cell, contact_sheet
from fusion.evaluation import scorecard
from fusion.evaluation.guessing import chance_levels
from fusion.evaluation.subjects import Unified
from fusion.evaluation.suite import SPLITS
from fusion.evaluation.suites import counts_of
from fusion.generation.api import Fusion
from fusion.generation.interleaved import ImageDone
from fusion.testing import tiny_runs as training
from fusion.training.perplexity import encode, kept
from fusion.worlds.shapes import (
    Expectation,
    Scene,
    evaluation_edits,
    evaluation_intents,
    evaluation_prompts,
    evaluation_questions,
    render,
)
from fusion.worlds.shapes.scene import place_thing

COUNT = 28
ROWS = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLM, and a model made of it that was never trained."""
    root = tmp_path_factory.mktemp("eval")
    fusion.from_llm(training.save_llm(root / "llm"), dtype=torch.float32, max_side=64).save_pretrained(root / "model")
    return root


class Scripted:
    """Stands where a Fusion does, and gives the images, replies and decisions that it is told to give."""

    def __init__(self, images: list, replies: list[str], draws: list[bool]):
        self.images, self.replies, self.draws = images, iter(replies), iter(draws)

    def _images(self, prompts, seed, params):
        return [self.images.pop(prompt if isinstance(prompt[0], str) else prompt[1:]) for prompt in prompts]

    def generate(self, prompts, seed, **params):
        return [[next(self.replies)] for _ in prompts]

    def _events(self, prompts, seed, params, only_image):
        return iter(
            [ImageDone(row, Image.new("RGB", (32, 32))) for row, draw in zip(range(len(prompts)), self.draws) if draw]
        )


class Images:
    """Images by their words; prompts that are repeated get theirs in turn."""

    def __init__(self, pairs):
        self.waiting = list(pairs)

    def pop(self, words):
        place = next(place for place, (asked, _) in enumerate(self.waiting) if [asked] == words)
        return self.waiting.pop(place)[1]


def as_asked(expectation: Expectation) -> Image.Image:
    """An image of exactly what is asked for."""
    rng, wanted = np.random.default_rng(0), expectation.wanted
    layout, places = {1: ("single", ("middle",)), 2: ("row", ("left", "right"))}.get(
        len(wanted), ("grid", ("top left", "top right", "bottom left", "bottom right"))
    )
    for _, how, _ in expectation.relations:
        layout, places = "row" if how in ("left of", "right of") else "column", ROWS[how]
    kinds = [(want.shape or "circle", want.colour or "red") for want in wanted]
    things = [place_thing(rng, (32, 32), layout, kind, "large", place) for kind, place in zip(kinds, places)]
    return Image.fromarray(render(Scene(32, 32, "white", layout, tuple(things))))


def scripted(right: bool, seed: int = 0) -> Scripted:
    """A model that gets everything right, or everything wrong."""
    prompts, edits = evaluation_prompts(COUNT, seed), evaluation_edits(COUNT // 2, seed)
    drawn = [
        (one.prompt, as_asked(one.expectation) if right else Image.new("RGB", (32, 32), "white")) for one in prompts
    ]
    edited = [(one.instruction, Image.fromarray(render(one.after) if right else 255 - one.image)) for one in edits]
    replies = [one.question.answer if right else "perhaps" for one in evaluation_questions(COUNT, seed)]
    draws = [one.draw == right for one in evaluation_intents(COUNT // 2, seed)]
    return Scripted(Images(drawn + edited), replies, draws)


def scored(model: Scripted) -> scorecard.Scorecard:
    return scorecard.score(Unified(model, {}), counts_of(COUNT), SPLITS["scored"])


def test_a_model_that_knows_everything_scores_one():
    card = scored(scripted(True))
    card = replace(card, seen=frozenset(row.asked for row, _ in card.answers["drawing"][:5]))
    figures, details = card.figures, {score.name: score for score in card.details}
    assert list(figures) == list(scorecard.FIGURES) and {score.value for score in figures.values()} == {1.0}
    assert details.pop("edits that copy the source").value == 0 and {score.value for score in details.values()} == {1.0}
    counts = {name: figures[name].count for name in ("overall", "edits_done", "questions", "when_to_draw")}
    assert counts == {"overall": 28, "edits_done": 14, "questions": 28, "when_to_draw": 14}
    assert figures["seen"].count + figures["held_out"].count == 28 and figures["colours_present"].count < 28
    names = {
        "drawing: single object",
        "drawing: position",
        "drawing: position, held out",
        "edits: swap",
        "questions: where",
    }
    assert names <= details.keys()
    assert figures["overall"].low < 1 == figures["overall"].high


def test_a_model_that_gets_everything_wrong_scores_zero():
    figures = scored(scripted(False)).figures
    assert figures.pop("edits_kept").value < 0.1
    assert {score.value for score in figures.values()} == {0.0} and len(figures) == 7


def test_prompts_that_training_had_are_counted_apart_where_they_are_known():
    card = scored(scripted(False))
    assert "unseen_prompts" not in card.figures and scorecard.SEEN not in {score.name for score in card.details}
    prompts = [row.asked for row, _ in card.answers["drawing"]]
    known = replace(card, seen=frozenset(prompts[:5]))
    assert known.figures["overall"] == card.figures["overall"]
    (seen,) = (score for score in known.details if score.name == scorecard.SEEN)
    assert known.figures["unseen_prompts"].count == COUNT - seen.count < COUNT - 4
    assert "unseen_prompts" not in replace(card, seen=frozenset(prompts)).figures


def test_guessing_scores_what_the_readme_says():
    assert chance_levels({"drawing": 200, "questions": 200, "when to draw": 100}, SPLITS["scored"]) == {
        "questions": 0.385,
        "when to draw": 0.5,
    }
    assert set(scored(scripted(True)).chance) == {"questions", "when_to_draw"}


def test_development_prompts_are_others():
    scored, development = (
        [
            one.prompt
            for one in evaluation_prompts(200, SPLITS[split])
            if one.category in ("position", "attribute_binding")
        ]
        for split in ("scored", "development")
    )
    assert not set(scored) & set(development)


def test_scores_and_sheets_are_kept(tmp_path):
    paths = scored(scripted(True)).save(tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["seed"] == SPLITS["scored"] and scores["overall"]["count"] == COUNT and len(scores["details"]) > 20
    assert (
        1000 < Image.open(tmp_path / "drawings.png").width <= 1200 and Image.open(tmp_path / "edits.png").width <= 1200
    )
    assert (
        {path.name for path in tmp_path.iterdir()}
        == {"scores.json", "drawings.png", "edits.png"}
        == {p.name for p in paths}
    )


def test_targets_stand_beside_their_figures():
    targets = {score.name: score.target for score in scored(scripted(True)).with_targets({"edits_done": 0.4})}
    assert targets.pop("edits done") == 0.4 and set(targets.values()) == {None}


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="at least 12"):
        counts_of(3)


def test_sheets_frame_what_is_wrong_in_red():
    image = Image.new("RGB", (32, 32), "white")
    right, wrong, unjudged = (
        dict(map(reversed, contact_sheet([Cell([image] * count, ["a circle"], verdict)]).getcolors(2**20)))
        for count, verdict in ((1, True), (2, False), (1, None))
    )
    ring = (SIDE + 2 * FRAME) ** 2 - SIDE**2
    assert WRONG not in right and right[RIGHT] == ring
    assert wrong[WRONG] == wrong[RIGHT] == ring  # one of the two images each
    assert not {WRONG, RIGHT} & set(unjudged)


def test_sheets_have_every_cell_once_and_break_rows_at_their_width():
    cells = [
        Cell([Image.new("RGB", (16, 16), (200, number, 0))], [f"number {number}"], labels=["drawn"])
        for number in range(7)
    ]
    for width in (300, 1200):
        sheet = contact_sheet(cells, width)
        found = dict(map(reversed, sheet.getcolors(2**20)))
        assert sheet.width <= width and {found[200, number, 0] for number in range(7)} == {SIDE**2}
    assert contact_sheet(cells[:1], 10).width > 10  # a cell is never cut


TEXTS = ["a red circle left of a blue square.", "how many circles are there? two.", "make the square orange.", "a"]


def test_a_fresh_model_keeps_the_perplexity_and_a_changed_one_does_not(folder, tmp_path):
    same = kept(folder / "llm", folder / "model", TEXTS)
    assert abs(same.rise) < 1e-6 and same.before > 1
    model = fusion.load(folder / "model", dtype=torch.float32)
    with torch.no_grad():
        model.model.llm.get_output_embeddings().weight *= 0.5
    model.save_pretrained(tmp_path / "changed")
    changed = kept(folder / "llm", tmp_path / "changed", TEXTS)
    assert changed.before == same.before and changed.rise != pytest.approx(0, abs=0.01)


def test_perplexity_equals_that_of_each_text_alone(folder):
    model: Fusion = fusion.load(folder / "model", dtype=torch.float32)
    total, tokens = 0.0, count()
    for ids in encode(model.processor.tokenizer, TEXTS, 256):
        logits = model.model(torch.tensor([ids])).logits[0]
        for place in range(1, len(ids)):
            total -= F.log_softmax(logits[place - 1], -1)[ids[place]].item()
            next(tokens)
    measured = kept(folder / "llm", folder / "model", TEXTS)
    assert measured.tokens == next(tokens)
    assert measured.after == pytest.approx(math.exp(total / measured.tokens), rel=1e-4)

"""Scores on the built-in world: a model that knows the answers gets 1, wrong ones get 0; intervals, sheets, the program, perplexity."""

import json
import math
from itertools import count

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import fusion
from eval import shapes
from eval.scores import mean_of, mean_score, wilson
from eval.sheet import WRONG, Cell, contact_sheet
from eval.text import encode, kept
from fusion.api import Fusion
from fusion.data.shapes import (
    Expectation,
    Scene,
    evaluation_edits,
    evaluation_intents,
    evaluation_prompts,
    evaluation_questions,
    render,
)
from fusion.data.shapes.scene import place_thing
from fusion.generate import ImageDone
from tests import training

COUNT = 28
ROWS = {"left of": ("left", "right"), "right of": ("right", "left"), "above": ("top", "bottom"), "below": ("bottom", "top")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLM, and a model made of it that was never trained."""
    root = tmp_path_factory.mktemp("eval")
    fusion.from_llm(training.save_llm(root / "llm"), dtype=torch.float32, max_side=64).save_pretrained(root / "model")
    return root


class Scripted:
    """Stands where a Fusion does, and gives the pictures, replies and decisions that it is told to give."""

    def __init__(self, images: list, replies: list[str], draws: list[bool]):
        self.images, self.replies, self.draws = images, iter(replies), iter(draws)

    def _images(self, prompts, seed, knobs):
        return [self.images.pop(prompt if isinstance(prompt[0], str) else prompt[1:]) for prompt in prompts]

    def generate(self, prompts, seed, **knobs):
        return [[next(self.replies)] for _ in prompts]

    def _events(self, prompts, seed, knobs, only_image):
        return iter([ImageDone(row, Image.new("RGB", (32, 32))) for row, draw in zip(range(len(prompts)), self.draws) if draw])


class Pictures:
    """Pictures by their words; prompts that are repeated get theirs in turn."""

    def __init__(self, pairs):
        self.waiting = list(pairs)

    def pop(self, words):
        place = next(place for place, (asked, _) in enumerate(self.waiting) if [asked] == words)
        return self.waiting.pop(place)[1]


def as_asked(expectation: Expectation) -> Image.Image:
    """A picture of exactly what is asked for."""
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
    drawn = [(one.prompt, as_asked(one.expectation) if right else Image.new("RGB", (32, 32), "white")) for one in prompts]
    edited = [(one.instruction, Image.fromarray(render(one.after) if right else 255 - one.image)) for one in edits]
    replies = [one.question.answer if right else "perhaps" for one in evaluation_questions(COUNT, seed)]
    draws = [one.draw == right for one in evaluation_intents(COUNT // 2, seed)]
    return Scripted(Pictures(drawn + edited), replies, draws)


def test_a_model_that_knows_everything_scores_one():
    scores = shapes.score(scripted(True), COUNT)
    assert {score.name: score.value for score in [*scores.main, *scores.details]} == {
        score.name: 1.0 for score in [*scores.main, *scores.details]
    }
    assert (scores.overall.count, scores.edits_done.count, scores.questions.count, scores.when_to_draw.count) == (28, 14, 28, 14)
    assert scores.seen.count + scores.held_out.count == 28 and scores.colours_present.count < 28
    assert {"single object", "position", "position, held out", "edit: swap", "question: where"} <= {score.name for score in scores.details}
    assert scores.overall.low < 1 == scores.overall.high


def test_a_model_that_gets_everything_wrong_scores_zero():
    scores = shapes.score(scripted(False), COUNT)
    wrong = ("overall", "seen", "held_out", "colours_present", "edits_done", "questions", "when_to_draw")
    assert [getattr(scores, name).value for name in wrong] == [0] * len(wrong)
    assert scores.edits_kept.value < 0.1


def test_the_mean_over_categories_counts_each_the_same():
    few, many = mean_score("few", [True]), mean_score("many", [False] * 9)
    both = mean_of("both", [few, many])
    assert both.value == 0.5 and both.count == 10


def test_wilson_against_the_published_formula_and_at_the_ends():
    assert wilson(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0, 0.27753), abs=1e-5)
    assert wilson(1, 10) == pytest.approx((0.72247, 1), abs=1e-5)
    with pytest.raises(ValueError, match="nothing to score"):
        mean_score("empty", [])


def test_development_prompts_are_others():
    scored, development = (
        [one.prompt for one in evaluation_prompts(200, shapes.SPLITS[split]) if one.category in ("position", "attribute_binding")]
        for split in ("scored", "development")
    )
    assert not set(scored) & set(development)


def test_a_real_model_is_scored_alike_in_batches_of_any_size(folder, monkeypatch):
    model = fusion.load(folder / "model")
    for name, parameter in model.model.named_parameters():
        if "flow_head" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    whole = shapes.evaluate(model, 12, steps=2)
    monkeypatch.setattr(shapes, "BATCH", 5)
    parts = shapes.evaluate(model, 12, steps=2)
    assert len({one.image.tobytes() for one in whole.drawn}) == 12
    for one, other in zip(whole.drawn + whole.edited, parts.drawn + parts.edited, strict=True):
        gap = np.abs(np.asarray(one.image, dtype=int) - np.asarray(other.image, dtype=int))
        assert gap.max() <= 1
    assert [one.reply for one in whole.answered] == [one.reply for one in parts.answered]
    assert all(one.image.size == one.before.size for one in whole.edited)


def test_scores_and_sheets_are_kept(tmp_path):
    shapes.save(shapes.evaluate(scripted(True), COUNT), tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["seed"] == shapes.SPLITS["scored"] and scores["overall"]["count"] == COUNT
    assert Image.open(tmp_path / "drawings.png").width == Image.open(tmp_path / "edits.png").width == 1200
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json", "drawings.png", "edits.png"}


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="at least 12"):
        shapes.evaluate(scripted(True), 3)


def test_sheets_frame_what_is_wrong_in_red():
    picture = Image.new("RGB", (32, 32), "white")
    right, wrong = contact_sheet([Cell((picture,), "a circle", True)]), contact_sheet([Cell((picture, picture), "a circle", False)])
    assert WRONG not in dict(map(reversed, right.getcolors(2**20)))
    side = 32 * 3 + 2 * 4
    assert dict(map(reversed, wrong.getcolors(2**20)))[WRONG] == side**2 - (32 * 3) ** 2  # one of the two pictures


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

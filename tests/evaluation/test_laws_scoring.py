"""Law: a score depends on items and subject alone, not on batches, order, shards or the program."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fusion
from fusion.diffusion import load_text_to_image, make_text_to_image
from fusion.diffusion.text_encoders import EncoderConfig
from fusion.diffusion.text_to_image import TextToImageConfig
from fusion.evaluation import run, scorecard, suite
from fusion.evaluation.subjects import Subject, Unified
from fusion.evaluation.suite import SPLITS
from fusion.evaluation.suites import SUITES, counts_of
from fusion.recipes import demo, diffusion
from fusion.testing import tiny_runs as training
from fusion.worlds.shapes import render

COUNT = 24
SEED = SPLITS["development"]


class Seeded(Subject):
    """Answers at random out of the row's seed and nothing else, half of the edits and of the answers rightly."""

    can = frozenset({"draw", "edit", "follow", "answer", "decide", "describe", "tell"})

    def __init__(self):
        super().__init__("seeded", {})
        _, edits, questions, *_ = SUITES
        self.after = {(one.image.tobytes(), one.instruction): render(one.after) for one in edits.items(COUNT, SEED)}
        self.replies = {one.question.text: one.question.answer for one in questions.items(COUNT, SEED)}

    def draw(self, prompts, seeds, size):
        return [noise(seed, size) for seed in seeds]

    def edit(self, images, instructions, seeds):
        rows = zip(images, instructions, seeds, strict=True)
        after = (self.after.get((image.tobytes(), words)) if lucky(seed) else None for image, words, seed in rows)
        return [noise(seed, images[0].size) if new is None else Image.fromarray(new) for seed, new in zip(seeds, after)]

    def follow(self, examples, images, seeds):
        return [noise(seed, images[0].size) for seed in seeds]

    def answer(self, images, questions, seeds):
        return [
            self.replies[words] if lucky(seed) else f"perhaps {seed}"
            for words, seed in zip(questions, seeds, strict=True)
        ]

    def describe(self, images, seeds):
        return [f"a red circle and {seed}" for seed in seeds]

    def tell(self, prompts, seeds):
        return [[f"once {seed}", noise(seed, (32, 32)), "then", noise(seed + 1, (32, 32))] for seed in seeds]

    def decide(self, messages, seeds, size):
        return [lucky(seed) for seed in seeds]


def lucky(seed: int) -> bool:
    return bool(np.random.default_rng(seed).random() < 0.5)


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng([1, seed]).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def as_bytes(answers) -> dict:
    return {row.number: (row, [image.tobytes() for image in images]) for row, images in answers}


@pytest.fixture(scope="module")
def whole():
    """Every suite's answers, asked in order in the usual batches."""
    subject = Seeded()
    return {
        one.name: as_bytes(a for batch in one.answers(subject, one.numbered(COUNT, SEED)) for a in batch)
        for one in SUITES
    }


@pytest.mark.parametrize("one", SUITES, ids=lambda one: one.name)
def test_answers_and_verdicts_do_not_depend_on_batches_order_or_shards(one, whole, monkeypatch):
    subject, items = Seeded(), one.numbered(COUNT, SEED)
    assert list(whole[one.name]) != [] and {row.number for row, _ in whole[one.name].values()} == set(range(COUNT))
    for size in (1, 5, 1000):
        monkeypatch.setattr(suite, "BATCH", size)
        shuffled = random.Random(size).sample(items, len(items))
        assert as_bytes(a for batch in one.answers(subject, shuffled) for a in batch) == whole[one.name]
        shards = [items[number::3] for number in range(3)]
        assert (
            as_bytes(a for shard in shards for batch in one.answers(subject, shard) for a in batch) == whole[one.name]
        )


@pytest.mark.parametrize("one", SUITES, ids=lambda one: one.name)
def test_a_longer_list_begins_with_the_shorter_one(one, whole):
    longer = one.numbered(COUNT + 17, SEED)
    assert [item.seed for item in longer] == [SEED + number for number in range(COUNT + 17)]
    assert [one.text(item.item) for item in longer[:COUNT]] == [
        one.text(item.item) for item in one.numbered(COUNT, SEED)
    ]
    assert as_bytes(a for batch in one.answers(Seeded(), longer[:COUNT]) for a in batch) == whole[one.name]


# ---- programs ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A unified model and a text-to-image model whose weights are random, so that images of two seeds differ."""
    root = tmp_path_factory.mktemp("scored")
    torch.manual_seed(0)
    model = fusion.from_llm(training.save_llm(root / "llm"), dtype=torch.float32, max_side=64)
    for name, parameter in model.model.named_parameters():
        if "flow_head" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(root / "model")
    network = {"width": 32, "layers": 1, "heads": 2, "patch_size": 8}
    text_to_image = make_text_to_image(TextToImageConfig("dit", network, [EncoderConfig(str(root / "llm"))]))
    for parameter in text_to_image.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    text_to_image.save_pretrained(root / "text_to_image")
    return root


@pytest.fixture
def few(monkeypatch):
    """Suites of eval.run as long as the demo's, in other batches."""
    monkeypatch.setitem(run.COUNTS, "demo", lambda one: counts_of(COUNT).get(one.name, 0))


def agree(card: scorecard.Scorecard, result) -> None:
    """What a program scored while the model was at hand, and what eval.run said of the saved one."""
    assert card.scores == result.scores
    for name, answers in card.answers.items():
        for (row, images), told in zip(answers, result.rows[name], strict=True):
            assert replace(told, images=[]) == row
            saved = [np.asarray(Image.open(result.folder / file), dtype=int) for file in told.images]
            assert all(abs(np.asarray(a, dtype=int) - b).max() <= 1 for a, b in zip(images, saved, strict=True))


def test_the_demo_and_eval_run_say_the_same_of_a_model(folder, few, tmp_path, monkeypatch):
    scoring = demo.Scoring(count=COUNT, split="development", steps=2, guidance=2.0)
    card = demo.score(scoring, fusion.load(folder / "model", dtype=torch.float32))
    monkeypatch.setattr(suite, "BATCH", 5)
    params = {"steps": 2, "guidance": 2.0}
    agree(
        card, run.evaluate(str(folder / "model"), tmp_path / "whole", suite="demo", split="development", params=params)
    )
    for shard in ((0, 2), (1, 2)):
        run.evaluate(
            str(folder / "model"), tmp_path / "parts", suite="demo", split="development", params=params, shard=shard
        )
    agree(
        card, run.evaluate(str(folder / "model"), tmp_path / "parts", suite="demo", split="development", params=params)
    )
    assert len({images[-1].tobytes() for _, images in card.answers["drawing"]}) == COUNT
    assert all(images[0].size == images[1].size for _, images in card.answers["edits"])


def test_a_text_to_image_model_s_run_and_eval_run_say_the_same_of_it(folder, few, tmp_path, monkeypatch):
    scoring = diffusion.Scoring(count=COUNT, split="development")
    config = diffusion.Diffusion(scoring=scoring, samples=diffusion.TextToImageSamples(steps=2, guidance=2.0))
    card = diffusion.score(config, load_text_to_image(folder / "text_to_image"))
    monkeypatch.setattr(suite, "BATCH", 5)
    params = {"steps": 2, "guidance": 2.0}
    agree(
        card,
        run.evaluate(str(folder / "text_to_image"), tmp_path / "out", suite="demo", split="development", params=params),
    )


def test_the_bundled_model_s_verdicts_do_not_depend_on_batches(monkeypatch):
    """Rounding of sums is another in another batch, and moves pixels by less than the judge sees."""
    subject = Unified(fusion.load("shapes", dtype=torch.float32), {"steps": 4, "guidance": 2.0})
    counts = {"edits": 6, "questions": 6}
    together = scorecard.score(subject, counts, SEED)
    monkeypatch.setattr(suite, "BATCH", 1)
    alone = scorecard.score(subject, counts, SEED)
    assert together.scores == alone.scores
    for one, other in zip(together.answers["edits"], alone.answers["edits"], strict=True):
        gap = abs(np.asarray(one[1][-1], dtype=int) - np.asarray(other[1][-1], dtype=int))
        assert gap.max() <= 1

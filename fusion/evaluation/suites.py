"""Suites of the built-in world: requests to a subject, the judge's verdict on each answer, and the scores."""

import re
from collections.abc import Callable, Sequence
from itertools import accumulate, chain

import numpy as np
from PIL import Image

from fusion.common.statistics import mean_of, mean_score
from fusion.evaluation import partial_credit as quality
from fusion.evaluation.suite import Answer, Numbered, Row, Suite
from fusion.worlds.shapes import (
    COLOURS,
    SHAPES,
    evaluation_chains,
    evaluation_edits,
    evaluation_examples,
    evaluation_intents,
    evaluation_prompts,
    evaluation_questions,
    evaluation_stories,
    judge,
    scene_image,
)
from fusion.worlds.shapes.rules import right
from fusion.worlds.shapes.vision import read

SIZE = (32, 32)  # (width, height) of generated images: the world's most frequent size
OVERALL = "GenEval in miniature"
LEAST = 12  # fewest prompts that give every category of drawing a held-out one
SAME = 8  # of 255: a pixel that differs by no more was copied


def unpacked(batch: Sequence[Numbered]) -> tuple[list, list[int]]:
    """Return the items and the seeds of a batch."""
    return [one.item for one in batch], [one.seed for one in batch]


class Drawing(Suite):
    """Text-to-image, GenEval in miniature (Ghosh et al., arXiv 2310.11513): overall is the mean over six categories."""

    name, needs, finer = "drawing", frozenset({"draw"}), "quality"
    words = {"colours": "all asked colours present"}

    def items(self, count, seed):
        return evaluation_prompts(count, seed)

    def text(self, item):
        return item.prompt

    def ask(self, subject, batch):
        items, seeds = unpacked(batch)
        images = subject.draw([item.prompt for item in items], seeds, SIZE)
        return [(self._row(one, image), [image]) for one, image in zip(batch, images, strict=True)]

    def _row(self, one: Numbered, image: Image.Image) -> Row:
        item = one.item
        verdict = judge.check(image, item.expectation)
        values = {"right": float(verdict.ok), "quality": quality.of_drawing(verdict, item.expectation)}
        values |= {"colours": float(verdict.colours_present)} if item.expectation.colours else {}
        category = item.category.replace("_", " ")
        groups = [f"{category}, held out" if item.held_out else category]
        return Row(self.name, one.number, item.prompt, groups, values, reasons=list(verdict.reasons))

    def scores(self, rows):
        found = self.by_group(rows)
        held_out = [score for score in found if score.name.endswith(", held out")]
        seen = [score for score in found if score not in held_out]
        whole = {}
        for row in rows:
            whole.setdefault(row.groups[0].removesuffix(", held out"), []).append(row.values["right"])
        overall = mean_of(OVERALL, [mean_score(name, values) for name, values in whole.items()])
        parts = [
            mean_of(f"{OVERALL}, {name} pairs", part) for name, part in (("seen", seen), ("held-out", held_out)) if part
        ]
        return [
            overall,
            *parts,
            mean_score(self.words["colours"], [row.values["colours"] for row in rows if "colours" in row.values]),
            *found,
        ]


class Edits(Suite):
    """Edits of one image in context; a copy is an answer in which nothing changed though a change was requested."""

    name, needs, finer = "edits", frozenset({"edit"}), "quality"
    words = {"right": "edits done", "kept": "pixels kept in edits", "copied": "edits that copy the source"}

    def items(self, count, seed):
        return evaluation_edits(count, seed)

    def alike(self, item):
        return item.image.shape

    def text(self, item):
        return item.instruction

    def ask(self, subject, batch):
        items, seeds = unpacked(batch)
        before = [Image.fromarray(item.image) for item in items]
        after = subject.edit(before, [item.instruction for item in items], seeds)
        return [(self._row(one, old, new), [old, new]) for one, old, new in zip(batch, before, after, strict=True)]

    def _row(self, one: Numbered, before: Image.Image, after: Image.Image) -> Row:
        item = one.item
        verdict = judge.edit_done(before, after, item.edit)
        values = {"right": float(verdict.done), "quality": quality.of_edit(verdict), "kept": float(verdict.kept)}
        values["copied"] = float(copied(before, after))
        groups = [item.kind, "held out" if item.held_out else "seen"]
        return Row(self.name, one.number, item.instruction, groups, values, reasons=list(verdict.reasons))


def copied(before: Image.Image, after: Image.Image) -> bool:
    """Return whether the images have the same size and no pixel differs by more than SAME in a channel."""
    if before.size != after.size:
        return False
    pair = [np.asarray(image.convert("RGB"), dtype=int) for image in (before, after)]
    return bool(abs(pair[0] - pair[1]).max() <= SAME)


def apart(answers: Sequence[Image.Image], wanted: Sequence[Image.Image]) -> bool:
    """Return whether two answers are nearer to the two images wanted in their order than exchanged.

    Equal answers are near neither order, and give False.
    """
    one, two, first, second = (
        np.asarray(image.convert("RGB").resize(wanted[0].size), dtype=float) for image in (*answers, *wanted)
    )
    return bool(((one - two) * (first - second)).sum() > 0)


class Drift(Suite):
    """Five successive edits, each of the previous result.

    Small changes add up, and an edit counts only if all before it were done too.
    """

    name, needs = "five edits in turn", frozenset({"edit"})
    words = {
        "right": "edits done before one failed, of five",
        "all": "chains with all five done",
        "kept": "pixels kept in the fifth edit",
    }

    def items(self, count, seed):
        return evaluation_chains(count, seed)

    def alike(self, item):
        return item.image.shape

    def text(self, item):
        return "; then ".join(item.instructions)

    def ask(self, subject, batch):
        items, seeds = unpacked(batch)
        made = [[Image.fromarray(item.image)] for item in items]
        for turn in range(len(items[0].instructions)):
            after = subject.edit([seen[-1] for seen in made], [item.instructions[turn] for item in items], seeds)
            for seen, image in zip(made, after, strict=True):
                seen.append(image)
        return [(self._row(one, seen), seen) for one, seen in zip(batch, made, strict=True)]

    def _row(self, one: Numbered, seen: list[Image.Image]) -> Row:
        item = one.item
        verdicts = [judge.edit_done(*pair, edit) for *pair, edit in zip(seen, seen[1:], item.edits)]
        done = list(accumulate((float(verdict.done) for verdict in verdicts), min))
        values = {"right": sum(done) / len(done), "all": done[-1], "kept": float(verdicts[-1].kept)}
        return Row(self.name, one.number, self.text(item), ["held out" if item.held_out else "seen"], values)


class Examples(Suite):
    """Editing by example, by a rule that two examples show and no text names.

    The same source is edited with those examples, with examples of another rule, and with none, from the same noise: a
    model that ignores its examples does as well without them, and never follows both rules.
    """

    name, needs = "rules from examples", frozenset({"follow"})
    words = {
        "right": "rules done from two examples",
        "both": "sources changed by either rule as shown",
        "other": "rules done from examples of another",
        "without": "rules done without examples",
        "apart": "examples told apart by pixels, half by chance",
        "copied": "answers to examples that copy the source",
    }

    def items(self, count, seed):
        return evaluation_examples(count, seed)

    def alike(self, item):
        return item.shown.source.image_size

    def text(self, item):
        scenes = [scene for shown in (item.shown, item.other) for pair in shown.pairs for scene in pair]
        return f"{item.shown.rule.words}; {item.other.rule.words}: {[*scenes, item.shown.source]}"

    def ask(self, subject, batch):
        items, seeds = unpacked(batch)
        sources = [scene_image(item.shown.source) for item in items]
        shown = [drawn_pairs(item.shown.pairs) for item in items]
        other = [drawn_pairs(item.other.pairs) for item in items]
        made = [subject.follow(examples, sources, seeds) for examples in (shown, other, [()] * len(items))]
        return [
            (self._row(one, source, answers), [*chain(*pairs), source, *answers])
            for one, source, pairs, answers in zip(batch, sources, shown, zip(*made, strict=True), strict=True)
        ]

    def _row(self, one: Numbered, source: Image.Image, answers: Sequence[Image.Image]) -> Row:
        item = one.item
        rule, other = item.shown.rule, item.other.rule
        done, misled, without = (float(right(rule, item.shown.source, answer)) for answer in answers)
        followed = float(right(other, item.shown.source, answers[1]))
        values = {"right": done, "both": done * followed, "other": misled, "without": without}
        values |= {"apart": float(apart(answers[:2], [scene_image(item.shown.after), scene_image(item.other.after)]))}
        values |= {"copied": float(copied(source, answers[0]))}
        asked = f"{rule.words}; last two images: from examples that {other.words}, and from none"
        return Row(self.name, one.number, asked, [rule.kind, "held out" if item.held_out else "seen"], values)


def drawn_pairs(pairs: Sequence[Sequence]) -> list[tuple[Image.Image, ...]]:
    """Render pairs of scenes as pairs of images."""
    return [tuple(map(scene_image, pair)) for pair in pairs]


class Stories(Suite):
    """Stories of alternating text and images.

    The first image has to show what was requested, and more have to follow. The last one has to have all objects of the
    first one that no later text mentions, by colour or by shape.
    """

    name, needs = "stories", frozenset({"tell"})
    words = {
        "right": "stories",
        "first": "first images of stories",
        "several": "stories of two images or more",
        "kept": "objects kept in stories",
    }

    def items(self, count, seed):
        return evaluation_stories(count, seed)

    def text(self, item):
        return item.prompt

    def ask(self, subject, batch):
        items, seeds = unpacked(batch)
        told = subject.tell([item.prompt for item in items], seeds)
        return [self._answer(one, parts) for one, parts in zip(batch, told, strict=True)]

    def _answer(self, one: Numbered, parts: Sequence) -> Answer:
        item = one.item
        images = [part for part in parts if isinstance(part, Image.Image)]
        words = "".join(part if isinstance(part, str) else " [image] " for part in parts)
        values = {
            "first": float(bool(images) and judge.check(images[0], item.first).ok),
            "several": float(len(images) > 1),
        }
        behind = words.partition("[image]")[2]
        stays = {seen.kind for seen in read(images[0]).objects if not spoken_of(seen.kind, behind)} if images else set()
        if stays:
            values["kept"] = (
                len(stays & {seen.kind for seen in read(images[-1]).objects}) / len(stays) if len(images) > 1 else 0.0
            )
        values["right"] = float(min(values.values()) == 1)
        return Row(self.name, one.number, item.prompt, ["held out" if item.held_out else "seen"], values, words), images


class Questions(Suite):
    """Short answers to questions about images."""

    name, needs = "questions", frozenset({"answer"})
    words = {"right": "questions"}

    def items(self, count, seed):
        return evaluation_questions(count, seed)

    def text(self, item):
        return item.question.text

    def ask(self, subject, batch):
        items, seeds = unpacked(batch)
        images = [Image.fromarray(item.image) for item in items]
        replies = subject.answer(images, [item.question.text for item in items], seeds)
        return [(self._row(one, reply), [image]) for one, image, reply in zip(batch, images, replies, strict=True)]

    def _row(self, one: Numbered, reply: str) -> Row:
        question = one.item.question
        values = {"right": float(judge.answer_right(question, reply))}
        return Row(self.name, one.number, f"{question.text} ({question.answer})", [one.item.kind], values, reply)


class Intents(Suite):
    """Whether the model draws an image when asked to, and only then."""

    name, needs = "when to draw", frozenset({"decide"})
    words = {"right": "draws when asked and only then"}

    def items(self, count, seed):
        return evaluation_intents(count, seed)

    def text(self, item):
        return said(item.message)

    def ask(self, subject, batch):
        items, seeds = unpacked(batch)
        messages = [with_pil(item.message) for item in items]
        drew = subject.decide(messages, seeds, SIZE)
        shown = ([block["image"] for block in message["content"] if block["type"] == "image"] for message in messages)
        return [(self._row(one, choice), images) for one, choice, images in zip(batch, drew, shown, strict=True)]

    def _row(self, one: Numbered, drew: bool) -> Row:
        item = one.item
        group = "asked for an image" if item.draw else "not asked for one"
        values = {"right": float(drew == item.draw)}
        return Row(self.name, one.number, said(item.message), [group], values, "draws" if drew else "writes")


def said(message: dict) -> str:
    """Return the text of a message."""
    return " ".join(block["text"] for block in message["content"] if block["type"] == "text")


def with_pil(message: dict) -> dict:
    """Return the message with its arrays of pixels as PIL images."""
    blocks = [
        block | {"image": Image.fromarray(block["image"])} if block["type"] == "image" else block
        for block in message["content"]
    ]
    return {**message, "content": blocks}


class Descriptions(Suite):
    """Descriptions of true images: intersection over union of the kinds of objects named and those present."""

    name, needs, main = "descriptions", frozenset({"describe"}), "named"
    words = {"named": "objects named in descriptions"}

    def items(self, count, seed):
        return evaluation_edits(count, seed)

    def alike(self, item):
        return item.image.shape

    def text(self, item):
        return " ".join(sorted(" ".join(kind[::-1]) for kind in item.before.kinds))

    def ask(self, subject, batch):
        items, seeds = unpacked(batch)
        images = [Image.fromarray(item.image) for item in items]
        told = subject.describe(images, seeds)
        return [(self._row(one, words), [image]) for one, image, words in zip(batch, images, told, strict=True)]

    def _row(self, one: Numbered, words: str) -> Row:
        item = one.item
        named = overlap(kinds_in(words), set(item.before.kinds))
        objects = f"{len(item.before.things)} object{'s' if len(item.before.things) > 1 else ''}"
        return Row(self.name, one.number, self.text(item), [objects], {"named": named}, words)


class RoundTrip(Suite):
    """Generate an image, then describe it: intersection over union of the kinds requested and those named."""

    name, needs, main = "round trip", frozenset({"draw", "describe"}), "named"
    words = {"named": "objects that come back from a drawing"}

    def items(self, count, seed):
        full = (
            item
            for item in evaluation_prompts(4 * count, seed)
            if all(one.shape and one.colour for one in item.expectation.wanted)
        )
        return list(full)[:count]

    def text(self, item):
        return item.prompt

    def ask(self, subject, batch):
        items, seeds = unpacked(batch)
        images = subject.draw([item.prompt for item in items], seeds, SIZE)
        told = subject.describe(images, seeds)
        return [(self._row(one, words), [image]) for one, image, words in zip(batch, images, told, strict=True)]

    def _row(self, one: Numbered, words: str) -> Row:
        item = one.item
        named = overlap(kinds_in(words), {(wanted.shape, wanted.colour) for wanted in item.expectation.wanted})
        return Row(self.name, one.number, item.prompt, [item.category.replace("_", " ")], {"named": named}, words)


KIND = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)?\b", re.IGNORECASE)


def kinds_in(words: str) -> set[tuple[str, str]]:
    """Return the kinds of objects, (shape, colour), that a text names."""
    return {(shape.lower(), colour.lower()) for colour, shape in KIND.findall(words)}


def spoken_of(kind: tuple[str, str], words: str) -> bool:
    """Return whether a text mentions the shape or the colour of a kind, (shape, colour)."""
    shape, colour = kind
    return bool(re.search(rf"\b({shape}(e?s)?|{colour})\b", words, re.IGNORECASE))


def overlap(one: set, other: set) -> float:
    """Return the intersection over union of two sets, 1 for two empty ones."""
    return len(one & other) / len(one | other) if one | other else 1.0


SUITES: tuple[Suite, ...] = (
    Drawing(),
    Edits(),
    Questions(),
    Intents(),
    Descriptions(),
    RoundTrip(),
    Drift(),
    Stories(),
    Examples(),
)


def drawing_counts(count: int) -> dict[str, int]:
    """Return the number of items by suite where only drawing is scored; ValueError for fewer than LEAST."""
    if count < LEAST:
        raise ValueError(f"count={count}: give at least {LEAST}, so that every category has a prompt")
    return {Drawing.name: count}


def counts_of(count: int) -> dict[str, int]:
    """Return the number of items by suite: `count` drawings and questions, half as many edits and decisions to draw."""
    return drawing_counts(count) | {Edits.name: count // 2, Questions.name: count, Intents.name: count // 2}


COUNTS: dict[str, Callable[[Suite], int]] = {
    "quick": lambda suite: 96 if suite.name in ("drawing", "questions") else 48,
    "full": lambda suite: 480,
    "demo": lambda suite: counts_of(200).get(suite.name, 0),
}
"""How many items of a suite are asked, by what eval.run calls that; `demo` is what train.demo asks."""

"""Suites of the built-in world: what a subject is asked, what the judge says of each answer, and the shares that come of it."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, groupby

import numpy as np
from PIL import Image

from eval import quality
from eval.page import Score
from eval.scores import mean_of, mean_score
from eval.subjects import Subject
from fusion.data.shapes import (
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
    picture,
)
from fusion.data.shapes.rules import right
from fusion.data.shapes.vision import read

SIZE = (32, 32)  # of the pictures asked for: the world's most frequent
BATCH = 32  # items asked at once
SAME = 8  # of 255: a pixel that differs by less was copied


@dataclass(frozen=True)
class Row:
    """What came of one item. asked: in words; said: the answer, if it was words. groups: what the item counts in. values: in [0, 1], by name."""

    suite: str
    number: int
    asked: str
    groups: list[str]
    values: dict[str, float]
    said: str | None = None
    images: list[str] = field(default_factory=list)


Done = tuple[Row, list[Image.Image]]
"""A row without its images' names, and the images: what was shown, then what was made."""


class Suite(ABC):
    """name: of the suite. needs: what a subject has to do for it. main: the value that two subjects are compared by. finer: one that tells subjects
    apart of which few are all right, as eval.quality has it; None where the main one does. A suite's own scores are the means of its values; by
    group, those of the main one."""

    name: str
    needs: frozenset[str]
    main: str = "right"
    finer: str | None = None
    words: dict[str, str]

    @abstractmethod
    def items(self, count: int, seed: int) -> list:
        """What is asked; number i is the i-th."""

    @abstractmethod
    def ask(self, subject: Subject, first: int, items: Sequence, seed: int) -> list[Done]:
        """Ask for items number `first` and on, which `batches` put together; each uses seed + its number."""

    @abstractmethod
    def text(self, item) -> str:
        """What is asked, for the fingerprint of all that is."""

    def alike(self, item) -> object:
        """Items of one batch agree in it."""
        return None

    def batches(self, items: Sequence) -> Iterator[tuple[int, Sequence]]:
        """(number of the first, items) of at most BATCH."""
        start = 0
        for _, group in groupby(items, self.alike):
            together = list(group)
            for offset in range(0, len(together), BATCH):
                yield start + offset, together[offset : offset + BATCH]
            start += len(together)

    def scores(self, rows: Sequence[Row]) -> list[Score]:
        """The means of all values that there are, then the main one's by group."""
        values = {said: [row.values[name] for row in rows if name in row.values] for name, said in self.words.items()}
        return [mean_score(said, found) for said, found in values.items() if found] + self.by_group(rows)

    def by_group(self, rows: Sequence[Row]) -> list[Score]:
        """The main value's means."""
        groups = dict.fromkeys(group for row in rows for group in row.groups)
        return [mean_score(f"{self.name}: {group}", [row.values[self.main] for row in rows if group in row.groups]) for group in groups]


class Drawing(Suite):
    """GenEval in miniature (Ghosh et al., arXiv 2310.11513): overall is the mean over its six categories."""

    name, needs, finer = "drawing", frozenset({"draw"}), "quality"
    words = {"colours": "all asked colours present"}

    def items(self, count, seed):
        return list(evaluation_prompts(count, seed))

    def text(self, item):
        return item.prompt

    def ask(self, subject, first, items, seed):
        images = subject.draw([item.prompt for item in items], seed + first, SIZE)
        return [(self._row(first + place, item, image), [image]) for place, (item, image) in enumerate(zip(items, images, strict=True))]

    def _row(self, number: int, item, image: Image.Image) -> Row:
        verdict = judge.check(image, item.expectation)
        values = {"right": float(verdict.ok), "quality": quality.of_drawing(verdict, item.expectation)}
        values |= {"colours": float(verdict.colours_present)} if item.expectation.colours else {}
        category = item.category.replace("_", " ")
        return Row(self.name, number, item.prompt, [f"{category}, held out" if item.held_out else category], values)

    def scores(self, rows):
        found = self.by_group(rows)
        held_out = [score for score in found if score.name.endswith(", held out")]
        seen = [score for score in found if score not in held_out]
        whole = {}
        for row in rows:
            whole.setdefault(row.groups[0].removesuffix(", held out"), []).append(row.values["right"])
        overall = mean_of("GenEval in miniature", [mean_score(name, values) for name, values in whole.items()])
        parts = [mean_of(f"GenEval in miniature, {name} pairs", part) for name, part in (("seen", seen), ("held-out", held_out)) if part]
        return [overall, *parts, mean_score(self.words["colours"], [row.values["colours"] for row in rows if "colours" in row.values]), *found]


class Edits(Suite):
    """Edits of one picture in context. A copy is an answer in which nothing changed though something was asked."""

    name, needs, finer = "edits", frozenset({"edit"}), "quality"
    words = {"right": "edits done", "kept": "pixels kept in edits", "copied": "edits that copy the source"}

    def items(self, count, seed):
        return sorted(evaluation_edits(count, seed), key=self.alike)

    def alike(self, item):
        return item.image.shape

    def text(self, item):
        return item.instruction

    def ask(self, subject, first, items, seed):
        before = [Image.fromarray(item.image) for item in items]
        after = subject.edit(before, [item.instruction for item in items], seed + first)
        return [
            (self._row(first + place, item, old, new), [old, new])
            for place, (item, old, new) in enumerate(zip(items, before, after, strict=True))
        ]

    def _row(self, number: int, item, before: Image.Image, after: Image.Image) -> Row:
        verdict = judge.edit_done(before, after, item.edit)
        values = {"right": float(verdict.done), "quality": quality.of_edit(verdict), "kept": float(verdict.kept)}
        values["copied"] = float(copied(before, after))
        return Row(self.name, number, item.instruction, [item.kind, "held out" if item.held_out else "seen"], values)


def copied(before: Image.Image, after: Image.Image) -> bool:
    """Whether every pixel stayed within a few levels."""
    if before.size != after.size:
        return False
    pair = [np.asarray(image.convert("RGB"), dtype=int) for image in (before, after)]
    return bool(abs(pair[0] - pair[1]).max() <= SAME)


def apart(answers: Sequence[Image.Image], wanted: Sequence[Image.Image]) -> bool:
    """Whether two answers are nearer to the two pictures wanted in their order than exchanged: what always answers the same is near neither."""
    one, two, first, second = (np.asarray(image.convert("RGB").resize(wanted[0].size), dtype=float) for image in (*answers, *wanted))
    return bool(((one - two) * (first - second)).sum() > 0)


class Drift(Suite):
    """Five edits in turn, each of what came of the one before: small changes add up, and an edit counts if all before it were done too."""

    name, needs = "five edits in turn", frozenset({"edit"})
    words = {"right": "edits done before one failed, of five", "all": "chains with all five done", "kept": "pixels kept in the fifth edit"}

    def items(self, count, seed):
        return sorted(evaluation_chains(count, seed), key=self.alike)

    def alike(self, item):
        return item.image.shape

    def text(self, item):
        return "; then ".join(item.instructions)

    def ask(self, subject, first, items, seed):
        pictures = [[Image.fromarray(item.image)] for item in items]
        for turn in range(len(items[0].instructions)):
            after = subject.edit([seen[-1] for seen in pictures], [item.instructions[turn] for item in items], seed + first)
            for seen, image in zip(pictures, after, strict=True):
                seen.append(image)
        return [(self._row(first + place, item, seen), seen) for place, (item, seen) in enumerate(zip(items, pictures, strict=True))]

    def _row(self, number: int, item, seen: list[Image.Image]) -> Row:
        verdicts = [judge.edit_done(*pair, edit) for *pair, edit in zip(seen, seen[1:], item.edits)]
        done = list(accumulate((float(verdict.done) for verdict in verdicts), min))
        values = {"right": sum(done) / len(done), "all": done[-1], "kept": float(verdicts[-1].kept)}
        return Row(self.name, number, self.text(item), ["held out" if item.held_out else "seen"], values)


class Examples(Suite):
    """Editing by example: a rule that two examples show and nobody names. The same source is asked for with those examples, with those of another
    rule, and with none, from the same noise: what does not look at its examples does as well without them, and never follows both rules."""

    name, needs = "rules from examples", frozenset({"follow"})
    words = {
        "right": "rules done from two examples", "both": "sources changed by either rule as shown", "other": "rules done from examples of another",
        "without": "rules done without examples", "apart": "examples told apart by pixels, half by chance",
        "copied": "answers to examples that copy the source",
    }  # fmt: skip

    def items(self, count, seed):
        return sorted(evaluation_examples(count, seed), key=self.alike)

    def alike(self, item):
        return item.shown.source.picture_size

    def text(self, item):
        scenes = [scene for shown in (item.shown, item.other) for pair in shown.pairs for scene in pair]
        return f"{item.shown.rule.words}; {item.other.rule.words}: {[*scenes, item.shown.source]}"

    def ask(self, subject, first, items, seed):
        sources = [picture(item.shown.source) for item in items]
        shown, other = ([[tuple(map(picture, pair)) for pair in one.pairs] for one in ones] for ones in zip(*((i.shown, i.other) for i in items)))
        made = [subject.follow(examples, sources, seed + first) for examples in (shown, other, [()] * len(items))]
        return [
            (self._row(first + place, item, source, answers), [*chain(*pairs), source, *answers])
            for place, (item, source, pairs, answers) in enumerate(zip(items, sources, shown, zip(*made, strict=True), strict=True))
        ]

    def _row(self, number: int, item, source: Image.Image, answers: Sequence[Image.Image]) -> Row:
        rule, other = item.shown.rule, item.other.rule
        done, misled, without = (float(right(rule, item.shown.source, answer)) for answer in answers)
        followed = float(right(other, item.shown.source, answers[1]))
        values = {"right": done, "both": done * followed, "other": misled, "without": without}
        values |= {"apart": float(apart(answers[:2], [picture(item.shown.after), picture(item.other.after)]))}
        values |= {"copied": float(copied(source, answers[0]))}
        asked = f"{rule.words}; last two pictures: from examples that {other.words}, and from none"
        return Row(self.name, number, asked, [rule.kind, "held out" if item.held_out else "seen"], values)


class Stories(Suite):
    """Stories in pictures. The first picture has to show what was asked for, more have to follow, and in the last there has to be whatever the
    first one showed and no text behind it speaks of, by its colour or by its shape."""

    name, needs = "stories", frozenset({"tell"})
    words = {
        "right": "stories", "first": "first pictures of stories", "several": "stories of two pictures or more", "kept": "objects kept in stories",
    }  # fmt: skip

    def items(self, count, seed):
        return list(evaluation_stories(count, seed))

    def text(self, item):
        return item.prompt

    def ask(self, subject, first, items, seed):
        told = subject.tell([item.prompt for item in items], seed + first)
        return [self._done(first + place, item, parts) for place, (item, parts) in enumerate(zip(items, told, strict=True))]

    def _done(self, number: int, item, parts: Sequence) -> Done:
        pictures = [part for part in parts if isinstance(part, Image.Image)]
        words = "".join(part if isinstance(part, str) else " [picture] " for part in parts)
        values = {"first": float(bool(pictures) and judge.check(pictures[0], item.first).ok), "several": float(len(pictures) > 1)}
        behind = words.partition("[picture]")[2]
        stays = {seen.kind for seen in read(pictures[0]).objects if not spoken_of(seen.kind, behind)} if pictures else set()
        if stays:
            values["kept"] = len(stays & {seen.kind for seen in read(pictures[-1]).objects}) / len(stays) if len(pictures) > 1 else 0.0
        values["right"] = float(min(values.values()) == 1)
        return Row(self.name, number, item.prompt, ["held out" if item.held_out else "seen"], values, words), pictures


class Questions(Suite):
    """Short answers about pictures."""

    name, needs = "questions", frozenset({"answer"})
    words = {"right": "questions"}

    def items(self, count, seed):
        return list(evaluation_questions(count, seed))

    def text(self, item):
        return item.question.text

    def ask(self, subject, first, items, seed):
        images = [Image.fromarray(item.image) for item in items]
        replies = subject.answer(images, [item.question.text for item in items], seed + first)
        done = []
        for place, (item, image, reply) in enumerate(zip(items, images, replies, strict=True)):
            right = float(judge.answer_right(item.question, reply))
            asked = f"{item.question.text} ({item.question.answer})"
            done.append((Row(self.name, first + place, asked, [item.kind], {"right": right}, reply), [image]))
        return done


class Intents(Suite):
    """When to draw: if asked to, and only then."""

    name, needs = "when to draw", frozenset({"decide"})
    words = {"right": "draws when asked and only then"}

    def items(self, count, seed):
        return list(evaluation_intents(count, seed))

    def text(self, item):
        return said(item.message)

    def ask(self, subject, first, items, seed):
        messages = [with_pil(item.message) for item in items]
        drew = subject.decide(messages, seed + first, SIZE)
        return [
            (
                Row(
                    self.name, first + place, said(item.message), ["asked for a picture" if item.draw else "not asked for one"],
                    {"right": float(choice == item.draw)}, "draws" if choice else "writes",
                ),
                [block["image"] for block in message["content"] if block["type"] == "image"],
            )
            for place, (item, message, choice) in enumerate(zip(items, messages, drew, strict=True))
        ]  # fmt: skip


def said(message: dict) -> str:
    """The words of a message."""
    return " ".join(block["text"] for block in message["content"] if block["type"] == "text")


def with_pil(message: dict) -> dict:
    """The message with its pictures as images."""
    blocks = [block | {"image": Image.fromarray(block["image"])} if block["type"] == "image" else block for block in message["content"]]
    return {**message, "content": blocks}


class Descriptions(Suite):
    """What is said of true pictures: the kinds of objects named, against those that are there (their intersection over their union)."""

    name, needs, main = "descriptions", frozenset({"describe"}), "named"
    words = {"named": "objects named in descriptions"}

    def items(self, count, seed):
        return sorted(evaluation_edits(count, seed), key=self.alike)

    def alike(self, item):
        return item.image.shape

    def text(self, item):
        return " ".join(sorted(" ".join(kind[::-1]) for kind in item.before.kinds))

    def ask(self, subject, first, items, seed):
        images = [Image.fromarray(item.image) for item in items]
        done = []
        for place, (item, image, words) in enumerate(zip(items, images, subject.describe(images, seed + first), strict=True)):
            named = overlap(kinds_in(words), set(item.before.kinds))
            objects = f"{len(item.before.things)} object{'s' if len(item.before.things) > 1 else ''}"
            done.append((Row(self.name, first + place, self.text(item), [objects], {"named": named}, words), [image]))
        return done


class RoundTrip(Suite):
    """Draw what is asked, then say what the drawing shows: the kinds that were asked for, against those that are named."""

    name, needs, main = "round trip", frozenset({"draw", "describe"}), "named"
    words = {"named": "objects that come back from a drawing"}

    def items(self, count, seed):
        full = (item for item in evaluation_prompts(4 * count, seed) if all(one.shape and one.colour for one in item.expectation.wanted))
        return list(full)[:count]

    def text(self, item):
        return item.prompt

    def ask(self, subject, first, items, seed):
        images = subject.draw([item.prompt for item in items], seed + first, SIZE)
        done = []
        for place, (item, image, words) in enumerate(zip(items, images, subject.describe(images, seed + first), strict=True)):
            asked = {(one.shape, one.colour) for one in item.expectation.wanted}
            row = Row(self.name, first + place, item.prompt, [item.category.replace("_", " ")], {"named": overlap(kinds_in(words), asked)}, words)
            done.append((row, [image]))
        return done


KIND = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)?\b", re.IGNORECASE)


def kinds_in(words: str) -> set[tuple[str, str]]:
    """The kinds, (shape, colour), that words name."""
    return {(shape.lower(), colour.lower()) for colour, shape in KIND.findall(words)}


def spoken_of(kind: tuple[str, str], words: str) -> bool:
    """Whether words have the shape or the colour of a kind."""
    shape, colour = kind
    return bool(re.search(rf"\b({shape}(e?s)?|{colour})\b", words, re.IGNORECASE))


def overlap(one: set, other: set) -> float:
    """Intersection over union; 1 for two empty sets."""
    return len(one & other) / len(one | other) if one | other else 1.0


SUITES: tuple[Suite, ...] = (Drawing(), Edits(), Questions(), Intents(), Descriptions(), RoundTrip(), Drift(), Stories(), Examples())
COUNTS: dict[str, Callable[[Suite], int]] = {"quick": lambda suite: 96 if suite.name in ("drawing", "questions") else 48, "full": lambda suite: 480}

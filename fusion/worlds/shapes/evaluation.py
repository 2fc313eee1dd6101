"""Fixed evaluation sets: GenEval in miniature, edits (chains, by example), stories, questions and intents.

Their random streams have a spawn key of their own (`SeedSequence(seed, spawn_key=(EVALUATION, ...))`). Training draws
from `default_rng(seed)`, whose key is empty, or from children spawned from it, whose keys count from 0: the streams
differ for every seed. Held-out pairs of kinds never occur in training at all. `SCORED_SEED` is for reported figures;
whatever is chosen or tuned is chosen on other seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from fusion.worlds.shapes.chance import chance, pick, some, whole
from fusion.worlds.shapes.constants import COLOURS, KINDS, RELATIONS, SHAPES, Kind, has_held_out
from fusion.worlds.shapes.edit_words import request
from fusion.worlds.shapes.edits import EDITS, any_edit
from fusion.worlds.shapes.examples import Shown, by_example, of_another, rules_of
from fusion.worlds.shapes.expect import Edit, Expectation, Question, Wanted
from fusion.worlds.shapes.options import Options
from fusion.worlds.shapes.questions import QUESTIONS
from fusion.worlds.shapes.render import render
from fusion.worlds.shapes.sample import Message
from fusion.worlds.shapes.scene import Scene
from fusion.worlds.shapes.tasks import TASKS, any_scene, first_edit
from fusion.worlds.shapes.words import RELATION_WORDS, Caption, a, ask_for_image, groups, name

EVALUATION = 0x5A9E  # no trainer spawns this many children
SCORED_SEED = 0
_SETS = ("prompts", "edits", "questions", "intents", "chains", "stories", "examples")


@dataclass(frozen=True)
class EvaluationPrompt:
    """A request for an image and what the image must show; `held_out` if it names a held-out pair."""

    category: str
    prompt: str
    expectation: Expectation
    held_out: bool


@dataclass(frozen=True)
class EvaluationEdit:
    """An image (uint8 RGB), a request for one change of it, and the scenes before and after.

    after: one correct result of several. held_out: the scene before has a held-out pair.
    """

    kind: str
    image: UInt8[np.ndarray, "h w 3"]
    instruction: str
    edit: Edit
    before: Scene
    after: Scene
    held_out: bool


@dataclass(frozen=True)
class EvaluationChain:
    """An image (uint8 RGB) and requests for a series of changes.

    scenes: the scene before, and after each edit (one correct result of several). held_out: the first scene has a
    held-out pair.
    """

    image: UInt8[np.ndarray, "h w 3"]
    instructions: tuple[str, ...]
    edits: tuple[Edit, ...]
    scenes: tuple[Scene, ...]
    held_out: bool


@dataclass(frozen=True)
class EvaluationExamples:
    """Examples of a rule with a source image to apply it to, and examples of another rule with the same source.

    other: shows a rule that occurs in training and turns the source into something else than the first rule does.
    """

    shown: Shown
    other: Shown
    held_out: bool


@dataclass(frozen=True)
class EvaluationStory:
    """A request for a story in images, what its first image must show, and one correct answer.

    told: the answer's texts and images (uint8 RGB) in alternation.
    """

    prompt: str
    first: Expectation
    told: tuple[str | UInt8[np.ndarray, "h w 3"], ...]
    held_out: bool


@dataclass(frozen=True)
class EvaluationQuestion:
    """An image (uint8 RGB) and a question about it with its answer."""

    kind: str
    image: UInt8[np.ndarray, "h w 3"]
    question: Question
    held_out: bool


@dataclass(frozen=True)
class EvaluationIntent:
    """A user's first message and whether it asks for an image; `kind` is the task it comes from."""

    kind: str
    message: Message
    draw: bool


def _stream(name_of_set: str, seed: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(EVALUATION, _SETS.index(name_of_set))))


def _two_kinds(rng: np.random.Generator, held_out: bool) -> tuple[Kind, Kind]:
    """Return two kinds that differ in shape and in colour, and form a held-out pair exactly if `held_out`."""
    while True:
        one, two = pick(rng, KINDS), pick(rng, KINDS)
        if one[0] != two[0] and one[1] != two[1] and has_held_out((one, two)) == held_out:
            return one, two


def _single_object(rng: np.random.Generator, held_out: bool) -> Caption:
    return groups(rng, [Wanted(shape=pick(rng, SHAPES))])


def _two_objects(rng: np.random.Generator, held_out: bool) -> Caption:
    return groups(rng, [Wanted(shape=shape) for shape in some(rng, SHAPES, 2)])


def _counting(rng: np.random.Generator, held_out: bool) -> Caption:
    colour = pick(rng, tuple(COLOURS)) if chance(rng, 0.5) else None
    return groups(rng, [Wanted(shape=pick(rng, SHAPES), colour=colour)] * whole(rng, 2, 4))


def _colours(rng: np.random.Generator, held_out: bool) -> Caption:
    return groups(rng, [Wanted(*pick(rng, KINDS))])


def _position(rng: np.random.Generator, held_out: bool) -> Caption:
    one, two = (Wanted(*kind) for kind in _two_kinds(rng, held_out))
    how = pick(rng, RELATIONS)
    text = f"{a(name(rng, one))} {pick(rng, RELATION_WORDS[how])} {a(name(rng, two))}"
    return Caption(text, Expectation((one, two), ((0, how, 1),)))


def _attribute_binding(rng: np.random.Generator, held_out: bool) -> Caption:
    return groups(rng, [Wanted(*kind) for kind in _two_kinds(rng, held_out)])


# The six categories of GenEval (Ghosh et al. 2023); only pairs of kinds can be held out.
CATEGORIES: dict[str, Callable[[np.random.Generator, bool], Caption]] = {
    "single_object": _single_object,
    "two_objects": _two_objects,
    "counting": _counting,
    "colours": _colours,
    "position": _position,
    "attribute_binding": _attribute_binding,
}
HELD_OUT_CATEGORIES = ("position", "attribute_binding")


def evaluation_prompts(n: int, seed: int = SCORED_SEED) -> tuple[EvaluationPrompt, ...]:
    """Generate `n` image requests, cycling through the GenEval categories.

    Every other one of position and attribute_binding names a held-out pair.
    """
    rng, prompts = _stream("prompts", seed), []
    for number in range(n):
        category = tuple(CATEGORIES)[number % len(CATEGORIES)]
        held_out = category in HELD_OUT_CATEGORIES and number // len(CATEGORIES) % 2 == 1
        told = CATEGORIES[category](rng, held_out)
        prompts.append(EvaluationPrompt(category, ask_for_image(rng, told.text), told.claims, held_out))
    return tuple(prompts)


def _alternately(number: int, kinds: int) -> Options:
    """Return default options; in every other round through `kinds` kinds, scenes have a held-out pair."""
    return Options(held_out=number // kinds % 2 == 1)


def evaluation_edits(n: int, seed: int = SCORED_SEED) -> tuple[EvaluationEdit, ...]:
    """Generate `n` edit tasks, cycling through the kinds of edits.

    Every other round edits images with a held-out pair.
    """
    rng, edits = _stream("edits", seed), []
    for number in range(n):
        kind = tuple(EDITS)[number % len(EDITS)]
        options = _alternately(number, len(EDITS))
        before, (edit, after) = first_edit(rng, options, kind)
        instruction = request(rng, edit, before.kinds)
        edits.append(EvaluationEdit(kind, render(before), instruction, edit, before, after, options.held_out))
    return tuple(edits)


def evaluation_chains(n: int, seed: int = SCORED_SEED, turns: int = 5) -> tuple[EvaluationChain, ...]:
    """Generate `n` chains of `turns` edits of any kinds; every other image has a held-out pair."""
    rng, chains = _stream("chains", seed), []
    for number in range(n):
        options = _alternately(number, 1)
        scene, change = first_edit(rng, options)
        scenes, made, requests = [scene], [], []
        for _ in range(turns):
            edit, after = change if not made else any_edit(rng, scenes[-1])
            requests.append(request(rng, edit, scenes[-1].kinds))
            scenes.append(after)
            made.append(edit)
        chains.append(EvaluationChain(render(scene), tuple(requests), tuple(made), tuple(scenes), options.held_out))
    return tuple(chains)


def evaluation_examples(n: int, seed: int = SCORED_SEED) -> tuple[EvaluationExamples, ...]:
    """Generate `n` tasks that show a rule by examples; every other rule is held out, with held-out pairs in its images.

    The kinds of rules alternate: all seven, and among held-out rules the three kinds of which some are held out.
    """
    rng, found = _stream("examples", seed), []
    for number in range(n):
        options = _alternately(number, 1)
        kinds = tuple(rules_of(options, options.held_out))
        shown = by_example(rng, options, kinds[number // 2 % len(kinds)])
        found.append(EvaluationExamples(shown, of_another(rng, options, shown), options.held_out))
    return tuple(found)


def evaluation_stories(n: int, seed: int = SCORED_SEED) -> tuple[EvaluationStory, ...]:
    """Generate `n` story tasks, distributed as in training; every other one begins with a held-out pair."""
    rng, stories = _stream("stories", seed), []
    for number in range(n):
        options = _alternately(number, 1)
        sample = TASKS["stories"](rng, options)
        asked, answer = sample.messages
        told = tuple(block[block["type"]] for block in answer["content"])
        stories.append(EvaluationStory(asked["content"][0]["text"], sample.expectation, told, options.held_out))
    return tuple(stories)


def evaluation_questions(n: int, seed: int = SCORED_SEED) -> tuple[EvaluationQuestion, ...]:
    """Generate `n` questions, cycling through their kinds; every other round is about images with a held-out pair."""
    rng, questions = _stream("questions", seed), []
    for number in range(n):
        kind = tuple(QUESTIONS)[number % len(QUESTIONS)]
        options, question = _alternately(number, len(QUESTIONS)), None
        while question is None:
            scene = any_scene(rng, options)
            question = QUESTIONS[kind](rng, scene)
        questions.append(EvaluationQuestion(kind, render(scene), question, options.held_out))
    return tuple(questions)


_DRAWING = ("text_to_image", "text_to_image", "edits", "stories")
_TALKING = ("chat", "chat", "questions", "image_to_text")


def evaluation_intents(n: int, seed: int = SCORED_SEED) -> tuple[EvaluationIntent, ...]:
    """Generate `n` first messages that alternate: one that asks for an image, then one that clearly does not."""
    rng, intents = _stream("intents", seed), []
    for number in range(n):
        draw = number % 2 == 0
        kind = (_DRAWING if draw else _TALKING)[number // 2 % 4]
        intents.append(EvaluationIntent(kind, TASKS[kind](rng, Options()).messages[0], draw))
    return tuple(intents)

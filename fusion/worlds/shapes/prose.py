"""Generate paragraphs about the world, to pretrain a language model on its colours, shapes, relations and counts."""

from collections.abc import Callable

import numpy as np

from fusion.worlds.shapes.chance import chance, pick, some, weighted, whole
from fusion.worlds.shapes.chat import FORM, PAINTING, turns_in_words
from fusion.worlds.shapes.constants import OPPOSITE, SHAPES
from fusion.worlds.shapes.edit_words import happening, request, the
from fusion.worlds.shapes.edits import any_edit, unique
from fusion.worlds.shapes.options import DEFAULT_COUNTS
from fusion.worlds.shapes.questions import ask
from fusion.worlds.shapes.scene import Scene, relation, sample_scene
from fusion.worlds.shapes.words import (
    IMAGE_REQUESTS,
    NUMBERS,
    PLACE_WORDS,
    RELATION_WORDS,
    a,
    caption,
    describe,
    name,
    wanted,
)

PEOPLE = ("anna", "ben", "clara", "tom")
_SIZE = {(32, 32): 1.0}  # prose never mentions the image size


def plain_text(rng: np.random.Generator) -> str:
    """Generate a paragraph of some 40 to 120 words: a description, story, dialogue, lesson or painting session."""
    scene = sample_scene(rng, DEFAULT_COUNTS, _SIZE)
    return " ".join(weighted(rng, PARAGRAPHS)(rng, scene))


def _there(text: str, verb: tuple[str, str] = ("there is", "there are")) -> str:
    return f"{verb[text.startswith(NUMBERS[2:])]} {text}"


def _stop(text: str) -> str:
    return text if text[-1] in ".?!" else f"{text}."


def _sights(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Return sentences that give each object's place and its relation to another."""
    clear, sentences = unique(scene), []
    for index in some(rng, range(len(scene.things)), len(scene.things)):
        thing = scene.things[index]
        noun = a(name(rng, wanted(thing, sized=chance(rng, 0.6))))
        where = pick(rng, PLACE_WORDS[thing.place])
        sentences.append(
            pick(
                rng,
                (f"{noun} is {where}.", f"{where} is {noun}.", f"there is {noun} {where}.", f"{where} stands {noun}."),
            )
        )
        others = [(other, how) for other in clear if other != index and (how := relation(scene, index, other))]
        if others and index in clear and chance(rng, 0.5):
            other, how = pick(rng, others)
            first, second = (the(rng, scene.kinds[one], scene.kinds) for one in (index, other))
            sentences.append(f"{first} is {pick(rng, RELATION_WORDS[how])} {second}.")
            if chance(rng, 0.4):
                sentences.append(f"so {second} is {pick(rng, RELATION_WORDS[OPPOSITE[how]])} {first}.")
    return sentences


def description(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Return sentences that describe a scene: the number of objects, each object, its place, and the ground."""
    count = len(scene.things)
    number = f"{NUMBERS[count]} {pick(rng, ('object', 'shape'))}{'s' if count > 1 else ''}"
    opening = pick(
        rng,
        (f"the picture shows {number}.", f"{_there(number)} in the picture.", f"{pick(rng, PEOPLE)} sees {number}."),
    )
    ground = pick(rng, ("the ground is {}.", "the background is {}.", "all is on a {} ground."))
    ending = [f"{_there(caption(rng, scene, open_share=0.3).text)}."] if chance(rng, 0.5) else []
    return [opening, *_sights(rng, scene), ground.format(scene.ground), *ending]


def story(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Return a story in which a scene changes in two to five steps, and its final state."""
    begin = pick(rng, (("once there was", "once there were"), ("there was", "there were")))
    sentences = [f"{_there(caption(rng, scene, open_share=0).text, begin)}."]
    for step in range(whole(rng, 2, 5)):
        edit, after = any_edit(rng, scene)
        word = pick(
            rng, ("then", "after that", "next", "soon", "suddenly", "one day") if step else ("one day", "then", "soon")
        )
        sentences.append(f"{word} {happening(rng, edit, scene.kinds)}.")
        if chance(rng, 0.4):
            sentences.append(f"{pick(rng, ('now', 'at this time'))} {_there(describe(rng, after, detail=False).text)}.")
        scene = after
    return [
        *sentences,
        f"{pick(rng, ('in the end', 'at last', 'finally'))} {_there(describe(rng, scene, detail=True).text)}.",
    ]


def dialogue(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Return a dialogue in which two people ask and answer questions about an image."""
    asker, other = some(rng, PEOPLE, 2)
    sentences = [f"{asker} and {other} look at a picture of {describe(rng, scene, detail=True).text}."]
    for question in ask(rng, scene, whole(rng, 2, 4)):
        sentences.append(f"{asker} asks: {question.text} {other} says: {question.answer}.")
        if chance(rng, 0.2):
            asker, other = other, asker
    return sentences


def lesson(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Return text-only questions and answers, such as occur in conversations, as sentences."""
    turns = [turn for _ in range(2) for turn in turns_in_words(rng, scene)]
    return [f"question: {_stop(asked)} answer: {_stop(said)}" for asked, said in turns]


def painter(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Return sentences in which one person asks for an image and another paints it, object by object, and edits it."""
    asker, other = some(rng, PEOPLE, 2)
    wish = pick(rng, IMAGE_REQUESTS).format(caption(rng, scene, open_share=0).text)
    sentences = [f"{asker} says: {wish.rstrip('?')}.", f"{other} takes {a(scene.ground)} paper."]
    for thing in some(rng, scene.things, len(scene.things)):
        noun = a(name(rng, wanted(thing, sized=chance(rng, 0.4))))
        where = pick(rng, PLACE_WORDS[thing.place])
        sentences.append(f"{other} takes {thing.colour} paint and {PAINTING[thing.shape]}: {noun} {where}.")
    for _ in range(whole(rng, 0, 2)):
        edit, after = any_edit(rng, scene)
        sentences.append(
            f"{asker} says: {request(rng, edit, scene.kinds).lower().rstrip('.?')}. "
            f"{happening(rng, edit, scene.kinds)}."
        )
        scene = after
    return [
        *sentences,
        f"{pick(rng, ('the picture is done', 'that is the picture', f'{asker} is happy'))}: "
        f"{describe(rng, scene, True).text}.",
    ]


def forms(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Return sentences that define shapes, with examples from the scene, in random order."""
    sentences = [f"{a(shape)} is a shape. {FORM[shape]}." for shape in some(rng, SHAPES, whole(rng, 1, 3))]
    for thing in scene.things:
        noun = f"{thing.colour} {thing.shape}"
        sentences.append(
            pick(
                rng,
                (
                    f"{a(noun)} is {a(thing.shape)}.",
                    f"the colour of {a(noun)} is {thing.colour}.",
                    f"the shape of {a(noun)} is {a(thing.shape)}.",
                ),
            )
        )
    return some(rng, sentences, len(sentences))


PARAGRAPHS: dict[Callable[[np.random.Generator, Scene], list[str]], float] = {
    description: 0.25,
    story: 0.2,
    dialogue: 0.2,
    lesson: 0.15,
    painter: 0.15,
    forms: 0.05,
}

"""Generate questions about images with short answers: count, colour, shape, exists, where."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fusion.worlds.shapes.chance import chance, pick, weighted
from fusion.worlds.shapes.constants import COLOURS, KINDS, OPPOSITE, RELATIONS, SHAPES
from fusion.worlds.shapes.edits import unique
from fusion.worlds.shapes.expect import Question
from fusion.worlds.shapes.options import DEFAULT_QUESTIONS
from fusion.worlds.shapes.scene import Scene, relation
from fusion.worlds.shapes.words import NUMBERS, PLACE_WORDS, RELATION_WORDS, a, plural

ALL_COLOURS = tuple(COLOURS)
_TRIES = 100  # attempts to find another question about a scene


def count(rng: np.random.Generator, scene: Scene, colours: Sequence[str] = ALL_COLOURS) -> Question:
    """Return a question for the number of objects: all, of one shape, of one colour, or of one kind."""
    style = rng.random()
    if style < 0.35:
        noun, number = pick(rng, ("objects", "shapes", "things")), len(scene.things)
    elif style < 0.65:
        shape = pick(rng, scene.things).shape if chance(rng, 0.75) else pick(rng, SHAPES)
        noun, number = plural(shape), sum(thing.shape == shape for thing in scene.things)
    elif style < 0.85:
        colour = pick(rng, scene.things).colour if chance(rng, 0.75) else pick(rng, colours)
        noun, number = (
            f"{colour} {pick(rng, ('shapes', 'objects'))}",
            sum(thing.colour == colour for thing in scene.things),
        )
    else:
        kind = pick(rng, scene.things).kind
        noun, number = f"{kind[1]} {plural(kind[0])}", scene.kinds.count(kind)
    return Question(
        "count", pick(rng, ("how many {} are there?", "how many {} do you see?")).format(noun), NUMBERS[number]
    )


def _spot(rng: np.random.Generator, scene: Scene, index: int) -> str:
    """Return words that identify an object by its position."""
    others = [(other, how) for other in unique(scene) if other != index and (how := relation(scene, index, other))]
    if others and chance(rng, 0.5):
        other, how = pick(rng, others)
        shape, colour = scene.kinds[other]
        rivals = [relation(scene, rival, other) for rival in range(len(scene.things)) if rival != other]
        if rivals.count(how) == 1:
            return f"{pick(rng, RELATION_WORDS[how])} the {colour} {shape}"
    return pick(rng, PLACE_WORDS[scene.things[index].place])


def colour(rng: np.random.Generator, scene: Scene, colours: Sequence[str] = ALL_COLOURS) -> Question:
    """Return a question for the colour of the ground or of one object, named by its shape or its place."""
    if chance(rng, 0.25):
        return Question("colour", f"what colour is the {pick(rng, ('ground', 'background'))}?", scene.ground)
    index = int(rng.random() * len(scene.things))
    thing = scene.things[index]
    alone = sum(other.shape == thing.shape for other in scene.things) == 1
    noun = f"the {thing.shape}" if alone and chance(rng, 0.7) else f"the shape {_spot(rng, scene, index)}"
    return Question("colour", f"what colour is {noun}?", thing.colour)


def shape(rng: np.random.Generator, scene: Scene, colours: Sequence[str] = ALL_COLOURS) -> Question:
    """Return a question for the shape of one object, named by its colour or its place."""
    index = int(rng.random() * len(scene.things))
    thing = scene.things[index]
    alone = sum(other.colour == thing.colour for other in scene.things) == 1
    if alone and chance(rng, 0.7):
        return Question("shape", f"what shape is the {thing.colour} {pick(rng, ('object', 'one'))}?", thing.shape)
    return Question("shape", f"{pick(rng, ('what', 'which'))} shape is {_spot(rng, scene, index)}?", thing.shape)


def exists(rng: np.random.Generator, scene: Scene, colours: Sequence[str] = ALL_COLOURS) -> Question:
    """Return a question of whether there is a certain kind, shape or colour.

    "Yes" and "no" are equally likely, and "no" often concerns a near miss.
    """
    style, yes, thing = rng.random(), chance(rng, 0.5), pick(rng, scene.things)
    if style < 0.2:
        shapes = [name for name in SHAPES if (name in [thing.shape for thing in scene.things]) == yes]
        noun, answer = (a(pick(rng, shapes)), yes) if shapes else (a(thing.shape), True)
    elif style < 0.4:
        missing = [name for name in colours if name not in [thing.colour for thing in scene.things]]
        noun, answer = (thing.colour, True) if yes or not missing else (pick(rng, missing), False)
        noun = f"something {noun}"
    else:
        known = [kind for kind in KINDS if kind not in scene.kinds and kind[1] in colours]
        near = [kind for kind in known if kind[0] == thing.shape or kind[1] == thing.colour]
        kind, answer = (thing.kind, True) if yes or not near else (pick(rng, near), False)
        noun = a(f"{kind[1]} {kind[0]}")
    return Question(
        "exists",
        pick(rng, ("is there {}?", "is there {} in the picture?", "do you see {}?")).format(noun),
        _yes(answer),
    )


def where(rng: np.random.Generator, scene: Scene, colours: Sequence[str] = ALL_COLOURS) -> Question | None:
    """Return a question for an object's place or its relation to another; None if no object has a unique kind."""
    clear = unique(scene)
    if not clear:
        return None
    index = pick(rng, clear)
    name = "the {1} {0}".format(*scene.kinds[index])
    others = [(other, how) for other in clear if other != index and (how := relation(scene, index, other))]
    if not others or chance(rng, 0.4):
        return Question("where", f"where is {name}?", PLACE_WORDS[scene.things[index].place][0])
    other, how = pick(rng, others)
    second = "the {1} {0}".format(*scene.kinds[other])
    if chance(rng, 0.4):
        one, two = (how, OPPOSITE[how]) if chance(rng, 0.5) else (OPPOSITE[how], how)
        return Question("where", f"is {name} {one} or {two} {second}?", how)
    asked = how if chance(rng, 0.5) else OPPOSITE[how] if chance(rng, 0.6) else pick(rng, RELATIONS)
    return Question("where", f"is {name} {pick(rng, RELATION_WORDS[asked])} {second}?", _yes(asked == how))


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


QUESTIONS: dict[str, Callable[..., Question | None]] = {
    "count": count,
    "colour": colour,
    "shape": shape,
    "exists": exists,
    "where": where,
}


def ask(
    rng: np.random.Generator,
    scene: Scene,
    number: int,
    kinds: Mapping[str, float] = DEFAULT_QUESTIONS,
    colours: Sequence[str] = ALL_COLOURS,
) -> tuple[Question, ...]:
    """Return up to `number` different questions about the scene, their kinds drawn by weight.

    There are fewer where the scene does not allow so many. colours: those that questions may name even if they are
    absent.
    """
    asked: dict[str, Question] = {}
    for _ in range(_TRIES):
        question = QUESTIONS[weighted(rng, kinds)](rng, scene, colours)
        if question is not None:
            asked[question.text] = question
        if len(asked) == number:
            break
    return tuple(asked.values())

"""Generate text-only conversations: small talk, facts, scenes given in words with questions, and descriptions."""

from collections.abc import Callable

import numpy as np

from fusion.worlds.shapes.chance import chance, pick, weighted
from fusion.worlds.shapes.constants import COLOURS, SHAPES
from fusion.worlds.shapes.questions import ask
from fusion.worlds.shapes.scene import Scene
from fusion.worlds.shapes.words import a, caption, describe, name, wanted

Turn = tuple[str, str]  # the user's message, the assistant's answer

SMALL_TALK = (
    ("hello", "hello! what shall i draw?"),
    ("hi", "hello! what shall i draw?"),
    ("good morning", "good morning!"),
    ("say hello", "hello!"),
    ("how are you?", "i am fine, thank you."),
    ("thank you", "you are welcome."),
    ("thanks", "you are welcome."),
    ("who are you?", "i am a small model that writes and draws."),
    ("what is your name?", "i have no name. i am a small model."),
    ("what can you do?", "i can draw pictures, change them and answer questions about them."),
    ("can you draw?", "yes, i can draw circles, squares, triangles and crosses."),
    ("can you see?", "yes, show me a picture."),
    ("what can you draw?", "i can draw circles, squares, triangles and crosses in eight colours."),
    ("good bye", "good bye!"),
    ("do you like to draw?", "yes, i like to draw."),
    ("do you like pictures?", "yes, i like pictures."),
    ("that is nice", "thank you."),
    ("well done", "thank you."),
    ("good night", "good night!"),
)
FACTS = (
    ("what shapes do you know?", "i know circles, squares, triangles and crosses."),
    ("how many shapes do you know?", "four"),
    ("how many colours do you know?", "eight"),
    ("what colours do you know?", "i know red, green, blue, yellow, orange, purple, black and cyan."),
    ("which colours can the ground have?", "the ground is white, light grey or beige."),
    ("how many objects can a picture have?", "a picture has one to four objects."),
    ("what is the opposite of left?", "right"),
    ("what is the opposite of right?", "left"),
    ("what is the opposite of above?", "below"),
    ("what is the opposite of below?", "above"),
    ("what is the opposite of small?", "large"),
    ("what is the opposite of large?", "small"),
    ("what comes after one?", "two"),
    ("what comes after two?", "three"),
    ("what comes after three?", "four"),
    ("what comes before four?", "three"),
    ("what comes before three?", "two"),
    ("what comes before two?", "one"),
)
CORNERS = {"circle": "no", "square": "four", "triangle": "three", "cross": "twelve"}
FORM = {
    "circle": "it is round and has no corners",
    "square": "it has four equal sides and four corners",
    "triangle": "it has three sides and three corners",
    "cross": "it has four arms that meet in the middle",
}
PAINTING = {
    "circle": "makes it round",
    "square": "makes four equal sides",
    "triangle": "makes three sides",
    "cross": "makes four arms",
}


def small_talk(rng: np.random.Generator, scene: Scene) -> Turn:
    """Return a random exchange of small talk: a greeting, thanks, or a question about the speaker."""
    return pick(rng, SMALL_TALK)


def fact(rng: np.random.Generator, scene: Scene) -> Turn:
    """Return a random question and answer about the world in general, independent of the scene."""
    shape, colour = pick(rng, SHAPES), pick(rng, tuple(COLOURS))
    style = rng.random()
    if style < 0.4:
        return pick(rng, FACTS)
    if style < 0.6:
        return f"how many corners does {a(shape)} have?", CORNERS[shape]
    if style < 0.75:
        return pick(rng, ("what is {}?", "tell me about {}")).format(a(shape)), f"{a(shape)} is a shape. {FORM[shape]}."
    if style < 0.85:
        return f"what colour is {a(f'{colour} {shape}')}?", colour
    if style < 0.93:
        return f"what shape is {a(f'{colour} {shape}')}?", shape
    kind, word = pick(rng, ((colour, "colour"), (shape, "shape")))
    asked = pick(rng, ("colour", "shape"))
    return f"is {a(kind) if word == 'shape' else kind} {a(asked)}?", "yes" if asked == word else "no"


def told_scene(rng: np.random.Generator, scene: Scene) -> list[Turn]:
    """Return one to three questions and answers about a scene, which the first question describes in words."""
    turns = [(question.text, question.answer) for question in ask(rng, scene, weighted(rng, {1: 0.5, 2: 0.3, 3: 0.2}))]
    verb = pick(rng, ("there is", "i see", "a picture shows", "think of"))
    first, answer = turns[0]
    return [(f"{verb} {describe(rng, scene, detail=True).text}. {first}", answer), *turns[1:]]


def in_words(rng: np.random.Generator, scene: Scene) -> Turn:
    """Return a request to describe an object of the scene in words, and the description."""
    thing = pick(rng, scene.things)
    noun = name(rng, wanted(thing, sized=chance(rng, 0.3)))
    asked = pick(
        rng,
        (
            "describe in words {}",
            "describe {} in words",
            "tell me about {} in words",
            "what does {} look like?",
            "how would you describe {}?",
            "do not draw, just describe {}",
        ),
    )
    return asked.format(a(noun)), f"{a(noun)} is {a(thing.shape)} in {thing.colour}. {FORM[thing.shape]}."


def echo(rng: np.random.Generator, scene: Scene) -> Turn:
    """Return a request to repeat a caption of the scene, and the caption: words that must not be drawn."""
    text = caption(rng, scene).text
    return pick(rng, ("say: {}", "repeat: {}", "write the words: {}", "write: {}")).format(text), text


def how_to(rng: np.random.Generator, scene: Scene) -> Turn:
    """Return a question of how an object of the scene is drawn, and an answer in words."""
    thing = pick(rng, scene.things)
    asked = pick(rng, ("how do you draw {}?", "how would you paint {}?", "how does one draw {}?"))
    return asked.format(
        a(f"{thing.colour} {thing.shape}")
    ), f"one takes {thing.colour} paint and {PAINTING[thing.shape]}."


TALKS: dict[Callable[[np.random.Generator, Scene], Turn | list[Turn]], float] = {
    small_talk: 0.2,
    fact: 0.25,
    told_scene: 0.25,
    in_words: 0.12,
    echo: 0.1,
    how_to: 0.08,
}


def turns_in_words(rng: np.random.Generator, scene: Scene) -> list[Turn]:
    """Generate a text-only conversation of one to three topics as (user, assistant) turns; some are about the scene."""
    turns: list[Turn] = []
    for _ in range(weighted(rng, {1: 0.5, 2: 0.3, 3: 0.2})):
        talk = weighted(rng, TALKS)(rng, scene)
        turns += talk if isinstance(talk, list) else [talk]
    return turns

"""The world's English: noun phrases, captions with the claims they make, and requests for images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fusion.worlds.shapes.chance import chance, pick, some
from fusion.worlds.shapes.expect import Expectation, Wanted
from fusion.worlds.shapes.scene import PLACES, Scene, Thing, relation

NUMBERS = ("zero", "one", "two", "three", "four")
SIZE_WORDS = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
RELATION_WORDS = {
    "left of": ("left of", "left of", "to the left of"),
    "right of": ("right of", "right of", "to the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
}
PLACE_WORDS = {
    "middle": ("in the middle", "in the centre"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "top left": ("at the top left", "in the top left corner"),
    "top right": ("at the top right", "in the top right corner"),
    "bottom left": ("at the bottom left", "in the bottom left corner"),
    "bottom right": ("at the bottom right", "in the bottom right corner"),
}
GROUND_WORDS = ("on a {} ground", "on a {} background", "on {}")
IMAGE_REQUESTS = (
    "{}",
    "{}",
    "{}",
    "draw {}",
    "draw {}",
    "draw {}",
    "draw me {}",
    "paint {}",
    "paint {}",
    "show me {}",
    "show me {}",
    "a picture of {}",
    "a picture of {}",
    "draw a picture of {}",
    "paint a picture of {}",
    "make a picture of {}",
    "please draw {}",
    "can you draw {}?",
    "could you paint {}?",
    "i want a picture of {}",
    "i would like to see {}",
    "make an image of {}",
    "an image of {}",
    "please show me {}",
)


@dataclass(frozen=True)
class Caption:
    """A caption of a scene, and all that it claims."""

    text: str
    claims: Expectation


def a(phrase: str) -> str:
    """Return the phrase with its indefinite article."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def plural(shape: str) -> str:
    """Return the shape's plural."""
    return "crosses" if shape == "cross" else f"{shape}s"


def join(phrases: list[str]) -> str:
    """Join phrases to a list in English: "a", "a and b", "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def wanted(thing: Thing, sized: bool = False) -> Wanted:
    """Return the claim that this object is there, with its size if `sized`."""
    return Wanted(thing.shape, thing.colour, thing.size if sized else None)


def all_of(scene: Scene) -> Expectation:
    """Return all claims that are true of a scene.

    They are every object's shape, colour, size and place, the ground, and the image's size.
    """
    claims = tuple(replace(wanted(thing, sized=True), place=thing.place) for thing in scene.things)
    return Expectation(claims, ground=scene.ground, image_size=scene.image_size)


def name(rng: np.random.Generator, want: Wanted) -> str:
    """Return a noun phrase without article: "small red circle", "circle", "red shape"."""
    size = pick(rng, SIZE_WORDS[want.size]) if want.size else None
    return " ".join(word for word in (size, want.colour, want.shape or "shape") if word)


def user_style(rng: np.random.Generator, text: str) -> str:
    """Return the text as users type it: unchanged, with a full stop, or as a proper sentence."""
    style = rng.random()
    if style < 0.4:
        return text
    stop = "" if text[-1] in ".?!" else "."
    return text + stop if style < 0.6 else text[0].upper() + text[1:] + (stop if style < 0.9 else "")


def ask_for_image(rng: np.random.Generator, caption: str) -> str:
    """Return a request for an image with this caption."""
    return user_style(rng, pick(rng, IMAGE_REQUESTS).format(caption))


def groups(rng: np.random.Generator, wants: Sequence[Wanted]) -> Caption:
    """Return a caption that lists the wanted objects in order, equal ones counted.

    Example: "two red circles and a blue square".
    """
    counted = Counter(wants)
    phrases = []
    for want, count in counted.items():
        noun = name(rng, want)
        phrases.append(
            a(noun) if count == 1 else f"{NUMBERS[count]} {noun.removesuffix(want.shape)}{plural(want.shape)}"
        )
    return Caption(join(phrases), Expectation(tuple(want for want in counted for _ in range(counted[want]))))


def _open(rng: np.random.Generator, scene: Scene) -> Caption:
    """Return a caption that leaves colours, shapes or both open.

    Examples: "two circles and a cross", "three red shapes", "four objects".
    """
    things, count = scene.things, len(scene.things)
    options = [Wanted()] if count > 1 else []
    if len({thing.colour for thing in things}) == 1:
        options.append(Wanted(colour=things[0].colour))
    if not options or chance(rng, 0.7):
        return groups(rng, some(rng, [Wanted(shape=thing.shape) for thing in things], count))
    want = pick(rng, options)
    claims = Expectation((want,) * count)
    if count == 1:
        return Caption(a(name(rng, want)), claims)
    return Caption(" ".join(filter(None, (NUMBERS[count], want.colour, pick(rng, ("shapes", "objects"))))), claims)


def _related(rng: np.random.Generator, scene: Scene, sized: bool, order: Sequence[int]) -> Caption:
    """Return a caption with the relation between two objects: "a red circle left of a blue square".

    order: the indices of the two objects in the order of the caption.
    """
    how = relation(scene, *order)
    one, two = (wanted(scene.things[index], sized) for index in order)
    text = f"{a(name(rng, one))} {pick(rng, RELATION_WORDS[how])} {a(name(rng, two))}"
    return Caption(text, Expectation((one, two), ((0, how, 1),)))


def _placed(rng: np.random.Generator, things: Sequence[Thing], sized: bool) -> Caption:
    """Return a caption with places: "a red circle on the left and a blue square on the right"."""
    claims = tuple(replace(wanted(thing, sized), place=thing.place) for thing in things)
    phrases = [f"{a(name(rng, want))} {pick(rng, PLACE_WORDS[want.place])}" for want in claims]
    return Caption(join(phrases), Expectation(claims))


def _listed(rng: np.random.Generator, things: Sequence[Thing], sized: bool) -> Caption:
    """Return a caption that lists objects, sometimes after their number: "two objects: a cross and a blue square"."""
    told = groups(rng, [wanted(thing, sized) for thing in things])
    if len(things) > 1 and chance(rng, 0.15):
        return replace(told, text=f"{NUMBERS[len(things)]} {pick(rng, ('objects', 'shapes'))}: {told.text}")
    return told


def _aligned(rng: np.random.Generator, scene: Scene, sized: bool) -> Caption:
    """Return a caption of two equal objects and their alignment: "two red circles side by side"."""
    told = groups(rng, [wanted(thing, sized) for thing in scene.things])
    sideways = relation(scene, 0, 1) in ("left of", "right of")
    phrase = pick(rng, ("side by side", "next to each other")) if sideways else "one above the other"
    claims = replace(told.claims, relations=((0, "left of" if sideways else "above", 1),))
    return Caption(f"{told.text} {phrase}", claims)


def _told(rng: np.random.Generator, scene: Scene, sized: bool, placed: bool) -> Caption:
    """Return a caption with all shapes and colours, sometimes with the objects' positions, and always if `placed`."""
    things = some(rng, scene.things, len(scene.things))
    if len(things) > 1 and chance(rng, 0.5 if placed else 0.15):
        return _placed(rng, things, sized)
    if len(things) == 2 and relation(scene, 0, 1) is not None and (placed or chance(rng, 0.55)):
        if scene.things[0].kind != scene.things[1].kind:
            return _related(rng, scene, sized, some(rng, (0, 1), 2))
        if wanted(things[0], sized) == wanted(things[1], sized):
            return _aligned(rng, scene, sized)
    if placed and len(things) > 1:
        return _placed(rng, things, sized)
    return _listed(rng, things, sized)


def _grounded(rng: np.random.Generator, told: Caption, ground: str) -> Caption:
    text = f"{told.text} {pick(rng, GROUND_WORDS).format(ground)}"
    return Caption(text, replace(told.claims, ground=ground))


def caption(rng: np.random.Generator, scene: Scene, open_share: float = 0.08, placed: bool = False) -> Caption:
    """Return a random true caption of the scene; sizes, ground and positions may be left open.

    `open_share` is the share of captions that leave colours or shapes open as well ("two circles"). `placed` captions
    give the positions of several objects (of two equal ones: their alignment) and leave no colour or shape open.
    """
    told = _open(rng, scene) if not placed and chance(rng, open_share) else _told(rng, scene, chance(rng, 0.25), placed)
    return _grounded(rng, told, scene.ground) if chance(rng, 0.3) else told


def describe(rng: np.random.Generator, scene: Scene, detail: bool) -> Caption:
    """Return a description of all objects in reading order; in `detail` with sizes, places and ground."""
    order = sorted(
        range(len(scene.things)), key=lambda index: tuple(PLACES[scene.layout]).index(scene.things[index].place)
    )
    things = [scene.things[index] for index in order]
    if detail:
        told = groups(rng, [wanted(things[0], sized=True)]) if len(things) == 1 else _placed(rng, things, sized=True)
        return _grounded(rng, told, scene.ground)
    if len(things) == 2 and relation(scene, 0, 1) is not None and things[0].kind != things[1].kind:
        return _related(rng, scene, False, order)
    return groups(rng, [wanted(thing) for thing in things])

"""Scenes of the built-in world: their objects and positions, and random generation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fusion.worlds.shapes.chance import chance, pick, some, weighted, whole
from fusion.worlds.shapes.constants import (
    GROUNDS,
    HELD_OUT,
    KINDS,
    SEVERAL_JITTER,
    SEVERAL_SIZES,
    SINGLE_JITTER,
    SINGLE_SIZES,
    Kind,
    has_held_out,
)

CELLS = ("top left", "top right", "bottom left", "bottom right")
# The named places of each layout, with their centres in units of (width, height).
PLACES = {
    "single": {"middle": (0.5, 0.5)},
    "row": {"left": (0.25, 0.5), "right": (0.75, 0.5)},
    "column": {"top": (0.5, 0.25), "bottom": (0.5, 0.75)},
    "grid": dict(zip(CELLS, ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)))),
}
ALL_KINDS = dict.fromkeys(KINDS, 1.0)
PAIR_LAYOUTS = {"row": 0.4, "column": 0.4, "grid": 0.2}
_GROUND_NAMES = tuple(GROUNDS)
_HELD_OUT = tuple(sorted(tuple(sorted(pair)) for pair in HELD_OUT))


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Its box is `pixels` wide and high, with the upper left corner at (x, y) in pixels. size: "small" or "large". place:
    a named place of the scene's layout.
    """

    shape: str
    colour: str
    size: str
    place: str
    pixels: int
    x: int
    y: int

    @property
    def kind(self) -> Kind:
        return self.shape, self.colour

    @property
    def centre(self) -> tuple[float, float]:
        """The centre (x, y) of the box, in pixels."""
        return self.x + self.pixels / 2, self.y + self.pixels / 2


@dataclass(frozen=True)
class Scene:
    """The content of an image: its size in pixels, ground, layout (single, row, column, grid) and objects."""

    width: int
    height: int
    ground: str
    layout: str
    things: tuple[Thing, ...]

    @property
    def side(self) -> int:
        """The shorter side in pixels, to which all sizes are relative."""
        return min(self.width, self.height)

    @property
    def image_size(self) -> tuple[int, int]:
        """The (width, height) of the image in pixels."""
        return self.width, self.height

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(thing.kind for thing in self.things)

    @property
    def free_places(self) -> list[str]:
        """The named places of the layout without an object."""
        taken = {thing.place for thing in self.things}
        return [place for place in PLACES[self.layout] if place not in taken]

    @property
    def held_out(self) -> bool:
        """True if two of the objects form a held-out pair."""
        return has_held_out(self.kinds)

    def with_thing(self, index: int, **changes) -> "Scene":
        """Return the scene with these fields of object `index` changed."""
        things = list(self.things)
        things[index] = replace(things[index], **changes)
        return replace(self, things=tuple(things))


def relation(scene: Scene, first: int, second: int) -> str | None:
    """Return the relation of object `first` to object `second`, such as "left of"; None for diagonal neighbours."""
    (ax, ay), (bx, by) = (PLACES[scene.layout][scene.things[index].place] for index in (first, second))
    if ay == by:
        return "left of" if ax < bx else "right of"
    if ax == bx:
        return "above" if ay < by else "below"
    return None


def corners(
    scene_size: tuple[int, int], layout: str, place: str, pixels: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the allowed (lowest, highest) x and y of the upper left corner of an object's box at a named place.

    scene_size: (width, height) in pixels. pixels: side of the box.
    """
    jitter = min(scene_size) * (SINGLE_JITTER if layout == "single" else SEVERAL_JITTER)
    middles = [unit * length - pixels / 2 for unit, length in zip(PLACES[layout][place], scene_size)]
    x, y = ((math.ceil(middle - jitter), math.floor(middle + jitter)) for middle in middles)
    return x, y


def place_thing(
    rng: np.random.Generator, scene_size: tuple[int, int], layout: str, kind: Kind, size: str, place: str
) -> Thing:
    """Create an object of this kind and size ("small" or "large") at a named place, with random jitter.

    scene_size: (width, height) in pixels.
    """
    side = min(scene_size)
    low, high = (SINGLE_SIZES if layout == "single" else SEVERAL_SIZES)[size]
    pixels = whole(rng, math.ceil(low * side), math.floor(high * side))
    x, y = corners(scene_size, layout, place, pixels)
    return Thing(kind[0], kind[1], size, place, pixels, whole(rng, *x), whole(rng, *y))


def _free_kinds(rng: np.random.Generator, count: int, weights: Mapping[Kind, float]) -> list[Kind]:
    """Return `count` kinds: with probability 0.25 all the same, else sometimes in groups, else drawn independently."""
    first = weighted(rng, weights)
    if chance(rng, 0.25):
        return [first] * count
    kinds = [first, *(weighted(rng, weights) for _ in range(count - 1))]
    if count > 2 and chance(rng, 0.2):
        kinds[-1] = kinds[0]
    if count > 1 and chance(rng, 0.2):  # shared colours and shapes make attribute binding and counting matter
        shared_shape = chance(rng, 0.5)
        kinds = [(first[0], colour) if shared_shape else (shape, first[1]) for shape, colour in kinds]
    return kinds


def sample_kinds(
    rng: np.random.Generator,
    count: int,
    held_out: bool,
    weights: Mapping[Kind, float] = ALL_KINDS,
    distinct: bool = False,
) -> list[Kind]:
    """Return `count` random kinds without a held-out pair, or (`held_out`, count >= 2) with at least one.

    distinct: no colour occurs twice. weights: of the kinds, used unless `held_out`.
    """
    if held_out:
        kinds = [*some(rng, pick(rng, _HELD_OUT), 2), *(pick(rng, KINDS) for _ in range(count - 2))]
        return some(rng, kinds, count)
    while True:
        kinds = _free_kinds(rng, count, weights)
        repeated = distinct and len({colour for _, colour in kinds}) < count
        if not repeated and not has_held_out(kinds):
            return kinds


def sample_scene(
    rng: np.random.Generator,
    counts: Mapping[int, float],
    sizes: Mapping[tuple[int, int], float],
    held_out: bool = False,
    grid: bool = False,
    kinds: Mapping[Kind, float] = ALL_KINDS,
    distinct: bool = False,
) -> Scene:
    """Generate a random scene.

    counts: weights of the number of objects. sizes: weights of (width, height) in pixels. kinds: weights of the (shape,
    colour) of objects. held_out: the scene has a held-out pair. grid: two objects are placed in a grid, too. distinct:
    no colour occurs twice.
    """
    if held_out:
        counts = {count: weight for count, weight in counts.items() if count > 1}
    count, scene_size = weighted(rng, counts), weighted(rng, sizes)
    chosen = sample_kinds(rng, count, held_out, kinds, distinct)
    layout = "single" if count == 1 else "grid" if grid or count > 2 else weighted(rng, PAIR_LAYOUTS)
    places = some(rng, tuple(PLACES[layout]), count)
    things = tuple(
        place_thing(rng, scene_size, layout, kind, pick(rng, ("small", "large")), place)
        for kind, place in zip(chosen, places)
    )
    return Scene(*scene_size, pick(rng, _GROUND_NAMES), layout, things)

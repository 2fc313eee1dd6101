"""Scenes of the built-in world: which objects stand where, and how they are drawn at random."""

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
    """One object: `pixels` wide and high, its box's upper left corner at (x, y), standing at a named place."""

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
        """(x, y) of the box's middle, in pixels."""
        return self.x + self.pixels / 2, self.y + self.pixels / 2


@dataclass(frozen=True)
class Scene:
    """A picture's content: its size in pixels, ground, layout (single, row, column, grid) and objects."""

    width: int
    height: int
    ground: str
    layout: str
    things: tuple[Thing, ...]

    @property
    def side(self) -> int:
        """The shorter side, in pixels, to which all sizes refer."""
        return min(self.width, self.height)

    @property
    def picture_size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(thing.kind for thing in self.things)

    @property
    def free_places(self) -> list[str]:
        """Named places of the layout at which nothing stands."""
        taken = {thing.place for thing in self.things}
        return [place for place in PLACES[self.layout] if place not in taken]

    @property
    def held_out(self) -> bool:
        """Whether two of its objects form a held-out pair."""
        return has_held_out(self.kinds)

    def with_thing(self, index: int, **changes) -> "Scene":
        """The same scene with some fields of one object changed."""
        things = list(self.things)
        things[index] = replace(things[index], **changes)
        return replace(self, things=tuple(things))


def relation(scene: Scene, first: int, second: int) -> str | None:
    """How object `first` stands to object `second`; None for diagonal neighbours, which are in no relation."""
    (ax, ay), (bx, by) = (PLACES[scene.layout][scene.things[index].place] for index in (first, second))
    if ay == by:
        return "left of" if ax < bx else "right of"
    if ax == bx:
        return "above" if ay < by else "below"
    return None


def corners(
    scene_size: tuple[int, int], layout: str, place: str, pixels: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The allowed (lowest, highest) x and y of a box's corner, for an object of `pixels` at a named place."""
    jitter = min(scene_size) * (SINGLE_JITTER if layout == "single" else SEVERAL_JITTER)
    middles = [unit * length - pixels / 2 for unit, length in zip(PLACES[layout][place], scene_size)]
    x, y = ((math.ceil(middle - jitter), math.floor(middle + jitter)) for middle in middles)
    return x, y


def place_thing(
    rng: np.random.Generator, scene_size: tuple[int, int], layout: str, kind: Kind, size: str, place: str
) -> Thing:
    """An object of this kind and size at a named place of a picture of `scene_size` (width, height) pixels."""
    side = min(scene_size)
    low, high = (SINGLE_SIZES if layout == "single" else SEVERAL_SIZES)[size]
    pixels = whole(rng, math.ceil(low * side), math.floor(high * side))
    x, y = corners(scene_size, layout, place, pixels)
    return Thing(kind[0], kind[1], size, place, pixels, whole(rng, *x), whole(rng, *y))


def _free_kinds(rng: np.random.Generator, count: int, weights: Mapping[Kind, float]) -> list[Kind]:
    """`count` kinds; a quarter of the time all the same, else sometimes in groups, else each on its own."""
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
    """`count` kinds: none of the held-out pairs among them, or (`held_out`, count >= 2) at least one; if `distinct`, no
    colour twice."""
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
    """A random scene: `counts` weighs the number of objects, `sizes` the (width, height) in pixels, `kinds` what
    objects are.

    `grid` puts two objects in a grid, too. With `held_out` the scene has a held-out pair. With `distinct` no colour
    comes twice.
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

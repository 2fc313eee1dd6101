"""Edit scenes: which changes are possible, and the scenes they lead to."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fusion.worlds.shapes.chance import chance, pick, some, whole
from fusion.worlds.shapes.constants import COLOURS, GROUNDS, KINDS, MOVE, SHAPES, Kind, has_held_out
from fusion.worlds.shapes.expect import Edit
from fusion.worlds.shapes.scene import Scene, Thing, corners, place_thing, relation

Change = tuple[Edit, Scene]  # the edit, and the scene it leads to

DIRECTIONS = {"left": ("x", -1), "right": ("x", 1), "up": ("y", -1), "down": ("y", 1)}


def unique(scene: Scene) -> list[int]:
    """Return the indices of the objects whose kind occurs once, so that shape and colour identify them."""
    kinds = scene.kinds
    return [index for index, kind in enumerate(kinds) if kinds.count(kind) == 1]


def _allowed(scene: Scene, kinds: list[Kind]) -> list[Kind]:
    """Return those of the kinds that may be introduced: not yet in the scene, and without creating a held-out pair.

    The kind that is replaced counts too, because one sentence names both. A scene that already has a held-out pair may
    get more.
    """
    present, free = scene.kinds, scene.held_out
    return [kind for kind in kinds if kind not in present and (free or not has_held_out((*present, kind)))]


def recolour(rng: np.random.Generator, scene: Scene) -> Change | None:
    """Change the colour of one object; return the edit and the new scene, or None if no colour is allowed."""
    index = pick(rng, unique(scene))
    shape, old = scene.kinds[index]
    choices = _allowed(scene, [(shape, colour) for colour in COLOURS])
    if not choices:
        return None
    colour = pick(rng, choices)[1]
    return Edit("recolour", (shape, old), colour=colour), scene.with_thing(index, colour=colour)


def reshape(rng: np.random.Generator, scene: Scene) -> Change | None:
    """Change the shape of one object; return the edit and the new scene, or None if no shape is allowed."""
    index = pick(rng, unique(scene))
    old, colour = scene.kinds[index]
    choices = _allowed(scene, [(shape, colour) for shape in SHAPES])
    if not choices:
        return None
    shape = pick(rng, choices)[0]
    return Edit("reshape", (old, colour), shape=shape), scene.with_thing(index, shape=shape)


def add(rng: np.random.Generator, scene: Scene) -> Change | None:
    """Add an object in a free cell of the grid; return the edit and the new scene, or None if that is impossible.

    The edit names a place, a relation to another object, or neither.
    """
    kind = pick(rng, KINDS)
    if scene.layout != "grid" or not scene.free_places or not _allowed(scene, [kind]):
        return None
    place, size = pick(rng, scene.free_places), pick(rng, ("small", "large"))
    thing = place_thing(rng, scene.image_size, "grid", kind, size, place)
    after, told_size, style = (
        replace(scene, things=(*scene.things, thing)),
        size if chance(rng, 0.4) else None,
        rng.random(),
    )
    how = [(index, relation(after, len(scene.things), index)) for index in unique(scene)]
    neighbours = [(scene.kinds[index], name) for index, name in how if name is not None]
    if style < 0.4 and neighbours:
        other, name = pick(rng, neighbours)
        return Edit("add", kind, other=other, relation=name, size=told_size), after
    return Edit("add", kind, place=place if style < 0.8 else None, size=told_size), after


def remove(rng: np.random.Generator, scene: Scene) -> Change | None:
    """Remove one object; return the edit and the new scene, or None if there are fewer than three objects.

    At least two objects stay, since a single one would have to stand in the middle.
    """
    if len(scene.things) < 3:
        return None
    index = pick(rng, unique(scene))
    rest = scene.things[:index] + scene.things[index + 1 :]
    return Edit("remove", scene.kinds[index]), replace(scene, things=rest)


def move(rng: np.random.Generator, scene: Scene) -> Change | None:
    """Move one object; return the edit and the new scene, or None if that is impossible.

    A single object moves in a direction, one of several to a free cell of the grid.
    """
    if scene.layout == "single":
        direction = pick(rng, tuple(DIRECTIONS))
        after = shift(rng, scene, direction)
        return after and (Edit("move", scene.things[0].kind, direction=direction), after)
    if scene.layout != "grid" or not scene.free_places:
        return None
    index, place = pick(rng, unique(scene)), pick(rng, scene.free_places)
    thing = scene.things[index]
    x, y = corners(scene.image_size, "grid", place, thing.pixels)
    return Edit("move", thing.kind, place=place), scene.with_thing(
        index, place=place, x=whole(rng, *x), y=whole(rng, *y)
    )


def shift(rng: np.random.Generator, scene: Scene, direction: str) -> Scene | None:
    """Move a single object clearly (by at least MOVE) in a direction; return None if there is no room for that."""
    thing = scene.things[0]
    axis, sign = DIRECTIONS[direction]
    low, high = corners(scene.image_size, "single", "middle", thing.pixels)[axis == "y"]
    start, step = getattr(thing, axis), math.ceil(MOVE * scene.side)
    low, high = (low, start - step) if sign < 0 else (start + step, high)
    return scene.with_thing(0, **{axis: whole(rng, low, high)}) if low <= high else None


def swap(rng: np.random.Generator, scene: Scene) -> Change | None:
    """Exchange two objects; return the edit and the new scene, or None if fewer than two objects are unique.

    Each keeps its size, and its centre goes to where the other's was.
    """
    if len(unique(scene)) < 2:
        return None
    first, second = some(rng, unique(scene), 2)
    return Edit("swap", scene.kinds[first], other=scene.kinds[second]), exchange(scene, first, second)


def exchange(scene: Scene, first: int, second: int) -> Scene:
    """Return the scene with the objects of these indices in each other's places."""
    one, two = scene.things[first], scene.things[second]
    return scene.with_thing(first, **_standing_for(scene, one, two)).with_thing(
        second, **_standing_for(scene, two, one)
    )


def _standing_for(scene: Scene, thing: Thing, other: Thing) -> dict:
    allowed = corners(scene.image_size, scene.layout, other.place, thing.pixels)
    wanted = (middle - thing.pixels / 2 for middle in other.centre)
    x, y = (min(max(round(corner), low), high) for corner, (low, high) in zip(wanted, allowed))
    return {"place": other.place, "x": x, "y": y}


def change_ground(rng: np.random.Generator, scene: Scene) -> Change | None:
    """Change the colour of the ground; return the edit and the new scene."""
    ground = pick(rng, [name for name in GROUNDS if name != scene.ground])
    return Edit("ground", ground=ground), replace(scene, ground=ground)


EDITS: dict[str, Callable[[np.random.Generator, Scene], Change | None]] = {
    "recolour": recolour,
    "reshape": reshape,
    "add": add,
    "remove": remove,
    "move": move,
    "swap": swap,
    "ground": change_ground,
}
_KINDS = tuple(EDITS)


def try_edit(rng: np.random.Generator, scene: Scene, kind: str) -> Change | None:
    """Return a random edit of this kind and the scene it leads to, or None where the scene does not allow one."""
    if kind not in ("ground", "add") and not unique(scene):
        return None
    return EDITS[kind](rng, scene)


def any_edit(rng: np.random.Generator, scene: Scene) -> Change:
    """Return a random edit of any kind that the scene allows, and the scene it leads to.

    A change of ground is always allowed.
    """
    while (made := try_edit(rng, scene, pick(rng, _KINDS))) is None:
        pass
    return made

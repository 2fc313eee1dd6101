"""Judge from pixels alone whether an image shows what was requested and whether an edit was done."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fusion.worlds.shapes.constants import MOVE, Kind
from fusion.worlds.shapes.expect import Edit, Expectation, Question, Wanted
from fusion.worlds.shapes.vision import Reading, Seen, as_pixels, on_ground, read

AnyImage = UInt8[np.ndarray, "_ _ 3"] | Image.Image  # any size: `_` binds no dimension

STEP = 0.25  # least distance of related objects along their axis, and limit across it, in units of the shorter side
SAME_PLACE = 0.07  # tolerance of an unchanged position, in units of the shorter side: 2 pixels of 32
SAME_SIZE = 0.12  # tolerance of an unchanged size, in the same units
MARGIN, SAME_PIXEL = 2, 8  # boxes of changed objects grow by 2 pixels; others must stay within 8 of 255

Demand = Callable[[Seen], bool]


@dataclass(frozen=True)
class Verdict:
    """The result of checking an image: `ok` if it is clean and shows all that was requested.

    `reasons` says what is wrong otherwise. `colours_present`: every requested colour occurs (on any shape).
    `count_right`: as many objects as requested. `objects_right`: every requested shape, colour, size and place is
    there. `relations_right`: the relations as well.
    """

    ok: bool
    reasons: tuple[str, ...]
    colours_present: bool
    count_right: bool
    objects_right: bool
    relations_right: bool


def holds(how: str, first: Seen, second: Seen, side: int) -> bool:
    """Return whether `first` is left of, right of, above or below `second` (`how`); False for diagonal neighbours.

    side: the image's shorter side in pixels.
    """
    dx, dy = (b - a for a, b in zip(first.centre, second.centre))
    along, across = (dx, dy) if how in ("left of", "right of") else (dy, dx)
    if how in ("right of", "below"):
        along = -along
    return along >= STEP * side and abs(across) < STEP * side


def at_place(place: str, seen: Seen, reading: Reading) -> bool:
    """Return whether the object is at a named place: a half, a quarter or the middle third of the image."""
    u, v = seen.centre[0] / reading.width, seen.centre[1] / reading.height
    if place == "middle":
        return max(abs(u - 0.5), abs(v - 0.5)) <= 1 / 6 + 0.02
    sides = {"left": u < 0.5, "right": u > 0.5, "top": v < 0.5, "bottom": v > 0.5}
    return all(sides[word] for word in place.split())


def fits(want: Wanted, seen: Seen, reading: Reading) -> bool:
    """Return whether the object has every attribute that is wanted."""
    pairs = ((want.shape, seen.shape), (want.colour, seen.colour), (want.size, seen.size))
    return all(asked is None or asked == found for asked, found in pairs) and (
        want.place is None or at_place(want.place, seen, reading)
    )


def _arrangements(reading: Reading, wanted: tuple[Wanted, ...]) -> list[tuple[Seen, ...]]:
    """Return every assignment of the objects to what is wanted, in the order of `wanted`."""
    if len(reading.objects) != len(wanted) or len(wanted) > 4:
        return []
    fit = [[fits(want, seen, reading) for seen in reading.objects] for want in wanted]
    orders = [order for order in permutations(range(len(wanted))) if all(row[index] for row, index in zip(fit, order))]
    return [tuple(reading.objects[index] for index in order) for order in orders]


def check(image: AnyImage, expectation: Expectation) -> Verdict:
    """Check that the image shows exactly what is expected and nothing else; dirt and unclear shapes fail."""
    reading = read(image)
    missing = sorted(expectation.colours - reading.colours)
    count_right = len(reading.objects) == len(expectation.wanted)
    orders = _arrangements(reading, expectation.wanted)
    related = any(
        all(holds(how, order[one], order[two], reading.side) for one, how, two in expectation.relations)
        for order in orders
    )
    reasons = list(reading.flaws)
    if missing:
        reasons.append(f"missing colours: {', '.join(missing)}")
    if not count_right:
        reasons.append(f"{len(reading.objects)} objects instead of {len(expectation.wanted)}")
    elif not orders:
        found = ", ".join(f"{seen.size} {seen.colour} {seen.shape}" for seen in reading.objects)
        reasons.append(f"the objects are not those asked for: {found}")
    elif not related:
        reasons.append("the asked relation does not hold")
    if expectation.ground not in (None, reading.ground):
        reasons.append(f"the ground is {reading.ground} instead of {expectation.ground}")
    if expectation.image_size not in (None, (reading.width, reading.height)):
        reasons.append(
            f"the image is {reading.width}x{reading.height}, not {'x'.join(map(str, expectation.image_size))}"
        )
    return Verdict(not reasons, tuple(reasons), not missing, count_right, bool(orders), related)


@dataclass(frozen=True)
class EditVerdict:
    """The result of checking an edit: `done` if the change is there and all else is as before.

    `reasons` says why it is not done. `kept`: share of the pixels outside the changed objects' boxes (before and after,
    grown by 2) that stay within 8 of 255 in every channel. For a change of ground they are compared with the image
    before on the new ground. `asked`: the requested change is there and the number of objects is right, whatever else
    happened to the others.
    """

    done: bool
    reasons: tuple[str, ...]
    kept: float
    asked: bool


def edit_done(before: AnyImage, after: AnyImage, edit: Edit) -> EditVerdict:
    """Check that `after` is `before` with the requested change and nothing else, and measure how much was kept."""
    old, new = read(before), read(after)
    reasons = [f"before: {flaw}" for flaw in old.flaws] + [f"after: {flaw}" for flaw in new.flaws]
    named = [kind for kind in (None if edit.kind == "add" else edit.target, edit.other) if kind is not None]
    unclear = [kind for kind in named if [seen.kind for seen in old.objects].count(kind) != 1]
    reasons += [f"before: not exactly one {colour} {shape}" for shape, colour in unclear]
    changed = [seen for seen in old.objects if seen.kind in named and (edit.kind != "add")]
    stay = [seen for seen in old.objects if seen not in changed]
    there = not unclear and _there(old, new, edit, len(stay))
    if reasons:
        return EditVerdict(False, tuple(reasons), _kept(before, after, edit, changed), there)
    asked = _asked(old, new, edit)
    demands = [_as_before(seen, seen.kind, seen.centre, old.side) for seen in stay] + asked
    match = _match(new.objects, demands)
    if len(new.objects) != len(demands):
        reasons.append(f"after: {len(new.objects)} objects instead of {len(demands)}")
    elif match is None:
        reasons.append("after: the objects are not those before with the asked change")
    if new.ground != (edit.ground or old.ground):
        reasons.append(f"after: the ground is {new.ground} instead of {edit.ground or old.ground}")
    kept = _kept(before, after, edit, changed + list((match or ())[len(stay) :]))
    return EditVerdict(not reasons, tuple(reasons), kept, there)


def _there(old: Reading, new: Reading, edit: Edit, stay: int) -> bool:
    """Return whether the requested change is there, beside `stay` other objects."""
    demands = _asked(old, new, edit)
    if len(new.objects) != stay + len(demands):
        return False
    if edit.kind == "remove":
        return edit.target not in [seen.kind for seen in new.objects]
    if edit.kind == "ground":
        return new.ground == edit.ground
    return any(_match(some, demands) is not None for some in combinations(new.objects, len(demands)))


def _as_before(seen: Seen, kind: Kind, centre: tuple[float, float], side: int) -> Demand:
    """Return a test for an object of this kind at this centre, of the same size as `seen`."""
    size = seen.box[2] - seen.box[0]

    def met(new: Seen) -> bool:
        apart = max(abs(one - two) for one, two in zip(new.centre, centre))
        resized = abs(new.box[2] - new.box[0] - size)
        return new.kind == kind and apart <= SAME_PLACE * side and resized <= SAME_SIZE * side

    return met


def _asked(old: Reading, new: Reading, edit: Edit) -> list[Demand]:
    """Return tests that the changed objects must pass after the edit, one per object."""
    by_kind = {seen.kind: seen for seen in old.objects}
    if edit.kind in ("remove", "ground"):
        return []
    if edit.kind == "add":
        return [lambda seen: _added(seen, by_kind, new, edit)]
    target = by_kind[edit.target]
    if edit.kind == "move":
        return [lambda seen: _moved(seen, target, new, edit)]
    if edit.kind == "swap":
        other = by_kind[edit.other]
        return [_as_before(one, one.kind, two.centre, old.side) for one, two in ((target, other), (other, target))]
    kind = (edit.shape or target.shape, edit.colour or target.colour)
    return [_as_before(target, kind, target.centre, old.side)]


def _added(seen: Seen, by_kind: dict[Kind, Seen], new: Reading, edit: Edit) -> bool:
    if not fits(Wanted(*edit.target, edit.size, edit.place), seen, new):
        return False
    return edit.relation is None or holds(edit.relation, seen, by_kind[edit.other], new.side)


def _moved(seen: Seen, target: Seen, new: Reading, edit: Edit) -> bool:
    """Return whether the object is at the requested place, or has clearly moved in the requested direction alone."""
    if edit.place is not None:
        place = fits(Wanted(*edit.target, None, edit.place), seen, new)
        return place and abs(seen.box[2] - seen.box[0] - (target.box[2] - target.box[0])) <= SAME_SIZE * new.side
    axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[edit.direction]
    step = sign * (seen.centre[axis] - target.centre[axis])
    along = (seen.centre[0], target.centre[1]) if axis == 0 else (target.centre[0], seen.centre[1])
    return step >= (MOVE - SAME_PLACE / 2) * new.side and _as_before(target, target.kind, along, new.side)(seen)


def _match(objects: tuple[Seen, ...], demands: list[Demand]) -> tuple[Seen, ...] | None:
    """Return the objects in an order that meets the demands one by one, or None if there is none."""
    if len(objects) != len(demands):
        return None
    met = [[demand(seen) for seen in objects] for demand in demands]
    for order in permutations(range(len(objects))):
        if all(row[index] for row, index in zip(met, order)):
            return tuple(objects[index] for index in order)
    return None


def _kept(before: AnyImage, after: AnyImage, edit: Edit, changed: list[Seen]) -> float:
    first, second = as_pixels(before), as_pixels(after)
    if first.shape != second.shape:
        return 0.0
    expected = on_ground(before, edit.ground) if edit.kind == "ground" else first.astype(np.float32)
    outside = np.ones(first.shape[:2], dtype=bool)
    for seen in changed:
        left, top = (max(0, int(np.floor(edge)) - MARGIN) for edge in seen.box[:2])
        right, bottom = (int(np.ceil(edge)) + MARGIN for edge in seen.box[2:])
        outside[top:bottom, left:right] = False
    same = (np.abs(expected - second) <= SAME_PIXEL).all(-1)
    return float(same[outside].mean())


def answer_right(question: Question, reply: str) -> bool:
    """Return whether a reply is the correct answer, disregarding case, a final stop and an article."""
    words = reply.lower().strip().rstrip(".!").split()
    return " ".join(words[1:] if words[:1] in (["a"], ["an"]) else words) == question.answer

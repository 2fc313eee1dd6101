"""The judge: whether a picture shows what was asked and whether an edit was done, from pixels only."""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fusion.data.shapes.expect import Expectation, Wanted
from fusion.data.shapes.vision import Reading, Seen, read

Picture = UInt8[np.ndarray, "h w 3"] | Image.Image

STEP = 0.25  # related objects stand at least this far apart, in units of the shorter side, and closer across


@dataclass(frozen=True)
class Verdict:
    """`ok` if all that was asked is true of a clean picture; otherwise `reasons` says what is wrong.

    `colours_present`: every asked colour occurs (whatever its shape). `count_right`: as many objects as asked.
    `objects_right`: every asked shape, colour, size and place is there. `relations_right`: the relations as well.
    """

    ok: bool
    reasons: tuple[str, ...]
    colours_present: bool
    count_right: bool
    objects_right: bool
    relations_right: bool


def holds(how: str, first: Seen, second: Seen, side: int) -> bool:
    """Whether `first` is left of, right of, above or below `second`; diagonal neighbours are neither."""
    dx, dy = (b - a for a, b in zip(first.centre, second.centre))
    along, across = (dx, dy) if how in ("left of", "right of") else (dy, dx)
    if how in ("right of", "below"):
        along = -along
    return along >= STEP * side and abs(across) < STEP * side


def at_place(place: str, seen: Seen, reading: Reading) -> bool:
    """Whether the object stands at a named place: a half, a quarter or the middle third of the picture."""
    u, v = seen.centre[0] / reading.width, seen.centre[1] / reading.height
    if place == "middle":
        return max(abs(u - 0.5), abs(v - 0.5)) <= 1 / 6 + 0.02
    sides = {"left": u < 0.5, "right": u > 0.5, "top": v < 0.5, "bottom": v > 0.5}
    return all(sides[word] for word in place.split())


def fits(want: Wanted, seen: Seen, reading: Reading) -> bool:
    """Whether the object has every attribute that was asked for."""
    pairs = ((want.shape, seen.shape), (want.colour, seen.colour), (want.size, seen.size))
    return all(asked is None or asked == found for asked, found in pairs) and (
        want.place is None or at_place(want.place, seen, reading)
    )


def _arrangements(reading: Reading, wanted: tuple[Wanted, ...]) -> list[tuple[Seen, ...]]:
    """Every way to pair the objects with what was asked, in the order asked."""
    if len(reading.objects) != len(wanted) or len(wanted) > 4:
        return []
    orders = permutations(reading.objects)
    return [order for order in orders if all(fits(want, seen, reading) for want, seen in zip(wanted, order))]


def check(image: Picture, expectation: Expectation) -> Verdict:
    """Whether the picture shows exactly what was asked, and nothing else. Strict: dirt and unclear shapes fail."""
    reading = read(image)
    missing = sorted(expectation.colours - reading.colours)
    count_right = len(reading.objects) == len(expectation.wanted)
    orders = _arrangements(reading, expectation.wanted)
    related = any(
        all(holds(how, order[one], order[two], reading.side) for one, how, two in expectation.relations) for order in orders
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
    if expectation.picture_size not in (None, (reading.width, reading.height)):
        reasons.append(f"the picture is {reading.width}x{reading.height}, not {'x'.join(map(str, expectation.picture_size))}")
    return Verdict(not reasons, tuple(reasons), not missing, count_right, bool(orders), related)

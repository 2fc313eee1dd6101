"""The frozen definition of the built-in world: names, palette, ranges and the held-out tenth of the object pairs.

A change of any value here requires a new `WORLD_VERSION`; figures measured on another version are not comparable.
"""

import hashlib
from itertools import combinations

WORLD_VERSION = 1

SHAPES = ("circle", "square", "triangle", "cross")

# Well apart from each other and from the grounds, and so are all mixtures of a colour with a ground (edges are
# mixtures): `tests/worlds/test_shapes_judge.py` checks the distances.
COLOURS = {
    "red": (215, 25, 45),
    "green": (35, 155, 65),
    "blue": (35, 70, 220),
    "yellow": (255, 225, 30),
    "orange": (245, 120, 20),
    "purple": (145, 45, 180),
    "black": (20, 20, 20),
    "cyan": (40, 195, 225),
}
GROUNDS = {"white": (255, 255, 255), "light grey": (196, 196, 200), "beige": (245, 220, 170)}

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

CROSS_ARM = 1 / 3  # width of a cross's arms, in units of its box

# Sizes are fractions of the image's shorter side: (smallest, largest).
SINGLE_SIZES = {"small": (0.35, 0.41), "large": (0.49, 0.55)}
SEVERAL_SIZES = {"small": (0.25, 0.28), "large": (0.34, 0.375)}
SINGLE_JITTER = 1 / 6
SEVERAL_JITTER = 1 / 20

MOVE = 1 / 8  # least distance of a single object's move, in units of the shorter side

# A measured object counts as large from here on: halfway between the two ranges.
SINGLE_LARGE = 0.45
SEVERAL_LARGE = 0.31

IMAGE_SIZES = (
    (32, 32),
    (48, 32),
    (32, 48),
    (48, 48),
    (64, 48),
    (48, 64),
    (64, 64),
    (64, 32),
    (32, 64),
)  # width, height

# Object counts with which an edit is possible; two objects must be in a grid for `add` and `move`.
EDIT_COUNTS = {
    "recolour": (1, 2, 3, 4),
    "reshape": (1, 2, 3, 4),
    "ground": (1, 2, 3, 4),
    "swap": (2, 3, 4),
    "move": (1, 2, 3),
    "add": (2, 3),
    "remove": (3, 4),
}

QUESTION_KINDS = ("count", "colour", "shape", "exists", "where")

# The kind of an object, regardless of its place: (shape, colour).
Kind = tuple[str, str]
KINDS: tuple[Kind, ...] = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)


def _held_out_pairs() -> frozenset[frozenset[Kind]]:
    """Return a tenth of the 496 unordered pairs of two different kinds: those whose names have the lowest hashes."""

    def digest(pair: tuple[Kind, Kind]) -> str:
        return hashlib.sha256("|".join(f"{colour} {shape}" for shape, colour in pair).encode()).hexdigest()

    pairs = sorted(combinations(KINDS, 2), key=digest)
    return frozenset(frozenset(pair) for pair in pairs[: round(len(pairs) / 10)])


# Two kinds that form a held-out pair never share a training image or a training sentence, in any relation.
HELD_OUT: frozenset[frozenset[Kind]] = _held_out_pairs()

_BOTH_WAYS = {order for one, two in map(tuple, HELD_OUT) for order in ((one, two), (two, one))}


def has_held_out(kinds: list[Kind] | tuple[Kind, ...]) -> bool:
    """Return whether any two of these (shape, colour) kinds form a held-out pair."""
    return any(pair in _BOTH_WAYS for pair in combinations(kinds, 2))

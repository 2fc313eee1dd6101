"""Read images of the world from pixels alone: ground, connected objects, and their shapes by template matching."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from fusion.worlds.shapes.constants import COLOURS, CROSS_ARM, GROUNDS, SEVERAL_LARGE, SHAPES, SINGLE_LARGE

TOLERANCE = 48.0  # RGB distance at which a pixel still counts as a palette colour; noise of +-10 reaches 17
MIN_GROUND = 0.25  # four large squares leave 0.43 of an image
MIN_FIT, MIN_LEAD = 0.80, 0.03  # soft overlap with the best template, and its lead over the second best
SHARPNESS = 2.5  # how much steeper edges are made before templates are compared
MAX_SOFTNESS = 2.2  # mean width of the edges in pixels, roughly: a 1-2-1 blur is read, 1-4-6-4-1 is not
OBJECT_RANGE = (0.20, 0.62)  # sizes in units of the shorter side: the frozen ranges with some tolerance
MAX_DIRT = 0.02  # share of pixels that neither ground nor objects explain
SPECK = 0.01  # connected pixels below this share of the squared shorter side are dirt, not an object

_COLOUR_NAMES, _GROUND_NAMES = tuple(COLOURS), tuple(GROUNDS)
_PALETTE = np.array([*COLOURS.values()], dtype=np.float32)
_GROUNDS = np.array([*GROUNDS.values()], dtype=np.float32)

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Seen:
    """One object read from an image. `shape` is None where no template fits.

    `size` is "small" or "large", `centre` and `box` (left, top, right, bottom) are in pixels, `area` is in pixels,
    `confidence` is the soft overlap with the template, 0 to 1.
    """

    shape: str | None
    colour: str
    size: str
    centre: tuple[float, float]
    box: Box
    area: float
    confidence: float

    @property
    def kind(self) -> tuple[str | None, str]:
        return self.shape, self.colour


@dataclass(frozen=True)
class Reading:
    """The content read from an image.

    `ground` is None where none of the grounds fills it; `dirt` is the share of pixels that neither ground nor objects
    explain; `colours` are those of the objects.
    """

    width: int
    height: int
    ground: str | None
    objects: tuple[Seen, ...]
    dirt: float
    colours: frozenset[str]

    @property
    def side(self) -> int:
        return min(self.width, self.height)

    @property
    def flaws(self) -> tuple[str, ...]:
        """Reasons why this is not a clean image of the world; empty if it is one."""
        if self.ground is None:
            return ("no ground colour fills the image",)
        found = [f"a {seen.colour} object has no clear shape" for seen in self.objects if seen.shape is None]
        if self.dirt > MAX_DIRT:
            found.append(f"{self.dirt:.0%} of the image is neither ground nor object")
        return tuple(found)


def as_pixels(image: UInt8[np.ndarray, "h w 3"] | Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Return the RGB pixels of an array or a PIL image; raises ValueError for anything else."""
    pixels = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        what = (
            f"{pixels.dtype} array of shape {pixels.shape}" if isinstance(pixels, np.ndarray) else type(image).__name__
        )
        raise ValueError(f"the judge reads PIL images or uint8 arrays of shape (h, w, 3), got {what}")
    return pixels


def connected(values: Int[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "h w"], list[int]]:
    """Label the 4-connected regions of equal positive values; return labels (0 outside, 1 to n) and each region's area.

    Runs of equal values in each row are joined by union-find with the touching runs of the row above.
    """
    change = np.ones(values.shape, dtype=bool)
    change[:, 1:] = values[:, 1:] != values[:, :-1]
    rows, starts = (index.tolist() for index in np.nonzero(change))
    stops = [start if start else values.shape[1] for start in starts[1:] + [0]]
    value = values[change].tolist()
    parent = list(range(len(rows)))  # of each run: an earlier run of its region, or itself

    above = 0
    for run in range(len(rows)):
        while rows[above] < rows[run] - 1:
            above += 1
        other = above
        while rows[other] < rows[run] and starts[other] < stops[run]:
            if stops[other] > starts[run] and value[other] == value[run]:
                one, two = run, other
                while parent[one] != one:
                    one = parent[one]
                while parent[two] != two:
                    two = parent[two]
                parent[max(one, two)] = min(one, two)
            other += 1
        while rows[above] < rows[run] and stops[above] <= stops[run]:
            above += 1

    numbers: dict[int, int] = {}
    labels, areas = np.zeros_like(values), []
    for run in range(len(rows)):
        parent[run] = parent[parent[run]]  # earlier runs point to their region's first run already
        if value[run] == 0:
            continue
        number = numbers.setdefault(parent[run], len(numbers) + 1)
        if number > len(areas):
            areas.append(0)
        areas[number - 1] += stops[run] - starts[run]
        labels[rows[run], starts[run] : stops[run]] = number
    return labels, areas


def _grow(labels: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Spread labels to their unlabelled 8-neighbours."""
    around = np.pad(labels, 1)
    around = np.maximum(np.maximum(around[:, :-2], around[:, 1:-1]), around[:, 2:])
    around = np.maximum(np.maximum(around[:-2], around[1:-1]), around[2:])
    return np.where(labels == 0, around, labels)


def _span(offset: np.ndarray, half: float) -> np.ndarray:
    """Return the share of unit pixels with centres at `offset` that lies between -half and half."""
    return np.clip(np.minimum(offset + 0.5, half) - np.maximum(offset - 0.5, -half), 0, 1)


# Per shape of SHAPES, in units of its size: area, perimeter, and how far below the box's middle its centre of mass
# lies.
_AREA = np.array([np.pi / 4, 1.0, 0.5, 2 * CROSS_ARM - CROSS_ARM**2])
_PERIMETER = np.array([np.pi, 4.0, 1 + np.sqrt(5), 4.0])
_SINK = np.array([0.0, 0.0, 1 / 6, 0.0])


def templates(
    height: int,
    width: int,
    middle_x: Float[np.ndarray, " k"],
    middle_y: Float[np.ndarray, " k"],
    size: Float[np.ndarray, " k"],
) -> Float[np.ndarray, "k h w"]:
    """Return the share of each pixel that each shape of SHAPES covers, in a box of its own centre and size in pixels.

    Squares and crosses by exact overlaps, circles and triangles by the distance to the edge.
    """
    x = np.arange(width)[None, :] + 0.5 - middle_x[:, None]
    y = np.arange(height)[None, :] + 0.5 - middle_y[:, None]
    circle, square, triangle, cross = size / 2
    arm = CROSS_ARM * cross
    leg = ((y[2][:, None] + triangle) / 2 - np.abs(x[2])) * (
        2 / np.sqrt(5)
    )  # distance to the nearer leg, base = height
    bars = [np.outer(_span(y[3], tall), _span(x[3], wide)) for tall, wide in ((cross, arm), (arm, cross))]
    return np.stack(
        [
            np.clip(circle + 0.5 - np.hypot(x[0], y[0][:, None]), 0, 1),
            np.outer(_span(y[1], square), _span(x[1], square)),
            np.clip(leg + 0.5, 0, 1) * _span(y[2], triangle)[:, None],
            np.maximum(*bars),
        ]
    )


def _fit(alpha: Float[np.ndarray, "h w"]) -> tuple[str | None, Box, float]:
    """Find the shape whose template overlaps best; return it (None if unclear), its box and the overlap.

    Size and place of the templates follow from area and centre of mass. Both masks are sharpened around one half
    before, so that a slightly blurred edge costs nothing.
    """
    height, width = alpha.shape
    area = alpha.sum()
    middle_x = np.full(len(SHAPES), alpha.sum(0) @ (np.arange(width) + 0.5) / area)
    size = np.sqrt(area / _AREA)
    middle_y = alpha.sum(1) @ (np.arange(height) + 0.5) / area - _SINK * size
    masks = np.clip(SHARPNESS * (templates(height, width, middle_x, middle_y, size) - 0.5) + 0.5, 0, 1)
    sharp = np.clip(SHARPNESS * (alpha - 0.5) + 0.5, 0, 1)
    overlap = np.minimum(sharp, masks).sum((1, 2)) / np.maximum(sharp, masks).sum((1, 2))
    second, best = np.argsort(overlap)[-2:]
    softness = 4 * (alpha * (1 - alpha)).sum() / (_PERIMETER[best] * size[best])
    clear = overlap[best] >= MIN_FIT and overlap[best] - overlap[second] >= MIN_LEAD and softness <= MAX_SOFTNESS
    left, top = middle_x[best] - size[best] / 2, middle_y[best] - size[best] / 2
    box = (left, top, left + size[best], top + size[best])
    return SHAPES[best] if clear else None, box, float(overlap[best])


def _dot(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return the dot products of the colours of two images, pixel by pixel: (h, w)."""
    return np.einsum("hwc,hwc->hw", one, two)


def _ground_of(rgb: Float[np.ndarray, "h w 3"]) -> tuple[int, float]:
    """Return the index of the ground that most pixels are near, and their share."""
    near = [float((_dot(rgb - ground, rgb - ground) <= TOLERANCE**2).mean()) for ground in _GROUNDS]
    return int(np.argmax(near)), max(near)


def _cores(rgb: Float[np.ndarray, "h w 3"], ground: int) -> Int[np.ndarray, "h w"]:
    """Return for each pixel 1 + the index of the palette colour it shows, or 0 for none.

    Mixtures with less than half of ground are included. The criterion is the distance to the mixtures of ground and
    colour, not to the colour: a soft red edge on beige is closer to orange than to red, but further from the mixtures
    of orange.
    """
    offset, direction = rgb - _GROUNDS[ground], _PALETTE - _GROUNDS[ground]
    length, along = (direction**2).sum(-1), offset @ direction.T
    share = np.minimum(along / length, 1)
    squared = _dot(offset, offset)[..., None] - 2 * share * along + share**2 * length
    squared[share < 0.5] = np.inf
    return np.where(squared.min(-1) <= TOLERANCE**2, 1 + squared.argmin(-1), 0)


@dataclass(frozen=True)
class Matte:
    """An image split into objects on a ground. `ground` and `colours` (one per object) are indices.

    `filled` is the share of pixels near that ground. `owner` is 0, or 1 + the index of the object to whose core or
    surroundings the pixel belongs, `alpha` that object's share of the pixel (0 where the pixel is no mixture of its
    colour and the ground), `explained` whether ground or object explain the pixel.
    """

    ground: int
    filled: float
    colours: tuple[int, ...]
    owner: Int[np.ndarray, "h w"]
    alpha: Float[np.ndarray, "h w"]
    explained: Bool[np.ndarray, "h w"]


def matte(pixels: UInt8[np.ndarray, "h w 3"]) -> Matte:
    """Split an image into objects on a ground.

    Pixels near a palette colour form connected cores, which are grown to take in their soft edges.
    """
    rgb = pixels.astype(np.float32)
    ground, filled = _ground_of(rgb)
    near = _cores(rgb, ground)
    labels, areas = connected(near)
    number = np.zeros(len(areas) + 1, dtype=labels.dtype)
    kept = [index for index, area in enumerate(areas, 1) if area >= SPECK * min(pixels.shape[:2]) ** 2]
    number[kept] = np.arange(1, len(kept) + 1)
    labels = number[labels]
    colours = np.zeros(len(kept) + 1, dtype=labels.dtype)
    colours[labels] = near - 1
    owner = _grow(_grow(labels))
    direction, offset = _PALETTE[colours[owner]] - _GROUNDS[ground], rgb - _GROUNDS[ground]
    along, length, squared = _dot(offset, direction), _dot(direction, direction), _dot(offset, offset)
    alpha = np.clip(along / length, 0, 1)
    mixed = (owner > 0) & (squared - 2 * alpha * along + alpha**2 * length <= TOLERANCE**2)
    explained = mixed | (squared <= TOLERANCE**2)
    return Matte(ground, filled, tuple(colours[1:].tolist()), owner, alpha * mixed, explained)


def _seen(split: Matte, number: int, side: int) -> Seen:
    """Read object `number` (from 0) by fitting templates in the window around its pixels.

    side: the image's shorter side in pixels.
    """
    mine = split.owner == number + 1
    rows, columns = np.flatnonzero(mine.any(1)), np.flatnonzero(mine.any(0))
    top, left = rows[0], columns[0]
    window = (split.alpha * mine)[top : rows[-1] + 1, left : columns[-1] + 1]
    shape, inner, confidence = _fit(window)
    box = tuple(float(edge + start) for edge, start in zip(inner, (left, top, left, top)))
    size = (box[2] - box[0]) / side
    large = SINGLE_LARGE if len(split.colours) == 1 else SEVERAL_LARGE
    return Seen(
        shape=shape if OBJECT_RANGE[0] <= size <= OBJECT_RANGE[1] else None,
        colour=_COLOUR_NAMES[split.colours[number]],
        size="large" if size >= large else "small",
        centre=((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),
        box=box,
        area=float(window.sum()),
        confidence=confidence,
    )


def read(image: UInt8[np.ndarray, "h w 3"] | Image.Image) -> Reading:
    """Read an image of the world from its pixels; raises ValueError unless it is a PIL image or a uint8 RGB array.

    The share of colour in every pixel of an object, measured between ground and colour, is compared with templates of
    the shapes. Colour noise of +-10 and slightly blurred edges are read; what neither ground nor an object explains
    counts as dirt.
    """
    pixels = as_pixels(image)
    split = matte(pixels)
    height, width, _ = pixels.shape
    colours = frozenset(_COLOUR_NAMES[index] for index in split.colours)
    if split.filled < MIN_GROUND:
        return Reading(width, height, None, (), 1.0, colours)
    objects = tuple(_seen(split, number, min(height, width)) for number in range(len(split.colours)))
    return Reading(width, height, _GROUND_NAMES[split.ground], objects, float(1 - split.explained.mean()), colours)


def on_ground(image: UInt8[np.ndarray, "h w 3"] | Image.Image, ground: str) -> Float[np.ndarray, "h w 3"]:
    """Return the image's pixels, 0 to 255, with the ground replaced and the objects unchanged."""
    pixels = as_pixels(image)
    split = matte(pixels)
    return pixels + (1 - split.alpha[..., None]) * (np.array(GROUNDS[ground]) - _GROUNDS[split.ground])

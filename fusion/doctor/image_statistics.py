"""Image statistics: saturation, contrast, fine detail, and the distance between two images."""

import numpy as np
from PIL import Image

NAMES = ("saturation", "contrast", "detail")
FAINT = 1e-3  # of 1, added to each, so that the ratio of two zeros is 1


def values(image: Image.Image) -> np.ndarray:
    """Return the RGB values of an image, (height, width, 3), float32 in [0, 1]."""
    return np.asarray(image.convert("RGB"), np.float32) / 255


def look(image: Image.Image) -> np.ndarray:
    """Return saturation, contrast and detail of an image (NAMES), each with FAINT added.

    They are the mean of the largest channel less the smallest, the standard deviation of the brightness, and the root
    mean square of what is lost when each 2 x 2 pixels become one. The first two are those that guidance is judged by in
    APG (arXiv 2410.02416).
    """
    pixels = values(image)
    return np.array([np.ptp(pixels, axis=-1).mean(), pixels.mean(-1).std(), detail(pixels)]) + FAINT


def detail(pixels: np.ndarray) -> float:
    """Return the root mean square of what is lost when each 2 x 2 pixels become one.

    pixels: (height, width, 3), at least two by two.
    """
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    cells = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return float(np.sqrt(np.square(cells - cells.mean((1, 3), keepdims=True)).mean()))


def thumbnail(image: Image.Image, side: int = 16) -> np.ndarray:
    """Return a whole image, resized to a small square, as one row of side * side * 3 numbers in [0, 1]."""
    return values(image.convert("RGB").resize((side, side), Image.Resampling.BOX)).ravel()


def distance(one: Image.Image, other: Image.Image) -> float:
    """Return the root mean square difference of two images in [0, 1], at the smaller of both sizes."""
    size = min(one.size, other.size)
    first, second = (
        values(image if image.size == size else image.resize(size, Image.Resampling.BOX)) for image in (one, other)
    )
    return float(np.sqrt(np.square(first - second).mean()))

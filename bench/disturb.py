"""Disturb images, weakly to strongly: blur, noise, JPEG compression and shifted colours."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

Pixels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Disturbance:
    """A way to disturb images, with six strengths in ascending order.

    unit: what the strengths measure. done: (pixels, strength, generator) -> pixels. The same state of the generator
    gives the same noise or direction, only stronger, so that strengths compare image by image.
    """

    name: str
    unit: str
    strengths: tuple[float, ...]
    done: Callable[[Pixels, float, np.random.Generator], Pixels]


def _blurred(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def _noisy(pixels: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    return _rounded(pixels + deviation * rng.standard_normal(pixels.shape))


def _compressed(pixels: Pixels, lost: float, rng: np.random.Generator, subsampling: str = "4:2:0") -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=round(100 - lost), subsampling=subsampling)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _shifted(pixels: Pixels, length: float, rng: np.random.Generator) -> Pixels:
    direction = rng.standard_normal(3)
    return _rounded(pixels + length * direction / np.linalg.norm(direction))


def _rounded(values: np.ndarray) -> Pixels:
    return np.rint(values).clip(0, 255).astype(np.uint8)


DISTURBANCES = (
    Disturbance("blur", "standard deviation of a Gaussian, in pixels", (0.25, 0.5, 0.75, 1.0, 1.25, 1.5), _blurred),
    Disturbance("noise", "standard deviation of each channel of each pixel, of 255", (5, 10, 15, 20, 30, 40), _noisy),
    Disturbance(
        "JPEG", "100 less the quality; colour at half resolution, as usual", (5, 10, 25, 50, 75, 90), _compressed
    ),
    Disturbance(
        "JPEG 4:4:4",
        "100 less the quality; colour at full resolution",
        (5, 10, 25, 50, 75, 90),
        partial(_compressed, subsampling="4:4:4"),
    ),
    Disturbance(
        "colours", "length of a random RGB vector added to all pixels, of 255", (10, 20, 30, 40, 50, 60), _shifted
    ),
)

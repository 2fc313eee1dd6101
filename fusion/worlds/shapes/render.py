"""Render scenes by pasting cached anti-aliased shapes on a plain ground."""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fusion.worlds.shapes.constants import COLOURS, CROSS_ARM, GROUNDS
from fusion.worlds.shapes.scene import Scene

SUPERSAMPLING = 8  # samples per pixel along each axis


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return whether points of the unit box (u to the right, v down, both from -0.5 to 0.5) are inside the shape."""
    if shape == "circle":
        return u**2 + v**2 <= 0.25
    if shape == "square":
        return np.ones(np.broadcast(u, v).shape, dtype=bool)
    if shape == "triangle":  # tip in the middle of the upper edge, base along the lower
        return np.abs(u) <= (v + 0.5) / 2
    return (np.abs(u) <= CROSS_ARM / 2) | (np.abs(v) <= CROSS_ARM / 2)


@cache
def coverage(shape: str, pixels: int) -> Float[np.ndarray, "n n"]:
    """Return the share of each pixel of an n x n box (n = `pixels`) that the shape covers, from 0 to 1."""
    points = (np.arange(pixels * SUPERSAMPLING) + 0.5) / (pixels * SUPERSAMPLING) - 0.5
    fine = _inside(shape, points[None, :], points[:, None])
    return fine.reshape(pixels, SUPERSAMPLING, pixels, SUPERSAMPLING).mean(axis=(1, 3))


@cache
def _stamp(shape: str, pixels: int, colour: str, ground: str) -> UInt8[np.ndarray, "n n 3"]:
    share = coverage(shape, pixels)[..., None]
    return np.rint(share * np.array(COLOURS[colour]) + (1 - share) * np.array(GROUNDS[ground])).astype(np.uint8)


@cache
def _canvas(width: int, height: int, ground: str) -> UInt8[np.ndarray, "h w 3"]:
    return np.full((height, width, 3), GROUNDS[ground], dtype=np.uint8)


def render(scene: Scene) -> UInt8[np.ndarray, "h w 3"]:
    """Render the scene as RGB pixels, uint8."""
    canvas = _canvas(scene.width, scene.height, scene.ground).copy()
    for thing in scene.things:
        stamp = _stamp(thing.shape, thing.pixels, thing.colour, scene.ground)
        canvas[thing.y : thing.y + thing.pixels, thing.x : thing.x + thing.pixels] = stamp
    return canvas


def scene_image(scene: Scene) -> Image.Image:
    """Render the scene as a PIL image."""
    return Image.fromarray(render(scene))

"""Latents <-> rows of patches, and where each patch sits; one code for sound (1-D), images (2-D) and video (3-D).

A patch is flattened channel first, so the flattened weight of a strided convolution is the weight of the linear
layer that embeds these rows. Patches run through the grid in row-major order, the last axis fastest.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Real
from torch import Tensor

LATENT = {1: "... c (l a)", 2: "... c (h a) (w b)", 3: "... c (t a) (h b) (w d)"}
PATCHES = {1: "... l (c a)", 2: "... (h w) (c a b)", 3: "... (t h w) (c a b d)"}
GRID_AXES = {1: "l", 2: "hw", 3: "thw"}
PATCH_AXES = {1: "a", 2: "ab", 3: "abd"}


def grid(shape: Sequence[int], patch_size: int | Sequence[int]) -> tuple[int, ...]:
    """How many patches fit along each axis of `shape` (the latent's size without channels).

    Raises ValueError when the patch does not divide the shape.
    """
    sides = _sides(patch_size, len(shape))
    if any(size <= 0 or size % side for size, side in zip(shape, sides)):
        fits = [max(size // side, 1) * side for size, side in zip(shape, sides)]
        raise ValueError(
            f"size {_by(shape)} does not divide into patches of {_by(sides)}: resize or crop to {_by(fits)}, or change "
            "patch_size"
        )
    return tuple(size // side for size, side in zip(shape, sides))


def patchify(
    latent: Float[Tensor, "*batch_channels_shape"], patch_size: int | Sequence[int], rank: int | None = None
) -> Float[Tensor, "*batch n p"]:
    """Cut a latent (*batch, c, *shape) into rows, p = c * (volume of a patch).

    `rank` is the number of axes in `shape`. It follows from a patch_size with one side per axis; where that is one
    number, everything after the first axis counts as shape: (c, l), (c, h, w) or (c, t, h, w) without batch.
    Raises ValueError when the patch does not divide the shape.
    """
    if rank is None:
        rank = latent.ndim - 1 if isinstance(patch_size, int) else len(patch_size)
    _check_rank(rank)
    sides = _sides(patch_size, rank)
    grid(latent.shape[-rank:], sides)
    return rearrange(latent, f"{LATENT[rank]} -> {PATCHES[rank]}", **dict(zip(PATCH_AXES[rank], sides)))


def unpatchify(
    patches: Float[Tensor, "*batch n p"], grid: Sequence[int], patch_size: int | Sequence[int], channels: int
) -> Float[Tensor, "*batch_channels_shape"]:
    """Put the rows of `patchify` back together: (*batch, n, p) -> (*batch, c, *shape). Exactly its inverse.

    Raises ValueError when the rows are not those of `grid`, `patch_size` and `channels`.
    """
    rank = len(grid)
    _check_rank(rank)
    sides = _sides(patch_size, rank)
    expected = (math.prod(grid), channels * math.prod(sides))
    if tuple(patches.shape[-2:]) != expected:
        raise ValueError(
            f"patches of shape {_by(patches.shape[-2:])} do not fill a {_by(grid)} grid of {_by(sides)} patches "
            f"with {channels} channels: pass {_by(expected)}"
        )
    sizes = dict(zip(PATCH_AXES[rank], sides)) | dict(zip(GRID_AXES[rank], grid))
    return rearrange(patches, f"{PATCHES[rank]} -> {LATENT[rank]}", c=channels, **sizes)


def cells(grid: Sequence[int], device: torch.device | str | None = None) -> Int[Tensor, "n rank"]:
    """Integer coordinates of each patch, in the order of `patchify`: (row, column) for an image."""
    axes = [torch.arange(size, device=device) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(grid))


def sincos(
    cells: Real[Tensor, "n rank"], width: int, base: float = 10000.0, shortest: float = 2 * math.pi
) -> Float[Tensor, "n width"]:
    """Fixed features of a position, in fp32: for each axis in turn, sines and then cosines of geometric frequencies.

    Waves are from `shortest` to nearly `base * shortest` cells long; with the defaults this is the absolute embedding
    of MAE and DiT (arXiv 2111.06377, 2212.09748) for any rank. Those two put the column first, which is
    `sincos(cells.flip(-1), width)`. What `2 * rank` does not divide of the width stays zero. Raises ValueError when the
    width has no room for one frequency per axis.
    """
    rank = cells.shape[-1]
    pairs = width // (2 * rank)
    if pairs == 0:
        raise ValueError(f"width {width} is too small for sin-cos positions of {rank} axes: use at least {2 * rank}")
    frequency = (
        2 * math.pi / shortest * base ** -(torch.arange(pairs, dtype=torch.float32, device=cells.device) / pairs)
    )
    angle = cells.float()[..., None] * frequency
    features = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)
    return F.pad(features, (0, width - features.shape[-1]))


def _sides(patch_size: int | Sequence[int], rank: int) -> tuple[int, ...]:
    sides = (patch_size,) * rank if isinstance(patch_size, int) else tuple(patch_size)
    if len(sides) != rank or any(side < 1 for side in sides):
        raise ValueError(f"patch_size {patch_size} does not fit {rank} axes: give one positive number, or one per axis")
    return sides


def _check_rank(rank: int) -> None:
    if rank not in LATENT:
        raise ValueError(f"a latent with {rank} axes besides channels cannot be cut into patches: pass 1, 2 or 3 axes")


def _by(sizes: Sequence[int]) -> str:
    return "x".join(str(size) for size in sizes)

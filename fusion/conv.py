"""Convolutions on both sides of the decoder: an embedding and a head that look at whole pictures, cell by cell.

A patch of 16 x 16 pixels is 768 numbers. A linear layer has to learn anew what a thing looks like wherever in a patch it lies, and 768
numbers do not come back out of a decoder of width 256: what a linear head draws stays soft however long it trains, and nothing but
attention joins the halves of a shape that a border of patches cuts. Here a patch is 4 x 4 cells (fewer where 4 does not divide it), and
ConvNeXt blocks (arXiv 2201.03545) run over the cells of the whole picture: before the decoder, where convolutions make transformers learn to
see sooner (arXiv 2106.14881), and behind it. Compare the U-Net blocks of Transfusion (arXiv 2408.11039) and DiP (arXiv 2511.18822).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from fusion.layers import FlowHead, Linear32, PatchEmbed, modulate


class Conv32(nn.Conv2d):
    """A convolution over height and width of (m, h, w, channels), computed in fp32 as Linear32 is."""

    def forward(self, x: Float[Tensor, "m h w inputs"]) -> Float[Tensor, "m h w outputs"]:
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            y = F.conv2d(x.float().permute(0, 3, 1, 2), self.weight.float(), bias, self.stride, self.padding, self.dilation, self.groups)
        return y.permute(0, 2, 3, 1)


class LayerNorm32(nn.LayerNorm):
    """A LayerNorm in fp32 whatever the dtype of its weights."""

    def forward(self, x: Float[Tensor, "*n width"]) -> Float[Tensor, "*n width"]:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class ConvBlock(nn.Module):
    """A ConvNeXt block (arXiv 2201.03545): depthwise convolution, LayerNorm, MLP, added to its input; fp32.

    `told`, which broadcasts against the input, modulates what is normalised, as in SPADE (arXiv 1903.07291). It starts without effect.
    """

    def __init__(self, width: int, kernel: int = 5, expansion: int = 4):
        super().__init__()
        self.around = Conv32(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = LayerNorm32(width, eps=1e-6)
        self.modulation = Linear32(width, 2 * width)
        self.mlp = nn.Sequential(Linear32(width, expansion * width), nn.SiLU(), Linear32(expansion * width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, z: Float[Tensor, "m h w width"], told: Float[Tensor, "m #h #w width"]) -> Float[Tensor, "m h w width"]:
        shift, scale = self.modulation(F.silu(told)).chunk(2, dim=-1)
        return z + self.mlp(modulate(self.norm(self.around(z)), shift, scale))


@dataclass(frozen=True)
class Cells:
    """How patches of one side and number of channels are cut into cells."""

    channels: int
    patch_size: int

    @property
    def count(self) -> int:
        """Cells along each side of a patch."""
        return math.gcd(self.patch_size, 4)

    @property
    def numbers(self) -> int:
        """Numbers in a cell."""
        return self.channels * (self.patch_size // self.count) ** 2

    def _axes(self, size: tuple[int, int]) -> dict[str, int]:
        side = self.patch_size // self.count
        return {"r": size[0], "s": size[1], "a": self.count, "b": self.count, "c": self.channels, "p": side, "q": side}

    def spread(self, patches: Float[Tensor, "n p"], size: tuple[int, int]) -> Float[Tensor, "m h w c"]:
        """The patches of whole pictures of one size, as their cells."""
        return rearrange(patches.float(), "(m r s) (c a p b q) -> m (r a) (s b) (c p q)", **self._axes(size))

    def gather(self, cells: Float[Tensor, "m h w c"], size: tuple[int, int]) -> Float[Tensor, "n p"]:
        """The inverse of `spread`."""
        return rearrange(cells, "m (r a) (s b) (c p q) -> (m r s) (c a p b q)", **self._axes(size))


def by_size(grid: Int[Tensor, "m 2"]) -> Iterator[tuple[tuple[int, int], Int[Tensor, " k"], Int[Tensor, " n"]]]:
    """Pictures whose patches lie one after the other, size by size: rows and columns of patches, which pictures, and their patches."""
    sizes, which = torch.unique(grid, dim=0, return_inverse=True)
    of_patch = which.repeat_interleave(grid.prod(-1))
    for index, size in enumerate(sizes.tolist()):
        yield tuple(size), which.eq(index).nonzero()[:, 0], of_patch.eq(index).nonzero()[:, 0]


def grids(cell: Int[Tensor, "n 2"]) -> tuple[Int[Tensor, " m"], Int[Tensor, "m 2"]]:
    """The first patch, and the rows and columns, of each of the pictures whose patches lie one after the other."""
    first = cell.sum(-1).eq(0).nonzero()[:, 0]
    last = torch.cat([first, first.new_tensor([len(cell)])])[1:] - 1
    return first, cell[last] + 1


def blanks(count: int, device: torch.device) -> int:
    """How many blank pictures to convolve beside `count`. On CUDA, cuDNN plans each convolution anew for every number of pictures, and takes longer
    for that than for the convolution: numbers are rounded up to four in an octave, so that plans recur."""
    if device.type != "cuda":
        return 0
    step = 2 ** max(0, count.bit_length() - 3)
    return -count % step


def padded(rows: Float[Tensor, "k width"], more: int) -> Float[Tensor, "k2 width"]:
    """With so many rows of zeros behind."""
    return F.pad(rows, (0, 0, 0, more)) if more else rows


class ConvEmbed(PatchEmbed):
    """A patch embedding that has looked around: ConvNeXt blocks over the cells of each picture, told its time, added to the linear one."""

    def __init__(self, channels: int, patch_size: int, width: int, time_width: int | None, inner: int = 64, blocks: int = 2):
        super().__init__(channels * patch_size**2, width)
        self.cells = Cells(channels, patch_size)
        self.seen = Conv32(self.cells.numbers, inner, 3, padding=1)
        self.told = None if time_width is None else Linear32(time_width, inner)
        self.blocks = nn.ModuleList(ConvBlock(inner) for _ in range(blocks))
        self.norm = LayerNorm32(inner, eps=1e-6)
        self.out = Linear32(self.cells.count**2 * inner, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, patches, cell, time=None, picture=None):
        rows = super().forward(patches)
        seen = torch.zeros_like(rows, dtype=torch.float32)
        first, grid = grids(cell)
        for size, pictures, where in by_size(grid):
            told = None if self.told is None else time[picture[first[pictures]]]
            seen = seen.index_copy(0, where, self._look(patches[where], size, told))
        return rows + seen.to(rows.dtype)

    def _look(self, patches: Float[Tensor, "n p"], size: tuple[int, int], time: Float[Tensor, "m time_width"] | None) -> Float[Tensor, "n width"]:
        """The patches of whole pictures of one size."""
        of_one = size[0] * size[1]
        count, more = len(patches), blanks(len(patches) // of_one, patches.device)
        patches, time = padded(patches, more * of_one), time if time is None else padded(time, more)
        z = self.seen(self.cells.spread(patches, size))
        told = torch.zeros_like(z[:, :1, :1]) if time is None else self.told(F.silu(time.float()))[:, None, None]
        for block in self.blocks:
            z = block(z, told)
        return self.out(rearrange(self.norm(z), "m (r a) (s b) d -> (m r s) (a b d)", a=self.cells.count, b=self.cells.count))[:count]


class ConvHead(FlowHead):
    """A head that looks at the noised picture again: the decoder says what belongs in a patch, a small convolutional net draws it.

    A cell is a row of its pixels and its share of the decoder's answer, which also modulates every block. What they draw is added to the
    linear head, which does all of it while the convolutions are `resting`. With `reference`, the picture that is edited lies beside the
    noised one (as in InstructPix2Pix, arXiv 2211.09800): what stays the same can be copied to the pixel.
    """

    def __init__(
        self, width: int, channels: int, patch_size: int, time_width: int | None, reference: bool = False, inner: int = 64, blocks: int = 2
    ):
        super().__init__(width, channels * patch_size**2, time_width)
        self.cells = Cells(channels, patch_size)
        self.reference, self.told = reference, Linear32(width, self.cells.count**2 * inner)
        self.seen = Conv32(self.cells.numbers * (1 + reference), inner, 3, padding=1)
        self.blocks = nn.ModuleList(ConvBlock(inner) for _ in range(blocks))
        self.norm_drawn, self.drawn = LayerNorm32(inner, eps=1e-6), Conv32(inner, self.cells.numbers, 3, padding=1)
        nn.init.zeros_(self.drawn.weight)
        nn.init.zeros_(self.drawn.bias)
        self.resting = False

    def forward(self, h, seen, time=None, image=None):
        h = self.conditioned(h, time, image)
        if self.resting:
            return self.out(h)
        drawn = torch.zeros_like(seen.noised, dtype=torch.float32)
        for size, _, where in by_size(seen.grid):
            parts = (seen.noised[where], seen.reference[where]) if self.reference else (seen.noised[where],)
            drawn = drawn.index_copy(0, where, self._draw(h[where], parts, size))
        return self.out(h) + drawn

    def _draw(self, h: Float[Tensor, "n width"], parts: tuple[Float[Tensor, "n p"], ...], size: tuple[int, int]) -> Float[Tensor, "n p"]:
        """The patches of whole pictures of one size."""
        count, (rows, columns) = self.cells.count, size
        more = blanks(len(h) // (rows * columns), h.device) * rows * columns
        pixels = torch.cat([self.cells.spread(padded(part, more), size) for part in parts], dim=-1)
        told = rearrange(self.told(padded(h, more)), "(m r s) (a b d) -> m (r a) (s b) d", a=count, b=count, r=rows, s=columns)
        z = told + self.seen(pixels)
        for block in self.blocks:
            z = block(z, told)
        return self.cells.gather(self.drawn(self.norm_drawn(z)), size)[: len(h)]

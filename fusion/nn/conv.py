"""Convolutions on both sides of the decoder: an embedding and a head that look at whole images, cell by cell.

A patch of 16 x 16 pixels is 768 numbers. A linear layer has to learn anew what a thing looks like wherever in a patch
it lies, and 768 numbers do not come back out of a decoder of width 256: what a linear head draws stays soft however
long it trains, and nothing but attention joins the halves of a shape that a border of patches cuts. Here a patch is 4 x
4 cells (fewer where 4 does not divide it), and ConvNeXt blocks (arXiv 2201.03545) run over the cells of the whole
image_index: before the decoder, where convolutions make transformers learn to see sooner (arXiv 2106.14881), and behind
it. Compare the U-Net blocks of Transfusion (arXiv 2408.11039) and DiP (arXiv 2511.18822).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from fusion.nn.layers import FlowHead, Linear32, PatchEmbed, modulate


class Conv32(nn.Conv2d):
    """A convolution over height and width of (m, h, w, channels), computed in fp32 as Linear32 is."""

    def forward(self, x: Float[Tensor, "m h w inputs"]) -> Float[Tensor, "m h w outputs"]:
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            y = F.conv2d(
                x.float().permute(0, 3, 1, 2),
                self.weight.float(),
                bias,
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
            )
        return y.permute(0, 2, 3, 1)


class LayerNorm32(nn.LayerNorm):
    """A LayerNorm in fp32 whatever the dtype of its weights."""

    def forward(self, x: Float[Tensor, "*n width"]) -> Float[Tensor, "*n width"]:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


REACH = 2
"""Cells that the largest kernel reaches over, on every side."""
ALL = slice(None)


@dataclass(frozen=True)
class Raster:
    """Images of one size, whose cells lie row by row. patches: which patches are theirs; size: rows and columns of
    patches; cells: of cells."""

    patches: Int[Tensor, " n"] | slice
    size: tuple[int, int]
    cells: tuple[int, int]

    def convolved(self, conv: Conv32, cells: Float[Tensor, "k inputs"]) -> Float[Tensor, "k outputs"]:
        """What a convolution makes of the cells of each image."""
        return conv(cells.view(-1, *self.cells, cells.shape[-1])).flatten(0, 2)


@dataclass(frozen=True)
class Strip:
    """Images of any sizes, whose cells lie patch by patch; for a convolution, one image below the other with rows
    of zeros between them.

    For GPUs: one convolution for every size would be as many small kernels to launch and as many times to wait, and
    cuDNN plans each anew for every number of images, which takes longer than a step. place: of each cell, on `height`
    x `width` of them.
    """

    place: Int[Tensor, " k"]
    height: int
    width: int
    patches = ALL
    size = (1, 1)

    @classmethod
    def of(
        cls, row: Int[Tensor, " k"], column: Int[Tensor, " k"], image_index: Int[Tensor, " k"], grid: Int[Tensor, "m 2"]
    ) -> "Strip":
        """row, column, image: of each cell. grid: rows and columns of cells of each image."""
        bottom = (grid[:, 0] + REACH).cumsum(0)
        height, width = torch.stack([bottom[-1], grid[:, 1].amax()]).tolist()
        top = bottom - grid[:, 0] - REACH
        return cls((top[image_index] + row) * width + column, rounded(height), width)

    def convolved(self, conv: Conv32, cells: Float[Tensor, "k inputs"]) -> Float[Tensor, "k outputs"]:
        """As Raster's."""
        canvas = cells.new_zeros(self.height * self.width, cells.shape[-1]).index_copy(0, self.place, cells)
        return conv(canvas.view(1, self.height, self.width, -1)).flatten(0, 2).index_select(0, self.place)


def rounded(height: int) -> int:
    """Up, to eight in an octave, so that cuDNN's plans recur."""
    step = 2 ** max(0, height.bit_length() - 4)
    return height + -height % step


class ConvBlock(nn.Module):
    """A ConvNeXt block (arXiv 2201.03545): depthwise convolution, LayerNorm, MLP, added to its input; fp32.

    `told` modulates what is normalised, as in SPADE (arXiv 1903.07291); `whose`: which of its rows a cell takes, each
    its own if None. It starts without effect.
    """

    def __init__(self, width: int, kernel: int = 2 * REACH + 1, expansion: int = 4):
        super().__init__()
        self.around = Conv32(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = LayerNorm32(width, eps=1e-6)
        self.modulation = Linear32(width, 2 * width)
        self.mlp = nn.Sequential(Linear32(width, expansion * width), nn.SiLU(), Linear32(expansion * width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        z: Float[Tensor, "n width"],
        beside: Raster | Strip,
        told: Float[Tensor, "k width"],
        whose: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n width"]:
        modulation = self.modulation(F.silu(told))
        shift, scale = (modulation if whose is None else modulation[whose]).chunk(2, dim=-1)
        return z + self.mlp(modulate(self.norm(beside.convolved(self.around, z)), shift, scale))


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

    def spread(self, patches: Float[Tensor, "n p"], size: tuple[int, int]) -> Float[Tensor, "k c"]:
        """Patches of whole images of one size as their cells, row by row; of size (1, 1), patch by patch."""
        side = self.patch_size // self.count
        pattern = "(m r s) (c a p b q) -> (m r a s b) (c p q)"
        return rearrange(
            patches.float(), pattern, r=size[0], s=size[1], a=self.count, b=self.count, c=self.channels, p=side, q=side
        )

    def gather(self, cells: Float[Tensor, "k c"], size: tuple[int, int]) -> Float[Tensor, "n p"]:
        """The inverse of `spread`."""
        side = self.patch_size // self.count
        pattern = "(m r a s b) (c p q) -> (m r s) (c a p b q)"
        return rearrange(
            cells, pattern, r=size[0], s=size[1], a=self.count, b=self.count, c=self.channels, p=side, q=side
        )

    def dealt(self, rows: Shaped[Tensor, "n w"], size: tuple[int, int]) -> Shaped[Tensor, "k d"]:
        """A row of each patch, dealt out to its cells, in the order of `spread`."""
        return rearrange(rows, "(m r s) (a b d) -> (m r a s b) d", r=size[0], s=size[1], a=self.count, b=self.count)

    def collected(self, cells: Float[Tensor, "k d"], size: tuple[int, int]) -> Float[Tensor, "n w"]:
        """The inverse of `dealt`."""
        return rearrange(cells, "(m r a s b) d -> (m r s) (a b d)", r=size[0], s=size[1], a=self.count, b=self.count)

    def arranged(
        self, cell: Int[Tensor, "n 2"], image_index: Int[Tensor, " n"], grid: Int[Tensor, "m 2"]
    ) -> list[Raster] | list[Strip]:
        """Images whose patches lie one after the other, in parts that are convolved together.

        cell, image_index: of each patch; grid: rows and columns of patches of each image.
        """
        if cell.is_cuda:
            return [self.strip(cell, image_index, grid)]
        sizes, which = torch.unique(grid, dim=0, return_inverse=True)
        of_patch = which[image_index]
        patches = [of_patch.eq(index).nonzero()[:, 0] for index in range(len(sizes))] if len(sizes) > 1 else [ALL]
        return [
            Raster(some, (r, s), (r * self.count, s * self.count))
            for some, (r, s) in zip(patches, sizes.tolist(), strict=True)
        ]

    def strip(self, cell: Int[Tensor, "n 2"], image_index: Int[Tensor, " n"], grid: Int[Tensor, "m 2"]) -> Strip:
        """See `arranged`."""
        inside = torch.cartesian_prod(*2 * [torch.arange(self.count, device=cell.device)]).view(-1, 2)
        row, column = (self.count * cell[:, None] + inside).flatten(0, 1).unbind(-1)
        return Strip.of(row, column, image_index.repeat_interleave(self.count**2), self.count * grid)


def together(parts: list[Raster] | list[Strip], rows: list[Float[Tensor, "_ width"]]) -> Float[Tensor, "n width"]:
    """The rows of all patches, in their order."""
    if len(parts) == 1:
        return rows[0]
    # Of several parts none takes all patches by a slice.
    patches = torch.cat([part.patches for part in parts])  # type: ignore[misc]
    joined = torch.cat(rows)
    return torch.empty_like(joined).index_copy(0, patches, joined)


def grids(cell: Int[Tensor, "n 2"]) -> tuple[Int[Tensor, " n"], Int[Tensor, "m 2"]]:
    """The image of each patch, counted from 0, and rows and columns of each image, of images whose patches lie
    one after the other."""
    begins = cell.sum(-1).eq(0)
    last = torch.cat([begins[1:], begins.new_ones(min(1, len(begins)))])
    return begins.cumsum(0) - 1, cell[last] + 1


def places(grid: Int[Tensor, "m 2"], patches: int) -> tuple[Int[Tensor, "n 2"], Int[Tensor, " n"]]:
    """The inverse of `grids`: row and column, and image, of each of so many patches."""
    counts = grid.prod(-1)
    image_index = torch.repeat_interleave(counts, output_size=patches)
    inside = torch.arange(patches, device=grid.device) - (counts.cumsum(0) - counts)[image_index]
    columns = grid[image_index, 1]
    return torch.stack([inside // columns, inside % columns], dim=-1), image_index


class ConvEmbed(PatchEmbed):
    """A patch embedding that has looked around: ConvNeXt blocks over the cells of each image, told its time, added to
    the linear one."""

    def __init__(
        self, channels: int, patch_size: int, width: int, time_width: int | None, inner: int = 64, blocks: int = 2
    ):
        super().__init__(channels * patch_size**2, width)
        self.cells = Cells(channels, patch_size)
        self.seen = Conv32(self.cells.numbers, inner, 3, padding=1)
        self.told = None if time_width is None else Linear32(time_width, inner)
        self.blocks = nn.ModuleList(ConvBlock(inner) for _ in range(blocks))
        self.norm = LayerNorm32(inner, eps=1e-6)
        self.out = Linear32(self.cells.count**2 * inner, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    # The linear one does without cells; this one cannot.
    def forward(self, patches, cell, time=None, image_index=None, reference=None):  # type: ignore[override]
        rows = super().forward(patches)
        if not len(patches):
            return rows
        told = (
            rows.new_zeros(1, self.seen.out_channels).float() if self.told is None else self.told(F.silu(time.float()))
        )
        whose = torch.zeros_like(cell[:, 0]) if self.told is None else image_index
        parts = self.cells.arranged(cell, *grids(cell))
        seen = [self._look(patches[part.patches], part, told, whose[part.patches]) for part in parts]
        return rows + together(parts, seen).to(rows.dtype)

    def _look(
        self,
        patches: Float[Tensor, "n p"],
        part: Raster | Strip,
        told: Float[Tensor, "m inner"],
        whose: Int[Tensor, " n"],
    ) -> Float[Tensor, "n width"]:
        z = part.convolved(self.seen, self.cells.spread(patches, part.size))
        whose = self.cells.dealt(whose[:, None].expand(-1, self.cells.count**2), part.size)[:, 0]
        for block in self.blocks:
            z = block(z, part, told, whose)
        return self.out(self.cells.collected(self.norm(z), part.size))


class ConvHead(FlowHead):
    """A head that looks at the noised image again: the decoder says what belongs in a patch, a small convolutional
    net draws it.

    A cell is a row of its pixels and its share of the decoder's answer, which also modulates every block. What they
    draw is added to the linear head, which does all of it while the convolutions are `resting`. With `reference`, the
    image that is edited lies beside the noised one (as in InstructPix2Pix, arXiv 2211.09800): what stays the same can
    be copied to the pixel.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        patch_size: int,
        time_width: int | None,
        reference: bool = False,
        inner: int = 64,
        blocks: int = 2,
    ):
        super().__init__(width, channels * patch_size**2, time_width)
        self.cells = Cells(channels, patch_size)
        self.reference, self.told = reference, Linear32(width, self.cells.count**2 * inner)
        self.seen = Conv32(self.cells.numbers * (1 + reference), inner, 3, padding=1)
        self.blocks = nn.ModuleList(ConvBlock(inner) for _ in range(blocks))
        self.norm_drawn, self.drawn = LayerNorm32(inner, eps=1e-6), Conv32(inner, self.cells.numbers, 3, padding=1)
        nn.init.zeros_(self.drawn.weight)
        nn.init.zeros_(self.drawn.bias)  # type: ignore[arg-type]  # it has one
        self.resting = False

    # The linear one looks at nothing; this one does.
    def forward(self, h, seen, time=None, image=None):  # type: ignore[override]
        h = self.conditioned(h, time, image)
        if self.resting or not len(h):
            return self.out(h)
        images = (seen.noised, seen.reference) if self.reference else (seen.noised,)
        parts = self.cells.arranged(*places(seen.grid, len(h)), seen.grid)
        drawn = [self._draw(h[part.patches], [image[part.patches] for image in images], part) for part in parts]
        return self.out(h) + together(parts, drawn)

    def _draw(
        self, h: Float[Tensor, "n width"], images: list[Float[Tensor, "n p"]], part: Raster | Strip
    ) -> Float[Tensor, "n p"]:
        told = self.cells.dealt(self.told(h), part.size)
        pixels = torch.cat([self.cells.spread(image, part.size) for image in images], dim=-1)
        z = told + part.convolved(self.seen, pixels)
        for block in self.blocks:
            z = block(z, part, told)
        return self.cells.gather(part.convolved(self.drawn, self.norm_drawn(z)), part.size)

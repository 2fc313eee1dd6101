"""Small shared parts: patch embedding, timestep embedding, modulation by time, and the head that predicts the flow.

Time features, modulation and the head's output are computed in fp32 whatever the weights or autocast say: bf16 keeps
8 bits, so that 1000 t would be rounded to whole steps of 4 and a predicted pixel to the grain of the file it becomes.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn


class Linear32(nn.Linear):
    """A linear layer computed in fp32, under autocast and with weights of lower precision too."""

    def forward(self, x: Float[Tensor, "*n inputs"]) -> Float[Tensor, "*n outputs"]:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())


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


def rms(x: Float[Tensor, "*n width"]) -> Float[Tensor, "*n 1"]:
    """Root mean square over the last axis, in fp32."""
    return x.float().square().mean(-1, keepdim=True).sqrt()


def modulate(
    h: Float[Tensor, "*n width"], shift: Float[Tensor, "*#n width"], scale: Float[Tensor, "*#n width"]
) -> Float[Tensor, "*n width"]:
    """`h + h * scale + shift` in fp32, cast back to h's dtype: with zeros it is h itself, bit for bit."""
    wide = h.float()
    return (wide + wide * scale.float() + shift.float()).to(h.dtype)


class PatchEmbed(nn.Module):
    """Patch rows -> width, cast to the dtype of the weights. Input of unit scale comes out with unit RMS (`match_rms` sets another)."""

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Linear(patch, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Independent weights that keep the scale, no bias."""
        nn.init.normal_(self.proj.weight, std=self.proj.in_features**-0.5)
        nn.init.zeros_(self.proj.bias)

    def forward(self, patches: Float[Tensor, "*n patch"]) -> Float[Tensor, "*n width"]:
        return self.proj(patches.to(self.proj.weight.dtype))


@torch.no_grad()
def match_rms(embed: PatchEmbed, target: float) -> None:
    """Scale the weight in place so that input of unit scale comes out with RMS `target`.

    With independent random weights the output's mean square is that of a row of the weight times that of the input,
    however the pixels of a patch correlate. Raises ValueError when the target is not positive.
    """
    if not target > 0:
        raise ValueError(f"cannot scale a patch embedding to RMS {target}: the target must be positive")
    weight = embed.proj.weight
    weight.mul_(target / weight.float().square().sum(-1).mean().sqrt())


def timestep_features(t: Float[Tensor, " n"], width: int, freq_shift: float = 0.0) -> Float[Tensor, "n width"]:
    """Cosines, then sines, of 1000 t at frequencies 10000^(-i / (half - freq_shift)), i < half = width / 2; fp32.

    freq_shift 0 is DiT's own (arXiv 2212.09748), SD3's and Flux's; diffusers' port of DiT uses 1.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    frequency = torch.exp(-math.log(10000.0) * index / (half - freq_shift))
    angle = 1000.0 * t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """t in [0, 1] -> width: `timestep_features`, then linear, SiLU, linear; fp32 throughout (DiT, arXiv 2212.09748)."""

    def __init__(self, width: int, frequencies: int = 256, freq_shift: float = 0.0):
        super().__init__()
        if frequencies % 2:
            raise ValueError(f"{frequencies} timestep features do not split into cosines and sines: use an even number")
        self.frequencies, self.freq_shift = frequencies, freq_shift
        self.up = Linear32(frequencies, width)
        self.down = Linear32(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """DiT's start: N(0, 0.02), no bias."""
        for linear in (self.up, self.down):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, t: Float[Tensor, " n"]) -> Float[Tensor, "n width"]:
        return self.down(F.silu(self.up(timestep_features(t, self.frequencies, self.freq_shift))))


class Modulation(nn.Module):
    """Time embedding -> `pieces` vectors of `width` in fp32 (shift, scale, gate, ...), all zero at the start.

    adaLN-zero of DiT; shared by all layers, with a table per layer added by the caller, it is PixArt's adaLN-single
    (arXiv 2310.00426).
    """

    def __init__(self, time_width: int, width: int, pieces: int = 6):
        super().__init__()
        self.pieces = pieces
        self.proj = Linear32(time_width, pieces * width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All zero: what is modulated starts as it was."""
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, time: Float[Tensor, "*n time_width"]) -> Float[Tensor, "*n pieces width"]:
        return self.proj(F.silu(time.float())).unflatten(-1, (self.pieces, -1))


@dataclass(frozen=True)
class Seen:
    """What a head may look at beside the decoder's answer, picture after picture.

    noised: the patches that the decoder was given. grid: rows and columns of patches of each picture. reference: the patches of the
    picture that is edited, zeros where none is; None for a head that does not look at it (`FlowHead.reference`).
    """

    noised: Float[Tensor, "n p"]
    grid: Int[Tensor, "m 2"]
    reference: Float[Tensor, "n p"] | None = None


class FlowHead(nn.Module):
    """Hidden rows -> prediction of the flow: a LayerNorm without parameters, modulated by time, and a linear layer that starts at zero.

    DiT's final layer. `time` holds one row per image and `image` says whose row a patch takes; without `image`, time
    broadcasts against the rows. `time_width` None builds the head of a network that is not told the time. `seen` is for heads that
    look at it.
    """

    reference = False  # whether it looks at the picture that is edited

    def __init__(self, width: int, out: int, time_width: int | None):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = None if time_width is None else Modulation(time_width, width, pieces=2)
        self.out = Linear32(width, out)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All zero: the first prediction is 0 at every time."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        if self.modulation is not None:
            self.modulation.reset_parameters()

    def forward(
        self,
        h: Float[Tensor, "*n width"],
        seen: Seen,
        time: Float[Tensor, "*m time_width"] | None = None,
        image: Int[Tensor, "*n"] | None = None,
    ) -> Float[Tensor, "*n out"]:
        return self.out(self.conditioned(h, time, image))

    def conditioned(self, h: Tensor, time: Tensor | None, image: Tensor | None) -> Float[Tensor, "*n width"]:
        """Normalised rows, modulated by their time."""
        h = self.norm(h.float())
        if self.modulation is None:
            return h
        pieces = self.modulation(time)
        shift, scale = (pieces if image is None else pieces[image]).unbind(-2)
        return modulate(h, shift, scale)


class ConvHead(FlowHead):
    """A head that looks at the noised picture again: the decoder says what belongs in a patch, a small convolutional net draws it.

    A patch of 16 x 16 pixels is 768 numbers, which do not pass through a decoder of width 256: a linear head stays soft however long it
    trains, and nothing but attention joins the halves of a shape that a border of patches cuts. Here a patch is 4 x 4 cells (fewer where
    4 does not divide it), each a row of its pixels and its share of the decoder's answer, and ConvNeXt blocks (arXiv 2201.03545) run
    over the cells of the whole picture. What they draw is added to the linear head. Compare the up blocks of Transfusion (arXiv
    2408.11039) and DiP (arXiv 2511.18822). With `reference`, the picture that is edited lies beside the noised one (as in InstructPix2Pix,
    arXiv 2211.09800): what stays the same can be copied to the pixel.
    """

    def __init__(
        self, width: int, channels: int, patch_size: int, time_width: int | None, reference: bool = False, inner: int = 64, blocks: int = 2
    ):
        super().__init__(width, channels * patch_size**2, time_width)
        self.cells = math.gcd(patch_size, 4)  # along each side of a patch
        side = patch_size // self.cells
        numbers = channels * side**2
        self.axes = {"a": self.cells, "b": self.cells, "c": channels, "p": side, "q": side}
        self.reference, self.told = reference, Linear32(width, self.cells**2 * inner)
        self.seen = Conv32(numbers * (1 + reference), inner, 3, padding=1)
        self.blocks = nn.ModuleList(ConvBlock(inner) for _ in range(blocks))
        self.norm_drawn, self.drawn = LayerNorm32(inner, eps=1e-6), Conv32(inner, numbers, 3, padding=1)
        nn.init.zeros_(self.drawn.weight)
        nn.init.zeros_(self.drawn.bias)

    def forward(self, h, seen, time=None, image=None):
        h = self.conditioned(h, time, image)
        drawn = torch.zeros_like(seen.noised, dtype=torch.float32)
        sizes, which = torch.unique(seen.grid, dim=0, return_inverse=True)
        which = which.repeat_interleave(seen.grid.prod(-1), output_size=len(h))
        for index, size in enumerate(sizes):
            where = which.eq(index).nonzero()[:, 0]
            part = Seen(seen.noised[where], size[None], seen.reference[where] if self.reference else None)
            drawn = drawn.index_copy(0, where, self._draw(h[where], part))
        return self.out(h) + drawn

    def _draw(self, h: Float[Tensor, "k width"], seen: Seen) -> Float[Tensor, "k p"]:
        """The patches of whole pictures of one size."""
        size = dict(zip("rs", seen.grid[0].tolist(), strict=True))
        flat, spread = "(m r s) (c a p b q)", "m (r a) (s b) (c p q)"
        parts = (seen.noised, seen.reference) if self.reference else (seen.noised,)
        pixels = [rearrange(part.float(), f"{flat} -> {spread}", **self.axes, **size) for part in parts]
        told = rearrange(self.told(h), "(m r s) (a b d) -> m (r a) (s b) d", a=self.cells, b=self.cells, **size)
        z = told + self.seen(torch.cat(pixels, dim=-1))
        for block in self.blocks:
            z = block(z)
        return rearrange(self.drawn(self.norm_drawn(z)), f"{spread} -> {flat}", **self.axes, **size)


class ConvBlock(nn.Module):
    """A ConvNeXt block (arXiv 2201.03545): depthwise convolution, LayerNorm, MLP, added to its input; fp32."""

    def __init__(self, width: int, kernel: int = 5, expansion: int = 4):
        super().__init__()
        self.around = Conv32(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = LayerNorm32(width, eps=1e-6)
        self.mlp = nn.Sequential(Linear32(width, expansion * width), nn.SiLU(), Linear32(expansion * width, width))

    def forward(self, z: Float[Tensor, "m h w width"]) -> Float[Tensor, "m h w width"]:
        return z + self.mlp(self.norm(self.around(z)))

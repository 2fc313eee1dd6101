"""Small shared parts: patch embedding, timestep embedding, modulation by time, and the head that predicts the flow.

Time features, modulation and the head's output are computed in fp32 whatever the weights or autocast say: bf16 keeps
8 bits, so that 1000 t would be rounded to whole steps of 4 and a predicted pixel to the grain of the file it becomes.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Linear32(nn.Linear):
    """A linear layer computed in fp32, under autocast and with weights of lower precision too."""

    def forward(self, x: Float[Tensor, "*n inputs"]) -> Float[Tensor, "*n outputs"]:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())


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
    """Patch rows -> width, cast to the dtype of the weights. Input of unit scale comes out with unit RMS (`match_rms`
    sets another)."""

    reference = False  # whether it looks at the image that is edited

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Linear(patch, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Independent weights that keep the scale, no bias."""
        nn.init.normal_(self.proj.weight, std=self.proj.in_features**-0.5)
        nn.init.zeros_(self.proj.bias)

    def forward(
        self,
        patches: Float[Tensor, "*n patch"],
        cell: Int[Tensor, "*n 2"] | None = None,
        time: Float[Tensor, "m time_width"] | None = None,
        image_index: Int[Tensor, "*n"] | None = None,
        reference: Float[Tensor, "*n patch"] | None = None,
    ) -> Float[Tensor, "*n width"]:
        """cell: row and column of each patch; time, image_index: of the images, and which of them a patch belongs to.
        For embeddings that look at whole images. reference: the patch in the same place of the image that is edited,
        zeros where there is none; for those that look at it."""
        return self.proj(patches.to(self.proj.weight.dtype))


class ReferenceEmbed(PatchEmbed):
    """A patch and, beside it, that of the image that is edited, which has no effect at first (InstructPix2Pix, arXiv
    2211.09800)."""

    reference = True

    def __init__(self, patch: int, width: int):
        super().__init__(patch, width)
        self.beside = nn.Linear(patch, width, bias=False)
        nn.init.zeros_(self.beside.weight)

    def forward(self, patches, cell=None, time=None, image_index=None, reference=None):
        rows = super().forward(patches)
        return rows if reference is None else rows + self.beside(reference.to(self.beside.weight.dtype))


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


def timestep_features(
    t: Float[Tensor, " n"], width: int, freq_shift: float = 0.0, scale: float = 1000.0, origin: float = 0.0
) -> Float[Tensor, "n width"]:
    """Cosines, then sines, of scale (t - origin) at frequencies 10000^(-i / (half - freq_shift)), i < half = width / 2;
    fp32.

    freq_shift 0 is DiT's own (arXiv 2212.09748), SD3's and Flux's; diffusers' port of DiT uses 1. A scale of 1000 is
    DDPM's steps; networks that count from noise to data have a negative one and the origin 1.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    frequency = torch.exp(-math.log(10000.0) * index / (half - freq_shift))
    angle = scale * (t.float() - origin)[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """t in [0, 1] -> width: `timestep_features`, then linear, SiLU, linear; fp32 throughout (DiT, arXiv 2212.09748)."""

    def __init__(
        self, width: int, frequencies: int = 256, freq_shift: float = 0.0, scale: float = 1000.0, origin: float = 0.0
    ):
        super().__init__()
        if frequencies % 2:
            raise ValueError(f"{frequencies} timestep features do not split into cosines and sines: use an even number")
        self.frequencies, self.freq_shift, self.scale, self.origin = frequencies, freq_shift, scale, origin
        self.up = Linear32(frequencies, width)
        self.down = Linear32(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """DiT's start: N(0, 0.02), no bias."""
        for linear in (self.up, self.down):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, t: Float[Tensor, " n"]) -> Float[Tensor, "n width"]:
        features = timestep_features(t, self.frequencies, self.freq_shift, self.scale, self.origin)
        return self.down(F.silu(self.up(features)))


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
    """What a head may look at beside the decoder's answer, image after image.

    noised: the patches that the decoder was given. grid: rows and columns of patches of each image. reference: the
    patches of the image that is edited, zeros where none is; None for a head that does not look at it
    (`FlowHead.reference`).
    """

    noised: Float[Tensor, "n p"]
    grid: Int[Tensor, "m 2"]
    reference: Float[Tensor, "n p"] | None = None


class FlowHead(nn.Module):
    """Hidden rows -> prediction of the flow: a LayerNorm without parameters, modulated by time, and a linear layer that
    starts at zero.

    DiT's final layer. `time` holds one row per image and `image` says whose row a patch takes; without `image`, time
    broadcasts against the rows. `time_width` None builds the head of a network that is not told the time. `seen` is for
    heads that look at it.
    """

    reference = False  # whether it looks at the image that is edited

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
        seen: Seen | None = None,
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

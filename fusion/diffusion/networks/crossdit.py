"""CrossDiT, what SD3's paper compares MMDiT with (Esser et al., arXiv 2403.03206, section 5.2.3).

New against DiT: text comes in twice. Its pooled vector joins the time in adaLN-zero, and each block attends to its
tokens between the attention of the image to itself and the feed-forward, as in PixArt, but modulated and gated like
the other two.

The code of the paper's comparison is not public; where cross-attention stands, and that it is modulated and gated, is
chosen here.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion.diffusion.networks.blocks import Attention, FeedForward, PooledText, grid_positions, plain_norm, start
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.nn.layers import FlowHead, Modulation, PatchEmbed, TimestepEmbedding, modulate
from fusion.sequence.patches import grid, patchify, unpatchify


@dataclass(frozen=True)
class CrossDiTConfig:
    """Sizes of a CrossDiT. base_grid: cells per side to which sin-cos positions stretch every grid, None for the cells
    themselves."""

    channels: int = 16
    patch_size: int = 2
    width: int = 384
    layers: int = 6
    heads: int = 6
    text_width: int = 4096
    pooled_width: int = 2048
    base_grid: float | None = None


class CrossDiT(nn.Module):
    """See the head of this file."""

    def __init__(self, config: CrossDiTConfig):
        super().__init__()
        self.config, width = config, config.width
        self.embed = PatchEmbed(config.channels * config.patch_size**2, width)
        self.time = TimestepEmbedding(width)
        self.pooled = PooledText(config.pooled_width, width)
        self.text = nn.Linear(config.text_width, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = FlowHead(width, config.channels * config.patch_size**2, width)
        start(self)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Noised latents of unit scale at times t in [0, 1] (1 is noise) -> what the network predicts."""
        config, size = self.config, grid(x.shape[-2:], self.config.patch_size)
        h = self.embed(patchify(x, config.patch_size, rank=2))
        h = h + grid_positions(size, config.width, config.base_grid, x.device).to(h.dtype)
        mask, text, time = cond.where(), self.text(cond.tokens), self.time(t) + self.pooled(cond.given("pooled"))
        for block in self.blocks:
            h = block(h, text, mask, time)
        return unpatchify(self.head(h, time=time[:, None]).to(x.dtype), size, config.patch_size, config.channels)


class Block(nn.Module):
    """Attention to itself, to the text, and a feed-forward; all three modulated and gated."""

    def __init__(self, config: CrossDiTConfig):
        super().__init__()
        width = config.width
        self.modulation = Modulation(width, width, pieces=9)
        self.norm1, self.attention = plain_norm(width), Attention(width, config.heads)
        self.norm2, self.cross = plain_norm(width), Attention(width, config.heads)
        self.norm3, self.feed_forward = plain_norm(width), FeedForward(width)

    def forward(
        self,
        h: Float[Tensor, "b n width"],
        text: Float[Tensor, "b m width"],
        mask: Bool[Tensor, "b m"],
        time: Float[Tensor, "b width"],
    ) -> Float[Tensor, "b n width"]:
        pieces = self.modulation(time)[:, None].unbind(-2)
        (shift1, scale1, gate1), (shift2, scale2, gate2), (shift3, scale3, gate3) = pieces[:3], pieces[3:6], pieces[6:]
        h = (h + gate1 * self.attention(modulate(self.norm1(h), shift1, scale1))).to(h.dtype)
        h = (h + gate2 * self.cross(modulate(self.norm2(h), shift2, scale2), text, mask)).to(h.dtype)
        return (h + gate3 * self.feed_forward(modulate(self.norm3(h), shift3, scale3))).to(h.dtype)

"""DiT-Air (Chen et al., Apple, arXiv 2503.10618).

New against MMDiT: text and image are rows of one sequence and share all weights, and one adaLN is made for all
layers, so that of MMDiT's 36 d^2 parameters per layer 12 d^2 are left. DiT-Air-Lite also shares the attention's
projections among the layers. Each part of that is a setting.

The paper's code is not public. What it leaves open is done as on the pages beside: sin-cos positions as in MMDiT,
queries and keys with an RMSNorm as in SD3.5, and adaLN with its gates for all rows alike.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion.diffusion.networks.blocks import QKV, FeedForward, PooledText, attend, grid_positions, plain_norm, start
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.nn.layers import FlowHead, Modulation, PatchEmbed, TimestepEmbedding, modulate
from fusion.sequence.patches import grid, patchify, unpatchify


@dataclass(frozen=True)
class DiTAirConfig:
    """Sizes of a DiT-Air, and what its layers share: adaLN in all of them, the attention's projections in the Lite one.

    base_grid: cells per side to which sin-cos positions stretch every grid, None for the cells themselves.
    """

    channels: int = 16
    patch_size: int = 2
    width: int = 384
    layers: int = 12
    heads: int = 6
    text_width: int = 4096
    pooled_width: int = 2048
    qk_norm: bool = True
    share_modulation: bool = True
    share_attention: bool = False
    share_feed_forward: bool = False
    base_grid: float | None = None


class DiTAir(nn.Module):
    """See the head of this file."""

    def __init__(self, config: DiTAirConfig):
        super().__init__()
        self.config, width = config, config.width
        self.embed = PatchEmbed(config.channels * config.patch_size**2, width)
        self.time = TimestepEmbedding(width)
        self.pooled = PooledText(config.pooled_width, width)
        self.text = nn.Linear(config.text_width, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        for block in self.blocks[1:]:
            block.share(self.blocks[0])
        self.head = FlowHead(width, config.channels * config.patch_size**2, width)
        start(self)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Noised latents of unit scale at times t in [0, 1] (1 is noise) -> what the network predicts."""
        config, size = self.config, grid(x.shape[-2:], self.config.patch_size)
        patches = self.embed(patchify(x, config.patch_size, rank=2))
        patches = patches + grid_positions(size, config.width, config.base_grid, x.device).to(patches.dtype)
        mask, text, time = cond.where(), self.text(cond.tokens), self.time(t) + self.pooled(cond.given("pooled"))
        h, seen = torch.cat([text, patches], dim=1), torch.cat([mask, mask.new_ones(patches.shape[:2])], dim=1)
        pieces = self.blocks[0].modulation(time) if config.share_modulation else None
        for block in self.blocks:
            h = block(h, block.modulation(time) if pieces is None else pieces, seen)
        rows = self.head(h[:, text.shape[1] :], time=time[:, None])
        return unpatchify(rows.to(x.dtype), size, config.patch_size, config.channels)


class Block(nn.Module):
    """A block of DiT over text and image."""

    def __init__(self, config: DiTAirConfig):
        super().__init__()
        self.config, width = config, config.width
        self.modulation = Modulation(width, width, pieces=6)
        self.norm1, self.qkv, self.out = (
            plain_norm(width),
            QKV(width, config.heads, config.qk_norm),
            nn.Linear(width, width),
        )
        self.norm2, self.feed_forward = plain_norm(width), FeedForward(width)

    def share(self, first: "Block") -> None:
        """Take from the first block what all layers have in common."""
        config = self.config
        parts = {"modulation": config.share_modulation, "feed_forward": config.share_feed_forward}
        for name, shared in (parts | dict.fromkeys(("qkv", "out"), config.share_attention)).items():
            if shared:
                setattr(self, name, getattr(first, name))

    def forward(
        self, h: Float[Tensor, "b n width"], pieces: Float[Tensor, "b 6 width"], seen: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b n width"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = pieces[:, None].unbind(-2)
        h = (h + gate1 * self.out(attend(*self.qkv(modulate(self.norm1(h), shift1, scale1)), seen))).to(h.dtype)
        return (h + gate2 * self.feed_forward(modulate(self.norm2(h), shift2, scale2))).to(h.dtype)

"""U-ViT (Bao et al., arXiv 2209.12152; baofff/U-ViT).

New in it: everything is a token, the time and the class or text as well as the patches, so that a block is that of a
plain vision transformer; and the first half of the blocks hands its rows on to the second by long skips, joined by a
linear layer, as in a UNet. A last convolution smooths over the borders of patches.

Positions are learned for all rows. The paper's models draw images of one size; here smaller ones have the middle of
its positions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion.diffusion.networks.blocks import Attention
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.nn.layers import PatchEmbed, timestep_features
from fusion.sequence.patches import grid, patchify, unpatchify


@dataclass(frozen=True)
class UViTConfig:
    """Sizes of a U-ViT; layers: an odd number.

    size: rows and columns of patches of the largest image. classes: of labels, or text_width: of text tokens, at most
    `words` of them. time_mlp: whether the time passes two linear layers before it is a token (off in the paper's
    models).
    """

    channels: int = 4
    patch_size: int = 2
    size: tuple[int, int] = (16, 16)
    width: int = 512
    layers: int = 13
    heads: int = 8
    classes: int | None = None
    text_width: int | None = None
    words: int = 77
    time_mlp: bool = False

    def __post_init__(self):
        if self.layers % 2 == 0:
            raise ValueError(
                f"layers={self.layers}: a U-ViT has as many before its middle block as after it, an odd number in all"
            )
        if (self.classes is None) == (self.text_width is None):
            raise ValueError(
                f"classes={self.classes}, text_width={self.text_width}: a U-ViT reads class labels or text, one of them"
            )


class UViT(nn.Module):
    """See the head of this file."""

    def __init__(self, config: UViTConfig):
        super().__init__()
        self.config, width, half = config, config.width, config.layers // 2
        self.embed = PatchEmbed(config.channels * config.patch_size**2, width)
        self.time = (
            nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
            if config.time_mlp
            else nn.Identity()
        )
        self.label = None if config.classes is None else nn.Embedding(config.classes + 1, width)
        self.text = None if config.text_width is None else nn.Linear(config.text_width, width)
        self.extras = 1 + (1 if config.classes is not None else config.words)
        self.positions = nn.Parameter(torch.empty(self.extras + config.size[0] * config.size[1], width))
        self.first = nn.ModuleList(Block(width, config.heads) for _ in range(half))
        self.middle = nn.ModuleList([Block(width, config.heads)])
        self.second = nn.ModuleList(Block(width, config.heads, skip=True) for _ in range(half))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, config.channels * config.patch_size**2)
        self.smooth = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The paper's start, N(0, 0.02) (its code cuts off at a hundred standard deviations) and no biases; but nothing
        comes out of the last convolution, so that a flow begins at 0."""
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=0.02)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
        self.embed.reset_parameters()
        nn.init.normal_(self.positions, std=0.02)
        nn.init.zeros_(self.smooth.weight)
        nn.init.zeros_(self.smooth.bias)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Noised latents of unit scale at times t in [0, 1] (1 is noise) -> what the network predicts."""
        config, size = self.config, grid(x.shape[-2:], self.config.patch_size)
        time = self.time(timestep_features(t, config.width).to(self.positions.dtype))[:, None]
        given, mask = self.given(cond)
        h = torch.cat([time, given, self.embed(patchify(x, config.patch_size, rank=2))], dim=1) + self.placed(size)
        seen = torch.cat([mask.new_ones(len(x), 1), mask, mask.new_ones(len(x), h.shape[1] - self.extras)], dim=1)
        skips = []
        for block in self.first:
            h = block(h, seen)
            skips.append(h)
        for block in (*self.middle, *self.second):
            h = block(h, seen, skips.pop() if block.skip is not None else None)
        latent = unpatchify(self.out(self.norm(h[:, self.extras :])), size, config.patch_size, config.channels)
        return self.smooth(latent).to(x.dtype)

    def placed(self, size: tuple[int, int]) -> Float[Tensor, "n width"]:
        """Positions of the extra rows and of the middle `size` patches. ValueError for more patches than there are
        positions."""
        rows, columns = self.config.size
        if size[0] > rows or size[1] > columns:
            raise ValueError(
                f"{size[0]} x {size[1]} patches, and this U-ViT has positions of {rows} x {columns}: draw smaller "
                "images"
            )
        extras, patches = self.positions.tensor_split([self.extras])
        top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
        middle = patches.unflatten(0, self.config.size)[top : top + size[0], left : left + size[1]]
        return torch.cat([extras, middle.flatten(0, 1)])

    def given(self, cond: Conditioning) -> tuple[Float[Tensor, "b m width"], Bool[Tensor, "b m"]]:
        """The condition as as many rows as there are positions for it, and which of them count."""
        if self.label is not None:
            if cond.label is None:
                raise ValueError("this U-ViT was made for class labels: give Conditioning a label")
            rows = self.label(cond.label)[:, None]
            return rows, torch.ones_like(rows[..., 0], dtype=torch.bool)
        mask, room = cond.where(), self.config.words - cond.tokens.shape[1]
        if room < 0 and mask[:, self.config.words :].any():
            raise ValueError(
                f"a text of {cond.tokens.shape[1]} tokens, and this U-ViT has positions for {self.config.words}: "
                "shorten it"
            )
        return F.pad(self.text(cond.tokens), (0, 0, 0, room)), F.pad(mask, (0, room))


class Block(nn.Module):
    """A pre-norm transformer block; with `skip` it first takes in the rows of its partner in the first half."""

    def __init__(self, width: int, heads: int, skip: bool = False):
        super().__init__()
        self.skip = nn.Linear(2 * width, width) if skip else None
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, qkv_bias=False)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self,
        h: Float[Tensor, "b n width"],
        seen: Bool[Tensor, "b n"],
        skipped: Float[Tensor, "b n width"] | None = None,
    ) -> Float[Tensor, "b n width"]:
        if self.skip is not None:
            h = self.skip(torch.cat([h, skipped], dim=-1))
        h = h + self.attention(self.norm1(h), mask=seen)
        return h + self.down(F.gelu(self.up(self.norm2(h))))

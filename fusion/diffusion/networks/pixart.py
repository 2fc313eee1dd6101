"""PixArt-alpha (Chen et al., arXiv 2310.00426; PixArt-alpha/PixArt-alpha).

New against DiT: text comes in by cross-attention in every block, without a norm and without a gate, and adaLN becomes
adaLN-single. One modulation of the time is made for all blocks, and each block adds a table of its own, which saves 27
% of the parameters. So a class-conditional DiT can be taken over (`from_dit`): at one time the tables give what its own
layers gave.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion.diffusion.networks.blocks import Attention, FeedForward, grid_positions, plain_norm, start_single
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.dit import DiT
from fusion.diffusion.networks.name_tables import (
    Row,
    attention,
    channels_last,
    convolved,
    embedder,
    feed_forward,
    linear,
)
from fusion.nn.layers import Linear32, Modulation, PatchEmbed, TimestepEmbedding, modulate
from fusion.sequence.patches import grid, patchify, unpatchify


@dataclass(frozen=True)
class PixArtConfig:
    """Sizes of a PixArt; the defaults are those of DiT-S/2 with text.

    text_width: of text tokens. base_grid: cells per side to which sin-cos positions stretch every grid, None for the
    cells themselves. pixels: pixels of the image per latent pixel where the network is told the image's size (the
    1024-pixel models), else None. variance: whether the head also has the rows of a learned variance, as the published
    weights do; they take no part in the flow.
    """

    channels: int = 4
    patch_size: int = 2
    width: int = 384
    layers: int = 12
    heads: int = 6
    text_width: int = 4096
    base_grid: float | None = None
    pixels: int | None = None
    norm_eps: float = 1e-6
    variance: bool = False


class PixArt(nn.Module):
    """See the head of this file."""

    def __init__(self, config: PixArtConfig):
        super().__init__()
        self.config, width = config, config.width
        self.patch = config.channels * config.patch_size**2
        self.embed = PatchEmbed(self.patch, width)
        self.time = TimestepEmbedding(width)
        self.sides, self.aspect = (
            (None, None) if config.pixels is None else (TimestepEmbedding(width // 3), TimestepEmbedding(width // 3))
        )
        self.text = FeedForward(config.text_width, width / config.text_width, width)
        self.modulation = Modulation(width, width, pieces=6)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm, self.table, self.out = (
            plain_norm(width),
            nn.Parameter(torch.empty(2, width)),
            Linear32(width, self.patch * (1 + config.variance)),
        )
        start_single(self)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Noised latents of unit scale at times t in [0, 1] (1 is noise) -> what the network predicts."""
        config, size = self.config, grid(x.shape[-2:], self.config.patch_size)
        h = self.embed(patchify(x, config.patch_size, rank=2))
        h = h + grid_positions(size, config.width, config.base_grid, x.device).to(h.dtype)
        mask, text, time = cond.where(), self.text(cond.tokens), self.told(t, x)
        pieces = self.modulation(time)
        for block in self.blocks:
            h = block(h, pieces, text, mask)
        shift, scale = (self.table + time[:, None]).unbind(1)
        rows = self.out(modulate(self.norm(h.float()), shift[:, None], scale[:, None]))
        return unpatchify(rows[..., : self.patch].to(x.dtype), size, config.patch_size, config.channels)

    def told(self, t: Float[Tensor, " b"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width"]:
        """The time, and the height, width and aspect ratio of the image where the network is told them."""
        time = self.time(t)
        if self.sides is None:
            return time
        height, width = (side * self.config.pixels for side in x.shape[-2:])
        sides = self.sides(t.new_tensor([height, width]) / 1000).flatten()  # an embedding of t sees 1000 t
        aspect = self.aspect(t.new_tensor([height / width]) / 1000).flatten()
        return time + torch.cat([sides, aspect])


class Block(nn.Module):
    """Self-attention and feed-forward of adaLN-single, cross-attention between them."""

    def __init__(self, config: PixArtConfig):
        super().__init__()
        width = config.width
        self.table = nn.Parameter(torch.empty(6, width))
        self.norm1, self.attention = plain_norm(width, config.norm_eps), Attention(width, config.heads)
        self.cross = Attention(width, config.heads)
        self.norm2, self.feed_forward = plain_norm(width, config.norm_eps), FeedForward(width)

    def forward(
        self,
        h: Float[Tensor, "b n width"],
        pieces: Float[Tensor, "b 6 width"],
        text: Float[Tensor, "b m width"],
        mask: Bool[Tensor, "b m"],
    ) -> Float[Tensor, "b n width"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.table + pieces)[:, None].unbind(2)
        h = (h + gate1 * self.attention(modulate(self.norm1(h), shift1, scale1))).to(h.dtype)
        h = h + self.cross(h, text, mask)
        return (h + gate2 * self.feed_forward(modulate(self.norm2(h), shift2, scale2))).to(h.dtype)


@torch.no_grad()
def from_dit(dit: DiT, config: PixArtConfig, time: float = 0.5) -> PixArt:
    """A PixArt that goes on from a DiT (adaln-zero): at the given time, told no class, it predicts what the DiT does
    (paper, section 2.3).

    ValueError where sizes or conditioning do not fit.
    """
    sizes = ("channels", "patch_size", "width", "layers", "heads", "variance")
    unlike = [name for name in sizes if getattr(dit.config, name) != getattr(config, name)]
    if unlike or dit.config.conditioning != "adaln-zero":
        raise ValueError(
            f"a PixArt can go on from an adaln-zero DiT of its own sizes; {', '.join(unlike) or 'conditioning'} differ"
        )
    model = PixArt(config)
    own = model.state_dict()
    shared = {
        name: tensor for name, tensor in dit.state_dict().items() if name in own and own[name].shape == tensor.shape
    }
    model.load_state_dict(own | shared)
    model.time.freq_shift = dit.time.freq_shift
    told = model.time(torch.tensor([time], device=model.table.device))
    for block, theirs in zip(model.blocks, dit.blocks, strict=True):
        block.table.copy_((theirs.modulation(told) - model.modulation(told))[0])
    model.table.copy_(dit.head.modulation(told)[0] - told)
    model.out.load_state_dict(dit.head.out.state_dict())
    return model


# ---- diffusers' PixArtTransformer2DModel ----


def from_diffusers(settings: dict) -> PixArtConfig:
    """The config of a PixArtTransformer2DModel; its learned variance stays."""
    channels, sample = settings["in_channels"], settings["sample_size"]
    told, stretch = settings.get("use_additional_conditions"), settings.get("interpolation_scale")
    return PixArtConfig(
        channels=channels,
        patch_size=settings["patch_size"],
        width=settings["num_attention_heads"] * settings["attention_head_dim"],
        layers=settings["num_layers"],
        heads=settings["num_attention_heads"],
        text_width=settings["caption_channels"],
        base_grid=sample // settings["patch_size"] / (max(sample // 64, 1) if stretch is None else stretch),
        pixels=8 if (sample == 128 if told is None else told) else None,
        norm_eps=settings.get("norm_eps", 1e-6),
        variance=(settings.get("out_channels") or channels) == 2 * channels,
    )


def to_diffusers(config: PixArtConfig) -> dict:
    """The settings of a PixArtTransformer2DModel. ValueError for what that class cannot be."""
    if config.base_grid is None or config.pixels not in (None, 8):
        raise ValueError(
            "diffusers' PixArt has positions of a base grid, and 8 pixels per latent pixel if it is told them: this "
            "one differs"
        )
    sample = round(config.base_grid * config.patch_size)
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": config.channels,
        "out_channels": config.channels * (1 + config.variance),
        "num_layers": config.layers,
        "patch_size": config.patch_size,
        "sample_size": sample,
        "interpolation_scale": sample // config.patch_size / config.base_grid,
        "cross_attention_dim": config.width,
        "caption_channels": config.text_width,
        "use_additional_conditions": config.pixels is not None,
        "norm_eps": config.norm_eps,
    }


def names(config: PixArtConfig) -> list[Row]:
    """Our tensors and theirs."""
    emb = "adaln_single.emb"
    rows = [
        *linear("embed.proj", "pos_embed.proj", weight=convolved(config.channels, config.patch_size)),
        *embedder("time", f"{emb}.timestep_embedder"),
        *embedder("text", "caption_projection"),
        *linear("modulation.proj", "adaln_single.linear"),
        Row("table", "scale_shift_table"),
        *linear("out", "proj_out", both=channels_last(config.channels, config.patch_size, 1 + config.variance)),
    ]
    for ours, theirs in (
        (("sides", "resolution_embedder"), ("aspect", "aspect_ratio_embedder")) if config.pixels else ()
    ):
        rows += embedder(ours, f"{emb}.{theirs}")
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}", f"transformer_blocks.{layer}"
        rows.append(Row(f"{ours}.table", f"{theirs}.scale_shift_table"))
        rows += attention(f"{ours}.attention", f"{theirs}.attn1") + attention(f"{ours}.cross", f"{theirs}.attn2")
        rows += feed_forward(f"{ours}.feed_forward", f"{theirs}.ff")
    return rows

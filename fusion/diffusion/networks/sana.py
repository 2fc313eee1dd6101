"""SANA (Xie et al., arXiv 2410.10629; NVlabs/Sana), and the qk-norm of SANA-1.5 (arXiv 2501.18427).

New against PixArt: attention of the image to itself is linear in its rows. Queries and keys pass a ReLU in place of
the softmax, so that keys and values can be summed once for all queries. What that loses close by, a feed-forward of
gated convolutions brings back (Mix-FFN: a depthwise 3 x 3 between two of 1 x 1), which also sees where a row lies, so
that positions are left out. Latents are those of an autoencoder that shrinks sides by 32, and patches single pixels of
them; text is normalised before it is attended to.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion.diffusion.networks.blocks import (
    QKV,
    Attention,
    FeedForward,
    grid_positions,
    plain_norm,
    start_single,
    without_biases,
)
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.name_tables import Row, attention, channels_last, convolved, embedder, linear
from fusion.nn.layers import Linear32, Modulation, PatchEmbed, TimestepEmbedding, modulate
from fusion.sequence.patches import grid, patchify, unpatchify


@dataclass(frozen=True)
class SanaConfig:
    """Sizes of a SANA.

    heads: of the linear attention, 32 wide in the published models; cross_heads: of attention to the text, None for as
    many. expansion: of the convolutions. qk_norm: whether queries and keys have an RMSNorm across heads (SANA-1.5).
    base_grid: cells per side of sin-cos positions, None for none.
    """

    channels: int = 32
    patch_size: int = 1
    width: int = 384
    layers: int = 12
    heads: int = 12
    cross_heads: int | None = None
    expansion: float = 2.5
    text_width: int = 2304
    qk_norm: bool = False
    base_grid: float | None = None
    norm_eps: float = 1e-6

    @property
    def heads_to_text(self) -> int:
        """Heads of cross-attention."""
        return self.cross_heads or self.heads


class Sana(nn.Module):
    """See the head of this file."""

    def __init__(self, config: SanaConfig):
        super().__init__()
        self.config, width = config, config.width
        self.patch = config.channels * config.patch_size**2
        self.embed = PatchEmbed(self.patch, width)
        self.time = TimestepEmbedding(width)
        self.text = FeedForward(config.text_width, width / config.text_width, width)
        self.text_norm = nn.RMSNorm(width, eps=1e-5)
        self.modulation = Modulation(width, width, pieces=6)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm, self.table, self.out = (
            plain_norm(width),
            nn.Parameter(torch.empty(2, width)),
            Linear32(width, self.patch),
        )
        start_single(self)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Noised latents of unit scale at times t in [0, 1] (1 is noise) -> what the network predicts."""
        config, size = self.config, grid(x.shape[-2:], self.config.patch_size)
        h = self.embed(patchify(x, config.patch_size, rank=2))
        if config.base_grid is not None:
            h = h + grid_positions(size, config.width, config.base_grid, x.device).to(h.dtype)
        mask, text, time = cond.where(), self.text_norm(self.text(cond.tokens)), self.time(t)
        pieces = self.modulation(time)
        for block in self.blocks:
            h = block(h, pieces, text, mask, size)
        shift, scale = (self.table + time[:, None]).unbind(1)
        rows = self.out(modulate(self.norm(h.float()), shift[:, None], scale[:, None]))
        return unpatchify(rows.to(x.dtype), size, config.patch_size, config.channels)


class Block(nn.Module):
    """Linear attention and convolutions of adaLN-single, cross-attention between them."""

    def __init__(self, config: SanaConfig):
        super().__init__()
        width = config.width
        self.table = nn.Parameter(torch.empty(6, width))
        self.norm1, self.attention = (
            plain_norm(width, config.norm_eps),
            LinearAttention(width, config.heads, config.qk_norm),
        )
        self.cross = Attention(width, config.heads_to_text, qk_norm=config.qk_norm)
        self.norm2, self.feed_forward = plain_norm(width, config.norm_eps), MixFFN(width, config.expansion)

    def forward(
        self,
        h: Float[Tensor, "b n width"],
        pieces: Float[Tensor, "b 6 width"],
        text: Float[Tensor, "b m width"],
        mask: Bool[Tensor, "b m"],
        size: tuple[int, int],
    ) -> Float[Tensor, "b n width"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.table + pieces)[:, None].unbind(2)
        h = (h + gate1 * self.attention(modulate(self.norm1(h), shift1, scale1))).to(h.dtype)
        h = h + self.cross(h, text, mask)
        return (h + gate2 * self.feed_forward(modulate(self.norm2(h), shift2, scale2), size)).to(h.dtype)


class LinearAttention(nn.Module):
    """softmax(q k) v with relu(q) relu(k) in place of the exponential (section 2.2), at a cost that is linear in the
    number of rows; fp32."""

    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.qkv, self.out = QKV(width, heads, qk_norm, across=True, eps=1e-5), nn.Linear(width, width)
        without_biases(self.qkv)

    def forward(self, h: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        q, k, v = self.qkv(h)
        with torch.autocast(h.device.type, enabled=False):
            q, k, v = q.float(), k.float(), v.float()
            q, k, v = F.relu(q), F.relu(k), F.pad(v, (0, 1), value=1.0)  # the column of ones sums up the weights
            summed = q @ (k.mT @ v)
            mixed = summed[..., :-1] / (summed[..., -1:] + 1e-15)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)").to(h.dtype))


class MixFFN(nn.Module):
    """Rows as an image: 1 x 1 up, SiLU, depthwise 3 x 3, one half gated by the other, 1 x 1 down (section 2.2)."""

    def __init__(self, width: int, expansion: float):
        super().__init__()
        inner = int(expansion * width)
        self.up, self.down = nn.Conv2d(width, 2 * inner, 1), nn.Conv2d(inner, width, 1, bias=False)
        self.depth = nn.Conv2d(2 * inner, 2 * inner, 3, padding=1, groups=2 * inner)

    def forward(self, h: Float[Tensor, "b n width"], size: tuple[int, int]) -> Float[Tensor, "b n width"]:
        """`size`: rows and columns of the image."""
        image = self.depth(F.silu(self.up(h.mT.unflatten(2, size))))
        values, gate = image.chunk(2, dim=1)
        return self.down(values * F.silu(gate)).flatten(2).mT


# ---- diffusers' SanaTransformer2DModel ----


def from_diffusers(settings: dict) -> SanaConfig:
    """The config of a SanaTransformer2DModel. ValueError for SANA-Sprint, whose times are angles of another flow, and
    for widths that differ."""
    width = settings["num_attention_heads"] * settings["attention_head_dim"]
    if settings.get("guidance_embeds") or settings.get("timestep_scale", 1.0) != 1.0:
        raise ValueError(
            "this is a SANA-Sprint, which takes few steps along another path than a flow's: give the SANA it was "
            "made from"
        )
    if (
        settings["cross_attention_dim"] != width
        or settings["num_cross_attention_heads"] * settings["cross_attention_head_dim"] != width
    ):
        raise ValueError("cross-attention is not as wide as the network: no published SANA is like that")
    if (
        settings.get("attention_bias")
        or settings.get("norm_elementwise_affine")
        or settings["out_channels"] not in (None, settings["in_channels"])
    ):
        raise ValueError(
            "attention_bias, norm_elementwise_affine or out_channels are set: no published SANA is like that"
        )
    stretch = settings.get("interpolation_scale")
    return SanaConfig(
        channels=settings["in_channels"],
        patch_size=settings["patch_size"],
        width=width,
        layers=settings["num_layers"],
        heads=settings["num_attention_heads"],
        cross_heads=settings["num_cross_attention_heads"],
        expansion=settings["mlp_ratio"],
        text_width=settings["caption_channels"],
        qk_norm=settings.get("qk_norm") is not None,
        base_grid=None if stretch is None else settings["sample_size"] // settings["patch_size"] / stretch,
        norm_eps=settings.get("norm_eps", 1e-6),
    )


def to_diffusers(config: SanaConfig) -> dict:
    """The settings of a SanaTransformer2DModel."""
    return {
        "in_channels": config.channels,
        "out_channels": config.channels,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "num_layers": config.layers,
        "num_cross_attention_heads": config.heads_to_text,
        "cross_attention_head_dim": config.width // config.heads_to_text,
        "cross_attention_dim": config.width,
        "caption_channels": config.text_width,
        "mlp_ratio": config.expansion,
        "patch_size": config.patch_size,
        "norm_eps": config.norm_eps,
        "sample_size": 32 if config.base_grid is None else round(config.base_grid * config.patch_size),
        "interpolation_scale": None if config.base_grid is None else 1.0,
        "qk_norm": "rms_norm_across_heads" if config.qk_norm else None,
    }


def names(config: SanaConfig) -> list[Row]:
    """Our tensors and theirs."""
    rows = [
        *linear("embed.proj", "patch_embed.proj", weight=convolved(config.channels, config.patch_size)),
        *embedder("time", "time_embed.emb.timestep_embedder"),
        *embedder("text", "caption_projection"),
        Row("text_norm.weight", "caption_norm.weight"),
        *linear("modulation.proj", "time_embed.linear"),
        Row("table", "scale_shift_table"),
        *linear("out", "proj_out", both=channels_last(config.channels, config.patch_size)),
    ]
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}", f"transformer_blocks.{layer}"
        rows.append(Row(f"{ours}.table", f"{theirs}.scale_shift_table"))
        rows += [Row(f"{ours}.attention.qkv.{part}.weight", f"{theirs}.attn1.to_{part}.weight") for part in "qkv"]
        rows += linear(f"{ours}.attention.out", f"{theirs}.attn1.to_out.0") + attention(
            f"{ours}.cross", f"{theirs}.attn2"
        )
        for part in "qk" if config.qk_norm else "":
            rows.append(Row(f"{ours}.attention.qkv.norm_{part}.weight", f"{theirs}.attn1.norm_{part}.weight"))
            rows.append(Row(f"{ours}.cross.norm_{part}.weight", f"{theirs}.attn2.norm_{part}.weight"))
        for part, name, bias in (("up", "inverted", True), ("depth", "depth", True), ("down", "point", False)):
            rows += linear(f"{ours}.feed_forward.{part}", f"{theirs}.ff.conv_{name}", bias)
    return rows

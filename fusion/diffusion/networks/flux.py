"""Flux.1, the network of Black Forest Labs (black-forest-labs/flux).

New against MMDiT: after blocks of two streams come blocks of one, in which text and image share all weights and
attention and feed-forward work side by side on the same rows, joined by one output layer. Positions are rotary: a
image's rows turn by their row and column, those of text by nothing. A distilled model is told the scale of guidance
as it is told the time.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion.diffusion.networks.blocks import (
    QKV,
    FeedForward,
    PooledText,
    Stream,
    attend,
    check_axes,
    joint,
    plain_norm,
    rotary,
    start,
    turn,
)
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.name_tables import Row, added_qkv, embedder, feed_forward, linear, qkv, swapped
from fusion.nn.layers import FlowHead, Modulation, PatchEmbed, TimestepEmbedding, modulate
from fusion.sequence.patches import cells, grid, patchify, unpatchify


@dataclass(frozen=True)
class FluxConfig:
    """Sizes of a Flux.

    layers: blocks of two streams; single: blocks of one after them. axes: numbers of each head that turn by (nothing,
    row, column), together the head. guidance: whether it is told the scale of guidance. text_mask: whether rows that
    Conditioning.mask leaves out are hidden; the published models read their padding too.
    """

    channels: int = 16
    patch_size: int = 2
    width: int = 384
    layers: int = 4
    single: int = 8
    heads: int = 6
    axes: tuple[int, int, int] = (8, 28, 28)
    theta: float = 10_000.0
    text_width: int = 4096
    pooled_width: int = 768
    guidance: bool = False
    text_mask: bool = False

    def __post_init__(self):
        check_axes(self.axes, self.width, self.heads)


class Flux(nn.Module):
    """See the head of this file."""

    def __init__(self, config: FluxConfig):
        super().__init__()
        self.config, width = config, config.width
        self.embed = PatchEmbed(config.channels * config.patch_size**2, width)
        self.time = TimestepEmbedding(width)
        self.guidance = TimestepEmbedding(width) if config.guidance else None
        self.pooled = PooledText(config.pooled_width, width)
        self.text = nn.Linear(config.text_width, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.single = nn.ModuleList(SingleBlock(config) for _ in range(config.single))
        self.head = FlowHead(width, config.channels * config.patch_size**2, width)
        start(self)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Noised latents of unit scale at times t in [0, 1] (1 is noise) -> what the network predicts."""
        config, size = self.config, grid(x.shape[-2:], self.config.patch_size)
        told, mask = self.told(t, cond), cond.where()
        text, h = self.text(cond.tokens), self.embed(patchify(x, config.patch_size, rank=2))
        turns = self.turns(text.shape[1], size, x.device)
        seen = torch.cat([mask, mask.new_ones(h.shape[:2])], dim=1) if config.text_mask else None
        for block in self.blocks:
            text, h = block(text, h, told, turns, seen)
        both = torch.cat([text, h], dim=1)
        for block in self.single:
            both = block(both, told, turns, seen)
        rows = self.head(both[:, text.shape[1] :], time=told[:, None])
        return unpatchify(rows.to(x.dtype), size, config.patch_size, config.channels)

    def told(self, t: Float[Tensor, " b"], cond: Conditioning) -> Float[Tensor, "b width"]:
        """Time, guidance and pooled text as one vector. ValueError where one is missing."""
        told = self.time(t) + self.pooled(cond.given("pooled"))
        return told if self.guidance is None else told + self.guidance(cond.given("guidance"))

    def turns(self, words: int, size: tuple[int, int], device=None) -> Float[Tensor, "n half 2"]:
        """Rotary positions of all rows, the text's first."""
        where = torch.cat([torch.zeros(words, 2, device=device), cells(size, device).float()])
        return rotary(torch.cat([torch.zeros_like(where[:, :1]), where], dim=1), self.config.axes, self.config.theta)


class Block(nn.Module):
    """Two streams that meet in one attention, the text first."""

    def __init__(self, config: FluxConfig):
        super().__init__()
        width = config.width
        self.text, self.image = (
            Stream(width, QKV(width, config.heads, qk_norm=True), FeedForward(width)) for _ in range(2)
        )

    def forward(
        self,
        text: Float[Tensor, "b m width"],
        h: Float[Tensor, "b n width"],
        told: Float[Tensor, "b width"],
        turns: Float[Tensor, "s half 2"],
        seen: Bool[Tensor, "b s"] | None,
    ) -> list[Float[Tensor, "b _ width"]]:
        streams = self.text, self.image
        return joint(
            streams, (text, h), [stream.modulation(told)[:, None].unbind(-2) for stream in streams], turns, seen
        )


class SingleBlock(nn.Module):
    """One stream: attention and feed-forward side by side, joined by one output layer."""

    def __init__(self, config: FluxConfig):
        super().__init__()
        width = config.width
        self.modulation = Modulation(width, width, pieces=3)
        self.norm, self.qkv = plain_norm(width), QKV(width, config.heads, qk_norm=True)
        self.up, self.out = nn.Linear(width, 4 * width), nn.Linear(5 * width, width)

    def forward(
        self,
        h: Float[Tensor, "b s width"],
        told: Float[Tensor, "b width"],
        turns: Float[Tensor, "s half 2"],
        seen: Bool[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b s width"]:
        shift, scale, gate = self.modulation(told)[:, None].unbind(-2)
        normed = modulate(self.norm(h), shift, scale)
        q, k, v = self.qkv(normed)
        attended = attend(turn(q, turns), turn(k, turns), v, seen)
        return (h + gate * self.out(torch.cat([attended, F.gelu(self.up(normed), approximate="tanh")], dim=-1))).to(
            h.dtype
        )


# ---- diffusers' FluxTransformer2DModel ----


def from_diffusers(settings: dict) -> FluxConfig:
    """The config of a FluxTransformer2DModel, which is given 2 x 2 patches as rows of 4 times the channels."""
    if settings.get("out_channels") not in (None, settings["in_channels"]) or settings["patch_size"] != 1:
        raise ValueError(
            "a Flux with other outputs than inputs (Fill, Canny, Depth), or patches of its own: the plain one can "
            "be loaded"
        )
    return FluxConfig(
        channels=settings["in_channels"] // 4,
        width=settings["num_attention_heads"] * settings["attention_head_dim"],
        layers=settings["num_layers"],
        single=settings["num_single_layers"],
        heads=settings["num_attention_heads"],
        axes=tuple(settings.get("axes_dims_rope", (16, 56, 56))),
        text_width=settings["joint_attention_dim"],
        pooled_width=settings["pooled_projection_dim"],
        guidance=settings["guidance_embeds"],
    )


def to_diffusers(config: FluxConfig) -> dict:
    """The settings of a FluxTransformer2DModel. ValueError for what that class cannot be."""
    if config.text_mask or config.patch_size != 2 or config.theta != 10_000.0:
        raise ValueError(
            "diffusers' Flux has patches of 2, theta 10,000 and reads the padding of its text: this network differs"
        )
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": 4 * config.channels,
        "num_layers": config.layers,
        "num_single_layers": config.single,
        "patch_size": 1,
        "axes_dims_rope": list(config.axes),
        "joint_attention_dim": config.text_width,
        "pooled_projection_dim": config.pooled_width,
        "guidance_embeds": config.guidance,
    }


def names(config: FluxConfig) -> list[Row]:
    """Our tensors and theirs. Their last norm has the scale first."""
    emb = "time_text_embed"
    rows = [
        *linear("embed.proj", "x_embedder"),
        *embedder("time", f"{emb}.timestep_embedder"),
        *embedder("pooled", f"{emb}.text_embedder", ("0", "2")),
        *linear("text", "context_embedder"),
        *linear("head.modulation.proj", "norm_out.linear", both=swapped),
        *linear("head.out", "proj_out"),
    ]
    if config.guidance:
        rows += embedder("guidance", f"{emb}.guidance_embedder")
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}", f"transformer_blocks.{layer}"
        rows += qkv(f"{ours}.image.qkv", f"{theirs}.attn", True) + linear(
            f"{ours}.image.out", f"{theirs}.attn.to_out.0"
        )
        rows += added_qkv(f"{ours}.text.qkv", f"{theirs}.attn", True) + linear(
            f"{ours}.text.out", f"{theirs}.attn.to_add_out"
        )
        for stream, norm, ff in (("image", "norm1", "ff"), ("text", "norm1_context", "ff_context")):
            rows += linear(f"{ours}.{stream}.modulation.proj", f"{theirs}.{norm}.linear")
            rows += feed_forward(f"{ours}.{stream}.feed_forward", f"{theirs}.{ff}")
    for layer in range(config.single):
        ours, theirs = f"single.{layer}", f"single_transformer_blocks.{layer}"
        rows += qkv(f"{ours}.qkv", f"{theirs}.attn", True) + linear(f"{ours}.modulation.proj", f"{theirs}.norm.linear")
        rows += linear(f"{ours}.up", f"{theirs}.proj_mlp") + linear(f"{ours}.out", f"{theirs}.proj_out")
    return rows

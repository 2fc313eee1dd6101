"""Flux.2, the network of Black Forest Labs (black-forest-labs/flux2).

New against Flux.1: one modulation for all blocks of a kind, three in the network, where each block had its own;
feed-forwards are SwiGLU, 3 times the width inside; no layer has a bias. Text is the features of a language model, and
no pooled vector is read. Positions have four axes (time, row, column, word): an image's rows turn by row and column,
those of text by their place in it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion.diffusion.networks.blocks import (
    QKV,
    Stream,
    SwiGLU,
    attend,
    check_axes,
    joint,
    plain_norm,
    rotary,
    start,
    turn,
    without_biases,
)
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.name_tables import Row, added_qkv, embedder, fused, linear, qkv, swapped
from fusion.nn.layers import FlowHead, Modulation, PatchEmbed, TimestepEmbedding, modulate
from fusion.sequence.patches import cells, grid, patchify, unpatchify


@dataclass(frozen=True)
class Flux2Config:
    """Sizes of a Flux2.

    layers: blocks of two streams; single: blocks of one after them. axes: numbers of each head that turn by (time, row,
    column, word), together the head. expansion: of feed-forwards. guidance: whether it is told the scale of guidance.
    text_mask: whether rows that Conditioning.mask leaves out are hidden; the published models read their padding too.
    """

    channels: int = 32
    patch_size: int = 2
    width: int = 384
    layers: int = 2
    single: int = 12
    heads: int = 3
    axes: tuple[int, int, int, int] = (32, 32, 32, 32)
    theta: float = 2000.0
    expansion: float = 3.0
    text_width: int = 15_360
    guidance: bool = False
    text_mask: bool = False

    def __post_init__(self):
        check_axes(self.axes, self.width, self.heads)

    @property
    def inner(self) -> int:
        """Width inside a feed-forward."""
        return int(self.width * self.expansion)


class Flux2(nn.Module):
    """See the head of this file."""

    def __init__(self, config: Flux2Config):
        super().__init__()
        self.config, width = config, config.width
        self.embed = PatchEmbed(config.channels * config.patch_size**2, width)
        self.time = TimestepEmbedding(width)
        self.guidance = TimestepEmbedding(width) if config.guidance else None
        self.text = nn.Linear(config.text_width, width)
        self.modulation = nn.ModuleDict(
            {"text": Modulation(width, width), "image": Modulation(width, width), "single": Modulation(width, width, 3)}
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.single = nn.ModuleList(SingleBlock(config) for _ in range(config.single))
        self.head = FlowHead(width, config.channels * config.patch_size**2, width)
        start(self)
        without_biases(self)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Noised latents of unit scale at times t in [0, 1] (1 is noise) -> what the network predicts."""
        config, size = self.config, grid(x.shape[-2:], self.config.patch_size)
        told, mask = self.told(t, cond), cond.where()
        text, h = self.text(cond.tokens), self.embed(patchify(x, config.patch_size, rank=2))
        turns = self.turns(text.shape[1], size, x.device)
        seen = torch.cat([mask, mask.new_ones(h.shape[:2])], dim=1) if config.text_mask else None
        words, image, single = (self.modulation[kind](told)[:, None].unbind(-2) for kind in ("text", "image", "single"))
        for block in self.blocks:
            text, h = block(text, h, (words, image), turns, seen)
        both = torch.cat([text, h], dim=1)
        for block in self.single:
            both = block(both, single, turns, seen)
        rows = self.head(both[:, text.shape[1] :], time=told[:, None])
        return unpatchify(rows.to(x.dtype), size, config.patch_size, config.channels)

    def told(self, t: Float[Tensor, " b"], cond: Conditioning) -> Float[Tensor, "b width"]:
        """Time and guidance as one vector. ValueError where guidance is missing."""
        return self.time(t) if self.guidance is None else self.time(t) + self.guidance(cond.given("guidance"))

    def turns(self, words: int, size: tuple[int, int], device=None) -> Float[Tensor, "n half 2"]:
        """Rotary positions of all rows, the text's first."""
        text = F.pad(torch.arange(words, device=device)[:, None], (3, 0))
        return rotary(torch.cat([text, F.pad(cells(size, device), (1, 1))]), self.config.axes, self.config.theta)


class Block(nn.Module):
    """Two streams that meet in one attention, the text first; they are modulated from outside."""

    def __init__(self, config: Flux2Config):
        super().__init__()
        self.text, self.image = (
            Stream(
                config.width,
                QKV(config.width, config.heads, qk_norm=True),
                SwiGLU(config.width, config.inner),
                pieces=0,
            )
            for _ in range(2)
        )

    def forward(
        self,
        text: Float[Tensor, "b m width"],
        h: Float[Tensor, "b n width"],
        pieces: tuple[tuple[Float[Tensor, "b 1 width"], ...], ...],
        turns: Float[Tensor, "s half 2"],
        seen: Bool[Tensor, "b s"] | None,
    ) -> list[Float[Tensor, "b _ width"]]:
        return joint((self.text, self.image), (text, h), pieces, turns, seen)


class SingleBlock(nn.Module):
    """One stream: attention and feed-forward side by side, joined by one output layer; it is modulated from outside."""

    def __init__(self, config: Flux2Config):
        super().__init__()
        width, inner = config.width, config.inner
        self.norm, self.qkv = plain_norm(width), QKV(width, config.heads, qk_norm=True)
        self.gate, self.up, self.out = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(width + inner, width)

    def forward(
        self,
        h: Float[Tensor, "b s width"],
        pieces: tuple[Float[Tensor, "b 1 width"], ...],
        turns: Float[Tensor, "s half 2"],
        seen: Bool[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b s width"]:
        shift, scale, gate = pieces
        normed = modulate(self.norm(h), shift, scale)
        q, k, v = self.qkv(normed)
        attended = attend(turn(q, turns), turn(k, turns), v, seen)
        return (h + gate * self.out(torch.cat([attended, F.silu(self.gate(normed)) * self.up(normed)], dim=-1))).to(
            h.dtype
        )


# ---- diffusers' Flux2Transformer2DModel ----


def from_diffusers(settings: dict) -> Flux2Config:
    """The config of a Flux2Transformer2DModel, whose VAE has folded 2 x 2 latent pixels into channels. ValueError for
    other ones."""
    plain = {"patch_size": 1, "eps": 1e-6, "timestep_guidance_channels": 256}
    unlike = [name for name, value in plain.items() if settings.get(name, value) != value]
    if settings.get("out_channels") not in (None, settings["in_channels"]) or unlike:
        raise ValueError(
            f"a Flux2 with {unlike[0] if unlike else 'out_channels'} of its own: no published one is like that"
        )
    return Flux2Config(
        channels=settings["in_channels"],
        patch_size=1,
        width=settings["num_attention_heads"] * settings["attention_head_dim"],
        layers=settings["num_layers"],
        single=settings["num_single_layers"],
        heads=settings["num_attention_heads"],
        axes=tuple(settings.get("axes_dims_rope", (32, 32, 32, 32))),
        theta=float(settings.get("rope_theta", 2000)),
        expansion=float(settings.get("mlp_ratio", 3.0)),
        text_width=settings["joint_attention_dim"],
        guidance=settings.get("guidance_embeds", True),
    )


def to_diffusers(config: Flux2Config) -> dict:
    """The settings of a Flux2Transformer2DModel, which is given latents folded as far as our patches fold them: with
    patches of 1 it is the same network. ValueError for what that class cannot be."""
    if config.text_mask:
        raise ValueError("diffusers' Flux2 reads the padding of its text: this network differs")
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": config.patch_size**2 * config.channels,
        "num_layers": config.layers,
        "num_single_layers": config.single,
        "patch_size": 1,
        "axes_dims_rope": list(config.axes),
        "rope_theta": config.theta,
        "mlp_ratio": config.expansion,
        "joint_attention_dim": config.text_width,
        "guidance_embeds": config.guidance,
    }


def names(config: Flux2Config) -> list[Row]:
    """Our tensors and theirs, who keep layers that read the same rows in one. Their last norm has the scale first."""
    width, inner = config.width, config.inner
    layers = [("embed.proj", "x_embedder"), ("text", "context_embedder"), ("head.out", "proj_out")]
    layers += [
        (f"modulation.{kind}.proj", f"double_stream_modulation_{theirs}.linear")
        for kind, theirs in (("text", "txt"), ("image", "img"))
    ]
    layers += [("modulation.single.proj", "single_stream_modulation.linear")]
    rows = linear("head.modulation.proj", "norm_out.linear", bias=False, both=swapped)
    for told, theirs in (
        ("time", "timestep_embedder"),
        *((("guidance", "guidance_embedder"),) if config.guidance else ()),
    ):
        rows += embedder(told, f"time_guidance_embed.{theirs}", bias=False)
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}", f"transformer_blocks.{layer}"
        rows += qkv(f"{ours}.image.qkv", f"{theirs}.attn", True, bias=False) + added_qkv(
            f"{ours}.text.qkv", f"{theirs}.attn", True, bias=False
        )
        layers += [(f"{ours}.image.out", f"{theirs}.attn.to_out.0"), (f"{ours}.text.out", f"{theirs}.attn.to_add_out")]
        for stream, ff in (
            (f"{ours}.image.feed_forward", f"{theirs}.ff"),
            (f"{ours}.text.feed_forward", f"{theirs}.ff_context"),
        ):
            rows.append(fused([f"{stream}.gate", f"{stream}.up"], f"{ff}.linear_in", [inner] * 2))
            layers.append((f"{stream}.down", f"{ff}.linear_out"))
    for layer in range(config.single):
        ours, theirs = f"single.{layer}", f"single_transformer_blocks.{layer}.attn"
        parts = [f"{ours}.{part}" for part in ("qkv.q", "qkv.k", "qkv.v", "gate", "up")]
        rows.append(fused(parts, f"{theirs}.to_qkv_mlp_proj", [width] * 3 + [inner] * 2))
        rows += [Row(f"{ours}.qkv.norm_{part}.weight", f"{theirs}.norm_{part}.weight") for part in "qk"]
        layers.append((f"{ours}.out", f"{theirs}.to_out"))
    return rows + [row for pair in layers for row in linear(*pair, bias=False)]

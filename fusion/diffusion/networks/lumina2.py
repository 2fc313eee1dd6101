"""Lumina-Image 2.0, with its Unified Next-DiT (Qin et al., arXiv 2503.21758; Alpha-VLLM/Lumina-Image-2.0).

New in it: text and image are one sequence of one stream, and positions say so. On the first of three rotary axes
words count up and the image stands behind the last; the other two are its rows and columns. Before they meet, a few
blocks refine each alone, the text's without being told the time. Blocks are an LLM's: RMSNorms before and behind each
part (sandwich), SwiGLU, fewer key than query heads. The time scales and gates, through a tanh, and shifts nothing.

The network counts time from noise to data, in [0, 1] and not in thousandths: so does its embedding of t here. The
released one predicts data - noise. Ours predicts noise - data as all pages do: the name table turns the sign of the
last layer.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion.diffusion.networks.blocks import SwiGLU, attend, check_axes, plain_norm, rotary, start, turn
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.name_tables import Row, channels_last, columns_last, embedder, linear, negated
from fusion.nn.layers import Linear32, Modulation, PatchEmbed, TimestepEmbedding
from fusion.sequence.patches import cells, grid, patchify, unpatchify


@dataclass(frozen=True)
class Lumina2Config:
    """Sizes of a Lumina2.

    layers: blocks over text and image; refiners: blocks over each before that. heads, kv_heads: of queries, and of
    keys and values. axes: numbers of a head that turn by (place in the sequence, row, column), together the head;
    largest: how many places each axis has. multiple, expansion: the feed-forward is `expansion` times the width inside,
    up to the next multiple.
    """

    channels: int = 16
    patch_size: int = 2
    width: int = 384
    layers: int = 8
    refiners: int = 2
    heads: int = 6
    kv_heads: int | None = None
    axes: tuple[int, int, int] = (32, 32, 32)
    largest: tuple[int, int, int] = (300, 512, 512)
    multiple: int = 32
    expansion: float = 4.0
    text_width: int = 2304
    norm_eps: float = 1e-5

    def __post_init__(self):
        check_axes(self.axes, self.width, self.heads)
        if self.heads % self.key_heads:
            raise ValueError(
                f"kv_heads={self.kv_heads} does not divide heads={self.heads}: each serves as many queries"
            )

    @property
    def key_heads(self) -> int:
        """Heads of keys and values; as many as of queries unless given."""
        return self.kv_heads or self.heads

    @property
    def inner(self) -> int:
        """Width inside a feed-forward."""
        return self.multiple * math.ceil(int(self.expansion * self.width) / self.multiple)

    @property
    def time_width(self) -> int:
        """Width of what is told of the time."""
        return min(self.width, 1024)


class Lumina2(nn.Module):
    """See the head of this file."""

    def __init__(self, config: Lumina2Config):
        super().__init__()
        self.config, width = config, config.width
        self.embed = PatchEmbed(config.channels * config.patch_size**2, width)
        self.time = TimestepEmbedding(config.time_width, scale=-1.0, origin=1.0)
        self.text_norm, self.text = (
            nn.RMSNorm(config.text_width, eps=config.norm_eps),
            nn.Linear(config.text_width, width),
        )
        self.words = nn.ModuleList(Block(config, told=False) for _ in range(config.refiners))
        self.picture = nn.ModuleList(Block(config) for _ in range(config.refiners))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm, self.modulation = plain_norm(width), Modulation(config.time_width, width, pieces=1)
        self.out = Linear32(width, config.channels * config.patch_size**2)
        start(self)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Noised latents of unit scale at times t in [0, 1] (1 is noise) -> what the network predicts."""
        config, size = self.config, grid(x.shape[-2:], self.config.patch_size)
        mask, time = cond.where(), self.time(t)
        text, h = self.text(self.text_norm(cond.tokens)), self.embed(patchify(x, config.patch_size, rank=2))
        turns = self.turns(mask, size)
        words = text.shape[1]
        for block in self.words:
            text = block(text, turns[:, :, :words], seen=mask)
        for block in self.picture:
            h = block(h, turns[:, :, words:], time)
        joint, seen = torch.cat([text, h], dim=1), F.pad(mask, (0, h.shape[1]), value=True)
        for block in self.blocks:
            joint = block(joint, turns, time, seen)
        scale = self.modulation(time)
        rows = self.out(self.norm(joint[:, words:].float()) * (1 + scale))
        return unpatchify(rows.to(x.dtype), size, config.patch_size, config.channels)

    def turns(self, mask: Bool[Tensor, "b m"], size: tuple[int, int]) -> Float[Tensor, "b 1 s half 2"]:
        """Rotary positions of words and of the image, which stands behind the last word of its own text. ValueError
        for more than there are."""
        places, rows, columns = self.config.largest
        lengths = mask.sum(1)
        if mask.shape[1] >= places and int(lengths.max()) >= places:
            raise ValueError(
                f"a text of {int(lengths.max())} tokens, and this network knows places of {places - 1}: shorten it"
            )
        if size[0] > rows or size[1] > columns:
            raise ValueError(
                f"{size[0]} x {size[1]} patches, and this network knows positions of {rows} x {columns}: draw smaller "
                "images"
            )
        word = (mask.cumsum(1) - 1).clamp(min=0)
        words = F.pad(word[..., None], (0, 2))
        drawn = cells(size, mask.device).expand(len(mask), -1, -1)
        picture = torch.cat([lengths[:, None, None].expand(-1, drawn.shape[1], 1), drawn], dim=-1)
        where = torch.cat([words, picture], dim=1)
        return rotary(where.flatten(0, 1), self.config.axes, 10_000.0).unflatten(0, where.shape[:2])[:, None]


class Block(nn.Module):
    """Attention and feed-forward, each between two RMSNorms; `told`: scaled and gated by the time."""

    def __init__(self, config: Lumina2Config, told: bool = True):
        super().__init__()
        self.modulation = Modulation(config.time_width, config.width, pieces=4) if told else None
        self.before1, self.after1, self.before2, self.after2 = (
            nn.RMSNorm(config.width, eps=config.norm_eps) for _ in range(4)
        )
        self.attention, self.feed_forward = GroupedAttention(config), SwiGLU(config.width, config.inner)

    def forward(
        self,
        h: Float[Tensor, "b n width"],
        turns: Float[Tensor, "b 1 n half 2"],
        time: Float[Tensor, "b time_width"] | None = None,
        seen: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n width"]:
        """seen: which rows may be attended to."""
        if self.modulation is None:
            h = h + self.after1(self.attention(self.before1(h), turns, seen))
            return h + self.after2(self.feed_forward(self.before2(h)))
        scale1, gate1, scale2, gate2 = self.modulation(time)[:, None].unbind(-2)
        attended = self.attention((self.before1(h) * (1 + scale1)).to(h.dtype), turns, seen)
        h = (h + gate1.tanh() * self.after1(attended)).to(h.dtype)
        fed = self.feed_forward((self.before2(h) * (1 + scale2)).to(h.dtype))
        return (h + gate2.tanh() * self.after2(fed)).to(h.dtype)


class GroupedAttention(nn.Module):
    """Attention of fewer key than query heads (Ainslie et al., arXiv 2305.13245), normalised head by head; no
    biases."""

    def __init__(self, config: Lumina2Config):
        super().__init__()
        head = config.width // config.heads
        self.groups = config.heads // config.key_heads
        self.q, self.out = (nn.Linear(config.width, config.width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(config.width, config.key_heads * head, bias=False) for _ in range(2))
        self.norm_q, self.norm_k = (nn.RMSNorm(head, eps=1e-5) for _ in range(2))

    def forward(
        self, h: Float[Tensor, "b n width"], turns: Float[Tensor, "b 1 n half 2"], seen: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n width"]:
        head = self.norm_q.normalized_shape[0]
        q, k, v = (rearrange(part(h), "b n (h d) -> b h n d", d=head) for part in (self.q, self.k, self.v))
        q, k = turn(self.norm_q(q), turns), turn(self.norm_k(k), turns)
        return self.out(attend(q, *(part.repeat_interleave(self.groups, dim=1) for part in (k, v)), seen))


# ---- diffusers' Lumina2Transformer2DModel ----


def from_diffusers(settings: dict) -> Lumina2Config:
    """The config of a Lumina2Transformer2DModel. ValueError for another number of channels out than in."""
    if settings.get("out_channels") not in (None, settings["in_channels"]):
        raise ValueError("out_channels differs from in_channels: no published Lumina is like that")
    return Lumina2Config(
        channels=settings["in_channels"],
        patch_size=settings["patch_size"],
        width=settings["hidden_size"],
        layers=settings["num_layers"],
        refiners=settings["num_refiner_layers"],
        heads=settings["num_attention_heads"],
        kv_heads=settings["num_kv_heads"],
        axes=tuple(settings["axes_dim_rope"]),
        largest=tuple(settings["axes_lens"]),
        multiple=settings["multiple_of"],
        expansion=4.0 * (settings.get("ffn_dim_multiplier") or 1.0),
        text_width=settings["cap_feat_dim"],
        norm_eps=settings["norm_eps"],
    )


def to_diffusers(config: Lumina2Config) -> dict:
    """The settings of a Lumina2Transformer2DModel."""
    return {
        "in_channels": config.channels,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_layers": config.layers,
        "num_refiner_layers": config.refiners,
        "num_attention_heads": config.heads,
        "num_kv_heads": config.key_heads,
        "multiple_of": config.multiple,
        "ffn_dim_multiplier": None if config.expansion == 4.0 else config.expansion / 4.0,
        "norm_eps": config.norm_eps,
        "axes_dim_rope": list(config.axes),
        "axes_lens": list(config.largest),
        "cap_feat_dim": config.text_width,
    }


def names(config: Lumina2Config) -> list[Row]:
    """Our tensors and theirs."""
    emb, sides = "time_caption_embed", (config.channels, config.patch_size)
    rows = [
        *linear("embed.proj", "x_embedder", weight=columns_last(*sides)),
        *embedder("time", f"{emb}.timestep_embedder"),
        Row("text_norm.weight", f"{emb}.caption_embedder.0.weight"),
        *linear("text", f"{emb}.caption_embedder.1"),
        *linear("modulation.proj", "norm_out.linear_1"),
        *linear("out", "norm_out.linear_2", both=negated(*channels_last(*sides))),
    ]
    lists = {
        "words": ("context_refiner", config.refiners),
        "picture": ("noise_refiner", config.refiners),
        "blocks": ("layers", config.layers),
    }
    for ours, (theirs, layers) in lists.items():
        for layer in range(layers):
            rows += block_names(f"{ours}.{layer}", f"{theirs}.{layer}", told=ours != "words")
    return rows


def block_names(ours: str, theirs: str, told: bool) -> list[Row]:
    """Those of a block."""
    rows = linear(f"{ours}.modulation.proj", f"{theirs}.norm1.linear") if told else []
    pairs = {
        "before1": "norm1.norm" if told else "norm1",
        "after1": "norm2",
        "before2": "ffn_norm1",
        "after2": "ffn_norm2",
        **{f"attention.{part}": f"attn.to_{part}" for part in "qkv"},
        "attention.out": "attn.to_out.0",
        **{f"attention.norm_{part}": f"attn.norm_{part}" for part in "qk"},
        "feed_forward.gate": "feed_forward.linear_1",
        "feed_forward.down": "feed_forward.linear_2",
        "feed_forward.up": "feed_forward.linear_3",
    }
    return rows + [Row(f"{ours}.{one}.weight", f"{theirs}.{other}.weight") for one, other in pairs.items()]

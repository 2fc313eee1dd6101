"""HiDream-I1, the network of HiDream.ai (arXiv 2505.22705; HiDream-ai/HiDream-I1).

New against Flux.1: the image's feed-forwards are mixtures of experts (`experts.py`, which also tells how evenly they
are chosen), and the text comes from two models. T5's tokens and those of the last layer read from a language model go
through all blocks; each block reads one layer more of the language model, whose tokens are appended before it and
dropped after it. One modulation serves both streams of a block, queries and keys are normalised across all heads, the
image comes first, and words turn by nothing.

The released network predicts data - noise, and its pipeline turns the sign. Ours predicts noise - data as all pages do:
the name table turns the sign of its last layer, and no code does.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion.diffusion.networks.blocks import QKV, PooledText, Stream, SwiGLU, check_axes, joint, rotary, start
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.experts import MoE
from fusion.diffusion.networks.name_tables import Row, channels_last, columns_last, embedder, linear, negated, qkv
from fusion.nn.layers import FlowHead, Modulation, PatchEmbed, TimestepEmbedding
from fusion.sequence.patches import cells, grid, patchify, unpatchify


@dataclass(frozen=True)
class HiDreamConfig:
    """Sizes of a HiDream.

    layers: blocks of two streams; single: blocks of one after them. reads: which of Conditioning.layers each block
    reads. axes: numbers of each head that turn by (nothing, row, column), together the head. experts, chosen: how many
    an image's row can go to, and goes to; without experts its feed-forward is like the text's. text_width,
    layer_width: of tokens, and of those of a language model's layers. text_mask: whether rows that the masks of
    Conditioning leave out are hidden; the published models read their padding too. largest: sides of a latent to whose
    size images that are not square are filled up, as the published models do. The filling is seen: its keys are zero,
    which hides nothing. None: nothing is filled.
    """

    channels: int = 16
    patch_size: int = 2
    width: int = 384
    layers: int = 2
    single: int = 4
    reads: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    heads: int = 6
    axes: tuple[int, int, int] = (32, 16, 16)
    experts: int = 4
    chosen: int = 2
    text_width: int = 4096
    layer_width: int = 4096
    pooled_width: int = 2048
    text_mask: bool = False
    largest: tuple[int, int] | None = None

    def __post_init__(self):
        check_axes(self.axes, self.width, self.heads)
        if len(self.reads) != self.layers + self.single:
            raise ValueError(
                f"reads={self.reads}: name one layer of the language model for each of the "
                f"{self.layers + self.single} blocks"
            )

    def inner(self, expansion: int) -> int:
        """Width inside a SwiGLU that costs what two layers of `expansion` times the width do, up to the next multiple
        of 256."""
        return 256 * math.ceil(2 * expansion * self.width // 3 / 256)


class HiDream(nn.Module):
    """See the head of this file."""

    def __init__(self, config: HiDreamConfig):
        super().__init__()
        self.config, width = config, config.width
        self.embed = PatchEmbed(config.channels * config.patch_size**2, width)
        self.time = TimestepEmbedding(width)
        self.pooled = PooledText(config.pooled_width, width)
        self.text = nn.Linear(config.text_width, width, bias=False)
        self.layers = nn.ModuleList(nn.Linear(config.layer_width, width, bias=False) for _ in config.reads)
        self.blocks = nn.ModuleList(Block(config, streams=2) for _ in range(config.layers))
        self.single = nn.ModuleList(Block(config, streams=1) for _ in range(config.single))
        self.head = FlowHead(width, config.channels * config.patch_size**2, width)
        start(self)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Noised latents of unit scale at times t in [0, 1] (1 is noise) -> what the network predicts."""
        config, size = self.config, grid(x.shape[-2:], self.config.patch_size)
        mask = torch.cat([cond.where(), *[cond.where("layers")] * 2], dim=1)
        told = self.time(t) + self.pooled(cond.given("pooled"))
        patches = F.pad(patchify(x, config.patch_size, rank=2), (0, 0, 0, self.filling(size)))
        read = self.read(cond)
        rows = [self.embed(patches), torch.cat([self.text(cond.tokens), read[-1]], dim=1)]
        place = self.place(size, mask)
        for block, more in zip(self.blocks, read):
            rows = block(rows, more, told, *place)
        rows = [torch.cat(rows, dim=1)]
        for block, more in zip(self.single, read[config.layers :]):
            rows = block(rows, more, told, *place)
        drawn = self.head(rows[0][:, : math.prod(size)], time=told[:, None])
        return unpatchify(drawn.to(x.dtype), size, config.patch_size, config.channels)

    def read(self, cond: Conditioning) -> list[Float[Tensor, "b m width"]]:
        """The layer of the language model that each block reads, embedded for it. ValueError where there are too
        few."""
        layers, last = cond.given("layers"), max(self.config.reads)
        if len(layers) <= last:
            raise ValueError(
                f"this network reads layer {last}, counted from 0, of a language model: give Conditioning more than "
                f"{len(layers)}"
            )
        return [embed(layers[number]) for embed, number in zip(self.layers, self.config.reads, strict=True)]

    def filling(self, size: tuple[int, int]) -> int:
        """How many rows fill up an image that is not square. ValueError for one of more rows than that makes."""
        if self.config.largest is None or size[0] == size[1]:
            return 0
        rows = math.prod(self.config.largest) // self.config.patch_size**2
        if math.prod(size) > rows:
            raise ValueError(
                f"{size[0]} x {size[1]} patches, and this network fills such images up to {rows}: draw smaller or "
                "square ones"
            )
        return rows - math.prod(size)

    def place(
        self, size: tuple[int, int], mask: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "s half 2"], Bool[Tensor, "b s"] | None, Float[Tensor, "s half 2"]]:
        """Rotary positions of all rows, image, filling and text; which may be attended to; and positions of keys,
        where filling is nothing."""
        drawn, filling = math.prod(size), self.filling(size)
        where = F.pad(cells(size, mask.device), (1, 0, 0, filling + mask.shape[1]))
        turns = rotary(where, self.config.axes, 10_000.0)
        keys = torch.cat([turns[:drawn], torch.zeros_like(turns[drawn : drawn + filling]), turns[drawn + filling :]])
        return turns, F.pad(mask, (drawn + filling, 0), value=True) if self.config.text_mask else None, keys


class Block(nn.Module):
    """One or two streams in one attention, the image's first, with one modulation for both and experts for the
    image."""

    def __init__(self, config: HiDreamConfig, streams: int):
        super().__init__()
        self.modulation = Modulation(config.width, config.width, pieces=6 * streams)
        self.image = stream(config, config.experts)
        self.text = stream(config, 0) if streams == 2 else None

    def forward(
        self,
        rows: list[Float[Tensor, "b _ width"]],
        more: Float[Tensor, "b m width"],
        told: Float[Tensor, "b width"],
        turns: Float[Tensor, "s half 2"],
        seen: Bool[Tensor, "b s"] | None,
        keys: Float[Tensor, "s half 2"],
    ) -> list[Float[Tensor, "b _ width"]]:
        """`rows` of each stream; `more` is appended to the last, and dropped afterwards."""
        *others, last = rows
        pieces = self.modulation(told)[:, None].unbind(-2)
        streams = [part for part in (self.image, self.text) if part is not None]
        *others, last = joint(
            streams, [*others, torch.cat([last, more], dim=1)], (pieces[:6], pieces[6:])[: len(rows)], turns, seen, keys
        )
        return [*others, last[:, : -more.shape[1]]]


def stream(config: HiDreamConfig, experts: int) -> Stream:
    """The weights of one stream, modulated from outside."""
    width, inner = config.width, config.inner(4)
    feed_forward = MoE(width, inner, experts, config.chosen, config.inner(2)) if experts else SwiGLU(width, inner)
    return Stream(width, QKV(width, config.heads, qk_norm=True, across=True, eps=1e-5), feed_forward, pieces=0)


# ---- diffusers' HiDreamImageTransformer2DModel ----


def from_diffusers(settings: dict) -> HiDreamConfig:
    """The config of a HiDreamImageTransformer2DModel. ValueError for one with other outputs than inputs."""
    if settings.get("out_channels") not in (None, settings["in_channels"]):
        raise ValueError("a HiDream with other outputs than inputs: no published one is like that")
    text, layer = settings["caption_channels"]
    return HiDreamConfig(
        channels=settings["in_channels"],
        patch_size=settings["patch_size"],
        width=settings["num_attention_heads"] * settings["attention_head_dim"],
        layers=settings["num_layers"],
        single=settings["num_single_layers"],
        reads=tuple(settings["llama_layers"]),
        heads=settings["num_attention_heads"],
        axes=tuple(settings["axes_dims_rope"]),
        experts=settings["num_routed_experts"],
        chosen=settings["num_activated_experts"],
        text_width=text,
        layer_width=layer,
        pooled_width=settings["text_emb_dim"],
        largest=tuple(settings["max_resolution"]),
    )


def to_diffusers(config: HiDreamConfig) -> dict:
    """The settings of a HiDreamImageTransformer2DModel. ValueError for what that class cannot be."""
    if config.text_mask or config.largest is None:
        raise ValueError(
            "diffusers' HiDream reads the padding of its text and fills up images that are not square: this "
            "network differs"
        )
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "num_layers": config.layers,
        "num_single_layers": config.single,
        "patch_size": config.patch_size,
        "llama_layers": list(config.reads),
        "axes_dims_rope": list(config.axes),
        "num_routed_experts": config.experts,
        "num_activated_experts": config.chosen,
        "caption_channels": [config.text_width, config.layer_width],
        "text_emb_dim": config.pooled_width,
        "max_resolution": list(config.largest),
    }


def names(config: HiDreamConfig) -> list[Row]:
    """Our tensors and theirs. Their patches have the channel last, and their prediction has the other sign."""
    patch = config.channels, config.patch_size
    rows = [
        *linear("embed.proj", "x_embedder.proj", weight=columns_last(*patch)),
        *embedder("time", "t_embedder.timestep_embedder"),
        *embedder("pooled", "p_embedder.pooled_embedder", ("0", "2")),
        *linear("head.modulation.proj", "final_layer.adaLN_modulation.1"),
        *linear("head.out", "final_layer.linear", both=negated(*channels_last(*patch))),
    ]
    for number, ours in enumerate([*(f"layers.{layer}" for layer in range(len(config.reads))), "text"]):
        rows += linear(ours, f"caption_projection.{number}.linear", bias=False)
    for layer in range(config.layers):
        rows += block_names(f"blocks.{layer}", f"double_stream_blocks.{layer}.block", config.experts)
        rows += stream_names(f"blocks.{layer}.text", f"double_stream_blocks.{layer}.block", "_t")
        rows += swiglu(f"blocks.{layer}.text.feed_forward", f"double_stream_blocks.{layer}.block.ff_t")
    for layer in range(config.single):
        rows += block_names(f"single.{layer}", f"single_stream_blocks.{layer}.block", config.experts)
    return rows


def block_names(ours: str, theirs: str, experts: int) -> list[Row]:
    """The rows of a block's modulation and of its image."""
    rows = linear(f"{ours}.modulation.proj", f"{theirs}.adaLN_modulation.1") + stream_names(f"{ours}.image", theirs)
    fed, ff = f"{ours}.image.feed_forward", f"{theirs}.ff_i"
    if not experts:
        return rows + swiglu(fed, ff)
    rows += [Row(f"{fed}.router.proj.weight", f"{ff}.gate.weight"), *swiglu(f"{fed}.shared", f"{ff}.shared_experts")]
    return rows + [
        row for expert in range(experts) for row in swiglu(f"{fed}.experts.{expert}", f"{ff}.experts.{expert}")
    ]


def stream_names(ours: str, theirs: str, end: str = "") -> list[Row]:
    """The rows of a stream's attention; `end`: of all names of its tensors."""
    rows = qkv(f"{ours}.qkv", f"{theirs}.attn1", True, f"to_{{}}{end}", f"{{}}_rms_norm{end}")
    return rows + linear(f"{ours}.out", f"{theirs}.attn1.to_out{end}")


def swiglu(ours: str, theirs: str) -> list[Row]:
    """The rows of a feed-forward."""
    return [
        Row(f"{ours}.{part}.weight", f"{theirs}.{name}.weight")
        for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
    ]

"""MMDiT, the network of Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206; stabilityai/sd3.5).

New against DiT: text is no condition beside the image but a stream of its own, with weights of its own; the two
streams meet in one attention over the rows of both. The time, joined by a pooled vector of the text, modulates both by
adaLN-zero. SD3.5 normalises queries and keys head by head, and its medium size has blocks whose image stream attends
to itself a second time.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion.diffusion.networks.blocks import QKV, FeedForward, PooledText, Stream, attend, start
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.name_tables import (
    Row,
    added_qkv,
    channels_last,
    convolved,
    embedder,
    feed_forward,
    linear,
    qkv,
    swapped,
)
from fusion.nn.layers import FlowHead, PatchEmbed, TimestepEmbedding, modulate
from fusion.sequence.patches import cells, grid, patchify, sincos, unpatchify


@dataclass(frozen=True)
class MMDiTConfig:
    """Sizes of an MMDiT; width and heads default to 64 numbers a head for each of `layers` heads, as in the paper.

    text_width, pooled_width: of text tokens and of the vector for all of the text. largest, base_grid: positions are
    those of the middle of a grid of `largest` cells per side, stretched to `base_grid` cells. dual: blocks in which the
    image attends to itself once more. text_mask: whether rows that Conditioning.mask leaves out are hidden; the
    published models read their padding too.
    """

    channels: int = 16
    patch_size: int = 2
    width: int = 384
    layers: int = 6
    heads: int = 6
    text_width: int = 4096
    pooled_width: int = 2048
    largest: int = 192
    base_grid: float = 64
    qk_norm: bool = False
    dual: tuple[int, ...] = ()
    text_mask: bool = False


class MMDiT(nn.Module):
    """See the head of this file."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.config, width = config, config.width
        self.embed = PatchEmbed(config.channels * config.patch_size**2, width)
        self.time = TimestepEmbedding(width)
        self.pooled = PooledText(config.pooled_width, width)
        self.text = nn.Linear(config.text_width, width)
        last = config.layers - 1
        self.blocks = nn.ModuleList(
            Block(config, layer in config.dual, layer == last) for layer in range(config.layers)
        )
        self.head = FlowHead(width, config.channels * config.patch_size**2, width)
        start(self)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Noised latents of unit scale at times t in [0, 1] (1 is noise) -> what the network predicts."""
        config, size = self.config, grid(x.shape[-2:], self.config.patch_size)
        h = self.embed(patchify(x, config.patch_size, rank=2))
        h = h + self.positions(size, x.device).to(h.dtype)
        mask, text, time = cond.where(), self.text(cond.tokens), self.time(t) + self.pooled(cond.given("pooled"))
        seen = torch.cat([mask.new_ones(h.shape[:2]), mask], dim=1) if config.text_mask else None
        for block in self.blocks:
            h, text = block(h, text, time, seen)
        return unpatchify(self.head(h, time=time[:, None]).to(x.dtype), size, config.patch_size, config.channels)

    def positions(self, size: tuple[int, int], device=None) -> Float[Tensor, "n width"]:
        """Sin-cos of the middle `size` cells. ValueError for more cells than there are positions."""
        largest = self.config.largest
        if max(size) > largest:
            raise ValueError(
                f"{size[0]} x {size[1]} patches, and this network knows positions of {largest} per side: draw smaller "
                "images"
            )
        first = torch.tensor([(largest - side) // 2 for side in size], device=device)
        where = (cells(size, device) + first).float() * (self.config.base_grid / largest)
        return sincos(where.flip(-1), self.config.width)


class Block(nn.Module):
    """Two streams that meet in one attention; with `dual` the image then attends to itself by weights of its own."""

    def __init__(self, config: MMDiTConfig, dual: bool, last: bool):
        super().__init__()
        width, sizes = config.width, (config.width, config.heads, config.qk_norm)
        self.image = Stream(width, QKV(*sizes), FeedForward(width), pieces=9 if dual else 6)
        self.text = Stream(width, QKV(*sizes), None if last else FeedForward(width), pieces=2 if last else 6)
        self.again, self.out_again = (QKV(*sizes), nn.Linear(width, width)) if dual else (None, None)

    def forward(
        self,
        h: Float[Tensor, "b n width"],
        text: Float[Tensor, "b m width"],
        time: Float[Tensor, "b width"],
        seen: Bool[Tensor, "b s"] | None,
    ) -> tuple[Float[Tensor, "b n width"], Float[Tensor, "b m width"]]:
        """seen: which rows, the image's and then the text's, may be attended to."""
        image, words = (stream.modulation(time)[:, None].unbind(-2) for stream in (self.image, self.text))
        normed = self.image.norm1(h)
        rows = zip(
            self.image.qkv(modulate(normed, *image[:2])),
            self.text.qkv(modulate(self.text.norm1(text), *words[:2])),
            strict=True,
        )
        drawn, told = attend(*(torch.cat(pair, dim=2) for pair in rows), seen).split([h.shape[1], text.shape[1]], dim=1)
        h = (h + image[2] * self.image.out(drawn)).to(h.dtype)
        if self.again is not None:
            h = (h + image[8] * self.out_again(attend(*self.again(modulate(normed, *image[6:8]))))).to(h.dtype)
        h = self.image.fed(h, *image[3:6])
        return h, self.text.write(text, told, *words[2:]) if self.text.written else text


# ---- diffusers' SD3Transformer2DModel ----


def from_diffusers(settings: dict) -> MMDiTConfig:
    """The config of an SD3Transformer2DModel. ValueError for widths that differ between its streams, which its own
    forward refuses too."""
    width = settings["num_attention_heads"] * settings["attention_head_dim"]
    if settings["caption_projection_dim"] != width or settings.get("qk_norm") not in (None, "rms_norm"):
        raise ValueError(
            "caption_projection_dim is not the width of the image, or qk_norm is not rms_norm: no published MMDiT is "
            "like that"
        )
    return MMDiTConfig(
        channels=settings["in_channels"],
        patch_size=settings["patch_size"],
        width=width,
        layers=settings["num_layers"],
        heads=settings["num_attention_heads"],
        text_width=settings["joint_attention_dim"],
        pooled_width=settings["pooled_projection_dim"],
        largest=settings["pos_embed_max_size"],
        base_grid=settings["sample_size"] // settings["patch_size"],
        qk_norm=settings.get("qk_norm") is not None,
        dual=tuple(settings.get("dual_attention_layers", ())),
    )


def to_diffusers(config: MMDiTConfig) -> dict:
    """The settings of an SD3Transformer2DModel. ValueError for a network with a mask, which that class has not."""
    if config.text_mask:
        raise ValueError("diffusers' SD3 reads the padding of its text: this network hides it")
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "num_layers": config.layers,
        "patch_size": config.patch_size,
        "caption_projection_dim": config.width,
        "sample_size": round(config.base_grid * config.patch_size),
        "pos_embed_max_size": config.largest,
        "joint_attention_dim": config.text_width,
        "pooled_projection_dim": config.pooled_width,
        "qk_norm": "rms_norm" if config.qk_norm else None,
        "dual_attention_layers": list(config.dual),
    }


def buffers(config: MMDiTConfig) -> dict[str, Tensor]:
    """What their checkpoints hold beside weights: the table of positions."""
    where = cells((config.largest,) * 2).float() * (config.base_grid / config.largest)
    return {"pos_embed.pos_embed": sincos(where.flip(-1), config.width)[None]}


def names(config: MMDiTConfig) -> list[Row]:
    """Our tensors and theirs. Their norms without a gate have the scale first."""
    rows = [
        *linear("embed.proj", "pos_embed.proj", weight=convolved(config.channels, config.patch_size)),
        *embedder("time", "time_text_embed.timestep_embedder"),
        *embedder("pooled", "time_text_embed.text_embedder", ("0", "2")),
        *linear("text", "context_embedder"),
        *linear("head.modulation.proj", "norm_out.linear", both=swapped),
        *linear("head.out", "proj_out", both=channels_last(config.channels, config.patch_size)),
    ]
    for layer in range(config.layers):
        ours, theirs, last = f"blocks.{layer}", f"transformer_blocks.{layer}", layer == config.layers - 1
        rows += linear(f"{ours}.image.modulation.proj", f"{theirs}.norm1.linear")
        rows += linear(f"{ours}.text.modulation.proj", f"{theirs}.norm1_context.linear", both=swapped if last else ())
        rows += qkv(f"{ours}.image.qkv", f"{theirs}.attn", config.qk_norm) + linear(
            f"{ours}.image.out", f"{theirs}.attn.to_out.0"
        )
        rows += added_qkv(f"{ours}.text.qkv", f"{theirs}.attn", config.qk_norm)
        rows += [] if last else linear(f"{ours}.text.out", f"{theirs}.attn.to_add_out")
        if layer in config.dual:
            rows += qkv(f"{ours}.again", f"{theirs}.attn2", config.qk_norm) + linear(
                f"{ours}.out_again", f"{theirs}.attn2.to_out.0"
            )
        for stream, ff in (("image", "ff"), *(() if last else (("text", "ff_context"),))):
            rows += feed_forward(f"{ours}.{stream}.feed_forward", f"{theirs}.{ff}")
    return rows

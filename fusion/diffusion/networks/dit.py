"""DiT, the diffusion transformer of Peebles and Xie (arXiv 2212.09748; facebookresearch/DiT).

New in it: a plain transformer over patches of a latent takes the place of the UNet, and time and class come in by
adaLN-zero: a shift, a scale and a gate for every layer, all zero at first, so that a block begins as the identity. The
paper compares it with three others, and so does `conditioning` here:

- adaln-zero: norms shifted and scaled, branches gated.
- adaln: the same without gates.
- cross-attention: time and condition are rows of a context that every block also attends to.
- in-context: they are rows of the sequence itself, taken away at the end.

The condition is a class label, or text: its tokens are the rows of context (after the time), and their mean joins the
time in adaLN.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion.diffusion.networks.blocks import Attention, FeedForward, grid_positions, plain_norm, start
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.name_tables import (
    Row,
    attention,
    channels_last,
    convolved,
    embedder,
    feed_forward,
    linear,
)
from fusion.nn.layers import FlowHead, Modulation, PatchEmbed, TimestepEmbedding, modulate
from fusion.sequence.patches import grid, patchify, unpatchify

CONDITIONINGS = ("adaln-zero", "adaln", "cross-attention", "in-context")


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a DiT; the defaults are DiT-S/2's.

    classes: of labels; text_width: of text tokens. One of them may be None. base_grid: cells per side to which sin-cos
    positions stretch every grid (diffusers), None for the cells themselves. freq_shift: see `timestep_features`;
    norm_eps: of the norms in blocks. variance: whether the head also has the rows of a learned variance, as the
    published weights do; they take no part in the flow.
    """

    channels: int = 4
    patch_size: int = 2
    width: int = 384
    layers: int = 12
    heads: int = 6
    conditioning: str = "adaln-zero"
    classes: int | None = None
    text_width: int | None = None
    base_grid: float | None = None
    freq_shift: float = 0.0
    norm_eps: float = 1e-6
    variance: bool = False

    def __post_init__(self):
        if self.conditioning not in CONDITIONINGS:
            raise ValueError(f"conditioning={self.conditioning!r}: choose one of {', '.join(CONDITIONINGS)}")


class DiT(nn.Module):
    """See the head of this file."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config, width = config, config.width
        modulated = config.conditioning.startswith("adaln")
        self.patch = config.channels * config.patch_size**2
        self.embed = PatchEmbed(self.patch, width)
        self.time = TimestepEmbedding(width, freq_shift=config.freq_shift)
        self.label = None if config.classes is None else nn.Embedding(config.classes + 1, width)
        self.text = None if config.text_width is None else nn.Linear(config.text_width, width)
        self.blocks = nn.ModuleList(BLOCKS[config.conditioning](config) for _ in range(config.layers))
        self.head = FlowHead(width, self.patch * (1 + config.variance), width if modulated else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The paper's start: Xavier-uniform, N(0, 0.02) for time and labels, zero for modulation and head."""
        start(self)
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Noised latents of unit scale at times t in [0, 1] (1 is noise) -> what the network predicts."""
        config, size = self.config, grid(x.shape[-2:], self.config.patch_size)
        h = self.embed(patchify(x, config.patch_size, rank=2))
        h = h + grid_positions(size, config.width, config.base_grid, x.device).to(h.dtype)
        time, given, mask = self.time(t), *self.given(cond)
        if config.conditioning.startswith("adaln"):
            time = time + (given * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
            for block in self.blocks:
                h = block(h, time)
            rows = self.head(h, time=time[:, None])
        else:
            context = torch.cat([time[:, None].to(h.dtype), given.to(h.dtype)], dim=1)
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
            rows = self.head(self._beside(h, context, mask))
        return unpatchify(rows[..., : self.patch].to(x.dtype), size, config.patch_size, config.channels)

    def given(self, cond: Conditioning) -> tuple[Float[Tensor, "b n width"], Bool[Tensor, "b n"]]:
        """The condition as rows, and which of them count."""
        if self.label is not None and cond.label is not None:
            rows = self.label(cond.label)[:, None]
            return rows, torch.ones_like(rows[..., 0], dtype=torch.bool)
        if self.text is None:
            raise ValueError("this DiT was made for class labels: give Conditioning a label")
        mask = cond.where()
        return self.text(cond.tokens), mask

    def _beside(self, h: Tensor, context: Tensor, mask: Tensor) -> Float[Tensor, "b n width"]:
        """Blocks that see time and condition as rows: apart (cross-attention), or in front of their own
        (in-context)."""
        if self.config.conditioning == "cross-attention":
            for block in self.blocks:
                h = block(h, context, mask)
            return h
        patches, first = h.shape[1], context.shape[1]
        h = torch.cat([context, h], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), patches)], dim=1)
        for block in self.blocks:
            h = block(h, mask)
        return h[:, first:]


class ModulatedBlock(nn.Module):
    """adaLN-zero, and without gates adaLN."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.width
        self.gated = config.conditioning == "adaln-zero"
        self.modulation = Modulation(width, width, pieces=6 if self.gated else 4)
        self.norm1, self.attention = plain_norm(width, config.norm_eps), Attention(width, config.heads)
        self.norm2, self.feed_forward = plain_norm(width, config.norm_eps), FeedForward(width)

    def forward(self, h: Float[Tensor, "b n width"], time: Float[Tensor, "b width"]) -> Float[Tensor, "b n width"]:
        pieces = self.modulation(time)[:, None].unbind(-2)
        (shift1, scale1, gate1), (shift2, scale2, gate2) = (
            (pieces[:3], pieces[3:]) if self.gated else ((*pieces[:2], 1), (*pieces[2:], 1))
        )
        h = (h + gate1 * self.attention(modulate(self.norm1(h), shift1, scale1))).to(h.dtype)
        return (h + gate2 * self.feed_forward(modulate(self.norm2(h), shift2, scale2))).to(h.dtype)


class CrossBlock(nn.Module):
    """A block that also attends to the context, between its own rows and the feed-forward."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.norm1, self.attention = nn.LayerNorm(width, eps), Attention(width, config.heads)
        self.norm2, self.cross = nn.LayerNorm(width, eps), Attention(width, config.heads)
        self.norm3, self.feed_forward = nn.LayerNorm(width, eps), FeedForward(width)

    def forward(
        self, h: Float[Tensor, "b n width"], context: Float[Tensor, "b m width"], mask: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b n width"]:
        h = h + self.attention(self.norm1(h))
        h = h + self.cross(self.norm2(h), context, mask)
        return h + self.feed_forward(self.norm3(h))


class PlainBlock(nn.Module):
    """A pre-norm transformer block; whatever it should know is among its rows."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.norm1, self.attention = nn.LayerNorm(width, eps), Attention(width, config.heads)
        self.norm2, self.feed_forward = nn.LayerNorm(width, eps), FeedForward(width)

    def forward(self, h: Float[Tensor, "b n width"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n width"]:
        h = h + self.attention(self.norm1(h), mask=mask)
        return h + self.feed_forward(self.norm2(h))


BLOCKS = {
    "adaln-zero": ModulatedBlock,
    "adaln": ModulatedBlock,
    "cross-attention": CrossBlock,
    "in-context": PlainBlock,
}


# ---- diffusers' DiTTransformer2DModel ----


def from_diffusers(settings: dict) -> DiTConfig:
    """The config of a DiTTransformer2DModel; its learned variance stays. Its time features end one step short
    (freq_shift 1)."""
    channels, width = settings["in_channels"], settings["num_attention_heads"] * settings["attention_head_dim"]
    return DiTConfig(
        channels=channels,
        patch_size=settings["patch_size"],
        width=width,
        layers=settings["num_layers"],
        heads=settings["num_attention_heads"],
        classes=settings["num_embeds_ada_norm"],
        base_grid=settings["sample_size"] // settings["patch_size"],
        freq_shift=1.0,
        norm_eps=settings.get("norm_eps", 1e-5),
        variance=(settings.get("out_channels") or channels) == 2 * channels,
    )


def to_diffusers(config: DiTConfig) -> dict:
    """The settings of a DiTTransformer2DModel. ValueError for what that class cannot be."""
    if (
        config.conditioning != "adaln-zero"
        or config.classes is None
        or config.text_width is not None
        or config.base_grid is None
    ):
        raise ValueError(
            "diffusers' DiT is adaln-zero with class labels and positions of a base grid: this one has other settings"
        )
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": config.channels,
        "out_channels": config.channels * (1 + config.variance),
        "num_layers": config.layers,
        "patch_size": config.patch_size,
        "sample_size": round(config.base_grid * config.patch_size),
        "num_embeds_ada_norm": config.classes,
        "norm_eps": config.norm_eps,
    }


def names(config: DiTConfig) -> list[Row]:
    """Our tensors and theirs. diffusers keeps a copy of the embedders of time and class in every block."""
    blocks = [f"transformer_blocks.{layer}" for layer in range(config.layers)]
    within = [f"{block}.norm1.emb" for block in blocks]
    order = channels_last(config.channels, config.patch_size, 1 + config.variance)
    rows = [
        *linear("embed.proj", "pos_embed.proj", weight=convolved(config.channels, config.patch_size)),
        *embedder("time", tuple(f"{emb}.timestep_embedder" for emb in within)),
        Row("label.weight", tuple(f"{emb}.class_embedder.embedding_table.weight" for emb in within)),
        *linear("head.modulation.proj", "proj_out_1"),
        *linear("head.out", "proj_out_2", both=order),
    ]
    for layer, theirs in enumerate(blocks):
        ours = f"blocks.{layer}"
        rows += linear(f"{ours}.modulation.proj", f"{theirs}.norm1.linear")
        rows += attention(f"{ours}.attention", f"{theirs}.attn1")
        rows += feed_forward(f"{ours}.feed_forward", f"{theirs}.ff")
    return rows

"""What all pages are built from, beside fusion/nn/layers.py: attention, feed-forward, and where a patch lies."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from fusion.nn.layers import FlowHead, Modulation, TimestepEmbedding, modulate
from fusion.sequence.patches import cells, sincos


class Attention(nn.Module):
    """Softmax attention of rows to themselves, or to a context of another width (`context_width`); with `qk_norm`,
    queries and keys have an RMSNorm across heads."""

    def __init__(
        self, width: int, heads: int, context_width: int | None = None, qkv_bias: bool = True, qk_norm: bool = False
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads: choose heads that divide it")
        self.heads = heads
        source = width if context_width is None else context_width
        self.q = nn.Linear(width, width, bias=qkv_bias)
        self.k = nn.Linear(source, width, bias=qkv_bias)
        self.v = nn.Linear(source, width, bias=qkv_bias)
        self.norm_q, self.norm_k = (nn.RMSNorm(width, eps=1e-5) if qk_norm else nn.Identity() for _ in range(2))
        self.out = nn.Linear(width, width)

    def forward(
        self,
        h: Float[Tensor, "b n width"],
        context: Float[Tensor, "b m source"] | None = None,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n width"]:
        """`mask`: the rows of the context that count."""
        context = h if context is None else context
        q, k, v = self.norm_q(self.q(h)), self.norm_k(self.k(context)), self.v(context)
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.heads) for x in (q, k, v))
        return self.out(attend(q, k, v, mask))


class QKV(nn.Module):
    """Rows to queries, keys and values of all heads, queries and keys with an RMSNorm if `qk_norm`: head by head, or
    across all of them."""

    def __init__(self, width: int, heads: int, qk_norm: bool, across: bool = False, eps: float = 1e-6):
        super().__init__()
        self.heads, self.across = heads, across
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = (
            nn.RMSNorm(width if across else width // heads, eps=eps) if qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, h: Float[Tensor, "b n width"]) -> tuple[Float[Tensor, "b heads n d"], ...]:
        q, k, v = self.q(h), self.k(h), self.v(h)
        if self.across:
            q, k = self.norm_q(q), self.norm_k(k)
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.heads) for x in (q, k, v))
        return (q, k, v) if self.across else (self.norm_q(q), self.norm_k(k), v)


def attend(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    seen: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b n width"]:
    """Softmax attention with the heads joined; `seen`: the rows that count."""
    mask = None if seen is None else seen[:, None, None]
    return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b h n d -> b n (h d)")


def rotary(where: Real[Tensor, "n axes"], sizes: Sequence[int], theta: float) -> Float[Tensor, "n half 2"]:
    """Cosine and sine by which each pair of a head's numbers turns: `sizes` numbers for each axis of a position,
    geometric frequencies."""
    angles = [
        axis.double()[:, None] * theta ** -(torch.arange(0, size, 2, device=axis.device).double() / size)
        for axis, size in zip(where.T, sizes)
    ]
    angle = torch.cat(angles, dim=-1)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def turn(x: Float[Tensor, "b heads n d"], turns: Float[Tensor, "*#b n half 2"]) -> Float[Tensor, "b heads n d"]:
    """Turn neighbouring numbers of each head as pairs; in fp32, cast back."""
    (a, b), (cos, sin) = x.float().unflatten(-1, (-1, 2)).unbind(-1), turns.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


class Stream(nn.Module):
    """The weights of one stream in a block where several meet in one attention.

    pieces: of a modulation of its own, 0 where it is modulated from outside. feed_forward: None for the text of a last
    block, which is read there and not written any more.
    """

    def __init__(self, width: int, qkv: QKV, feed_forward: nn.Module | None, pieces: int = 6):
        super().__init__()
        self.written = feed_forward is not None
        if pieces:
            self.modulation = Modulation(width, width, pieces)
        self.norm1, self.qkv = plain_norm(width), qkv
        if self.written:
            self.out, self.norm2, self.feed_forward = nn.Linear(width, width), plain_norm(width), feed_forward

    def write(
        self, h: Tensor, attended: Tensor, gate1: Tensor, shift2: Tensor, scale2: Tensor, gate2: Tensor
    ) -> Float[Tensor, "b n width"]:
        """What attention brought, then the feed-forward."""
        h = (h + gate1 * self.out(attended)).to(h.dtype)
        return self.fed(h, shift2, scale2, gate2)

    def fed(self, h: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Float[Tensor, "b n width"]:
        """The feed-forward."""
        return (h + gate * self.feed_forward(modulate(self.norm2(h), shift, scale))).to(h.dtype)


def joint(
    streams: Sequence[Stream],
    rows: Sequence[Float[Tensor, "b _ width"]],
    pieces: Sequence[Sequence[Float[Tensor, "b 1 width"]]],
    turns: Float[Tensor, "s half 2"],
    seen: Bool[Tensor, "b s"] | None,
    keys: Float[Tensor, "s half 2"] | None = None,
) -> list[Float[Tensor, "b _ width"]]:
    """The rows of all streams after they met in one attention, in the order given, and went through the feed-forward of
    their own.

    pieces: six for each stream, (shift, scale, gate) of attention and of feed-forward. turns, seen: rotary positions of
    all rows, and which may be attended to. keys: positions of keys where they are others.
    """
    parts = [
        stream.qkv(modulate(stream.norm1(h), *six[:2])) for stream, h, six in zip(streams, rows, pieces, strict=True)
    ]
    q, k, v = (torch.cat(part, dim=2) for part in zip(*parts))
    attended = attend(turn(q, turns), turn(k, turns if keys is None else keys), v, seen).split(
        [h.shape[1] for h in rows], dim=1
    )
    return [stream.write(h, brought, *six[2:]) for stream, h, brought, six in zip(streams, rows, attended, pieces)]


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear; `expansion` times the width inside."""

    def __init__(self, width: int, expansion: float = 4.0, out: int | None = None):
        super().__init__()
        self.up = nn.Linear(width, round(expansion * width))
        self.down = nn.Linear(round(expansion * width), width if out is None else out)

    def forward(self, h: Float[Tensor, "*n width"]) -> Float[Tensor, "*n out"]:
        return self.down(F.gelu(self.up(h), approximate="tanh"))


class SwiGLU(nn.Module):
    """A feed-forward of three layers without biases, one of which lets the other through (Shazeer, arXiv 2002.05202);
    `inner` wide inside."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(*sizes, bias=False) for sizes in ((width, inner), (width, inner), (inner, width))
        )

    def forward(self, h: Float[Tensor, "*n width"]) -> Float[Tensor, "*n width"]:
        return self.down(F.silu(self.gate(h)) * self.up(h))


def plain_norm(width: int, eps: float = 1e-6) -> nn.LayerNorm:
    """A LayerNorm without weights, for what is modulated afterwards."""
    return nn.LayerNorm(width, eps=eps, elementwise_affine=False)


def grid_positions(grid: Sequence[int], width: int, base: float | None = None, device=None) -> Float[Tensor, "n width"]:
    """DiT's sin-cos positions of a grid of patches, column before row. `base`: the cells that every grid is stretched
    to; None: its own."""
    where = cells(grid, device).float()
    if base is not None:
        where = where * (base / torch.tensor(grid, device=device))
    return sincos(where.flip(-1), width)


class PooledText(nn.Sequential):
    """One vector for all of a text -> what joins the time: linear, SiLU, linear."""

    def __init__(self, pooled_width: int, width: int):
        super().__init__(nn.Linear(pooled_width, width), nn.SiLU(), nn.Linear(width, width))

    def reset_parameters(self) -> None:
        """N(0, 0.02)."""
        for part in (self[0], self[2]):
            nn.init.normal_(part.weight, std=0.02)


@torch.no_grad()
def start(model: nn.Module) -> None:
    """How DiT and most after it begin: Xavier-uniform weights and no biases in linear layers, and then what has a start
    of its own, N(0, 0.02) for what is told, zero for modulation and head."""
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in model.modules():
        if isinstance(part, TimestepEmbedding | PooledText | Modulation | FlowHead):
            part.reset_parameters()


def without_biases(model: nn.Module) -> None:
    """Take the biases out of all linear layers."""
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.register_parameter("bias", None)


@torch.no_grad()
def start_single(model: nn.Module) -> None:
    """How networks of adaLN-single begin (PixArt, arXiv 2310.00426): as DiT, N(0, 0.02) where the one modulation and
    the text come in, tables N(0, 1 / width), and nothing comes out of cross-attention and the last layer."""
    start(model)
    for layer in (model.modulation.proj, model.text.up, model.text.down):
        nn.init.normal_(layer.weight, std=0.02)
    for table in (model.table, *(block.table for block in model.blocks)):
        nn.init.normal_(table, std=table.shape[-1] ** -0.5)
    for part in (model.out, *(block.cross.out for block in model.blocks)):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)


def check_axes(axes: Sequence[int], width: int, heads: int) -> None:
    """ValueError unless the axes of rotary positions share out the numbers of a head."""
    if sum(axes) * heads != width:
        raise ValueError(f"axes={axes}: they share out the {width // heads} numbers of a head, and sum to {sum(axes)}")

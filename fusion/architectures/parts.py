"""What all pages are built from, beside fusion/layers.py: attention, feed-forward, and where a patch lies."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion.patches import cells, sincos


class Attention(nn.Module):
    """Softmax attention of rows to themselves, or to a context of another width (`context_width`)."""

    def __init__(self, width: int, heads: int, context_width: int | None = None, qkv_bias: bool = True):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads: choose heads that divide it")
        self.heads = heads
        source = width if context_width is None else context_width
        self.q = nn.Linear(width, width, bias=qkv_bias)
        self.k = nn.Linear(source, width, bias=qkv_bias)
        self.v = nn.Linear(source, width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(
        self, h: Float[Tensor, "b n width"], context: Float[Tensor, "b m source"] | None = None, mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n width"]:
        """`mask`: the rows of the context that count."""
        context = h if context is None else context
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.heads) for x in (self.q(h), self.k(context), self.v(context)))
        seen = None if mask is None else mask[:, None, None]
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=seen), "b h n d -> b n (h d)"))


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear; `expansion` times the width inside."""

    def __init__(self, width: int, expansion: float = 4.0, out: int | None = None):
        super().__init__()
        self.up = nn.Linear(width, round(expansion * width))
        self.down = nn.Linear(round(expansion * width), width if out is None else out)

    def forward(self, h: Float[Tensor, "*n width"]) -> Float[Tensor, "*n out"]:
        return self.down(F.gelu(self.up(h), approximate="tanh"))


def plain_norm(width: int, eps: float = 1e-6) -> nn.LayerNorm:
    """A LayerNorm without weights, for what is modulated afterwards."""
    return nn.LayerNorm(width, eps=eps, elementwise_affine=False)


def grid_positions(grid: Sequence[int], width: int, base: float | None = None, device=None) -> Float[Tensor, "n width"]:
    """DiT's sin-cos positions of a grid of patches, column before row. `base`: the cells that every grid is stretched to; None: its own."""
    where = cells(grid, device).float()
    if base is not None:
        where = where * (base / torch.tensor(grid, device=device))
    return sincos(where.flip(-1), width)


@torch.no_grad()
def xavier(module: nn.Module) -> None:
    """Xavier-uniform weights and no biases in all linear layers: how DiT and most after it begin."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)

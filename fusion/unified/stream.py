"""An image stream beside an LLM that never sees images: narrow layers of its own that read the LLM's hidden states.

Text is read by the LLM alone, so what it makes of a text is computed once (fusion.unified.text_states) and no gradient
passes through it. Rows of images have layers of their own width, one for each LLM layer that is read; in each they
attend over the text before them, through keys and values projected from that layer's states, and over images as the
mask says (fusion.sequence.mask). FuseDiT (arXiv 2505.10046) joins the two streams at every layer and Playground v3
(arXiv 2409.10695) projects hidden states; here text never reads images in return.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fusion.unified.backbone import matmul_attention
from fusion.unified.modality import SwiGLU, drawn

ROTARY_BASE = 100.0
"""The slowest rotary wave of an image stream is nearly this many times 2 pi patches long."""
Words = tuple[Float[Tensor, "b heads t c"], Float[Tensor, "b heads t c"]]


def head_width(width: int) -> int:
    """Choose the channels of an attention head: 64 of a wide stream, else 32, or the next smaller that divide it."""
    sizes = (64, 32, 16, 8, 4, 2, 1) if width >= 512 else (32, 16, 8, 4, 2, 1)
    return next(size for size in sizes if width % size == 0)


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines that turn the first half of a head's channels by a row's place; the rest stays, so that words
    are found by what they are, wherever they stand."""

    cos: Float[Tensor, "b 1 t c"]
    sin: Float[Tensor, "b 1 t c"]

    @classmethod
    def of(cls, position: Int[Tensor, "3 b t"], channels: int) -> "Rotation":
        """Compute them for heads of `channels`: frequencies take turns at time, row and column."""
        pairs = channels // 4
        axis = torch.arange(pairs, device=position.device) % 3
        waves = ROTARY_BASE ** -(torch.arange(pairs, device=position.device) // 3 * 3 / max(pairs, 1))
        angle = position[axis].permute(1, 2, 0).float() * waves
        return cls(angle.cos()[:, None], angle.sin()[:, None])

    def __call__(self, x: Float[Tensor, "b heads t c"]) -> Float[Tensor, "b heads t c"]:
        """Turn queries or keys, in fp32."""
        pairs = self.cos.shape[-1]
        one, two, rest = x.float().split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
        turned = [one * self.cos - two * self.sin, two * self.cos + one * self.sin, rest]
        return torch.cat(turned, dim=-1).to(x.dtype)


class StreamLayer(nn.Module):
    """Self-attention over images and attention over words in one softmax, and a SwiGLU; normalised queries and keys
    (arXiv 2302.05442)."""

    def __init__(self, width: int, text_width: int, deep: float):
        super().__init__()
        channels = head_width(width)
        self.heads = width // channels
        self.attention_norm, self.feed_forward_norm = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        self.q, self.k, self.v = (drawn(nn.Linear(width, width, bias=False), 1.0) for _ in range(3))
        self.text_k, self.text_v = (drawn(nn.Linear(text_width, width, bias=False), 1.0) for _ in range(2))
        self.q_norm, self.k_norm, self.text_norm = (nn.RMSNorm(channels, eps=1e-6) for _ in range(3))
        self.o = drawn(nn.Linear(width, width, bias=False), deep)
        self.feed_forward = SwiGLU(width, 8 * width // 3, deep)

    def split(self, x: Float[Tensor, "b t w"]) -> Float[Tensor, "b heads t c"]:
        """Part rows into heads."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def words(self, states: Float[Tensor, "b t d"], rotation: Rotation) -> Words:
        """Return keys and values of text rows from a layer's hidden states, whose scale varies from LLM to LLM and is
        taken out."""
        states = states.float()
        states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)
        states = states.to(self.text_k.weight.dtype)
        return rotation(self.text_norm(self.split(self.text_k(states)))), self.split(self.text_v(states))

    def images(self, h: Float[Tensor, "b n w"], rotation: Rotation) -> Words:
        """Return keys and values of image rows."""
        return rotation(self.k_norm(self.split(self.k(h)))), self.split(self.v(h))

    def queries(self, h: Float[Tensor, "b n w"], rotation: Rotation) -> Float[Tensor, "b heads n c"]:
        """Return queries of image rows."""
        return rotation(self.q_norm(self.split(self.q(h))))


@dataclass(frozen=True)
class ImageRows:
    """Rows of images as the stream computes them: x (b, n, w), their rotation, and which vectors modulate each."""

    x: Float[Tensor, "b n w"]
    rotation: Rotation
    row: Int[Tensor, "b n"] | None = None


class ImageStream(nn.Module):
    """The layers of images, and the norm behind them. depth: one layer for each LLM layer that is read."""

    def __init__(self, width: int, text_width: int, depth: int):
        super().__init__()
        self.channels = head_width(width)
        self.layers = nn.ModuleList(StreamLayer(width, text_width, (2 * depth) ** -0.5) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)

    @property
    def each(self) -> list[StreamLayer]:
        """The layers, in order."""
        return list(self.layers)  # type: ignore[arg-type]  # a ModuleList does not say what it holds

    def rotation(self, position: Int[Tensor, "3 b t"]) -> Rotation:
        """Compute the rotation of rows at these positions."""
        return Rotation.of(position, self.channels)

    def forward(
        self, images: ImageRows, vectors: Float[Tensor, "layers 6 m w"] | None, mask: Tensor, keys
    ) -> Float[Tensor, "b n w"]:
        """Run all layers. vectors: scale, shift and gate of attention and feed-forward, for each of m images. mask:
        additive, (b, 1, n, keys). keys(index, layer, keys, values): a layer's keys and values with those of text, and
        of what else is seen, beside those of the images' own rows, which are given."""
        x = images.x
        for index, layer in enumerate(self.each):
            change = _Change.of(None if vectors is None else vectors[index], images.row)
            h = change.enter(0, layer.attention_norm(x))
            k, v = keys(index, layer, *layer.images(h, images.rotation))
            h = attend(layer.queries(h, images.rotation), k, v, mask)
            x = x + change.leave(2, layer.o(h))
            x = x + change.leave(5, layer.feed_forward(change.enter(3, layer.feed_forward_norm(x))))
        return self.norm(x)


@dataclass(frozen=True)
class _Change:
    """Modulation of one layer's rows, in fp32 as the LLM's hooks do it (fusion.unified.backbone); none at all where
    time is not told this way."""

    vectors: Float[Tensor, "6 b n w"] | None

    @classmethod
    def of(cls, vectors: Float[Tensor, "6 m w"] | None, row: Int[Tensor, "b n"] | None) -> "_Change":
        return cls(None if vectors is None else vectors[:, row])

    def enter(self, first: int, h: Tensor) -> Tensor:
        """Scale and shift."""
        if self.vectors is None:
            return h
        return torch.addcmul(h + self.vectors[first + 1], h, self.vectors[first]).to(h.dtype)

    def leave(self, index: int, h: Tensor) -> Tensor:
        """Gate."""
        return h if self.vectors is None else torch.addcmul(h, h, self.vectors[index]).to(h.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Float[Tensor, "b n w"]:
    """Attend with an additive mask: by two matrix products on CPUs, where SDPA's backward is slow for short rows."""
    if query.device.type == "cpu":
        return matmul_attention(None, query, key, value, mask)[0].flatten(-2)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(query.dtype)).transpose(1, 2).flatten(-2)

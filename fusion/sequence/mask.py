"""Packed rows -> attention mask, as data: who sees whom, decided by four integer columns.

A row sees, inside its own document: its own block, and every row of the clean stream whose order is below its own. So text is causal,
the patches of a picture see each other in both directions, a noised block sees what stood before its picture and itself, and nobody
else ever sees noise. Padding sees itself alone. Sliding windows count clean-stream order, so noised blocks consume none of it.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The four columns of the mask (see sequence.py), for queries or keys."""

    doc: Int[Tensor, "b t"]
    order: Int[Tensor, "b t"]
    block: Int[Tensor, "b t"]
    noised: Bool[Tensor, "b t"]

    def __len__(self) -> int:
        return self.doc.shape[1]

    @classmethod
    def of(cls, packed) -> "Rows":
        """The columns of a packed batch."""
        return cls(packed.doc, packed.order, packed.block, packed.noised)

    def map(self, change) -> "Rows":
        """Each column through the same function."""
        return Rows(change(self.doc), change(self.order), change(self.block), change(self.noised))

    @staticmethod
    def cat(parts: "list[Rows]", dim: int = 1) -> "Rows":
        """Rows side by side (dim 1) or batches on top of each other (dim 0)."""
        columns = zip(*((p.doc, p.order, p.block, p.noised) for p in parts), strict=True)
        return Rows(*(torch.cat(column, dim=dim) for column in columns))


def visible(query: Rows, key: Rows, window: int | None = None) -> Bool[Tensor, "b q k"]:
    """Which keys each query sees. window: rows of the clean stream that a sliding layer looks back on, itself included."""
    seen = _clean_before(query, key, window)
    same_block = query.block[:, :, None] == key.block[:, None, :]
    return (query.doc[:, :, None] == key.doc[:, None, :]) & (seen | same_block)


def _clean_before(query: Rows, key: Rows, window: int | None) -> Bool[Tensor, "b q k"]:
    distance = query.order[:, :, None] - key.order[:, None, :]
    seen = (distance > 0) & ~key.noised[:, None, :]
    return seen if window is None else seen & (distance < window)


def additive(seen: Bool[Tensor, "b q k"], dtype: torch.dtype) -> Tensor:
    """The mask that eager attention adds to its scores: 0 where seen, the lowest number elsewhere; (b, 1, q, k)."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def block_mask(query: Rows, key: Rows, window: int | None = None):
    """The same mask for FlexAttention (PyTorch's torch.nn.attention.flex_attention.BlockMask)."""
    from torch.nn.attention.flex_attention import create_block_mask

    sees = partial(_sees, query, key, window)
    # A lambda, because FlexAttention counts the arguments of what it is given.
    return create_block_mask(lambda b, h, q, k: sees(b, q, k), query.doc.shape[0], None, len(query), len(key), device=query.doc.device)


def _sees(query: Rows, key: Rows, window: int | None, b, q, k):
    """`visible` at one pair of indices, as FlexAttention asks."""
    distance = query.order[b, q] - key.order[b, k]
    before = (distance > 0) & ~key.noised[b, k]
    if window is not None:
        before = before & (distance < window)
    return (query.doc[b, q] == key.doc[b, k]) & (before | (query.block[b, q] == key.block[b, k]))

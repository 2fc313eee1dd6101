"""Packed rows -> attention mask, as data: who sees whom, decided by four integer columns.

A row sees, inside its own document: its own block, and every row of the clean stream whose order is below its own. So
text is causal, the patches of an image see each other in both directions, a noised block sees what stood before its
image and itself, and nobody else ever sees noise. Padding sees itself alone. Sliding windows count clean-stream
order, so noised blocks consume none of it.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from fusion.sequence.rows import Rows


class _Sight(NamedTuple):
    """What decides who sees whom, of some rows."""

    doc: Tensor
    order: Tensor
    block: Tensor
    noised: Tensor

    @classmethod
    def of(cls, rows: Rows) -> "_Sight":
        return cls(rows.doc, rows.order, rows.block, rows.noised)

    def at(self, index: Any) -> "_Sight":
        return _Sight(self.doc[index], self.order[index], self.block[index], self.noised[index])


def _sees(query: _Sight, key: _Sight, window: int | None) -> Tensor:
    """Apply the rule to queries and keys whose shapes broadcast."""
    before = _clean_before(query, key, window)
    return (query.doc == key.doc) & (before | (query.block == key.block))


def _clean_before(query: _Sight, key: _Sight, window: int | None) -> Tensor:
    distance = query.order - key.order
    before = (distance > 0) & ~key.noised
    return before if window is None else before & (distance < window)


def visible(query: Rows, key: Rows, window: int | None = None) -> Bool[Tensor, "b q k"]:
    """Say which keys each query sees. window: rows of the clean stream that a sliding layer looks back on, itself
    included."""
    return _sees(_Sight.of(query).at((..., None)), _Sight.of(key).at((..., None, slice(None))), window)


def additive(seen: Bool[Tensor, "b q k"], dtype: torch.dtype) -> Tensor:
    """The mask that eager attention adds to its scores: 0 where seen, the lowest number elsewhere; (b, 1, q, k)."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def block_mask(query: Rows, key: Rows, window: int | None = None):
    """The same mask for FlexAttention (PyTorch's torch.nn.attention.flex_attention.BlockMask)."""
    from torch.nn.attention.flex_attention import create_block_mask

    queries, keys = _Sight.of(query), _Sight.of(key)

    # A lambda, because FlexAttention counts the arguments of what it is given.
    return create_block_mask(
        lambda b, h, q, k: _sees(queries.at((b, q)), keys.at((b, k)), window),
        query.doc.shape[0],
        None,
        len(query),
        len(key),
        device=query.doc.device,
    )

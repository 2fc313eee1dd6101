"""What a picture is made from: the one condition that every architecture takes."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """A batch of conditions; an architecture reads the fields it is made for, the others stay None.

    tokens: features of text, with `mask` True where there is text (None: everywhere). pooled: one vector for all of the text.
    label: class numbers; the number of classes itself stands for "none of them". layers: the same tokens as the layers of a language
    model have them. guidance: the scale that a guidance-distilled model was trained with.
    """

    tokens: Float[Tensor, "b n d"] | None = None
    mask: Bool[Tensor, "b n"] | None = None
    pooled: Float[Tensor, "b p"] | None = None
    label: Int[Tensor, " b"] | None = None
    layers: Float[Tensor, "k b n e"] | None = None
    guidance: Float[Tensor, " b"] | None = None

    def where(self) -> Bool[Tensor, "b n"]:
        """The mask of tokens, made where it was left out. ValueError without tokens."""
        if self.tokens is None:
            raise ValueError("this architecture reads text: give Conditioning its tokens")
        return torch.ones_like(self.tokens[..., 0], dtype=torch.bool) if self.mask is None else self.mask

    def rows(self, index: Int[Tensor, " m"]) -> "Conditioning":
        """Chosen rows of the batch, as often as they are chosen."""
        picked = {name: field[index.to(field.device)] for name, field in vars(self).items() if field is not None and name != "layers"}
        return Conditioning(**picked, layers=None if self.layers is None else self.layers[:, index.to(self.layers.device)])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Conditioning":
        """On a device, features of text in a dtype."""
        there = {name: field.to(device) for name, field in vars(self).items() if field is not None}
        return replace(self, **there | {name: there[name].to(dtype) for name in ("tokens", "pooled", "layers") if name in there})

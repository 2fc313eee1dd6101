"""What a picture is made from: the one condition that every architecture takes."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

READ = {
    "tokens": "text",
    "pooled": "a pooled vector beside the tokens",
    "layers": "the text as the layers of a language model have it",
    "guidance": "the scale of guidance",
}


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

    def given(self, field: str) -> Tensor:
        """A field that the architecture cannot do without. ValueError where it was left out."""
        if (value := getattr(self, field)) is None:
            raise ValueError(f"this architecture reads {READ[field]}: give Conditioning its {field}")
        return value

    def where(self) -> Bool[Tensor, "b n"]:
        """The mask of tokens, made where it was left out. ValueError without tokens."""
        tokens = self.given("tokens")
        return torch.ones_like(tokens[..., 0], dtype=torch.bool) if self.mask is None else self.mask

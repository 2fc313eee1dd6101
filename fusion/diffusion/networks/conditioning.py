"""What an image is made from: the one condition that every architecture takes."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

READ = {
    "tokens": "text",
    "label": "the number of a class",
    "pooled": "a pooled vector beside the tokens",
    "layers": "the text as the layers of a language model have it",
    "guidance": "the scale of guidance",
}


@dataclass(frozen=True)
class Conditioning:
    """A batch of conditions; an architecture reads the fields it is made for, the others stay None.

    tokens: features of text, with `mask` True where there is text (None: everywhere). pooled: one vector for all of the
    text. label: class numbers; the number of classes itself stands for "none of them". layers: the text as the layers
    of a language model have it; layers_mask: where there is some, if its tokens are others than `tokens`. guidance: the
    scale that a guidance-distilled model was trained with.
    """

    tokens: Float[Tensor, "b n d"] | None = None
    mask: Bool[Tensor, "b n"] | None = None
    pooled: Float[Tensor, "b p"] | None = None
    label: Int[Tensor, " b"] | None = None
    layers: Float[Tensor, "k b m e"] | None = None
    layers_mask: Bool[Tensor, "b m"] | None = None
    guidance: Float[Tensor, " b"] | None = None

    def given(self, field: str) -> Tensor:
        """A field that the architecture cannot do without. ValueError where it was left out."""
        if (value := getattr(self, field)) is None:
            raise ValueError(f"this architecture reads {READ[field]}: give Conditioning its {field}")
        return value

    def where(self, field: str = "tokens") -> Bool[Tensor, "b n"]:
        """The mask of tokens, or of layers, made where it was left out. ValueError without them."""
        rows = self.given("tokens") if field == "tokens" else self.given("layers")[0]
        mask = self.mask if field == "tokens" else self.layers_mask
        return torch.ones_like(rows[..., 0], dtype=torch.bool) if mask is None else mask

    def rows(self, index: Int[Tensor, " m"]) -> "Conditioning":
        """Chosen rows of the batch, as often as they are chosen."""
        picked = {
            name: field[index.to(field.device)]
            for name, field in vars(self).items()
            if field is not None and name != "layers"
        }
        return Conditioning(
            **picked, layers=None if self.layers is None else self.layers[:, index.to(self.layers.device)]
        )

    def joined(self, other: "Conditioning") -> "Conditioning":
        """The rows of both batches, which have the same fields, and texts of the same lengths."""
        pairs = {name: (field, getattr(other, name)) for name, field in vars(self).items() if field is not None}
        return Conditioning(**{name: torch.cat(pair, dim=1 if name == "layers" else 0) for name, pair in pairs.items()})

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Conditioning":
        """On a device, features of text in a dtype."""
        there = {name: field.to(device) for name, field in vars(self).items() if field is not None}
        return replace(
            self, **there | {name: there[name].to(dtype) for name in ("tokens", "pooled", "layers") if name in there}
        )

"""Name tables between our weights and those of other repositories, in both directions.

A row says which of our tensors is which of theirs, and how one becomes the other: patches cut in another order, copies
of one tensor in every block, several layers in one. What cannot be said by a row is a difference between networks, and
belongs in their code.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import EinopsError, rearrange
from torch import Tensor


def same(tensor: Tensor) -> Tensor:
    """As it is."""
    return tensor


@dataclass(frozen=True)
class Row:
    """One tensor of theirs. ours, theirs: its names; ours several where it holds several of ours, theirs several where
    they keep copies.

    take: theirs to ours, as many as there are; give: ours to theirs.
    """

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    take: Callable[[Tensor], Tensor | Sequence[Tensor]] = same
    give: Callable[..., Tensor] = same

    @property
    def parts(self) -> tuple[str, ...]:
        """Our names."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def copies(self) -> tuple[str, ...]:
        """Their names."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    def taken(self, tensor: Tensor) -> dict[str, Tensor]:
        """Their tensor under our names. ValueError for a shape that does not divide."""
        try:
            made = self.take(tensor)
        except (EinopsError, RuntimeError):
            shape = tuple(tensor.shape)
            raise ValueError(
                f"{self.copies[0]} has shape {shape}, which does not divide into the parts that the config asks for"
            ) from None
        made = (made,) if isinstance(self.ours, str) else made
        return {name: part.contiguous() for name, part in zip(self.parts, made, strict=True)}


def linear(
    ours: str, theirs: str | tuple[str, ...], bias: bool = True, weight: tuple = (), both: tuple = ()
) -> list[Row]:
    """The rows of a linear layer. weight, both: (take, give) for its weight alone, or for weight and bias."""
    ends = ("weight", "bias") if bias else ("weight",)
    several = (theirs,) if isinstance(theirs, str) else theirs
    return [
        Row(
            f"{ours}.{end}",
            tuple(f"{name}.{end}" for name in several),
            *(weight if weight and end == "weight" else both),
        )
        for end in ends
    ]


def fused(ours: Sequence[str], theirs: str, sizes: Sequence[int]) -> Row:
    """The row of several linear layers without biases that are one of theirs; `sizes`: their outputs, in its order."""
    return Row(
        tuple(f"{name}.weight" for name in ours),
        f"{theirs}.weight",
        lambda w: w.split(sizes),
        lambda *parts: torch.cat(parts),
    )


def embedder(
    ours: str, theirs: str | tuple[str, ...], ends: tuple[str, str] = ("up", "down"), bias: bool = True
) -> list[Row]:
    """The rows of two linear layers with something between them, as diffusers names those of times and pooled text."""
    several = (theirs,) if isinstance(theirs, str) else theirs
    pairs = enumerate(ends, start=1)
    return [
        row
        for number, end in pairs
        for row in linear(f"{ours}.{end}", tuple(f"{name}.linear_{number}" for name in several), bias)
    ]


def feed_forward(ours: str, theirs: str) -> list[Row]:
    """The rows of a feed-forward as diffusers names them."""
    return linear(f"{ours}.up", f"{theirs}.net.0.proj") + linear(f"{ours}.down", f"{theirs}.net.2")


def attention(ours: str, theirs: str) -> list[Row]:
    """The rows of an attention layer as diffusers names them."""
    return qkv(ours, theirs, qk_norm=False) + linear(f"{ours}.out", f"{theirs}.to_out.0")


def qkv(
    ours: str, theirs: str, qk_norm: bool, parts: str = "to_{}", norms: str = "norm_{}", bias: bool = True
) -> list[Row]:
    """The rows of queries, keys and values, and of their norms if they have them."""
    rows = [row for part in "qkv" for row in linear(f"{ours}.{part}", f"{theirs}.{parts.format(part)}", bias)]
    return rows + [
        Row(f"{ours}.norm_{part}.weight", f"{theirs}.{norms.format(part)}.weight") for part in "qk" if qk_norm
    ]


def added_qkv(ours: str, theirs: str, qk_norm: bool, bias: bool = True) -> list[Row]:
    """The same for the second stream of a joint attention."""
    return qkv(ours, theirs, qk_norm, "add_{}_proj", "norm_added_{}", bias)


def convolved(channels: int, patch_size: int) -> tuple[Callable, Callable]:
    """The weight of a strided convolution as that of a linear layer over patches, and back."""
    sides = {"c": channels, "p": patch_size, "q": patch_size}
    return (lambda w: rearrange(w, "d c p q -> d (c p q)")), (lambda w: rearrange(w, "d (c p q) -> d c p q", **sides))


def channels_last(channels: int, patch_size: int, groups: int = 1) -> tuple[Callable, Callable]:
    """Rows of an output layer in the order (row, column, group of channels) as ours, (group, channel, row, column), and
    back."""
    sides = {"k": groups, "c": channels, "p": patch_size, "q": patch_size}
    return (
        lambda w: rearrange(w, "(p q k c) ... -> (k c p q) ...", **sides),
        lambda w: rearrange(w, "(k c p q) ... -> (p q k c) ...", **sides),
    )


def columns_last(channels: int, patch_size: int) -> tuple[Callable, Callable]:
    """Columns of a layer over patches in the order (row, column, channel) as ours, (channel, row, column), and back."""
    sides = {"c": channels, "p": patch_size, "q": patch_size}
    return (lambda w: rearrange(w, "d (p q c) -> d (c p q)", **sides)), (
        lambda w: rearrange(w, "d (c p q) -> d (p q c)", **sides)
    )


def negated(take: Callable, give: Callable) -> tuple[Callable, Callable]:
    """The same with the other sign, both ways."""
    return (lambda w: -take(w)), (lambda w: -give(w))


def _halves_changed(w: Tensor) -> Tensor:
    first, second = w.chunk(2)
    return torch.cat([second, first])


swapped = (_halves_changed, _halves_changed)
"""The halves of a layer's outputs change places: (scale, shift) as (shift, scale), and back."""


def take(rows: Iterable[Row], tensors: Mapping[str, Tensor], ignore: Iterable[str] = ()) -> dict[str, Tensor]:
    """Their tensors under our names. ValueError, naming it, for a tensor that is missing, unknown, or unlike its
    copies.

    ignore: names of theirs that are no weights (buffers that older checkpoints hold).
    """
    rows = list(rows)
    known = {name for row in rows for name in row.copies}
    if missing := sorted(known - tensors.keys()):
        raise ValueError(f"the checkpoint lacks {_some(missing)}: it is incomplete, or not of this architecture")
    if extra := sorted(tensors.keys() - known - set(ignore)):
        raise ValueError(
            f"the checkpoint has {_some(extra)}, which this architecture has not: it is of another one, or of other "
            "settings"
        )
    for row in rows:
        first, *others = row.copies
        if unlike := [name for name in others if not torch.equal(tensors[first], tensors[name])]:
            raise ValueError(
                f"{unlike[0]} differs from {first}, of which it should be a copy: this checkpoint was changed since it "
                "was converted"
            )
    return {name: part for row in rows for name, part in row.taken(tensors[row.copies[0]]).items()}


def give(rows: Iterable[Row], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names."""
    given = ((row, row.give(*(tensors[name] for name in row.parts))) for row in rows)
    return {name: tensor.contiguous().clone() for row, tensor in given for name in row.copies}


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"

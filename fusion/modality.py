"""Weights by modality: in each layer of the decoder, rows of pictures pass through copies of its modules, and attention stays joint.

The mixture of transformers (Liang et al., arXiv 2411.04996), as LMFusion (arXiv 2412.15188) and BAGEL (arXiv 2505.14683) have it. The language
model stays where and as it is: a module's `forward` is exchanged for one that sends the rows of pictures through the module's copy. Which rows
are whose is found out once per batch.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

PARTS = ("attention", "norms", "feed_forward")
"""What of a layer can be split: the projections of attention, all norms, the feed-forward or its experts."""


@dataclass(frozen=True)
class Groups:
    """Which rows of a batch of b x t are text and which belong to pictures, as indices of the flattened batch."""

    text: Int[Tensor, " n"]
    image: Int[Tensor, " m"]
    shape: tuple[int, int]

    @classmethod
    def of(cls, picture: Int[Tensor, "b t"]) -> "Groups":
        """picture: -1 on text."""
        image = picture.flatten() >= 0
        return cls((~image).nonzero()[:, 0], image.nonzero()[:, 0], tuple(picture.shape))

    def merged(self, text: Tensor, image: Tensor) -> Tensor:
        """Rows of both kinds in their places, flattened."""
        rows = text.new_empty(len(text) + len(image), *text.shape[1:])
        return rows.index_copy(0, self.text, text).index_copy(0, self.image, image.to(text.dtype))


class Routed:
    """The `forward` of a module of the language model whose rows of pictures go through a copy.

    context: has `groups`, None where there are no pictures at all. heads_first: whether rows are the third axis of four, behind the heads. Of
    what a module answers beside hidden states (scores of a router), the text's is given.
    """

    def __init__(self, context, module: nn.Module, twin: nn.Module, heads_first: bool):
        self.context, self.own, self.twin, self.heads_first = context, module.forward, twin, heads_first

    def __call__(self, x: Tensor, *args, **kwargs):
        groups = self.context.groups
        if groups is None or not len(groups.image):
            return self.own(x, *args, **kwargs)
        if not len(groups.text):
            return self.twin(x, *args, **kwargs)
        turned = self.heads_first and x.ndim == 4
        rows = x.transpose(1, 2) if turned else x
        batched = rows.shape[:2] == groups.shape  # else the family has made one axis of them
        flat = rows.flatten(0, 1) if batched else rows
        parts = [flat[groups.text], flat[groups.image]]
        if batched:
            parts = [part[None] for part in parts]
        answers = [run(part, *args, **kwargs) for run, part in zip((self.own, self.twin), parts, strict=True)]
        told = answers if torch.is_tensor(answers[0]) else [answer[0] for answer in answers]
        merged = groups.merged(*((part[0] for part in told) if batched else told))
        merged = merged.unflatten(0, groups.shape) if batched else merged
        merged = merged.transpose(1, 2) if turned else merged
        return merged if torch.is_tensor(answers[0]) else (merged, *answers[0][1:])


def twins(layer: nn.Module, family, parts: Sequence[str]) -> nn.ModuleDict:
    """Copies of the modules of a layer that are split, by name (dots as in `q_proj` of `self_attn` become two underscores)."""
    return nn.ModuleDict({name.replace(".", "__"): copy.deepcopy(layer.get_submodule(name)) for name in split_names(layer, family, parts)})


def split_names(layer: nn.Module, family, parts: Sequence[str]) -> list[str]:
    """The modules of a layer that are split, outermost first: none lies inside another."""
    feed_forward = [name for name in dict.fromkeys((family.feed_forward, family.feed_forward_gate)) if not is_norm(layer.get_submodule(name))]
    norms = [name for name in _outermost(layer, is_norm) if not any(_inside(name, other) for other in feed_forward)]
    projections = [
        f"{family.attention}.{name}" for name in _outermost(layer.get_submodule(family.attention), _has_weights)
        if not is_norm(layer.get_submodule(f"{family.attention}.{name}"))
    ]  # fmt: skip
    chosen = {"attention": projections, "norms": norms, "feed_forward": feed_forward}
    return [name for part in parts for name in chosen[part]]


def is_norm(module: nn.Module) -> bool:
    """By the name of its class, and with weights: norms without any are the same for all."""
    return "norm" in type(module).__name__.lower() and any(True for _ in module.parameters())


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) or is_norm(module)


def _inside(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")


def _outermost(module: nn.Module, wanted: Callable[[nn.Module], bool], prefix: str = "") -> Iterator[str]:
    """Names of the children, and of theirs, that are wanted; inside one that is, nothing more is looked for."""
    for name, child in module.named_children():
        if wanted(child):
            yield prefix + name
        else:
            yield from _outermost(child, wanted, f"{prefix}{name}.")


def route(layer: nn.Module, copies: nn.ModuleDict, context, heads_first: bool) -> None:
    """Send the rows of pictures through the copies from now on."""
    for name, twin in copies.items():
        module = layer.get_submodule(name.replace("__", "."))
        module.forward = Routed(context, module, twin, heads_first)

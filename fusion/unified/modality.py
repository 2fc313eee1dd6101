"""Modality-specific weights: in each decoder layer, image rows use modules of their own; attention stays joint.

Their modules are copies of the language model's, as in the mixture of transformers (Liang et al., arXiv 2411.04996),
LMFusion (arXiv 2412.15188) and BAGEL (arXiv 2505.14683): `twins`. Or they are an image stream of its own width beside a
language model that never changes, which attends over the language model's keys and values at each layer, as in FuseDiT
(arXiv 2505.10046): `stream`; or over its own projections (fusion.unified.kv_projection).

The language model stays where and as it is: a module's `forward` is exchanged for one that sends the rows of images
elsewhere. Which rows are whose is found out once per batch.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fusion.unified.settings import PARTS


@dataclass(frozen=True)
class Groups:
    """Which rows of a batch of b x t are text and which belong to images, as indices of the flattened batch."""

    text: Int[Tensor, " n"]
    image: Int[Tensor, " m"]
    shape: tuple[int, int]

    @classmethod
    def of(cls, image_index: Int[Tensor, "b t"]) -> "Groups":
        """image: -1 on text."""
        image = image_index.flatten() >= 0
        return cls((~image).nonzero()[:, 0], image.nonzero()[:, 0], tuple(image_index.shape))

    def to(self, device: torch.device) -> "Groups":
        """The same on a device."""
        return self if self.text.device == device else Groups(self.text.to(device), self.image.to(device), self.shape)

    def merged(self, text: Tensor, image: Tensor) -> Tensor:
        """Rows of both kinds in their places, flattened."""
        rows = text.new_empty(len(text) + len(image), *text.shape[1:])
        return rows.index_copy(0, self.text, text).index_copy(0, self.image, image.to(text))


class Routed:
    """The `forward` of a module of the language model whose rows of images go through a copy.

    context: has `groups`, None where there are no images at all. heads_first: whether rows are the third axis of
    four, behind the heads. Of what a module answers beside hidden states (scores of a router), the text's is given.
    """

    def __init__(self, context, module: nn.Module, twin: nn.Module, heads_first: bool):
        self.context, self.own, self.twin, self.heads_first = context, module.forward, twin, heads_first
        self.beside = 0  # how much the module answers beside hidden states: a stream's has nothing of it

    def __call__(self, x: Tensor, *args, **kwargs):
        groups = self.context.groups
        if groups is None or not len(groups.image):
            return self.of_text(x, *args, **kwargs)
        groups = groups.to(x.device)
        if not len(groups.text):
            answer = self.of_image(x, *args, **kwargs)
            return (answer, *[None] * self.beside) if self.beside and torch.is_tensor(answer) else answer
        turned = self.heads_first and x.ndim == 4
        rows = x.transpose(1, 2) if turned else x
        batched = rows.shape[:2] == groups.shape  # else the family has made one axis of them
        flat = rows.flatten(0, 1) if batched else rows
        parts = [flat[groups.text], flat[groups.image]]
        if batched:
            parts = [part[None] for part in parts]
        answers = [self.of_text(parts[0], *args, **kwargs), self.of_image(parts[1], *args, **kwargs)]
        told = [answer if torch.is_tensor(answer) else answer[0] for answer in answers]
        merged = groups.merged(*((part[0] for part in told) if batched else told))
        merged = merged.unflatten(0, groups.shape) if batched else merged
        merged = merged.transpose(1, 2) if turned else merged
        return merged if torch.is_tensor(answers[0]) else (merged, *answers[0][1:])

    def of_text(self, rows: Tensor, *args, **kwargs):
        """The module's own answer. Every image stands behind text, which has passed here before it is drawn."""
        answer = self.own(rows, *args, **kwargs)
        self.beside = 0 if torch.is_tensor(answer) else len(answer) - 1
        return answer

    def of_image(self, rows: Tensor, *args, **kwargs):
        """The copy's."""
        return self.twin(rows, *args, **kwargs)


# ---- modules for the rows of images ----


def twins(llm: nn.Module, layers: nn.ModuleList, family, parts: Sequence[str]) -> nn.ModuleList:
    """Copies of what is split, layer by layer, and last of the norm behind all layers if norms are; by name, two
    underscores for a dot."""
    places = [(layer, split_names(layer, family, parts)) for layer in layers]
    places.append((above(llm, family), last_norms(llm, family) if "norms" in parts else []))
    made = ({name: place.get_submodule(name) for name in names} for place, names in places)
    return _named(
        [
            {name: copy.deepcopy(module) for name, module in one.items() if any(True for _ in module.parameters())}
            for one in made
        ]
    )


def stream(llm: nn.Module, layers: nn.ModuleList, family, width: int) -> nn.ModuleList:
    """The same places, with fresh modules of an image stream that is `width` wide: a row's first numbers, the rest of
    it stays zero."""
    full, deep = llm.get_input_embeddings().embedding_dim, (2 * len(layers)) ** -0.5

    def norm() -> Narrow:
        return Narrow(nn.RMSNorm(width, eps=1e-6), width, full - width)

    def module(layer: nn.Module, name: str) -> nn.Module:
        theirs = layer.get_submodule(name)
        inside = _inside(name, family.attention) and name != family.attention
        if is_norm(theirs):
            return copy.deepcopy(theirs) if inside else norm()
        if not inside and not _is_linear(theirs):
            return Narrow(SwiGLU(width, 8 * width // 3, deep), width, full - width)
        into, out = theirs.weight.shape if isinstance(theirs, Conv1D) else reversed(theirs.weight.shape)
        leaves = name.rpartition(".")[2] in LEAVING
        made = nn.Linear(into if leaves else width, width if leaves else out, bias=theirs.bias is not None)
        return Narrow(drawn(made, deep if leaves else 1.0), into if leaves else width, full - width if leaves else 0)

    made = [{name: module(layer, name) for name in split_names(layer, family, PARTS)} for layer in layers]
    return _named([*made, {name: norm() for name in last_norms(llm, family)}])


LEAVING = ("o_proj", "out_proj", "dense", "c_proj", "fc2")
"""What linear layers are called in all families whose answer goes to the residual stream."""


class Narrow(nn.Module):
    """A module on the first `width` numbers of a row; its answer is filled up with zeros."""

    def __init__(self, module: nn.Module, width: int, fill: int):
        super().__init__()
        self.module, self.width, self.fill = module, width, fill

    def forward(self, x: Float[Tensor, "*n wide"]) -> Float[Tensor, "*n out"]:
        return F.pad(self.module(x[..., : self.width]), (0, self.fill))


class SwiGLU(nn.Module):
    """The image stream's feed-forward (Shazeer, arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int, deep: float):
        super().__init__()
        self.gate, self.up = (drawn(nn.Linear(width, inner, bias=False), 1.0) for _ in range(2))
        self.down = drawn(nn.Linear(inner, width, bias=False), deep)

    def forward(self, x: Float[Tensor, "*n width"]) -> Float[Tensor, "*n width"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def drawn(linear: nn.Linear, scale: float) -> nn.Linear:
    """Weights that keep the scale of what enters, times `scale`; no bias at first."""
    nn.init.normal_(linear.weight, std=scale * linear.in_features**-0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _named(made: Sequence[dict[str, nn.Module]]) -> nn.ModuleList:
    return nn.ModuleList(
        nn.ModuleDict({name.replace(".", "__"): module for name, module in one.items()}) for one in made
    )


def above(llm: nn.Module, family) -> nn.Module:
    """What holds the layers, and the norm behind them."""
    return llm.base_model.get_submodule(family.layers.rpartition(".")[0])


def last_norms(llm: nn.Module, family) -> list[str]:
    """The name of the norm behind all layers, if there is one."""
    return [name for name, module in above(llm, family).named_children() if is_norm(module) and "embed" not in name]


def split_names(layer: nn.Module, family, parts: Sequence[str]) -> list[str]:
    """The modules of a layer that are split, outermost first: none lies inside another."""
    feed_forward = [
        name
        for name in dict.fromkeys((family.feed_forward, family.feed_forward_gate))
        if not is_norm(layer.get_submodule(name))
    ]
    norms = [name for name in _outermost(layer, is_norm) if not any(_inside(name, other) for other in feed_forward)]
    projections = [
        f"{family.attention}.{name}"
        for name in _outermost(layer.get_submodule(family.attention), _is_whole)
        if not is_norm(layer.get_submodule(f"{family.attention}.{name}"))
    ]
    chosen = {"attention": projections, "norms": norms, "feed_forward": feed_forward}
    return [name for part in parts for name in chosen[part]]


def is_norm(module: nn.Module) -> bool:
    """By the name of its class."""
    return "norm" in type(module).__name__.lower()


def _is_whole(module: nn.Module) -> bool:
    return is_norm(module) or any(True for _ in module.parameters(recurse=False))


def _inside(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")


def _outermost(module: nn.Module, wanted: Callable[[nn.Module], bool], prefix: str = "") -> Iterator[str]:
    """Names of the children, and of theirs, that are wanted; inside one that is, nothing more is looked for."""
    for name, child in module.named_children():
        if wanted(child):
            yield prefix + name
        else:
            yield from _outermost(child, wanted, f"{prefix}{name}.")


def route(layer: nn.Module, copies: nn.ModuleDict | dict[str, nn.Module], context, heads_first: bool) -> None:
    """Send the rows of images through the copies from now on."""
    for name, twin in copies.items():
        module = layer.get_submodule(name.replace("__", "."))
        module.forward = Routed(context, module, twin, heads_first)

"""Deep fusion by the image stream's own projections of LLM states (Playground v3, Liu et al., arXiv 2409.10695).

In mode frozen, the queries of images meet the keys and values that the language model made for itself (FuseDiT). Here
they meet others: projections of the stream's own turn the hidden states that enter a layer's attention into keys and
values for images, while text goes on reading its own. At first they are copies of the language model's, so that a
fresh stream reads just what FuseDiT's does; then they learn.

So a layer's attention is asked twice, by text and by images, with the same mask, at the same positions. Keys and
values of images are the same both times and computed once; with a cache, what images read lies in a second one,
behind the first.
"""

import copy
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache

from fusion.nn.kv_cache import PrefixCache
from fusion.unified.modality import LEAVING, Routed, is_norm, route, split_names

ASKING = "q_proj"
"""What the projection to queries is called where it is a module of its own: images need none of text's. Families that
project to queries, keys and values at once (phi3, gpt2, gpt_neox, persimmon) have those of text computed with the rest;
nobody reads them."""


class Heard(nn.Module):
    """The image stream's module for rows of images, and its projection of the language model's hidden states."""

    def __init__(self, picture: nn.Module, text: nn.Module):
        super().__init__()
        self.picture, self.text = picture, text

    def forward(self, x: Float[Tensor, "*n wide"]) -> Float[Tensor, "*n out"]:
        """Of rows of images."""
        return self.picture(x)


def listen(layers: nn.ModuleList, family, twins: nn.ModuleList) -> None:
    """Give an image stream (modality.stream) projections of its own of what the language model holds at each layer."""
    for layer, modules in zip(layers, twins, strict=False):  # last comes the norm behind all layers
        for name in _projections(layer, family):
            key = name.replace(".", "__")
            modules[key] = Heard(modules[key], copy.deepcopy(layer.get_submodule(name)).requires_grad_(True))


def _projections(layer: nn.Module, family) -> list[str]:
    """The modules that lead from hidden states to keys and values."""
    names = [
        name for name in split_names(layer, family, ("attention",)) if name.rpartition(".")[2] not in (ASKING, *LEAVING)
    ]
    return [name for name in names if not is_norm(layer.get_submodule(name))]


class Turn:
    """Who asks a layer's attention: text, or images. kept: what modules answered to text that images will ask them
    again."""

    def __init__(self):
        self.of_images = False
        self.kept: dict[str, Tensor] = {}


class Asked:
    """The `forward` of a layer's attention, which text and images ask one after the other.

    layers: how many the decoder has; the second cache begins there. Only images are drawn behind a frozen cache, and
    only they ask then.
    """

    def __init__(self, context, attention: nn.Module, turn: Turn, layers: int):
        self.context, self.attend, self.turn, self.layers = context, attention.forward, turn, layers

    def __call__(self, *args, **kwargs):
        groups, cache = self.context.groups, _cache_of(args, kwargs)
        if groups is None or (cache is None and not len(groups.image)):
            return self.attend(*args, **kwargs)
        drawing = isinstance(cache, PrefixCache) and cache.frozen
        try:
            own = None if drawing else self.attend(*args, **kwargs)
            self.turn.of_images = True
            heard = self.attend(
                *map(self._second, args), **{name: self._second(value) for name, value in kwargs.items()}
            )
        finally:
            self.turn.of_images = False
            self.turn.kept.clear()
        if drawing or not len(groups.image):  # without images, what they will read is in the cache now
            return heard if drawing else own
        groups = groups.to(own[0].device)
        merged = groups.merged(own[0].flatten(0, 1)[groups.text], heard[0].flatten(0, 1)[groups.image])
        return (merged.unflatten(0, groups.shape), *own[1:])

    def _second(self, value):
        return Behind(value, self.layers) if isinstance(value, Cache) else value


class Behind:
    """A second cache in one: that of layer n is its layer n + layers."""

    def __init__(self, cache: Cache, layers: int):
        self.cache, self.layers = cache, layers

    def update(self, keys: Tensor, values: Tensor, layer: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """As of a cache."""
        return self.cache.update(keys, values, layer + self.layers, *args, **kwargs)


def _cache_of(args: tuple, kwargs: dict) -> Cache | None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Cache):
            return value
    return None


# ---- the modules inside attention ----


class Inside(Routed):
    """The `forward` of a module inside attention. name: under which its answer is kept."""

    def __init__(self, context, module: nn.Module, twin: nn.Module, heads_first: bool, turn: Turn, name: str):
        super().__init__(context, module, twin, heads_first)
        self.turn, self.name = turn, name

    def once(self, answer: Callable[[], Tensor]) -> Tensor:
        """What images get in text's turn, again in theirs."""
        if self.turn.of_images:
            return self.turn.kept[self.name] if self.name in self.turn.kept else answer()
        self.turn.kept[self.name] = answer()
        return self.turn.kept[self.name]


class Norm(Inside):
    """In the images' turn all rows pass through theirs, so that what it compares is comparable."""

    def __call__(self, x: Tensor, *args, **kwargs):
        return self.twin(x, *args, **kwargs) if self.turn.of_images else super().__call__(x, *args, **kwargs)


class Asking(Inside):
    """The projection to queries, the same in both turns: answers to the other side's rows are not looked at."""

    def __call__(self, x: Tensor, *args, **kwargs):
        return self.once(lambda: super(Asking, self).__call__(x, *args, **kwargs))


class Projection(Inside):
    """A projection to keys or values: those of images are the same in both turns, those of text are not."""

    def of_text(self, rows: Tensor, *args, **kwargs):
        return self.twin.text(rows) if self.turn.of_images else super().of_text(rows, *args, **kwargs)

    def of_image(self, rows: Tensor, *args, **kwargs):
        return self.once(lambda: self.twin(rows))


class Leaving(Inside):
    """The projection back to the residual stream, only of the rows whose turn it is."""

    def of_text(self, rows: Tensor, *args, **kwargs):
        return self._nothing(rows) if self.turn.of_images else super().of_text(rows, *args, **kwargs)

    def of_image(self, rows: Tensor, *args, **kwargs):
        return super().of_image(rows, *args, **kwargs) if self.turn.of_images else self._nothing(rows)

    def _nothing(self, rows: Tensor) -> Tensor:
        return rows.new_zeros(*rows.shape[:-1], self.twin.module.out_features + self.twin.fill)


def route_deep(layer: nn.Module, modules: nn.ModuleDict, context, family, layers: int) -> None:
    """As modality.route, for a stream that listens."""
    turn, attention = Turn(), layer.get_submodule(family.attention)
    inside = {key for key in modules if key.startswith(f"{family.attention}__")}
    route(layer, {key: twin for key, twin in modules.items() if key not in inside}, context, family.heads_first)
    for key in inside:
        module, last = layer.get_submodule(key.replace("__", ".")), key.rpartition("__")[2]
        kind = Norm if is_norm(module) else Asking if last == ASKING else Leaving if last in LEAVING else Projection
        module.forward = kind(context, module, modules[key], family.heads_first, turn, key)
    attention.forward = Asked(context, attention, turn, layers)

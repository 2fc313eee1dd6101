"""Architectures by name: what a config asks for, built for the latents and the texts that it will see."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fusion.diffusion.architectures import ARCHITECTURES

STEP = 2  # by which a head grows where a width is looked for: rotary positions and sin-cos ones want even numbers
WIDEST = 16384


@dataclass(frozen=True)
class Sees:
    """What a network will see: channels of latents, and of texts the widths of tokens and of the pooled vector, and of
    how many layers of a language model there are how wide ones."""

    channels: int
    text_width: int
    pooled_width: int
    layers: int = 0
    layer_width: int = 0


def build(name: str, settings: dict[str, Any], sees: Sees) -> nn.Module:
    """A network that starts as its paper says. settings: fields of its config; what it sees is filled in, and a text's
    padding is hidden from it. A UNet may have a width, of its finest level, ratios of the levels' widths to it, and
    heads. Raises ValueError in one line."""
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture {name!r}: choose one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    settings = architecture.fields(settings)
    defaults = {field.name: field.default for field in fields(architecture.config)}
    if unknown := sorted(set(settings) - defaults.keys()):
        raise ValueError(f"{name} has no setting {unknown[0]!r}; it has {', '.join(sorted(defaults))}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    found = {**vars(sees), "text_mask": True}
    del found["layers"]  # a network's own layers are others
    whole = defaults | {key: value for key, value in found.items() if key in defaults} | given
    if "axes" in defaults and "axes" not in given:
        whole["axes"] = _shared_out(whole["width"] // whole["heads"], defaults["axes"])
    if "reads" in defaults and "reads" not in given:
        whole["reads"] = _spread(whole["layers"] + whole["single"], sees.layers)
    return architecture.network(architecture.config(**whole))


def matched(
    name: str,
    settings: dict[str, Any],
    target: float,
    sees: Sees,
    size: Callable[[nn.Module], float] = lambda network: sum(p.numel() for p in network.parameters()),
) -> dict[str, Any]:
    """The settings with the width at which a network's `size`, its parameters unless given, is nearest to `target`;
    heads stay as many."""

    def measure(width: int) -> float:
        with FakeTensorMode():  # of any width in no time
            return size(build(name, settings | {"width": width}, sees))

    step = STEP * settings["heads"]
    widths = range(step, WIDEST + 1, step)
    place = bisect_left(widths, target, key=measure)
    return settings | {
        "width": min(widths[max(place - 1, 0) : place + 1], key=lambda width: abs(math.log(measure(width) / target)))
    }


def _shared_out(head: int, published: tuple[int, ...]) -> tuple[int, ...]:
    """How the numbers of a head turn by the axes, in the shares of the published network; each an even number, the
    first takes what is left."""
    others = [2 * round(head * share / sum(published) / 2) for share in published[1:]]
    return (head - sum(others), *others)


def _spread(blocks: int, layers: int) -> tuple[int, ...]:
    """Which of the layers there are each block reads, from the first to the last."""
    if not layers:
        raise ValueError(
            "this network reads layers of a language model: give a text encoder its layers, such as layers: [1, 2, 3]"
        )
    return tuple(round(block * (layers - 1) / max(blocks - 1, 1)) for block in range(blocks))

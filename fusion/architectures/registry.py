"""Architectures by name: what a config asks for, built for the latents and the texts that it will see."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fusion.architectures import crossdit, dit, ditair, flux, mmdit, pixart, uvit

ARCHITECTURES = {
    "dit": (dit.DiT, dit.DiTConfig),
    "uvit": (uvit.UViT, uvit.UViTConfig),
    "pixart": (pixart.PixArt, pixart.PixArtConfig),
    "crossdit": (crossdit.CrossDiT, crossdit.CrossDiTConfig),
    "mmdit": (mmdit.MMDiT, mmdit.MMDiTConfig),
    "flux": (flux.Flux, flux.FluxConfig),
    "ditair": (ditair.DiTAir, ditair.DiTAirConfig),
}


STEP = 4  # by which a head grows where a width is looked for: rotary positions and sin-cos ones want even numbers
WIDEST = 16384


def build(name: str, settings: dict[str, Any], channels: int, text_width: int, pooled_width: int) -> nn.Module:
    """A network that starts as its paper says. settings: fields of its config; what it reads of latents and texts is filled in, and a
    text's padding is hidden from it. Raises ValueError in one line."""
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture {name!r}: choose one of {', '.join(ARCHITECTURES)}")
    network, config = ARCHITECTURES[name]
    known = {field.name for field in fields(config)}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"{name} has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
    found = {"channels": channels, "text_width": text_width, "pooled_width": pooled_width, "text_mask": True}
    given = _rotary(settings, known) | {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    try:
        return network(config(**{key: value for key, value in found.items() if key in known} | given))
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None


def matched(
    name: str, settings: dict[str, Any], target: float, channels: int, text_width: int, pooled_width: int,
    size: Callable[[nn.Module], float] = lambda network: sum(p.numel() for p in network.parameters()),
) -> dict[str, Any]:  # fmt: skip
    """The settings with the width at which a network's `size`, its parameters unless given, is nearest to `target`; heads stay as many."""

    def measure(width: int) -> float:
        with FakeTensorMode():  # of any width in no time
            return size(build(name, settings | {"width": width}, channels, text_width, pooled_width))

    step = STEP * settings["heads"]
    widths = range(step, WIDEST + 1, step)
    place = bisect_left(widths, target, key=measure)
    return settings | {"width": min(widths[max(place - 1, 0) : place + 1], key=lambda width: abs(math.log(measure(width) / target)))}


def _rotary(settings: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """How a head's numbers are shared out to (text, row, column) where the settings do not say: as Flux does, 7/16 to a side."""
    if "axes" not in known or "axes" in settings or not {"width", "heads"} <= settings.keys():
        return {}
    head = settings["width"] // settings["heads"]
    side = 2 * round(7 * head / 32)
    return {"axes": (head - 2 * side, side, side)}

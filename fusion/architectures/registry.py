"""Architectures by name: what a config asks for, built for the latents and the texts that it will see."""

from dataclasses import fields
from typing import Any

from torch import nn

from fusion.architectures import dit, flux, mmdit, pixart

ARCHITECTURES = {
    "dit": (dit.DiT, dit.DiTConfig),
    "pixart": (pixart.PixArt, pixart.PixArtConfig),
    "mmdit": (mmdit.MMDiT, mmdit.MMDiTConfig),
    "flux": (flux.Flux, flux.FluxConfig),
}


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
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    try:
        return network(config(**{key: value for key, value in found.items() if key in known} | given))
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None

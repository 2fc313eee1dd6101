"""The table of architectures: all that the rest of the library knows of each stands in one entry of `ARCHITECTURES`.

An entry names the network and its config; where diffusers has the network too, the class there and the conversions both
ways; where it samples whole pipelines of it, their recipes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

from torch import Tensor, nn

from fusion.diffusion import pipeline_texts as texts
from fusion.diffusion.networks import (
    crossdit,
    dit,
    ditair,
    flux,
    flux2,
    hidream,
    lumina2,
    mmdit,
    pixart,
    sana,
    unet,
    uvit,
)
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.name_tables import Row
from fusion.diffusion.schedules import BySize, flux2_mu, line

Condition = Callable[[texts.Readers, Sequence], Conditioning]


@dataclass(frozen=True)
class Counterpart:
    """The same network in diffusers, and how one becomes the other.

    classes: its names there; where there are several, `to_diffusers` says which. names: the table of weights. buffers:
    what their checkpoints hold beside weights; it follows from the config, and has to. norm: the norm_type by which a
    checkpoint of the former class Transformer2DModel is known as one of it.
    """

    classes: tuple[str, ...]
    from_diffusers: Callable[[dict], Any]
    to_diffusers: Callable[[Any], dict]
    names: Callable[[Any], list[Row]]
    buffers: Callable[[Any], dict[str, Tensor]] = lambda config: {}
    norm: str | None = None


@dataclass(frozen=True)
class Recipe:
    """How a class of pipeline of diffusers is sampled.

    condition: prompts -> what the network is told; unlike: the same for the prompt of the other branch of guidance,
    where that is read otherwise. encoders, optional: folders of text encoders that have to be, or may be, there.
    prompts: of which types. told: whether the scale of guidance is told to the network (distilled), not applied to two
    branches. as_long: whether a guided prediction is made as long, row by row of the latents, as that of the branch of
    the prompt. even: whether flow times are even before their shift (see `schedules.read_schedule`); by_size: mu where
    it isn't on the scheduler's line; patches: what counts as their number there. steps, guidance, solver: what is
    usual.
    """

    condition: Condition
    steps: int
    guidance: float
    encoders: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    prompts: tuple[type, ...] = (str,)
    unlike: Condition | None = None
    told: bool = False
    as_long: bool = False
    even: bool = False
    by_size: BySize | None = None
    patches: Callable[[Any, int, int], int] = lambda config, height, width: height * width // config.patch_size**2
    solver: str = "euler"


@dataclass(frozen=True)
class Architecture:
    """What is known of an architecture.

    network, config: the classes; the network is made from its config alone. pipelines: recipes by the class of pipeline
    of diffusers. fields: turns the settings that a user gives into fields of the config, where these are others.
    """

    network: type[nn.Module]
    config: type
    diffusers: Counterpart | None = None
    pipelines: Mapping[str, Recipe] = field(default_factory=dict)
    fields: Callable[[dict[str, Any]], dict[str, Any]] = lambda settings: settings


FLUX2 = Recipe(texts.flux2, steps=50, guidance=4.0, encoders=("text_encoder",), told=True, even=True, by_size=flux2_mu)
LUMINA2 = Recipe(
    texts.lumina2,
    steps=30,
    guidance=4.0,
    encoders=("text_encoder",),
    unlike=partial(texts.lumina2, instructed=False),
    as_long=True,
    even=True,
    patches=lambda config, *size: config.channels,  # so diffusers counts
)

ARCHITECTURES = {
    "unet": Architecture(
        unet.UNet,
        unet.UNetConfig,
        Counterpart(unet.CLASSES, unet.from_diffusers, unet.to_diffusers, unet.names),
        fields=unet.fields_of,
    ),
    "dit": Architecture(
        dit.DiT,
        dit.DiTConfig,
        Counterpart(("DiTTransformer2DModel",), dit.from_diffusers, dit.to_diffusers, dit.names, norm="ada_norm_zero"),
        {"DiTPipeline": Recipe(texts.labels, steps=50, guidance=4.0, prompts=(str, int))},
    ),
    "uvit": Architecture(uvit.UViT, uvit.UViTConfig),
    "pixart": Architecture(
        pixart.PixArt,
        pixart.PixArtConfig,
        Counterpart(
            ("PixArtTransformer2DModel",),
            pixart.from_diffusers,
            pixart.to_diffusers,
            pixart.names,
            norm="ada_norm_single",
        ),
        {
            "PixArtAlphaPipeline": Recipe(
                texts.pixart, steps=20, guidance=4.5, encoders=("text_encoder",), solver="dpmpp_2m"
            )
        },
    ),
    "sana": Architecture(
        sana.Sana,
        sana.SanaConfig,
        Counterpart(("SanaTransformer2DModel",), sana.from_diffusers, sana.to_diffusers, sana.names),
        {
            "SanaPipeline": Recipe(
                texts.sana,
                steps=20,
                guidance=4.5,
                encoders=("text_encoder",),
                unlike=partial(texts.sana, instructed=False),
                solver="dpmpp_2m",
            )
        },
    ),
    "crossdit": Architecture(crossdit.CrossDiT, crossdit.CrossDiTConfig),
    "mmdit": Architecture(
        mmdit.MMDiT,
        mmdit.MMDiTConfig,
        Counterpart(("SD3Transformer2DModel",), mmdit.from_diffusers, mmdit.to_diffusers, mmdit.names, mmdit.buffers),
        {
            "StableDiffusion3Pipeline": Recipe(
                texts.sd3,
                steps=28,
                guidance=7.0,
                encoders=("text_encoder", "text_encoder_2"),
                optional=("text_encoder_3",),
            )
        },
    ),
    "flux": Architecture(
        flux.Flux,
        flux.FluxConfig,
        Counterpart(("FluxTransformer2DModel",), flux.from_diffusers, flux.to_diffusers, flux.names),
        {
            "FluxPipeline": Recipe(
                texts.flux, steps=28, guidance=3.5, encoders=("text_encoder", "text_encoder_2"), told=True, even=True
            )
        },
    ),
    "flux2": Architecture(
        flux2.Flux2,
        flux2.Flux2Config,
        Counterpart(("Flux2Transformer2DModel",), flux2.from_diffusers, flux2.to_diffusers, flux2.names),
        {"Flux2Pipeline": FLUX2, "Flux2KleinPipeline": replace(FLUX2, condition=texts.flux2_klein, told=False)},
    ),
    "lumina2": Architecture(
        lumina2.Lumina2,
        lumina2.Lumina2Config,
        Counterpart(("Lumina2Transformer2DModel",), lumina2.from_diffusers, lumina2.to_diffusers, lumina2.names),
        {"Lumina2Pipeline": LUMINA2, "Lumina2Text2ImgPipeline": LUMINA2},
    ),
    "hidream": Architecture(
        hidream.HiDream,
        hidream.HiDreamConfig,
        Counterpart(("HiDreamImageTransformer2DModel",), hidream.from_diffusers, hidream.to_diffusers, hidream.names),
        {
            "HiDreamImagePipeline": Recipe(
                texts.hidream,
                steps=50,
                guidance=5.0,
                encoders=("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"),
                by_size=line((256, 0.5), (4096, 1.15)),
                patches=lambda config, *size: (
                    prod(config.largest) // config.patch_size**2
                ),  # of the largest image, whatever is drawn
            )
        },
    ),
    "ditair": Architecture(ditair.DiTAir, ditair.DiTAirConfig),
}

CLASSES = {kind.__name__: kind for entry in ARCHITECTURES.values() for kind in (entry.network, entry.config)}
COUNTERPARTS = {name: entry for entry in ARCHITECTURES.values() if entry.diffusers for name in entry.diffusers.classes}
PIPELINES = {name: entry for entry in ARCHITECTURES.values() for name in entry.pipelines}
"""The table by what else an entry is looked up by: its own classes, those of diffusers, those of pipelines."""

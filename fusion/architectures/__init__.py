"""The field's diffusion transformers, a page each: what one does that another does not, side by side.

All are called `forward(x, t, cond)`: noised latents of unit scale (b, c, h, w), times (b,) in [0, 1] with 1 for noise, and a Conditioning.
"""

from fusion.architectures.conditioning import Conditioning
from fusion.architectures.dit import DiT, DiTConfig
from fusion.architectures.flux import Flux, FluxConfig
from fusion.architectures.folders import load, save_diffusers
from fusion.architectures.mmdit import MMDiT, MMDiTConfig
from fusion.architectures.pipelines import Pipeline, pipeline
from fusion.architectures.pixart import PixArt, PixArtConfig

__all__ = [
    "Conditioning", "DiT", "DiTConfig", "Flux", "FluxConfig", "MMDiT", "MMDiTConfig", "Pipeline", "PixArt", "PixArtConfig",
    "load", "pipeline", "save_diffusers",
]  # fmt: skip

"""The field's diffusion transformers and the UNets before them, a page each: what one does that another does not, side by side.

All are called `forward(x, t, cond)`: noised latents of unit scale (b, c, h, w), times (b,) in [0, 1] with 1 for noise, and a Conditioning.
"""

from fusion.architectures.conditioning import Conditioning
from fusion.architectures.crossdit import CrossDiT, CrossDiTConfig
from fusion.architectures.dit import DiT, DiTConfig
from fusion.architectures.ditair import DiTAir, DiTAirConfig
from fusion.architectures.flux import Flux, FluxConfig
from fusion.architectures.flux2 import Flux2, Flux2Config
from fusion.architectures.folders import load, save_diffusers
from fusion.architectures.hidream import HiDream, HiDreamConfig
from fusion.architectures.lumina2 import Lumina2, Lumina2Config
from fusion.architectures.mmdit import MMDiT, MMDiTConfig
from fusion.architectures.painter import Painter, PainterConfig, load_painter, make_painter
from fusion.architectures.pipelines import Pipeline, pipeline
from fusion.architectures.pixart import PixArt, PixArtConfig
from fusion.architectures.sana import Sana, SanaConfig
from fusion.architectures.unet import UNet, UNetConfig
from fusion.architectures.uvit import UViT, UViTConfig

__all__ = [
    "Conditioning",
    "CrossDiT",
    "CrossDiTConfig",
    "DiT",
    "DiTAir",
    "DiTAirConfig",
    "DiTConfig",
    "Flux",
    "Flux2",
    "Flux2Config",
    "FluxConfig",
    "HiDream",
    "HiDreamConfig",
    "Lumina2",
    "Lumina2Config",
    "MMDiT",
    "MMDiTConfig",
    "Painter",
    "PainterConfig",
    "Pipeline",
    "PixArt",
    "PixArtConfig",
    "Sana",
    "SanaConfig",
    "UNet",
    "UNetConfig",
    "UViT",
    "UViTConfig",
    "load",
    "load_painter",
    "make_painter",
    "pipeline",
    "save_diffusers",
]

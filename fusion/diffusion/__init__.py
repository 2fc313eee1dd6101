"""The field's diffusion transformers and UNets, one file each behind one interface.

All are called `forward(x, t, cond)`: noised latents of unit scale (b, c, h, w), times (b,) in [0, 1] with 1 for noise,
and a Conditioning.
"""

from fusion.diffusion.checkpoints import load, save_diffusers
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.crossdit import CrossDiT, CrossDiTConfig
from fusion.diffusion.networks.dit import DiT, DiTConfig
from fusion.diffusion.networks.ditair import DiTAir, DiTAirConfig
from fusion.diffusion.networks.flux import Flux, FluxConfig
from fusion.diffusion.networks.flux2 import Flux2, Flux2Config
from fusion.diffusion.networks.hidream import HiDream, HiDreamConfig
from fusion.diffusion.networks.lumina2 import Lumina2, Lumina2Config
from fusion.diffusion.networks.mmdit import MMDiT, MMDiTConfig
from fusion.diffusion.networks.pixart import PixArt, PixArtConfig
from fusion.diffusion.networks.sana import Sana, SanaConfig
from fusion.diffusion.networks.unet import UNet, UNetConfig
from fusion.diffusion.networks.uvit import UViT, UViTConfig
from fusion.diffusion.pipelines import Pipeline, pipeline
from fusion.diffusion.text_to_image import TextToImage, TextToImageConfig, load_text_to_image, make_text_to_image

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
    "Pipeline",
    "PixArt",
    "PixArtConfig",
    "Sana",
    "SanaConfig",
    "TextToImage",
    "TextToImageConfig",
    "UNet",
    "UNetConfig",
    "UViT",
    "UViTConfig",
    "load",
    "load_text_to_image",
    "make_text_to_image",
    "pipeline",
    "save_diffusers",
]

_RENAMED = {
    "Painter": "TextToImage",
    "PainterConfig": "TextToImageConfig",
    "load_painter": "load_text_to_image",
    "make_painter": "make_text_to_image",
}


def __getattr__(name: str) -> None:
    """Say what a name that has changed is called now. Raises AttributeError for every name."""
    now = f": it is called {_RENAMED[name]} now" if name in _RENAMED else ""
    raise AttributeError(f"module 'fusion.diffusion' has no attribute {name!r}{now}")

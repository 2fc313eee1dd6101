"""The field's diffusion transformers and UNets, one file each behind one interface.

All are called `forward(x, t, cond)`: noised latents of unit scale (b, c, h, w), times (b,) in [0, 1] with 1 for noise,
and a Conditioning. The classes of every network in the table of architectures, and of its config, are names of this
package: `fusion.diffusion.DiT`, `fusion.diffusion.DiTConfig`.
"""

from typing import Any

from fusion.diffusion.architectures import CLASSES
from fusion.diffusion.checkpoints import load, save_diffusers
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.pipelines import Pipeline, pipeline
from fusion.diffusion.text_to_image import TextToImage, TextToImageConfig, load_text_to_image, make_text_to_image

__all__ = [
    "Conditioning",
    "Pipeline",
    "TextToImage",
    "TextToImageConfig",
    "load",
    "load_text_to_image",
    "make_text_to_image",
    "pipeline",
    "save_diffusers",
]
__all__.extend(CLASSES)

_RENAMED = {
    "Painter": "TextToImage",
    "PainterConfig": "TextToImageConfig",
    "load_painter": "load_text_to_image",
    "make_painter": "make_text_to_image",
}


def __getattr__(name: str) -> Any:
    """Give the class of a network or of its config. AttributeError for other names, which says what one that has
    changed is called now."""
    if name in CLASSES:
        return CLASSES[name]
    now = f": it is called {_RENAMED[name]} now" if name in _RENAMED else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{now}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""fusion: one decoder that reads and writes text and images, made from a pretrained LLM.

Public names are imported when they are first used, so that `import fusion` and `fusion --help` load neither torch nor
transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion.generation.api import Fusion, from_llm, load
    from fusion.generation.interleaved import ImageDone, ImagePreview, TextPiece
    from fusion.generation.sampling import Sampling
    from fusion.sequence.processor import FusionProcessor
    from fusion.unified.config import FusionConfig
    from fusion.unified.model import FusionModel

__version__ = "0.2.0"

_HOMES = {
    "Fusion": "fusion.generation.api",
    "FusionConfig": "fusion.unified.config",
    "FusionModel": "fusion.unified.model",
    "FusionProcessor": "fusion.sequence.processor",
    "ImageDone": "fusion.generation.interleaved",
    "ImagePreview": "fusion.generation.interleaved",
    "Sampling": "fusion.generation.sampling",
    "TextPiece": "fusion.generation.interleaved",
    "from_llm": "fusion.generation.api",
    "load": "fusion.generation.api",
}

__all__ = [
    "Fusion",
    "FusionConfig",
    "FusionModel",
    "FusionProcessor",
    "ImageDone",
    "ImagePreview",
    "Sampling",
    "TextPiece",
    "from_llm",
    "load",
    "register",
]


def register() -> None:
    """Make transformers' AutoConfig, AutoModel, AutoModelForCausalLM and AutoProcessor read saved fusion models.

    `fusion.load` and every other public name do so by themselves. Calling it again changes nothing.
    """
    import_module("fusion.generation.api").register()


def __getattr__(name: str) -> Any:
    """Import a public name from its module, and register the model with transformers. AttributeError for other
    names."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fusion' has no attribute {name!r}")
    register()
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

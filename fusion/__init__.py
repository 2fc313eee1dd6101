"""fusion: one decoder that reads and writes text and images, made from a pretrained LLM."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor

from fusion.generation.api import Fusion, from_llm, load
from fusion.generation.interleaved import ImageDone, ImagePreview, TextPiece
from fusion.generation.sampling import Sampling
from fusion.sequence.processor import FusionProcessor
from fusion.unified.model import FusionConfig, FusionModel

AutoConfig.register(FusionConfig.model_type, FusionConfig)
AutoModel.register(FusionConfig, FusionModel)
AutoModelForCausalLM.register(FusionConfig, FusionModel)  # what lm-eval loads through
AutoProcessor.register(FusionConfig, FusionProcessor)

__all__ = [
    "Fusion", "FusionConfig", "FusionModel", "FusionProcessor", "ImageDone", "ImagePreview", "Sampling", "TextPiece", "from_llm", "load",
]  # fmt: skip

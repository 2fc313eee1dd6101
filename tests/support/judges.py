"""Stubs for tests of benchmarks: an instant subject, and tiny random judges (Mask2Former, CLIP, LLaVA).

The judges lie in folders of the real ones' formats.
"""

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Mask2FormerConfig,
    SwinConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fusion.evaluation.benchmarks import draw
from fusion.evaluation.benchmarks.judges.detector import Mask2Former
from fusion.evaluation.benchmarks.judges.geneval_rules import CLASSES
from fusion.evaluation.subjects import Subject
from fusion.testing.tiny_llms import tiny_tokenizer

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TEMPLATE = "{% for block in messages[0].content %}{{ '<image>' if block.type == 'image' else block.text }}{% endfor %}"


class Stub(Subject):
    """Draws one colour for each seed, and remembers what it was asked."""

    def __init__(self):
        super().__init__("stub", {})
        self.asked = []

    def draw(self, prompts, seeds, size):
        self.asked += zip(prompts, seeds, strict=True)
        return [
            Image.new("RGB", size, tuple(np.random.default_rng(seed).integers(0, 256, 3).tolist())) for seed in seeds
        ]


def stubbed(monkeypatch) -> Stub:
    """What fusion.evaluation.benchmarks.draw draws with from now on."""
    stub = Stub()
    monkeypatch.setattr(draw, "load_subject", lambda model, params, device: stub)
    return stub


def tree(folder) -> dict:
    """All files with what is in them."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def error(capsys) -> str:
    """The one line that a program said."""
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ")
    return last


def detector_config(labels: int = len(CLASSES)) -> Mask2FormerConfig:
    """Of 6 queries."""
    swin = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=2,
        out_features=[f"stage{n}" for n in range(1, 5)],
    )
    return Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        num_labels=labels,
    )


def save_detector(folder, labels: int = len(CLASSES)):
    """A detector that is sure of what it sees, whatever that is."""
    model = Mask2Former(detector_config(labels))
    torch.nn.init.normal_(model.class_predictor.weight, std=20.0)
    model.save_pretrained(folder)
    return folder


def save_clip(folder):
    """With its tokenizer."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text |= {"max_position_embeddings": 77, "eos_token_id": 2, "bos_token_id": None}
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_vlm(folder):
    """LLaVA, whose words mean nothing."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.pad_token = tokenizer.eos_token
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    token = tokenizer.convert_tokens_to_ids("<image>")
    vision = {"model_type": "clip_vision_model"} | VISION
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=token, vision_feature_layer=-1)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(images, tokenizer, 8, "default", TEMPLATE, num_additional_image_tokens=1)
    processor.save_pretrained(folder)
    return folder

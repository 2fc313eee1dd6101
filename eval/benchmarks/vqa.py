"""Judges that answer questions about a picture with yes or no: any image-text-to-text model of transformers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

ASKED = "{question} Answer with one word, yes or no."
LENGTH = 8  # tokens of an answer
BATCH = 16  # questions asked at once


class Judge(Protocol):
    """name: for the figures it makes."""

    name: str

    def answers(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """What it says to each question, word for word."""


def yes(answer: str) -> bool:
    """Whether the first word is yes."""
    return re.match(r"\W*yes\b", answer, re.IGNORECASE) is not None


class VisionLanguageModel:
    """A judge that is spoken to through its own chat template, and answers with the likeliest tokens."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, name: str):
        self.model, self.processor, self.name = model.eval(), processor, name
        processor.tokenizer.padding_side = "left"  # answers follow each other's questions directly

    @torch.inference_mode()
    def answers(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """Judge's."""
        said = []
        for start in range(0, len(questions), BATCH):
            talks = [self._talk(image, question) for question in questions[start : start + BATCH]]
            how = {"padding": True, "return_tensors": "pt"}
            inputs = self.processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=how)
            inputs = inputs.to(self.model.device, self.model.dtype)
            ids = self.model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)[:, inputs["input_ids"].shape[1] :]
            said += self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return said

    @staticmethod
    def _talk(image: Image.Image, question: str) -> list[dict]:
        content = [{"type": "image", "image": image}, {"type": "text", "text": ASKED.format(question=question)}]
        return [{"role": "user", "content": content}]


def load_judge(name: str, device: str | None = None) -> VisionLanguageModel:
    """From a folder or a hub id, safetensors only. ValueError in one line where there is no such model."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", use_safetensors=True).to(device)
        processor = AutoProcessor.from_pretrained(name)
        if not getattr(processor, "chat_template", None):
            raise ValueError("its processor has no chat template")
    except (OSError, ValueError, KeyError, ImportError) as error:
        said = " ".join(str(error).split())[:120]
        raise ValueError(f"{name}: no judge there ({said}); give a folder or hub id of an image-text-to-text model of transformers") from None
    return VisionLanguageModel(model, processor, f"HF {Path(name).name}")

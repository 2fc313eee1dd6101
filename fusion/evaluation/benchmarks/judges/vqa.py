"""Judges that answer questions about images: any image-text-to-text model of transformers."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

ASKED = "{question} Answer with one word, yes or no."
LENGTH = 8  # most tokens of an answer
BATCH = 16  # most questions of a batch


@runtime_checkable
class Judge(Protocol):
    """A model that answers questions about images; name: of the judge, for its scores."""

    name: str
    at_once: int
    """Calls of `say` that may be under way together."""

    def say(self, parts: Sequence[str | Image.Image], length: int) -> str:
        """Return the answer to texts and images in their order, unparsed, in at most `length` tokens."""

    def answers(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """Return the answer to each yes-or-no question about the image, unparsed."""

    def likely(self, image: Image.Image, texts: Sequence[str], openings: Sequence[Sequence[str]]) -> list[float]:
        """Return for each text the probability that the answer to it begins as one of its openings does."""


def yes(answer: str) -> bool:
    """Return whether the first word of an answer is yes."""
    return re.match(r"\W*yes\b", answer, re.IGNORECASE) is not None


class VisionLanguageModel:
    """A local judge with its own chat template and greedy decoding."""

    at_once = 1

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, name: str):
        self.model, self.processor, self.name = model.eval(), processor, name
        processor.tokenizer.padding_side = "left"  # so that answers follow their questions directly

    def say(self, parts: Sequence[str | Image.Image], length: int) -> str:
        """Return the answer to texts and images in their order, unparsed, in at most `length` tokens."""
        return self._said([parts], length)[0]

    def answers(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """Return the answer to each yes-or-no question about the image, unparsed."""
        return self._said([[image, ASKED.format(question=question)] for question in questions], LENGTH)

    def likely(self, image: Image.Image, texts: Sequence[str], openings: Sequence[Sequence[str]]) -> list[float]:
        """Return for each text the probability that the answer's first token is that of one of its openings."""
        rows = self.beginnings(image, texts)
        return [
            min(1.0, row[first_tokens(self.processor.tokenizer, words)].sum().item())
            for row, words in zip(rows, openings, strict=True)
        ]

    @torch.inference_mode()
    def _said(self, talks: Sequence[Sequence[str | Image.Image]], length: int) -> list[str]:
        said = []
        for inputs in self._inputs(talks):
            ids = self.model.generate(**inputs, max_new_tokens=length, do_sample=False)[
                :, inputs["input_ids"].shape[1] :
            ]
            said += self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return said

    @torch.inference_mode()
    def beginnings(self, image: Image.Image, texts: Sequence[str]) -> Float[Tensor, "texts vocabulary"]:
        """Compute the probability of every token to begin the answer to each text about the image, in float32."""
        how = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        batches = self._inputs([[image, text] for text in texts])
        return torch.cat([self.model.generate(**inputs, **how).logits[0].float().softmax(-1) for inputs in batches])

    def _inputs(self, talks: Sequence[Sequence[str | Image.Image]]) -> Iterator[BatchFeature]:
        how = {"padding": True, "return_tensors": "pt"}
        for start in range(0, len(talks), BATCH):
            chats = [
                [{"role": "user", "content": [block(part) for part in parts]}] for parts in talks[start : start + BATCH]
            ]
            inputs = self.processor.apply_chat_template(
                chats, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=how
            )
            yield inputs.to(self.model.device, self.model.dtype)


def first_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """Return the ids of the words' first tokens, sorted, each once."""
    return sorted({tokenizer.encode(word, add_special_tokens=False)[0] for word in words})


def block(part: str | Image.Image) -> dict[str, Any]:
    """Convert a text or an image to a block of a chat message."""
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}


def load_judge(name: str, device: str | None = None) -> VisionLanguageModel:
    """Load a judge from a folder or hub id, safetensors only; ValueError, in one line, if there is no such model."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", use_safetensors=True).to(device)
        processor = AutoProcessor.from_pretrained(name)
        if not getattr(processor, "chat_template", None):
            raise ValueError("its processor has no chat template")
    except (OSError, ValueError, KeyError, ImportError) as error:
        said = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{name}: no judge there ({said}); give a folder or hub id of an image-text-to-text model of transformers"
        ) from None
    return VisionLanguageModel(model, processor, f"HF {Path(name).name}")

"""Sample sheets: what the model answers to fixed prompts with fixed seeds, as PNGs with captions under the images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fusion.common.atomic import save
from fusion.common.contact_sheet import Cell, contact_sheet
from fusion.common.html import png
from fusion.data.formats import Sample
from fusion.generation.api import Fusion
from fusion.generation.presets import SAMPLING_PARAMETERS
from fusion.generation.sampling import Sampling
from fusion.sequence.document import blocks
from fusion.sequence.images import open_image


@dataclass
class ImageSampling:
    """How images are drawn, as a config says it: names, meanings and defaults are those of
    fusion.generation.sampling.Sampling."""

    steps: int = Sampling.steps
    solver: str = Sampling.solver
    shift: float = Sampling.shift
    guidance: float = Sampling.guidance

    @property
    def params(self) -> dict[str, Any]:
        """Arguments of whatever draws."""
        return {name: getattr(self, name) for name in SAMPLING_PARAMETERS if hasattr(self, name)}


@dataclass
class Samples(ImageSampling):
    """What is sampled at intervals. prompts: texts. held_out: documents of each source whose last answer is given
    again, beside the true one. seed, image_guidance, max_new_tokens: see fusion.generation.sampling.Sampling."""

    prompts: list[str] = field(default_factory=list)
    held_out: int = 8
    seed: int = 0
    image_guidance: float = Sampling.image_guidance
    max_new_tokens: int = 64

    @property
    def params(self) -> dict[str, Any]:
        """What goes to Fusion.generate."""
        return super().params | {"max_new_tokens": self.max_new_tokens, "max_images": 2}


@dataclass(frozen=True)
class Prompt:
    """Chat messages that end with the user's turn, and the true answer as texts and images where one is known."""

    messages: list[dict]
    truth: tuple = ()


def ask(text: str) -> Prompt:
    """A prompt of plain text."""
    return Prompt([{"role": "user", "content": text}])


def from_samples(samples: Iterable[Sample]) -> list[Prompt]:
    """Conversations without their last answer; pages have no answer and are left out."""
    prompts = []
    for sample in samples:
        if sample.messages and sample.messages[-1]["role"] == "assistant":
            answer = blocks(sample.messages[-1]["content"])
            prompts.append(Prompt(sample.messages[:-1], tuple(block[block["type"]] for block in answer)))
    return prompts


class Sampler:
    """Writes one sheet per group of prompts into a folder: `sampler(folder)`."""

    def __init__(self, fusion: Fusion, groups: Mapping[str, Sequence[Prompt]], settings: Samples):
        self.fusion, self.settings = fusion, settings
        self.groups = {name: list(prompts) for name, prompts in groups.items() if prompts}

    def __call__(self, folder: str | Path) -> None:
        """Answer every prompt and write `folder`/<group>.png."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, prompts in self.groups.items():
            answers = self.fusion.generate(
                [prompt.messages for prompt in prompts], seed=self.settings.seed, **self.settings.params
            )
            save(png(sheet(prompts, answers)), folder / f"{name}.png")


def sheet(prompts: Sequence[Prompt], answers: Sequence[Sequence[str | Image.Image]]) -> Image.Image:
    """One image of all prompts and answers, in reading order: each as what was given, drawn and true, with its words
    under it."""
    return contact_sheet([_cell(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])


def _cell(prompt: Prompt, answer: Sequence[str | Image.Image]) -> Cell:
    given = [block for message in prompt.messages for block in blocks(message["content"])]
    images = [(open_image(block["image"]), "given") for block in given if block["type"] == "image"]
    images += [(part, "drawn") for part in answer if isinstance(part, Image.Image)]
    images += [(open_image(part), "true") for part in prompt.truth if not isinstance(part, str)]
    words = [block["text"] for block in given if block["type"] == "text"]
    words += [f"answer: {part}" for part in answer if isinstance(part, str)]
    notes = [f"true: {part}" for part in prompt.truth if isinstance(part, str)]
    return Cell([image for image, _ in images], words, labels=[label for _, label in images], notes=notes)

"""Subjects of an evaluation behind one interface: unified and text-to-image models, and diffusers pipelines."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fusion.diffusion import load_text_to_image, pipeline
from fusion.diffusion.architectures import PIPELINES
from fusion.diffusion.pipelines import INDEX, Pipeline
from fusion.diffusion.text_to_image import CONFIG as TEXT_TO_IMAGE
from fusion.diffusion.text_to_image import TextToImage
from fusion.generation import api, presets
from fusion.generation.api import Fusion, place
from fusion.generation.interleaved import ImageDone
from fusion.worlds.shapes import laid_out

ANSWER, OPENING, DESCRIPTION = 12, 64, 48  # tokens of an answer, up to a story's first image, and of a description
STORY, IMAGES = 256, 4  # tokens of a story, and its images
Size = tuple[int, int]
Pair = tuple[Image.Image, Image.Image]


class Subject:
    """can: which of draw, edit, follow, answer, decide, describe and tell it does. params: of its sampler. Every method
    takes a seed for each row, and what comes of a row depends on the row and its seed alone."""

    can: frozenset[str] = frozenset({"draw"})

    def __init__(self, kind: str, params: dict[str, Any]):
        self.kind, self.params = kind, params

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], size: Size) -> list[Image.Image]:
        """An image of each prompt, (width, height) in pixels."""
        raise NotImplementedError

    def edit(
        self, images: Sequence[Image.Image], instructions: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image]:
        """Each image, all of one size, after its instruction."""
        raise NotImplementedError

    def compose(
        self, sources: Sequence[Sequence[Image.Image]], instructions: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image]:
        """An image out of each row's, of any size and number, after its instruction: of the size at which the last of
        the first row is read."""
        raise NotImplementedError

    def fitted(self, image: Image.Image) -> Size:
        """(width, height) at which it reads an image."""
        raise NotImplementedError

    def follow(
        self, examples: Sequence[Sequence[Pair]], images: Sequence[Image.Image], seeds: Sequence[int]
    ) -> list[Image.Image]:
        """Each image, all of one size, changed as its examples, images before and after, are; without examples, as it
        thinks fit."""
        raise NotImplementedError

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """What it says to a question about each image."""
        raise NotImplementedError

    def describe(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[str]:
        """What it says each image shows."""
        raise NotImplementedError

    def tell(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[list[str | Image.Image]]:
        """The story, texts and images in turn, that each prompt asks for."""
        raise NotImplementedError

    def decide(self, messages: Sequence[dict], seeds: Sequence[int], size: Size) -> list[bool]:
        """Whether it draws an image when a user begins with each message."""
        raise NotImplementedError


class Unified(Subject):
    """A model of text and images."""

    can = frozenset({"draw", "edit", "follow", "answer", "decide", "describe", "tell"})

    def __init__(self, model: Fusion, params: dict[str, Any]):
        super().__init__("unified model", params)
        self.model = model

    def draw(self, prompts, seeds, size):
        # There is no image to be guided by, and a branch for it would only cost time.
        return self.model._images(
            [[prompt] for prompt in prompts], seeds, {"image_size": size, **self.params, "image_guidance": 1.0}
        )

    def edit(self, images, instructions, seeds):
        prompts = [[image, words] for image, words in zip(images, instructions, strict=True)]
        return self.model._images(prompts, seeds, {**self.params, "image_size": images[0].size})

    def compose(self, sources, instructions, seeds):
        prompts = [[*images, words] for images, words in zip(sources, instructions, strict=True)]
        return self.model._images(prompts, seeds, {**self.params, "image_size": self.fitted(sources[0][-1])})

    def fitted(self, image):
        return self.model.fitted_size(image)

    def follow(self, examples, images, seeds):
        prompts = [laid_out(pairs, image) for pairs, image in zip(examples, images, strict=True)]
        return self.model._images(prompts, seeds, {**self.params, "image_size": images[0].size})

    def answer(self, images, questions, seeds, length: int = ANSWER):
        prompts = [[image, words] for image, words in zip(images, questions, strict=True)]
        replies = self.model.generate(prompts, seeds, **{**self.params, "max_images": 0, "max_new_tokens": length})
        return ["".join(reply) for reply in replies]

    def describe(self, images, seeds):
        return self.answer(images, ["Describe this picture."] * len(images), seeds, DESCRIPTION)

    def tell(self, prompts, seeds):
        limits = {"max_images": IMAGES, "max_new_tokens": STORY, "image_guidance": 1.0}
        return self.model.generate([[prompt] for prompt in prompts], seeds, **{**self.params, **limits})

    def decide(self, messages, seeds, size):
        # What counts is whether an answer comes to an image at all: it is drawn in one step, and nothing is written
        # behind it.
        quick = {
            "image_size": size,
            "steps": 1,
            "solver": "euler",
            "guidance": 1.0,
            "image_guidance": 1.0,
            "max_new_tokens": OPENING,
        }
        events = self.model._events(
            [[one] for one in messages], seeds, {**self.params, **quick, "max_images": 1}, only_image=True
        )
        drew = {event.row for event in events if isinstance(event, ImageDone)}
        return [row in drew for row in range(len(messages))]


class Painted(Subject):
    """A diffusion transformer of this repository."""

    def __init__(self, text_to_image: TextToImage, params: dict[str, Any]):
        super().__init__(text_to_image.config.architecture, params)
        self.text_to_image = text_to_image

    def draw(self, prompts, seeds, size):
        return self.text_to_image.images(list(prompts), seeds, size=size, **self.params)


class Piped(Subject):
    """A whole pipeline of diffusers, at its own usual size; images are then brought to the size that was asked
    for."""

    def __init__(self, pipe: Pipeline | Any, kind: str, params: dict[str, Any]):
        super().__init__(kind, params)
        self.pipe = pipe

    def draw(self, prompts, seeds, size):
        images = [self._one(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return [image if image.size == tuple(size) else image.resize(size, Image.Resampling.BOX) for image in images]

    def _one(self, prompt: str, seed: int) -> Image.Image:
        if isinstance(self.pipe, Pipeline):
            return self.pipe.draw(prompt, seed=seed, **self.params)[0]
        return self.pipe(prompt, generator=torch.Generator().manual_seed(seed), **self.params).images[0]


def load_subject(folder: str | Path, params: dict[str, Any], device: str | None = None) -> Subject:
    """What lies in a folder: a saved unified model (or a bundled one by its name), a text-to-image model, or a pipeline
    that diffusers saved; those that have no recipe here are run by diffusers itself. ValueError in one line for
    anything else."""
    path = Path(folder)
    if (path / TEXT_TO_IMAGE).is_file():
        return Painted(load_text_to_image(path, device), params)
    if (path / INDEX).is_file():
        kind = json.loads((path / INDEX).read_text(encoding="utf-8")).get("_class_name", "pipeline")
        return Piped(pipeline(path, device=device) if kind in PIPELINES else _by_diffusers(path, device), kind, params)
    try:
        return Unified(api.load(folder, dtype=torch.float32, device=device), params)
    except ValueError as error:
        if (path / "config.json").is_file():
            raise
        raise ValueError(
            f"{error}; nor is it a text-to-image model's folder ({TEXT_TO_IMAGE}) or a pipeline's ({INDEX})"
        ) from None


def with_preset(folder: str | Path, params: dict[str, Any]) -> dict[str, Any]:
    """Sampling parameters as numbers: with those of the preset of a unified model's folder that they name, if they name
    one. ValueError in one line."""
    return presets.resolved(params, presets.read(place(folder))) if params.get("preset") is not None else params


def _by_diffusers(path: Path, device: str | None):
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(path, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device) if device else pipe

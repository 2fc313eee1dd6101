"""Models under evaluation (subjects) behind one interface: unified and text-to-image models, diffusers pipelines."""

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

ANSWER, OPENING, DESCRIPTION = 12, 64, 48  # most tokens of an answer, of a reply in `decide`, and of a description
STORY, IMAGES = 256, 4  # most tokens and images of a story
Size = tuple[int, int]
Pair = tuple[Image.Image, Image.Image]


class Subject:
    """A model under evaluation.

    kind: the type of model, for reports. params: sampling parameters. can: the tasks that it supports, of draw, edit,
    follow, answer, decide, describe and tell. Every method takes one seed per row, and the result of a row depends on
    the row and its seed alone. Unsupported tasks raise NotImplementedError.
    """

    can: frozenset[str] = frozenset({"draw"})

    def __init__(self, kind: str, params: dict[str, Any]):
        self.kind, self.params = kind, params

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], size: Size) -> list[Image.Image]:
        """Generate an image for each prompt; size: (width, height) in pixels."""
        raise NotImplementedError

    def edit(
        self, images: Sequence[Image.Image], instructions: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image]:
        """Edit each image by its instruction; all images have the same size, which is also that of the results."""
        raise NotImplementedError

    def compose(
        self, sources: Sequence[Sequence[Image.Image]], instructions: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image]:
        """Generate an image from each row's source images and instruction.

        A row may have any number of images of any size. All results have the size at which the model reads the last
        image of the first row (`fitted`).
        """
        raise NotImplementedError

    def fitted(self, image: Image.Image) -> Size:
        """Return the (width, height) in pixels at which the model reads an image."""
        raise NotImplementedError

    def follow(
        self, examples: Sequence[Sequence[Pair]], images: Sequence[Image.Image], seeds: Sequence[int]
    ) -> list[Image.Image]:
        """Change each image as its examples show.

        examples: pairs of images (before, after) of each row; without any, the model chooses the change. images: all of
        the same size, which is also that of the results.
        """
        raise NotImplementedError

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Return the model's answer to the question about each image."""
        raise NotImplementedError

    def describe(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[str]:
        """Return the model's description of each image."""
        raise NotImplementedError

    def tell(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[list[str | Image.Image]]:
        """Generate the story that each prompt requests, as a list of alternating texts and images."""
        raise NotImplementedError

    def decide(self, messages: Sequence[dict], seeds: Sequence[int], size: Size) -> list[bool]:
        """Return whether the model's answer to each message, as the first of a conversation, contains an image.

        messages: each a user's turn, {"role", "content"}. size: (width, height) of that image in pixels.
        """
        raise NotImplementedError


class Unified(Subject):
    """A unified model of text and images, which supports every task."""

    can = frozenset({"draw", "edit", "follow", "answer", "decide", "describe", "tell"})

    def __init__(self, model: Fusion, params: dict[str, Any]):
        super().__init__("unified model", params)
        self.model = model

    def draw(self, prompts, seeds, size):
        # Without an image in context, image guidance has no effect, and its branch would only cost time.
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
        # Only whether the answer contains an image matters: the image takes one step, and generation ends after it.
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
    """A text-to-image diffusion model of this repository."""

    def __init__(self, text_to_image: TextToImage, params: dict[str, Any]):
        super().__init__(text_to_image.config.architecture, params)
        self.text_to_image = text_to_image

    def draw(self, prompts, seeds, size):
        return self.text_to_image.images(list(prompts), seeds, size=size, **self.params)


class Piped(Subject):
    """A complete diffusers pipeline at its default size; its images are resized to the requested size (box filter)."""

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
    """Load the model in a folder.

    folder: of a saved unified model (or a bundled one's name), a text-to-image model, or a pipeline that diffusers
    saved; a pipeline that has no recipe in this repository is run by diffusers itself. Unified models run in fp32.
    params: sampling parameters of the subject. Raises ValueError, in one line, for anything else.
    """
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
    """Resolve the preset that `params` names, if any, to sampling parameters as numbers.

    folder: of the unified model (or a bundled one's name) that has the preset; parameters beside `preset` override it.
    Raises ValueError, in one line, for an unknown preset.
    """
    return presets.resolved(params, presets.read(place(folder))) if params.get("preset") is not None else params


def _by_diffusers(path: Path, device: str | None):
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(path, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device) if device else pipe

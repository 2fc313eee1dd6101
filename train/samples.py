"""Sample sheets: what the model answers to fixed prompts with fixed seeds, as PNGs with captions under the pictures."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fusion.api import Fusion
from fusion.data.sources import Sample
from fusion.document import blocks
from fusion.images import open_image

PAPER, INK, QUIET = (255, 255, 255), (28, 29, 33), (116, 118, 127)
CELL, GAP, LINE, COLUMNS = 128, 16, 16, 6  # pixels: longer side of a picture, space around it, height of a line; pictures in a row
FONT = 12


@dataclass
class Samples:
    """What is sampled at intervals. prompts: texts. held_out: documents of each source whose last answer is given again, beside the
    true one. seed, steps, guidance, image_guidance, max_new_tokens: see fusion.sampling.Sampling."""

    prompts: list[str] = field(default_factory=list)
    held_out: int = 8
    seed: int = 0
    steps: int = 20
    guidance: float = 3.0
    image_guidance: float = 1.0
    max_new_tokens: int = 64

    @property
    def knobs(self) -> dict[str, Any]:
        """What goes to Fusion.generate."""
        names = ("steps", "guidance", "image_guidance", "max_new_tokens")
        return {name: getattr(self, name) for name in names} | {"max_images": 2}


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
            answers = self.fusion.generate([prompt.messages for prompt in prompts], seed=self.settings.seed, **self.settings.knobs)
            write(sheet(prompts, answers), folder / f"{name}.png")


def sheet(prompts: Sequence[Prompt], answers: Sequence[Sequence[str | Image.Image]]) -> Image.Image:
    """One picture of all prompts and answers, in reading order: each as what was given, drawn and true, with its words under it."""
    cells = [_cell(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    rows: list[list[Image.Image]] = [[]]
    room = COLUMNS * (CELL + GAP)
    for cell in cells:
        if rows[-1] and sum(c.width for c in rows[-1]) + cell.width > room:
            rows.append([])
        rows[-1].append(cell)
    width, height = max(sum(c.width for c in row) for row in rows), sum(max(c.height for c in row) for row in rows)
    page = Image.new("RGB", (width + GAP, height + GAP), PAPER)
    y = GAP
    for row in rows:
        x = GAP
        for cell in row:
            page.paste(cell, (x, y))
            x += cell.width
        y += max(c.height for c in row)
    return page


def _cell(prompt: Prompt, answer: Sequence[str | Image.Image]) -> Image.Image:
    given = [block for message in prompt.messages for block in blocks(message["content"])]
    pictures = [(open_image(block["image"]), "given") for block in given if block["type"] == "image"]
    pictures += [(part, "drawn") for part in answer if isinstance(part, Image.Image)]
    pictures += [(open_image(part), "true") for part in prompt.truth if not isinstance(part, str)]
    width = max(1, len(pictures)) * (CELL + GAP)
    words = [(block["text"], INK) for block in given if block["type"] == "text"]
    words += [(f"answer: {part}", INK) for part in answer if isinstance(part, str)]
    words += [(f"true: {part}", QUIET) for part in prompt.truth if isinstance(part, str)]
    lines = [(line, colour) for text, colour in words for line in _wrapped(text, width - GAP)]
    top = CELL + LINE + 4 if pictures else 0
    cell = Image.new("RGB", (width, top + LINE * len(lines) + GAP), PAPER)
    draw, font = ImageDraw.Draw(cell), _font()
    for index, (picture, label) in enumerate(pictures):
        shown = _enlarged(picture)
        x = index * (CELL + GAP)
        cell.paste(shown, (x, CELL - shown.height))
        draw.text((x, CELL + 2), label, fill=QUIET, font=font)
    for index, (line, colour) in enumerate(lines):
        draw.text((0, top + LINE * index), line, fill=colour, font=font)
    return cell


def _enlarged(picture: Image.Image) -> Image.Image:
    """Small pictures by a whole number with hard edges, large ones reduced, so that the longer side is about CELL."""
    longest = max(picture.size)
    if longest <= CELL:
        factor = CELL // longest
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture.resize([max(1, round(side * CELL / longest)) for side in picture.size], Image.Resampling.LANCZOS)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken between words, and inside a word that is wider than a line."""
    font, lines = _font(), [""]
    for character in text.replace("\n", " "):
        if font.getlength(lines[-1] + character) > width:
            line, space, word = lines[-1].rpartition(" ")
            lines[-1:] = [line, word] if space else [lines[-1], ""]
        lines[-1] += character
    return [line.strip() for line in lines]


def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(FONT)


def write(image: Image.Image, path: Path) -> None:
    """A PNG, whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        image.save(file, format="PNG")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)

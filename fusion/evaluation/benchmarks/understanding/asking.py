"""Benchmark questions about images: placeholders of images in the text, and a model's answers as text alone."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from fusion.generation.api import Fusion

LENGTH = 256  # most tokens of an answer, unless the task says how many
PLACE = re.compile(r"<image(?: (\d+))?>")


def prompt_of(text: str, images: Sequence[Image.Image]) -> list[str | Image.Image]:
    """Arrange a text and its images as one user's turn.

    `<image>` stands for the next image and `<image 2>` for the second, where it is first named; images that the text
    does not name come before it, and a placeholder without an image stays text.
    """
    order, named = [], 0
    for match in PLACE.finditer(text):
        number = int(match[1]) - 1 if match[1] else named
        named += not match[1]
        new = 0 <= number < len(images) and number not in {other for other, _ in order}
        order += [(number, match.span())] if new else []
    parts: list[str | Image.Image] = [
        image for number, image in enumerate(images) if number not in {other for other, _ in order}
    ]
    start = 0
    for number, (first, last) in order:
        parts += [text[start:first], images[number]]
        start = last
    return [part for part in [*parts, text[start:]] if not isinstance(part, str) or part.strip()]


def answers(
    model: Fusion, prompts: Sequence[list], seed: int, params: Mapping[str, Any], until: Sequence[str] = ()
) -> list[str]:
    """Generate a text answer to each prompt, without images, cut where one of `until` begins.

    Row r uses seed + r. params: sampling parameters.
    """
    replies = model.generate([*prompts], seed, **{**params, "max_images": 0})
    return [cut("".join(part for part in reply if isinstance(part, str)), until) for reply in replies]


def cut(text: str, until: Sequence[str]) -> str:
    """Cut a text at the first occurrence of any of the `until` strings."""
    return text[: min([place for one in until if one and (place := text.find(one)) >= 0], default=len(text))]


# ---- how benchmarks say what they want ----


def wanted(settings: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Convert `generation_kwargs` of a task of lmms-eval to sampling parameters, and the strings that end an answer.

    An empty line, with which lmms-eval ends an answer unless a task says otherwise, is left out: here a turn ends by
    itself. Raises ValueError for beam search.
    """
    if (settings.get("num_beams") or 1) != 1:
        raise ValueError(
            f"num_beams={settings['num_beams']}: answers are written token by token; give --gen_kwargs num_beams=1"
        )
    temperature = 0.0 if settings.get("do_sample") is False else settings.get("temperature") or 0.0
    length, nucleus, until = (
        settings.get("max_new_tokens") or LENGTH,
        settings.get("top_p") or 1.0,
        settings.get("until") or (),
    )
    params = {"max_new_tokens": int(length), "temperature": float(temperature), "top_p": float(nucleus)}
    return params, tuple(one for one in ((until,) if isinstance(until, str) else until) if one != "\n\n")


def together(settings: Sequence[Any], most: int) -> Iterator[range]:
    """Split requests into ranges of neighbours with equal settings, at most `most` each."""
    start = 0
    while start < len(settings):
        end = start + 1
        while end < len(settings) and end - start < most and settings[end] == settings[start]:
            end += 1
        yield range(start, end)
        start = end

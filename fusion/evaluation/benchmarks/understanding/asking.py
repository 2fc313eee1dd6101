"""Benchmark questions about images: where images stand in the text, and a model's answers as text alone."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from fusion.generation.api import Fusion

LENGTH = 256  # tokens of an answer, where nobody says how many
PLACE = re.compile(r"<image(?: (\d+))?>")


def prompt_of(text: str, images: Sequence[Image.Image]) -> list[str | Image.Image]:
    """One user's turn. `<image>` stands for the next image and `<image 2>` for the second, there where it is named
    first; those that the text does not name come before it, and what names none is text."""
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
    """What a model says to each prompt, without drawing, cut off where one of `until` begins. Row r uses seed + r."""
    replies = model.generate([*prompts], seed, **{**params, "max_images": 0})
    return [cut("".join(part for part in reply if isinstance(part, str)), until) for reply in replies]


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first of some others in it."""
    return text[: min([place for one in until if one and (place := text.find(one)) >= 0], default=len(text))]


# ---- how benchmarks say what they want ----


def wanted(settings: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`generation_kwargs` of a task of lmms-eval as sampling parameters of the sampler, and the ends of an answer.
    ValueError for a search by beams.

    An empty line, with which lmms-eval ends an answer unless a task says otherwise, is none: here a turn ends by
    itself."""
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
    """Places of neighbours that want the same, at most so many."""
    start = 0
    while start < len(settings):
        end = start + 1
        while end < len(settings) and end - start < most and settings[end] == settings[start]:
            end += 1
        yield range(start, end)
        start = end
